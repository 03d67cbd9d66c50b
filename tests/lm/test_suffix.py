"""Gradients flow through a suffix, it reads live weights, and its bounds are checked."""

import pytest
import torch

from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix
from tests.tiny import tiny_lm

TEXTS = ["Ann Lee is a citizen of", "Bo Ray is", "The capital of Chile is Santiago"]


def test_gradients_reach_the_hidden_state(lm: LanguageModel) -> None:
    encoded = lm.encode(TEXTS)
    suffix = Suffix(lm, encoded, 1)
    hidden = suffix.hidden.double().to(lm.dtype).requires_grad_()
    final = suffix.run(hidden)
    suffix.logits(final[torch.arange(3), encoded.last])[:, 5].sum().backward()
    assert hidden.grad is not None
    real = encoded.attention_mask.bool()
    assert bool((hidden.grad[real].abs().sum(-1) > 0).all())
    assert bool((hidden.grad[~real] == 0).all())
    assert all(p.grad is None for p in lm.model.parameters())


def test_what_stands_before_the_start_counts_in_gradients_too(lm: LanguageModel) -> None:
    encoded = lm.encode(TEXTS)
    pulls = []
    for start in (0, 3):
        suffix = Suffix(lm, encoded, 1, start=start)
        hidden = suffix.hidden.clone().requires_grad_()
        final = suffix.run(hidden)
        suffix.logits(final[torch.arange(3), encoded.last - start])[:, 5].sum().backward()
        assert hidden.grad is not None
        pulls.append(hidden.grad[:, 3 - start :])
    assert float(pulls[0].abs().max()) > 0
    assert torch.allclose(*pulls, atol=1e-5 * float(pulls[0].abs().max()))


def test_a_suffix_reads_the_weights_as_they_are() -> None:
    lm = tiny_lm("llama")
    suffix = Suffix(lm, lm.encode(TEXTS), 1)
    before = suffix.run()
    lm.down_weight(2).data.mul_(2)
    assert not torch.allclose(before, suffix.run())


def test_layers_out_of_range_are_refused() -> None:
    lm = tiny_lm("llama")
    for layer in (-1, lm.n_layers + 1):
        with pytest.raises(UserError, match=r"not in 0\.\.3"):
            Suffix(lm, lm.encode(TEXTS), layer)


@pytest.mark.parametrize("start", [0, 3])
def test_copies_of_a_row_run_side_by_side(lm: LanguageModel, start: int) -> None:
    encoded = lm.encode(TEXTS)
    suffix = Suffix(lm, encoded, 1, start=start, copies=3)
    changed = suffix.hidden.unflatten(0, (3, 3)).clone()
    changed[:, 1] *= 2
    final = suffix.run(changed.flatten(0, 1)).unflatten(0, (3, 3))
    alone = Suffix(lm, encoded, 1, start=start)
    torch.testing.assert_close(final[:, 0], alone.run(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(final[:, 1], alone.run(2 * alone.hidden), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(final[:, 2], alone.run(), atol=1e-5, rtol=1e-4)
