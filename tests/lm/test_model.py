"""Loading, encoding, fingerprints and greedy generation."""

from pathlib import Path

import pytest
import torch

from acedit.errors import UserError
from acedit.knowledge import prompts
from acedit.lm.model import LanguageModel, load
from tests.tiny import byte_tokenizer, tiny_lm, tiny_model

TEXTS = [
    "Ann Lee is a citizen of",
    "Bo Ray is",
    "Question: What is the capital of Chile?\nAnswer:",
    "The capital of Peru",
    "Bo",
]


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
    (folder / "config.json").write_text("{")
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


def test_encode_pads_on_the_right_with_the_tokenizer_s_special_tokens() -> None:
    lm = LanguageModel(tiny_model("llama"), byte_tokenizer(bos=True))
    encoded = lm.encode(TEXTS)
    assert bool((encoded.input_ids[:, 0] == 0).all())
    assert encoded.lengths.tolist() == [len(lm.tokenizer(t)["input_ids"]) for t in TEXTS]
    for row, mask, last in zip(encoded.input_ids, encoded.attention_mask, encoded.last.tolist(), strict=True):
        assert mask.tolist() == [1] * (last + 1) + [0] * (len(row) - last - 1)
    two = encoded.rows(torch.tensor([1, 1]))
    assert torch.equal(two.input_ids[0], encoded.input_ids[1])


def test_prompts_that_cannot_be_run_are_refused() -> None:
    lm = tiny_lm("llama")
    for texts in ([], [""]):
        with pytest.raises(UserError):
            lm.encode(texts)
    with pytest.raises(UserError, match="context is 128"):
        lm.encode(["Peru " * 300])
    begun = LanguageModel(tiny_model("llama"), byte_tokenizer(bos=True))
    with pytest.raises(UserError, match="a prompt is empty"):
        begun.encode(["Peru", ""])


def test_the_fingerprint_tells_models_apart_and_is_kept() -> None:
    lm = tiny_lm("gpt2")
    assert lm.fingerprint == tiny_lm("gpt2").fingerprint
    others = [tiny_lm("gpt2", seed=1), tiny_lm("gpt2", dtype=torch.bfloat16), tiny_lm("llama")]
    assert len({lm.fingerprint, *(other.fingerprint for other in others)}) == 4
    before = lm.fingerprint
    lm.down_weight(0).data.add_(1)
    assert lm.fingerprint == before
    assert LanguageModel(lm.model, lm.tokenizer).fingerprint != before


def test_subvalues_are_a_view_whatever_the_orientation(lm: LanguageModel) -> None:
    before = lm.subvalues(1)[3].clone()
    lm.subvalues(1)[3] += 1
    assert torch.equal(lm.subvalues(1)[3], before + 1)
    assert lm.subvalues(1).shape == (lm.n_neurons, lm.d_model)
    assert lm.subvalues(1).data_ptr() == lm.down_weight(1).data_ptr()


def greedy_reference(lm: LanguageModel, text: str, steps: int) -> str:
    """Greedy, one prompt at a time, by Hugging Face's own generate."""
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
    out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False)
    return str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_generation_is_greedy_whatever_the_batch(lm: LanguageModel) -> None:
    batched = lm.generate(TEXTS, max_new_tokens=10, stop=())
    assert batched == [lm.generate([t], max_new_tokens=10, stop=())[0] for t in TEXTS]
    assert batched == lm.generate(TEXTS, max_new_tokens=10, stop=(), batch_size=2)
    assert batched == [greedy_reference(lm, t, 10) for t in TEXTS]
    assert len(set(batched)) > 1


def test_an_answers_loss_is_that_of_its_tokens(lm: LanguageModel) -> None:
    texts, answers = ["The capital of Peru is", "Bo Ray"], ["Lima", "Santiago"]
    found = lm.answer_nll(texts, answers)
    for text, answer, loss in zip(texts, answers, found, strict=True):
        ids, tail = lm.encode([text]).input_ids[0].tolist(), lm.token_ids(answer)
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids + tail])).logits[0].float().log_softmax(-1)
        each = [float(logits[len(ids) - 1 + i, token]) for i, token in enumerate(tail)]
        assert loss == pytest.approx(-sum(each) / len(each), abs=1e-4)
    with pytest.raises(UserError, match="context"):
        lm.answer_nll(["x" * (lm.context - 2)], ["Santiago de Chile"])


def test_a_shared_prefix_is_run_once_and_changes_nothing(lm: LanguageModel) -> None:
    prefix = "Question: Who is the head of state of Peru?\nThoughts: " * 2
    texts = [prefix + text for text in ("Bo Ray", "Ann Lee is a citizen of", "The capital of Peru is")]
    shared = lm._shared_prefix(lm._ids(texts))
    slides = lm.model.config.model_type in ("mistral", "gemma2", "gemma3_text")
    assert (shared is None) == slides
    if shared is not None:
        assert len(shared.ids) > 32
        assert shared.cache.get_seq_length() == len(shared.ids)
    whole = [lm.generate([text], max_new_tokens=30, stop=())[0] for text in texts]
    # A stop that ends one row early and leaves another to its end: rows are let go on the way.
    stop = (whole[0][6:8] or "x",)
    alone = [lm.generate([text], max_new_tokens=30, stop=stop)[0] for text in texts]
    assert len(alone[0]) < len(whole[0]) or not whole[0]
    assert lm.generate(texts, max_new_tokens=30, stop=()) == whole
    assert lm.generate(texts, max_new_tokens=30, stop=stop) == alone
    assert lm.generate(texts, max_new_tokens=30, stop=stop, batch_size=2) == alone


def test_generation_stops_before_a_stop_string() -> None:
    lm = tiny_lm("llama")
    whole = lm.generate(TEXTS, max_new_tokens=24, stop=())
    stops = [whole[0][4:6], whole[1][9:10]]
    for text, cut in zip(whole, lm.generate(TEXTS, max_new_tokens=24, stop=stops), strict=True):
        first = min((text.find(s) for s in stops if s in text), default=len(text))
        assert cut == text[:first]


def test_a_prompt_near_the_context_s_end_gets_the_room_there_is() -> None:
    lm = tiny_lm("gpt2")
    length = lm.context - 3
    text = "x" * length
    assert len(lm.tokenizer(text)["input_ids"]) == length
    new = lm.generate([text], max_new_tokens=32, stop=())[0]
    assert new == greedy_reference(lm, text, 3)
    assert lm.generate(["Bo Ray", text, "Bo"], max_new_tokens=32, stop=()) == [
        lm.generate(["Bo Ray"], max_new_tokens=32, stop=())[0],
        new,
        lm.generate(["Bo"], max_new_tokens=32, stop=())[0],
    ]
    assert lm.generate(["x" * lm.context], stop=()) == [""]


def test_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    asked: list[str] = []

    def generate(texts: list[str], **_: object) -> list[str]:
        asked.extend(texts)
        return [" Bo Ray is of Chile.\nAnswer: Santiago \n"]

    monkeypatch.setattr(lm, "generate", generate)
    assert lm.answer("Where is Bo Ray?", cot=True) == "Santiago"
    assert lm.answer("Where is Bo Ray?").startswith("Bo Ray is of Chile.")
    lm.answer("Bo Ray lives in ")
    assert asked == [
        prompts.COT_PROMPT + "\n\nQuestion: Where is Bo Ray?\nThoughts:",
        "Question: Where is Bo Ray?\nAnswer:",
        "Bo Ray lives in",
    ]
