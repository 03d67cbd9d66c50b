"""Patches: the base comes back bit for bit, files are whole or not at all, LoRA is the same update."""

import errno
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from acedit.editing.patch import (
    LayerUpdate,
    NoWeightChange,
    Patch,
    PatchStack,
    _digest,
    patches_off,
    place_of,
)
from acedit.errors import UserError
from acedit.knowledge.facts import Edit
from acedit.knowledge.relations import mquake
from acedit.lm.families import FAMILIES
from acedit.lm.model import LanguageModel
from tests.tiny import tiny_lm, tiny_model

EDIT = Edit("Ann Lee", mquake()["P27"], "Chile", "Peru", ("Republic of Chile",))
TEXT = ["Ann Lee is a citizen of", "Who is Bo Ray?"]


def patch_for(lm: LanguageModel, seed: int = 0, layers: tuple[int, ...] = (0, 1), rank: int = 3) -> Patch:
    g = torch.Generator().manual_seed(seed)
    updates = tuple(
        LayerUpdate(
            layer,
            0.2 * torch.randn(lm.d_model, rank + layer, generator=g),
            0.2 * torch.randn(rank + layer, lm.n_neurons, generator=g),
        )
        for layer in layers
    )
    return Patch(
        updates,
        (EDIT,),
        {"value_layers": [1]},
        "ace",
        {"lam": 1.0},
        seed,
        lm.fingerprint,
        place_of(lm, layers),
    )


def weights(lm: LanguageModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lm.model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_patches_are_of_the_model_whatever_wraps_it() -> None:
    one = tiny_lm("qwen3")
    before, patch = weights(one), patch_for(one)
    patch.apply(one)
    other = LanguageModel(one.model, one.tokenizer)
    assert other.fingerprint == one.fingerprint
    with pytest.raises(UserError, match="is on already"):
        patch.apply(other)
    patch.remove(other)
    assert same(weights(one), before)
    with pytest.raises(UserError, match="not on this model"):
        patch.remove(one)


def test_scores_that_are_no_numbers_are_null_on_disk(tmp_path: Path) -> None:
    patch = patch_for(tiny_lm("qwen3")).with_scores({"cot": {"value": float("nan"), "n": 0}})
    patch.save(tmp_path)
    assert "NaN" not in (tmp_path / "patch.json").read_text("utf-8")
    assert Patch.load(tmp_path).scores == {"cot": {"value": None, "n": 0}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_applies_and_comes_off(name: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(name, dtype=dtype)
    before, base = weights(lm), lm.logits(TEXT)
    patch = patch_for(lm)
    with patch.applied(lm):
        assert not torch.equal(lm.logits(TEXT), base)
        wanted = lm.subvalues(0).float().T.clone()
    original = patch.updates[0].delta()
    lifted = tiny_lm(name, dtype=dtype).subvalues(0).float().T + original
    assert torch.equal(wanted, lifted.to(dtype).float())
    assert same(weights(lm), before)


def test_comes_off_when_something_raises() -> None:
    lm = tiny_lm("qwen3")
    before = weights(lm)
    with pytest.raises(RuntimeError, match="mid"), patch_for(lm).applied(lm):
        raise RuntimeError("mid")
    assert same(weights(lm), before)


def test_an_interruption_between_layers_leaves_the_old_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")
    first, second = (patch_for(lm, seed, (0, 1)) for seed in range(2))
    before = weights(lm)
    first.apply(lm)
    one_on = weights(lm)
    write = PatchStack._write

    def cut(stack: PatchStack, to: dict[int, torch.Tensor]) -> None:
        monkeypatch.setattr(PatchStack, "_write", write)
        write(stack, dict(list(to.items())[:1]))
        raise KeyboardInterrupt

    monkeypatch.setattr(PatchStack, "_write", cut)
    with pytest.raises(KeyboardInterrupt):
        second.apply(lm)
    assert same(weights(lm), one_on)
    second.apply(lm)
    for patch in (first, second):
        patch.remove(lm)
    assert same(weights(lm), before)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)), off=st.permutations(range(4)))
def test_stacks_in_any_order(order: list[int], off: list[int]) -> None:
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    before = weights(lm)
    patches = [patch_for(lm, seed, layers) for seed, layers in enumerate([(0,), (0, 1), (1, 2), (0, 1, 2)])]
    for i in range(4):
        patches[i].apply(lm)
    wanted = weights(lm)
    for i in range(4):
        patches[i].remove(lm)
    for i in order:
        patches[i].apply(lm)
    assert same(weights(lm), wanted)
    for i in off:
        patches[i].remove(lm)
    assert same(weights(lm), before)


def test_off_for_a_while_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    base = weights(lm)
    first, second, third = (patch_for(lm, seed) for seed in range(3))
    first.apply(lm)
    second.apply(lm)
    on = weights(lm)
    writes: list[int] = []
    write = PatchStack._write

    def counted(self: PatchStack, written: Mapping[int, torch.Tensor]) -> None:
        writes.append(len(written))
        write(self, written)

    monkeypatch.setattr(PatchStack, "_write", counted)
    with pytest.raises(RuntimeError), patches_off(lm):
        assert same(weights(lm), base)
        raise RuntimeError
    assert writes == [2, 2], "each layer once, however many patches there are"
    assert same(weights(lm), on)
    assert lm.patch_stack.patches() == [first, second]
    with patches_off(lm):
        third.apply(lm)
    assert lm.patch_stack.patches() == [first, second, third]
    for patch in (second, first, third):
        patch.remove(lm)
    assert same(weights(lm), base)


