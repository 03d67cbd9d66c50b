"""A merged patch is what its patches are together, and can be undone and shipped like any other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from acedit.editing.merge import merged
from acedit.editing.patch import NoWeightChange, Patch
from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from tests.editing.test_patch import EDIT, TEXT, patch_for, same, weights
from tests.tiny import tiny_lm, tiny_model

LAYERS = ((0, 1), (1,), (1, 2))


def some(lm: LanguageModel) -> list[Patch]:
    """Three that share a layer; the second edits another fact, the third the first one's again."""
    other = replace(EDIT, subject="Bo Ray")
    again = replace(EDIT, target="Spain")
    made = [patch_for(lm, seed, layers) for seed, layers in enumerate(LAYERS)]
    return [replace(p, edits=(e,)) for p, e in zip(made, (EDIT, other, again), strict=True)]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_what_they_are_together(name: str, tmp_path: Path) -> None:
    lm = tiny_lm(name)
    before, patches = weights(lm), some(lm)
    for patch in patches:
        patch.apply(lm)
    together, said = weights(lm), lm.logits(TEXT)
    for patch in patches:
        patch.remove(lm)
    one = merged(patches)
    one.save(tmp_path / "one")
    loaded = Patch.load(tmp_path / "one")
    assert loaded.id == one.id
    with loaded.applied(lm):
        for a, b in zip(weights(lm), together, strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert same(weights(lm), before)
    assert [u.layer for u in one.updates] == [0, 1, 2]
    ranks = [u.left.shape[1] for u in one.updates]
    assert ranks == [3, min(4 + 4 + 4, lm.d_model, lm.n_neurons), 5]
    assert [(e.subject, e.target) for e in one.edits] == [("Ann Lee", "Spain"), ("Bo Ray", "Chile")]
    assert one.settings == {"merged": [p.id for p in patches]} and not one.scores
    one.to_lora(tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(tiny_model(name), str(tmp_path / "adapter"))
    other = LanguageModel(adapted.merge_and_unload(), lm.tokenizer)
    assert torch.allclose(other.logits(TEXT), said, atol=1e-4 * float(said.abs().max()))


def test_what_cannot_be_merged_is_told() -> None:
    lm = tiny_lm("llama")
    first, second, _ = some(lm)
    with pytest.raises(UserError, match="nothing to merge"):
        merged([first])
    with pytest.raises(UserError, match="given twice"):
        merged([first, second, first])
    with pytest.raises(UserError, match="different models"):
        merged([first, replace(second, fingerprint="0" * 64)])
    with pytest.raises(NoWeightChange, match="cannot be merged"):
        merged([first, replace(second, updates=(), method="ike")])
