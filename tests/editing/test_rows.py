"""Rows of an edit and rows to keep: what they lose, whatever runs together."""

from dataclasses import replace

import pytest
import torch

from acedit.editing.batch import Batch
from acedit.editing.rows import FEW, ROOM, SPREAD, TOKENS, Rows, tokens_at_once
from acedit.editing.stages import Update, updates_in
from acedit.lm.model import LanguageModel
from tests.editing.test_stages import model, prompts

__all__ = ["model"]


def test_losses_are_those_of_each_row_alone(model: LanguageModel) -> None:
    """NLL of what is told, KL from the unedited model of what is kept, whatever stands beside it."""
    told = [replace(p, answer=p.answer * (1 + i % 3)) for i, p in enumerate(prompts(3))]
    kept = prompts(2)
    rows = Rows(model, told, kept)
    alone = [Rows(model, [p], ()) for p in told] + [Rows(model, (), [p]) for p in kept]
    g = torch.Generator().manual_seed(0)
    moved = Update(
        0, 0.3 * torch.randn(model.d_model, 2, generator=g), torch.randn(2, model.n_neurons, generator=g)
    )
    one = torch.tensor([0])
    with torch.no_grad():
        assert rows.losses(torch.nonzero(rows.kept)[:, 0]).abs().max() < 1e-6
        with updates_in(model, [moved]):
            together = torch.cat([rows.losses(group) for group in rows.together()])
            expected = torch.cat([row.losses(one) for row in alone])
            batch = Batch.of(model, told)
            nll = batch.nll(model.head_logits(batch.at_answers(model.run_backbone(batch.encoded))))
    order = Batch.of(model, [*told, *kept]).encoded.lengths.argsort(stable=True)
    assert torch.allclose(together, expected[order], atol=1e-5)
    assert torch.allclose(together[~rows.kept], nll[order[order < len(told)]], atol=1e-5)
    assert float(together[rows.kept].min()) > 1e-3


def test_what_runs_together_is_of_like_length(model: LanguageModel) -> None:
    """Every row once, in order; long ones apart from short ones once there are enough."""
    told = [replace(p, template=p.template + " so" * (i % 20)) for i, p in enumerate(prompts(3) * 20)]
    rows = Rows(model, told, ())
    groups = rows.together()
    assert torch.equal(torch.cat(groups), torch.arange(len(told)))
    for group in groups:
        lengths = rows.lengths[group]
        assert len(group) <= FEW or lengths.max() <= SPREAD * lengths[0]
        assert len(group) * int(lengths.max()) <= TOKENS
    assert len(groups) > 2
    assert len(rows.classes.unique()) > 2
    picked = torch.tensor([3, 40, 41, 100])
    assert torch.equal(torch.cat(rows.together(picked)), picked)


@pytest.mark.parametrize("limit", ["TOKENS", "LOGITS"])
def test_a_run_holds_no_more_than_fits(
    model: LanguageModel, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"acedit.editing.rows.{limit}", 1)
    rows = Rows(model, prompts(2), prompts(2))
    assert [len(group) for group in rows.together()] == [1] * len(rows)


def test_a_large_model_runs_fewer_tokens_at_once(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what a run leaves for the way back fits, however large the model."""
    assert tokens_at_once(model) == TOKENS
    for name, value in (("n_layers", 36), ("d_model", 4096), ("n_neurons", 12288)):
        monkeypatch.setattr(model, name, value)
    assert 100 < tokens_at_once(model) < TOKENS
    kept = 36 * 4096 * model.dtype.itemsize  # the stream alone, a token
    assert kept * tokens_at_once(model) < ROOM


def test_a_large_reference_is_read_anew(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the distributions that must stay do not fit, their streams are kept; the losses are the same."""
    told, kept = prompts(2), prompts(3)
    whole = Rows(model, told, kept)
    monkeypatch.setattr("acedit.editing.rows.REFERENCE", 0)
    small = Rows(model, told, kept)
    g = torch.Generator().manual_seed(0)
    moved = Update(
        0, 0.3 * torch.randn(model.d_model, 2, generator=g), torch.randn(2, model.n_neurons, generator=g)
    )
    with torch.no_grad(), updates_in(model, [moved]):
        for group in whole.together():
            assert float(whole.losses(group).max()) > 1e-3
            torch.testing.assert_close(small.losses(group), whole.losses(group), atol=1e-5, rtol=1e-5)