def test_twice_on_or_off_is_refused() -> None:
    lm = tiny_lm("gpt2")
    patch = patch_for(lm)
    with pytest.raises(UserError, match="not on"):
        patch.remove(lm)
    patch.apply(lm)
    with pytest.raises(UserError, match="on already"):
        patch.apply(lm)
    patch.remove(lm)


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    lm = tiny_lm("gpt2")
    good = patch_for(lm)
    bad = LayerUpdate(2, torch.zeros(lm.d_model + 1, 1), torch.zeros(1, lm.n_neurons))
    broken = Patch((*good.updates, bad), (EDIT,), {}, "ace", {}, 0, lm.fingerprint, good.place)
    before = weights(lm)
    with pytest.raises(UserError, match="does not fit"):
        broken.apply(lm)
    assert same(weights(lm), before)


def test_another_model_is_refused() -> None:
    lm, other = tiny_lm("gpt2"), tiny_lm("gpt2", seed=1)
    with pytest.raises(UserError, match="another model"):
        patch_for(lm).apply(other)


def test_fingerprint_is_the_base_s_while_patched() -> None:
    lm = tiny_lm("qwen2")
    patch = patch_for(lm)
    with patch.applied(lm):
        assert lm.fingerprint == patch.fingerprint == tiny_lm("qwen2").fingerprint


def test_saves_and_loads(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    patch = patch_for(lm).with_scores({"efficacy": {"value": 1.0}})
    patch.save(tmp_path / "p")
    found = Patch.load(tmp_path / "p")
    assert found.edits == patch.edits
    assert found.scores == patch.scores
    assert found.id == patch.id
    for a, b in zip(found.updates, patch.updates, strict=True):
        assert torch.equal(a.left, b.left)
        assert torch.equal(a.right, b.right)
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["patch.json", "patch.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_a_cut_or_altered_file_is_refused(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    folder = patch_for(lm).save(tmp_path / "p")
    tensors = folder / "patch.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"patch\.safetensors.*cut short or altered"):
        Patch.load(folder)
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="cut short or altered"):
        Patch.load(folder)
    tensors.write_bytes(whole)
    record = folder / "patch.json"
    text = record.read_text()
    record.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"patch\.json.*not JSON"):
        Patch.load(folder)
    record.write_text(json.dumps({**json.loads(text), "schema": 99}))
    with pytest.raises(UserError, match="schema 99"):
        Patch.load(folder)
    record.write_text(json.dumps({**json.loads(text), "seed": 99}))
    with pytest.raises(UserError, match=r"patch\.json: was altered"):
        Patch.load(folder)
    for broken in ("[" * 200_000, text.replace("{", '{"x": "\\ud800",', 1)):
        record.write_text(broken)
        with pytest.raises(UserError, match=r"patch\.json"):
            Patch.load(folder)
    for field, value in (("plan", None), ("place", {}), ("scores", {"efficacy": {}}), ("edits", [{}])):
        changed = {**json.loads(text), field: value}
        record.write_text(json.dumps({**changed, "record_sha256": _digest(changed)}))
        with pytest.raises(UserError, match=r"patch\.json: field .* is missing or broken"):
            Patch.load(folder)
    record.write_text(json.dumps(json.loads(text), indent=4))  # the same record, laid out otherwise
    assert Patch.load(folder).seed == 0


def test_an_edit_has_one_id_wherever_its_model_lies(tmp_path: Path) -> None:
    lm = tiny_lm("qwen3")
    lm.model.config._name_or_path = str(tmp_path)
    patch = patch_for(lm)
    assert patch.place["base"] == tmp_path.name, "no path of a machine"
    lm.model.config._name_or_path = "hub/name"
    other = patch_for(lm)
    assert (other.place["base"], other.id) == ("hub/name", patch.id)


def test_a_float64_model_is_written_in_float64() -> None:
    lm = tiny_lm("qwen3", dtype=torch.float64)
    with torch.no_grad():
        lm.down_weight(0).add_(1e-12)
    before = lm.down_weight(0).clone()
    patch = patch_for(LanguageModel(lm.model, lm.tokenizer))
    nothing = replace(patch, updates=tuple(replace(u, left=0 * u.left) for u in patch.updates))
    with nothing.applied(LanguageModel(lm.model, lm.tokenizer)):
        assert torch.equal(lm.down_weight(0), before)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read") as error:
        Patch.load(tmp_path / "none")
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("qwen3")
    old = patch_for(lm)
    folder = old.save(tmp_path / "p")

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        patch_for(lm, seed=7).save(folder)
    monkeypatch.undo()
    assert Patch.load(folder).id == old.id
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


# peft reads a property that transformers 5 renames; nothing of ours does.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("rank", [3, 200])
@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_lora_is_the_same_update(
    name: str, dtype: torch.dtype, tolerance: float, rank: int, tmp_path: Path
) -> None:
    """In bf16 PEFT rounds the factors' product, we round base + Δ once: 0.04 of the largest logit."""
    lm = tiny_lm(name, dtype=dtype)
    patch = patch_for(lm, rank=rank)
    patch.to_lora(tmp_path / "adapter")
    with patch.applied(lm):
        wanted = lm.logits(TEXT)
    merged = PeftModel.from_pretrained(tiny_model(name, dtype=dtype), str(tmp_path / "adapter"))
    other = LanguageModel(merged.merge_and_unload(), lm.tokenizer)
    gap = (other.logits(TEXT) - wanted).abs().max() / wanted.abs().max()
    assert gap < tolerance
    assert (lm.logits(TEXT) - wanted).abs().max() / wanted.abs().max() > tolerance
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] <= min(lm.d_model, lm.n_neurons)


def test_nothing_to_export_is_its_own_error(tmp_path: Path) -> None:
    empty = Patch((), (EDIT,), {}, "ike", {}, 0, "0" * 64, {"modules": {}})
    with pytest.raises(NoWeightChange):
        empty.to_lora(tmp_path / "a")
