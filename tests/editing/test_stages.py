"""Batches, the v* search and the sweep, on a random tiny model of several families."""

from dataclasses import replace

import pytest
import torch

from acedit.editing import target
from acedit.editing.batch import Batch, split
from acedit.editing.keys import key_moments, keys_at
from acedit.editing.solve import factor, inverse
from acedit.editing.stages import Stage, Update, Writing, replacing, sweep, updates_in
from acedit.editing.target import Targets, TargetSettings, _Run, search
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


def test_a_whole_weight_does_what_its_update_does(model: LanguageModel) -> None:
    """W + Δ in one product, with gradients to Δ; afterwards the module is as it was, also when it raises."""
    g = torch.Generator().manual_seed(0)
    left, right = torch.randn(model.d_model, 2, generator=g), torch.randn(2, model.n_neurons, generator=g)
    update = Update(1, left / 4, right)
    encoded, own = model.encode(["Ann Lee likes", "Bo"]), model.down(1).forward
    plain = model.run_backbone(encoded)
    with updates_in(model, [update]):
        wanted = model.run_backbone(encoded)
    delta = update.delta.requires_grad_(True)
    with replacing(model, {1: (delta,)}):
        found = model.run_backbone(encoded)
    found.sum().backward()
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    assert delta.grad is not None
    assert float(delta.grad.abs().max()) > 0
    with pytest.raises(ZeroDivisionError), replacing(model, {1: (delta,)}):
        raise ZeroDivisionError
    assert model.down(1).forward == own
    model.down(1).forward = own  # as accelerate leaves it
    with replacing(model, {1: (delta,)}):
        pass
    assert model.down(1).__dict__.pop("forward") == own
    assert torch.equal(model.run_backbone(encoded), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_factors_do_what_their_product_does(name: str, dtype: torch.dtype) -> None:
    """The same output, and the gradients that reach them through a whole Δ, also where it is rounded."""
    lm = tiny_lm(name, dtype=dtype)
    g = torch.Generator().manual_seed(0)
    left = (0.1 * torch.randn(lm.d_model, 2, generator=g)).requires_grad_(True)
    right = torch.randn(2, lm.n_neurons, generator=g).requires_grad_(True)
    encoded = lm.encode(["Ann Lee likes", "Bo"])
    weight = torch.randn(2, encoded.input_ids.shape[1], lm.d_model, generator=g)
    found = []
    for parts in ((left @ right,), (left, right)):
        # Layer 1 lies below another one, so that keys get gradients too.
        with replacing(lm, {1: parts, 2: parts}):
            out = lm.run_backbone(encoded).double()
        grads = torch.autograd.grad((out * weight * encoded.attention_mask[..., None]).sum(), (left, right))
        found.append((out, *grads))
    close = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    for one, other in zip(*found, strict=True):
        scale = one.abs().max()
        torch.testing.assert_close(one / scale, other / scale, **close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_whole_weight_is_rounded_as_a_patch_rounds_it(dtype: torch.dtype) -> None:
    """What the polish sees is what the patch will do, where Δ is finer than the weights too."""
    lm = tiny_lm("qwen3", dtype=dtype)
    g = torch.Generator().manual_seed(0)
    delta = 1e-3 * torch.randn(lm.d_model, lm.n_neurons, generator=g)
    encoded = lm.encode(["Ann Lee likes", "Bo"])
    plain = lm.down_weight(0).detach().clone()
    with replacing(lm, {0: (delta,)}):
        found = lm.run_backbone(encoded).double()
    lm.down_weight(0).data = (plain.to(torch.promote_types(dtype, torch.float32)) + delta).to(dtype)
    wanted = lm.run_backbone(encoded).double()
    lm.down_weight(0).data = (plain.double() + 1.5 * delta).to(dtype)
    other = lm.run_backbone(encoded).double()
    assert float((found - wanted).norm()) < 0.2 * float((other - wanted).norm())


def test_an_end_is_read_behind_its_answer(model: LanguageModel) -> None:
    plain = prompts(1)[:1]
    ended = [replace(p, end=5) for p in plain]
    before, after = Batch.of(model, plain), Batch.of(model, ended)
    assert after.answer_ids.tolist() == [*before.answer_ids.tolist(), 5]
    assert int(after.answer_at[-1]) == int(before.answer_at[-1]) + 1


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


@pytest.mark.parametrize("token", ["subject", "last"])
def test_rows_left_out_of_a_search_change_nothing(
    model: LanguageModel, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tokens before δ nor edits at rest: the same as running every token of every row throughout."""
    batches = [Batch.of(model, prompts(3))]
    settings = TargetSettings(steps=4, clamp=30.0, stop=0.0)
    early = search(model, batches, 0, token=token, n_edits=3, settings=settings).loss
    settings = replace(settings, steps=12, stop=float(early.median()) + 1e-3)
    ran: list[int] = []
    losses = _Run.losses
    monkeypatch.setattr(_Run, "losses", lambda run, delta: ran.append(len(run.batch)) or losses(run, delta))
    monkeypatch.setattr(target, "PADDING", 0)
    quick = search(model, batches, 0, token=token, n_edits=3, settings=settings)
    few = sum(ran)
    ran.clear()
    monkeypatch.setattr(target, "RESTING", -1.0)
    monkeypatch.setattr(target, "PADDING", 10**6)
    slow = search(model, batches, 0, token=token, n_edits=3, settings=settings)
    assert few < sum(ran), "no edit came to rest"
    assert torch.allclose(quick.delta, slow.delta, atol=1e-4)
    assert torch.allclose(quick.loss, slow.loss, atol=1e-4)


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
    updates = sweep(model, [writing], lambda _, size: inverse(factor(1e-9 * (1 + size) * torch.eye(n))))
    with updates_in(model, updates):
        _, after = keys_at(model, batch.encoded, 1, batch.last)
    moved = after - before
    wanted = delta[batch.edits()]
    assert torch.nn.functional.cosine_similarity(moved, wanted).min() > 0.95
    for layer, weight in enumerate(weights):
        assert torch.equal(model.down_weight(layer), weight)


def test_picked_rows_are_the_batch_s(model: LanguageModel) -> None:
    batch = Batch.of(model, prompts())
    rows = torch.tensor([1, 3])
    picked = batch.pick(rows)
    logits = model.head_logits(batch.at_answers(model.run_backbone(batch.encoded)))
    some = model.head_logits(picked.at_answers(model.run_backbone(picked.encoded)))
    torch.testing.assert_close(picked.nll(some), batch.nll(logits)[rows], atol=1e-4, rtol=1e-4)
    assert picked.prompts == (batch.prompts[1], batch.prompts[3])


def test_split_keeps_every_prompt_and_lengths_together(model: LanguageModel) -> None:
    rows = prompts(3)
    batches = split(model, rows, rows=2, spread=1.3)
    assert sorted(p.text for b in batches for p in b.prompts) == sorted(p.text for p in rows)
    for batch in batches:
        sizes = [len(p.text) + len(p.answer) for p in batch.prompts]
        assert len(batch) <= 2
        assert max(sizes) <= 1.3 * min(sizes)


def test_key_moments_are_those_of_the_keys(model: LanguageModel) -> None:
    batches = split(model, prompts(), rows=2)
    found = key_moments(model, batches, [0, 1])
    for layer, moment in found.items():
        keys = torch.cat(
            [
                keys_at(model, b.encoded, layer, b.positions(at))[0]
                for b in batches
                for at in ("subject", "last")
            ]
        )
        torch.testing.assert_close(moment, keys.T @ keys / len(keys), atol=1e-5, rtol=1e-4)


def test_what_is_kept_is_held_by_the_kl_of_eq_13() -> None:
    """From the edited model to the unedited one, where the two directions differ."""
    lm = tiny_lm("qwen3")
    batch = Batch.of(lm, [Prompt("{} is a", "Ann Lee", "citizen", "keep", 0)])
    run = _Run(lm, batch, 1, "subject", attention=False)
    delta = 20 * torch.randn(1, 1, lm.d_model, generator=torch.Generator().manual_seed(0))
    _, hold = run.losses(delta)
    before = batch.logits(lm).log_softmax(-1)
    hidden = run.suffix.hidden
    moved = run.suffix.run(hidden.index_add(1, run.position, delta))
    after = run.suffix.logits(batch.at_answers(moved, start=run.suffix.start)).log_softmax(-1)
    torch.testing.assert_close(hold, batch.row_mean((after.exp() * (after - before)).sum(-1)))
    assert (hold - batch.row_mean((before.exp() * (before - after)).sum(-1))).abs() > 1e-2
