"""Folders, names and loaded models; what is none of them is one clear line."""

from pathlib import Path

import pytest
import torch

from acedit.errors import UserError
from acedit.lm.loading import load
from tests.tiny import byte_tokenizer, tiny_lm, tiny_model

TEXTS = ["Ann Lee is a citizen of", "Bo Ray is", "Bo"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny llama and its tokenizer."""
    path = tmp_path / "model"
    tiny_model("llama").save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


def test_a_folder_loads_as_the_model_it_was_saved_from(folder: Path) -> None:
    lm, original = load(folder), tiny_lm("llama")
    assert torch.equal(lm.logits(TEXTS), original.logits(TEXTS))
    assert lm.fingerprint == original.fingerprint
    assert load(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    assert load(folder, dtype=torch.float64).dtype == torch.float64
    assert load(folder, device_map="cpu").device == torch.device("cpu")


def test_a_loaded_model_needs_its_tokenizer() -> None:
    model = tiny_model("llama")
    assert load(model, tokenizer=byte_tokenizer()).model is model
    with pytest.raises(UserError, match="tokenizer"):
        load(model)
    with pytest.raises(UserError, match="already loaded"):
        load(model, tokenizer=byte_tokenizer(), dtype="float32")


def one_line(error: pytest.ExceptionInfo[UserError]) -> bool:
    """Whether the message fits a terminal's line of reading."""
    return "\n" not in str(error.value)


def test_what_is_not_a_model_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder") as error:
        load(tmp_path / "nowhere")
    assert one_line(error)
    with pytest.raises(UserError, match="is a file"):
        load(folder / "config.json")
    with pytest.raises(UserError, match=r"no config\.json") as error:
        load(tmp_path)
    assert one_line(error)
    with pytest.raises(UserError, match="no such folder") as error:
        load("no-such-name")
    assert one_line(error)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot load") as error:
        load(folder)
    assert one_line(error)
    weights.unlink()
    with pytest.raises(UserError, match="cannot load") as error:
        load(folder)
    assert one_line(error)
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="'mamba' is not known"):
        load(folder)
    for unheard in ('{"model_type": "foo"}', "{}"):
        (folder / "config.json").write_text(unheard)
        with pytest.raises(UserError, match="is not known; known: gemma2"):
            load(folder)
    for broken in ("{", '{"model_type": "llama", "num_hidden_layers": "x"}'):
        (folder / "config.json").write_text(broken)
        with pytest.raises(UserError, match="cannot load") as error:
            load(folder)
        assert one_line(error)


def test_a_checkpoint_with_weights_missing_is_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 of the model's weights"):
        load(folder)
