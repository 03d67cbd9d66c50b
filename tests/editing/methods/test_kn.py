"""Knowledge neurons: the integral is an integral, and only the neurons found are written."""

from dataclasses import replace

import pytest
import torch

from acedit.editing.batch import Batch
from acedit.editing.edit import edit
from acedit.editing.methods import method
from acedit.editing.methods.kn import integrated_gradients
from acedit.knowledge.compose import Prompt
from acedit.knowledge.facts import Edit
from acedit.knowledge.relations import mquake
from tests.tiny import tiny_lm

EDIT = Edit("Bo Ray", mquake()["P27"], "Chile", "Peru")


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "opt", "gptj", "gemma2"])
def test_attributions_add_up_to_what_the_layer_does(family: str) -> None:
    lm = tiny_lm(family)
    prompts = [Prompt(t, "Bo Ray", "Peru", "single", 0) for t in ("{} is a citizen of", "Where is {} from?")]
    batch, layer = Batch.of(lm, prompts), 1
    rows, first = torch.arange(2), lm.token_ids("Peru")[0]

    def chance() -> torch.Tensor:
        with torch.no_grad():
            final = lm.run_backbone(batch.encoded)
            return lm.head_logits(final[rows, batch.last]).softmax(-1)[:, first]

    def silent(_: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        key = args[0].reshape(2, -1, lm.n_neurons).clone()
        key[rows, batch.last] = 0
        return (key.reshape(args[0].shape), *args[1:])

    whole = chance()
    handle = lm.down(layer).register_forward_pre_hook(silent)
    without = chance()
    handle.remove()
    found = integrated_gradients(lm, batch, layer, steps=400).sum(-1)
    assert torch.allclose(found, whole - without, atol=2e-4, rtol=0.02)


def test_only_knowledge_neurons_are_written() -> None:
    lm = tiny_lm("qwen3")
    patch = edit(lm, [EDIT], method="kn")
    columns = sum(int((u.delta().abs().sum(0) > 0).sum()) for u in patch.updates)
    assert 0 < columns < lm.n_layers * lm.n_neurons / 2
    assert all(u.left.shape[1] == 1 for u in patch.updates)


def test_lora_ends_as_its_own_factors() -> None:
    lm = tiny_lm("qwen3")
    chosen = method("lora")
    assert chosen.polish is not None
    patch = edit(lm, [EDIT], method=replace(chosen, polish=replace(chosen.polish, rank=3)))
    assert {u.left.shape[1] for u in patch.updates} == {3}
    assert len(patch.updates) == lm.n_layers
