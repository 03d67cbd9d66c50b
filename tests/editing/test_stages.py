"""Batches, the v* search, the sweep and the polish, on a random tiny model of several families."""

import pytest
import torch

from acedit.editing.batch import Batch, split
from acedit.editing.keys import keys_at
from acedit.editing.polish import Polish, polish
from acedit.editing.solve import whitening
from acedit.editing.stages import Stage, Update, Writing, sweep, updates_in
from acedit.editing.target import Targets, TargetSettings, search
from acedit.knowledge.compose import Prompt
from acedit.lm.model import LanguageModel
from acedit.lm.trace import trace
from tests.tiny import tiny_lm

FAMILIES = ("qwen3", "gpt2", "gptj", "gemma2", "olmo2")


def prompts(edits: int = 2) -> list[Prompt]:
    names = ["Ann Lee", "Bo Ray", "Cy Doe"]
    said = ["red", "blue", "green"]
    rows = []
    for i in range(edits):
        rows.append(Prompt("{} likes the colour", names[i], said[i], "single", i))
        rows.append(Prompt("Question: what does {} like?\nAnswer:", names[i], said[i], "single", i))
    return rows


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_lm(request.param)


def test_batch_marks_where_answers_are_read(model: LanguageModel) -> None:
    batch = Batch.of(model, prompts())
    for row, at, token in zip(
        batch.answer_row.tolist(), batch.answer_at.tolist(), batch.answer_ids.tolist(), strict=True
    ):
        assert int(batch.encoded.input_ids[row, at + 1]) == token
    for i, prompt in enumerate(batch.prompts):
        upto = model.tokenizer.decode(batch.encoded.input_ids[i, : int(batch.subject[i]) + 1])
        assert upto.replace(" ", "").endswith(prompt.subject.replace(" ", ""))


def test_nll_is_that_of_a_full_run(model: LanguageModel) -> None:
    batch = Batch.of(model, prompts())
    logits = model.head_logits(batch.at_answers(model.run_backbone(batch.encoded)))
    whole = model.model(batch.encoded.input_ids).logits.float().log_softmax(-1)
    for i, nll in enumerate(batch.nll(logits).tolist()):
        picked = [
            -float(whole[i, at, token])
            for row, at, token in zip(
                batch.answer_row.tolist(),
                batch.answer_at.tolist(),
                batch.answer_ids.tolist(),
                strict=True,
            )
            if row == i
        ]
        assert nll == pytest.approx(sum(picked) / len(picked), rel=1e-3, abs=1e-4)


def test_keys_are_the_trace_s(model: LanguageModel) -> None:
    batch = Batch.of(model, prompts())
    keys, residual = keys_at(model, batch.encoded, 1, batch.subject)
    whole = trace(model, batch.encoded)
    rows = torch.arange(len(batch))
    assert torch.allclose(keys, whole.coefficients[1, rows, batch.subject], atol=1e-5)
    assert torch.allclose(residual, whole.residual[2, rows, batch.subject], atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_search_finds_a_delta_that_says_the_target(model: LanguageModel, attention: bool) -> None:
    rows = prompts()
    batches = [Batch.of(model, rows)]
    settings = TargetSettings(steps=40, clamp=30.0, attention=attention)
    found = search(model, batches, 1, token="last", n_edits=2, settings=settings)
    start = search(model, batches, 1, token="last", n_edits=2, settings=TargetSettings(steps=0))
    assert (found.loss < start.loss - 0.5).all()
    assert (found.delta.norm(dim=-1) > 0).all()


def test_edits_of_a_batch_are_searched_as_if_alone() -> None:
    lm = tiny_lm("qwen3")
    settings = TargetSettings(steps=8)
    both = search(lm, [Batch.of(lm, prompts(2))], 0, token="subject", n_edits=2, settings=settings)
    one = search(lm, [Batch.of(lm, prompts(1))], 0, token="subject", n_edits=1, settings=settings)
    assert torch.allclose(both.delta[0], one.delta[0], atol=1e-3)


@pytest.mark.parametrize("spread", ["even", "root"])
def test_sweep_reaches_its_targets_when_nothing_is_preserved(model: LanguageModel, spread: str) -> None:
    batch = Batch.of(model, prompts())
    g = torch.Generator().manual_seed(0)
    delta = 0.1 * torch.randn(2, model.d_model, generator=g)
    if model.ffn_post_norm(0) is not None:
        pytest.skip("a post-norm rescales what is written, so the target is met in direction only")
    writing = Writing(
        Stage("s", ("single",), "last", "value", spread),  # type: ignore[arg-type]
        (0, 1),
        (batch,),
        Targets(delta, torch.zeros(2)),
    )
    _, before = keys_at(model, batch.encoded, 1, batch.last)
    weights = [model.down_weight(layer).clone() for layer in range(model.n_layers)]
    n = model.n_neurons
    updates = sweep(model, [writing], lambda _: 1e-9 * torch.eye(n), ridge=1e-9)
    with updates_in(model, updates):
        _, after = keys_at(model, batch.encoded, 1, batch.last)
    moved = after - before
    wanted = delta[batch.edits()]
    assert torch.nn.functional.cosine_similarity(moved, wanted).min() > 0.95
    for layer, weight in enumerate(weights):
        assert torch.equal(model.down_weight(layer), weight)


@pytest.mark.parametrize("space", ["targets", "weights", "whitened"])
def test_polish_lowers_the_loss_and_leaves_weights(model: LanguageModel, space: str) -> None:
    rows = prompts()
    batches = split(model, rows)
    g = torch.Generator().manual_seed(0)
    start = [
        Update(
            layer,
            1e-3 * torch.randn(model.d_model, 4, generator=g),
            1e-1 * torch.randn(4, model.n_neurons, generator=g),
        )
        for layer in (0, 1)
    ]
    weights = [model.down_weight(layer).clone() for layer in range(model.n_layers)]
    white = {layer: whitening(torch.eye(model.n_neurons)) for layer in (0, 1)}
    settings = Polish(steps=30, lr=2e-2 if space != "targets" else 2.0, space=space, replay=0.0)  # type: ignore[arg-type]
    done = polish(model, start, batches, (), settings, seed=0, whiten=white)

    def loss(updates: list[Update]) -> float:
        with updates_in(model, updates), torch.no_grad():
            return sum(
                float(b.nll(model.head_logits(b.at_answers(model.run_backbone(b.encoded)))).sum())
                for b in batches
            )

    assert loss(done) < loss(start) - 1.0
    for layer, weight in enumerate(weights):
        assert torch.equal(model.down_weight(layer), weight)
    if space == "targets":
        assert all(u.left.shape[1] == 4 for u in done)
