"""Ablated neurons are zero inside the block and as before outside it."""

import pytest
import torch

from acedit.attribution.ablate import ablated
from acedit.attribution.value import Neuron
from acedit.errors import UserError
from acedit.lm.trace import trace
from tests.tiny import tiny_lm

TEXT = ["Ann Lee is a citizen of"]


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen3", "phi3"])
def test_zeroes_and_restores(name: str) -> None:
    lm = tiny_lm(name)
    before = trace(lm, TEXT)
    with ablated(lm, [Neuron(1, 3, 0.0), Neuron(1, 5, 0.0)]):
        inside = trace(lm, TEXT)
    difference = before.ffn[1] - inside.ffn[1]
    assert difference.abs().max() > 0
    if lm.ffn_post_norm(1) is None:
        wanted = before.coefficients[1][..., [3, 5]] @ lm.subvalues(1)[[3, 5]]
        assert torch.allclose(difference, wanted, atol=1e-5)
    assert torch.equal(trace(lm, TEXT).residual, before.residual)


def test_restores_when_something_raises() -> None:
    lm = tiny_lm("gpt2")
    before = lm.logits(TEXT)
    with pytest.raises(RuntimeError), ablated(lm, [Neuron(0, 0, 0.0)]):
        raise RuntimeError
    assert torch.equal(lm.logits(TEXT), before)


def test_a_neuron_the_model_has_not_is_refused() -> None:
    with pytest.raises(UserError, match="not in a model"), ablated(tiny_lm("gpt2"), [Neuron(99, 0, 0.0)]):
        pass
