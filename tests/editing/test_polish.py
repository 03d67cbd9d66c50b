"""The polish: what moves, what it stops for, and which prompts it works on."""

from dataclasses import replace

import pytest
import torch

from acedit.editing.batch import split
from acedit.editing.keys import edited_keys, keys_at
from acedit.editing.methods import method
from acedit.editing.polish import LEAST, VAIN, EvenAdam, Polish, _Columns, _Free, _Pool, polish
from acedit.editing.rows import Rows
from acedit.editing.solve import factor, inverse
from acedit.editing.stages import Update, updates_in
from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from tests.editing.test_patch import patch_for
from tests.editing.test_stages import model, prompts
from tests.tiny import tiny_lm

__all__ = ["model"]


@pytest.mark.parametrize("space", ["weights", "whitened"])
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
    settings = Polish(steps=30, lr=2e-2, space=space, replay=0.0)  # type: ignore[arg-type]
    done = polish(model, start, rows, (), settings, seed=0, metric=lambda _: lambda keys: keys)

    def loss(updates: list[Update]) -> float:
        with updates_in(model, updates), torch.no_grad():
            return sum(
                float(b.nll(model.head_logits(b.at_answers(model.run_backbone(b.encoded)))).sum())
                for b in batches
            )

    assert loss(done) < loss(start) - 1.0
    for layer, weight in enumerate(weights):
        assert torch.equal(model.down_weight(layer), weight)


def test_no_entry_moves_beyond_its_limit(model: LanguageModel) -> None:
    told = prompts()
    size = float(model.down_weight(0).float().square().mean().sqrt())
    free = polish(model, zero(model), told, (), Polish(steps=40, lr=2e-2, replay=0.0), seed=0)
    assert float(free[0].delta.abs().max()) > 0.5 * size
    settings = Polish(steps=40, lr=2e-2, replay=0.0, limit=0.5)
    (held,) = polish(model, zero(model), told, (), settings, seed=0)
    assert float(held.delta.abs().max()) == pytest.approx(0.5 * size, rel=1e-5)


def test_an_even_step_is_adam_s_for_one_entry_and_along_the_gradient_for_many() -> None:
    g = torch.Generator().manual_seed(0)
    one, same = (torch.zeros(1, requires_grad=True) for _ in range(2))
    many = torch.zeros(40, requires_grad=True)
    wanted = torch.randn(40, generator=g)
    even, adam = EvenAdam([one, many], 1e-2, 0.0), torch.optim.Adam([same], lr=1e-2)
    for _ in range(20):
        one.grad = same.grad = torch.randn(1, generator=g)
        many.grad = wanted
        even.step()
        adam.step()
    assert torch.allclose(one, same, atol=1e-6)
    assert torch.allclose(many / -wanted, torch.full((40,), 0.2) / wanted.square().mean().sqrt(), atol=1e-5)
    pulled = torch.ones(3, requires_grad=True)
    shrinking = EvenAdam([pulled], 1e-2, 0.5)
    for rate in (1e-2, 5e-3):
        pulled.grad = torch.zeros(3)
        shrinking.param_groups[0]["lr"] = rate
        shrinking.step()
    assert torch.allclose(pulled, torch.full((3,), 0.5 * 0.75)), "the decay falls with the rate"


def test_beside_patches_an_edit_moves_less(model: LanguageModel) -> None:
    """For each of n edits an nth as much is shrunk; without a patch nothing is."""
    told = prompts()
    settings = Polish(steps=30, lr=2e-2, replay=0.0)

    def size(settings: Polish) -> float:
        return float(polish(model, zero(model), told, (), settings, seed=0)[0].delta.norm())

    alone = size(settings)
    assert size(replace(settings, shrink=0.1)) == alone
    with patch_for(model).applied(model):
        free, little, much = (size(replace(settings, shrink=shrink)) for shrink in (0.0, 0.01, 0.1))
    assert much < little < free


def zero(lm: LanguageModel) -> list[Update]:
    return [Update(0, torch.zeros(lm.d_model, 1), torch.zeros(1, lm.n_neurons))]


def test_it_ends_when_nothing_is_wrong(model: LanguageModel) -> None:
    """With tolerances nothing can break, the first step's look is enough."""
    rows = prompts()
    steps: list[int] = []
    settings = Polish(steps=50, stop=1e9, drift=1e9)
    polish(model, zero(model), rows, rows, settings, seed=0, progress=lambda step, *_: steps.append(step))
    assert len(steps) <= 2


@pytest.mark.parametrize(("passes", "wanted"), [(1, LEAST), (200, 75)])
def test_looks_at_a_prompt_give_the_steps(model: LanguageModel, passes: int, wanted: int) -> None:
    """As many as it takes, whatever `steps` says; without screening every prompt has its turn."""
    rows = prompts(3)
    settings = Polish(steps=1, passes=passes, screen=False)
    steps: list[int] = []
    polish(model, zero(model), rows, (), settings, seed=0, progress=lambda step, *_: steps.append(step))
    assert len(steps) == wanted
    pool = _Pool(Rows(model, rows, ()), replace(settings, rows=2))
    seen: list[int] = []
    for _ in range(3):
        drawn = pool.draw(torch.Generator().manual_seed(0))
        pool.seen(drawn, torch.zeros(len(drawn)))
        seen += drawn.tolist()
    assert sorted(seen) == list(range(6))


def test_a_shift_is_held_small_at_the_subject(model: LanguageModel) -> None:
    """The prompts are learned with less written at the subject's own token."""
    batches = split(model, prompts())

    def after(shift: float, unfelt: float = 0.0) -> tuple[float, float]:
        settings = Polish(steps=60, lr=2e-2, shift=shift, unfelt=unfelt)
        done = polish(model, zero(model), prompts(), (), settings, seed=0)
        delta, written, loss = done[0].delta, 0.0, 0.0
        for batch in batches:
            keys, _ = keys_at(model, batch.encoded, 0, batch.subject)
            written += float((keys @ delta.T).norm(dim=-1).sum())
            with updates_in(model, done), torch.no_grad():
                logits = model.head_logits(batch.at_answers(model.run_backbone(batch.encoded)))
                loss += float(batch.nll(logits).sum())
        return written, loss

    (free, free_loss), (held, held_loss), before = after(0.0), after(0.3), after(1e4)
    assert held < 0.7 * free
    assert 1.1 * held < after(0.3, unfelt=1.0)[0] < 0.9 * free
    assert after(0.3, unfelt=1e4) == (free, free_loss)
    assert max(free_loss, held_loss) < before[1] - 1.0


def test_many_edits_at_once_may_write_more_at_a_subject(model: LanguageModel) -> None:
    """More than `crowd` of them so many times `unfelt`."""
    told = [replace(p, edit=i) for i, p in enumerate(prompts(3))]

    def written(unfelt: float, crowd: int) -> torch.Tensor:
        settings = Polish(steps=20, lr=2e-2, shift=0.3, unfelt=unfelt, crowd=crowd)
        return polish(model, zero(model), told, (), settings, seed=0)[0].delta

    assert torch.equal(written(0.1, len(told)), written(0.1, 100))
    assert torch.equal(written(0.1, 2), written(0.3, 100))
    assert not torch.equal(written(0.1, 2), written(0.1, 100))


def test_what_must_stay_stays(model: LanguageModel) -> None:
    """The replayed prompts end nearer to the unedited model than without replay."""
    rows = prompts(3)
    edit, kept = rows[:2], rows[4:]
    before = Rows(model, (), kept)

    def drift(replay: float) -> float:
        settings = Polish(steps=25, lr=5e-3, replay=replay)
        done = polish(model, zero(model), edit, kept, settings, seed=0)
        with updates_in(model, done), torch.no_grad():
            return float(before.losses(torch.arange(len(kept))).mean())

    assert drift(3.0) < 0.9 * drift(0.0)


def test_the_longer_all_prompts_take_the_more_of_a_step_are_those_seen_longest_ago() -> None:
    """Where a third was said when seen, long ago, and the others are not: 16 a step have their turn in 30
    steps, 8 in 60, 4 in 120, 2 in 240."""
    rows = Rows(tiny_lm("llama"), prompts(3) * 80, ())
    said = torch.arange(0, len(rows), 3)
    unsaid = torch.arange(len(rows))[torch.arange(len(rows)) % 3 > 0]

    def again(count: int) -> int:
        pool = _Pool(rows, Polish(rows=count))
        pool.seen(said, torch.zeros(len(said)))
        pool.seen(unsaid, torch.full((len(unsaid),), 9.0))
        drawn = pool.draw(torch.Generator().manual_seed(0))
        assert len(drawn) == count
        return int(torch.isin(drawn, said).sum())

    assert [again(count) for count in (16, 8, 4, 2)] == [4, 2, 2, 1]


def test_wrong_prompts_are_drawn_first(model: LanguageModel) -> None:
    rows = Rows(model, prompts(3), prompts(3))
    pool = _Pool(rows, Polish(rows=4))
    assert pool.wrong() == {"edit": 6, "replay": 6}
    pool.seen(torch.arange(12), torch.zeros(12))
    assert pool.seems_done()
    wrong = torch.stack([torch.nonzero(sort)[2, 0] for sort in (~rows.kept, rows.kept)])
    pool.seen(wrong, torch.tensor([9.0, 9.0]))
    for seed in range(5):
        drawn = pool.draw(torch.Generator().manual_seed(seed))
        assert torch.isin(wrong, drawn).all()
        # Of the edit, what is said is not run again until its turn among those seen longest ago.
        assert rows.kept[drawn].tolist().count(False) == 1
        assert rows.kept[drawn].tolist().count(True) == 2


def test_what_was_right_is_looked_at_again(model: LanguageModel) -> None:
    """Prompts that stay wrong do not keep the others from being seen."""
    pool = _Pool(Rows(model, prompts(3), ()), Polish(rows=4))
    generator = torch.Generator().manual_seed(0)
    seen: set[int] = set()
    for step in range(8):
        rows = pool.draw(generator)
        # Three of the six stay wrong and are drawn at every step.
        pool.seen(rows, torch.where(rows < 3, 9.0 * 0.9**step, 0.0))
        if step >= 3:
            seen |= set(rows.tolist())
    assert seen == set(range(6))


def test_a_prompt_that_cannot_be_said_is_given_up(model: LanguageModel) -> None:
    """It ends before its steps do, where two prompts deny each other, and comes back if it gets better."""
    rows = prompts(1)
    clash = [*rows[:1], replace(rows[0], answer="7 7")]
    steps: list[int] = []
    settings = Polish(steps=400, lr=1e-2)
    polish(model, zero(model), clash, (), settings, seed=0, progress=lambda step, *_: steps.append(step))
    assert VAIN < len(steps) < 400

    pool = _Pool(Rows(model, clash, ()), Polish(rows=2))
    for _ in range(VAIN + 1):
        pool.seen(torch.tensor([0, 1]), torch.tensor([3.0, 3.0]))
    assert pool.seems_done()
    pool.seen(torch.tensor([1]), torch.tensor([1.0]))
    assert pool.wrong() == {"edit": 1, "replay": 0}


def test_what_was_said_for_long_and_breaks_is_worked_on(model: LanguageModel) -> None:
    """Looks at a said prompt are no reason to give it up, nor is its best then one to come back to."""
    pool = _Pool(Rows(model, prompts(1)[:1], ()), Polish(rows=2))
    one = torch.tensor([0])
    for _ in range(2 * VAIN):
        pool.seen(one, torch.tensor([0.001]))
    assert pool.seems_done()
    for look in range(2 * VAIN):
        pool.seen(one, torch.tensor([6.0 * 0.9**look]))
        assert not pool.seems_done()
    for _ in range(VAIN):
        pool.seen(one, torch.tensor([6.0]))
    assert pool.seems_done()


@pytest.mark.parametrize(("slow", "screen", "wanted"), [(0.2, True, 160), (0.2, False, 80), (1.0, True, 80)])
def test_it_goes_on_while_much_is_unsaid(
    model: LanguageModel, slow: float, screen: bool, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing learned the rate begins to fall after 120 steps, not 40, unless so much may be unsaid."""
    monkeypatch.setattr("acedit.editing.polish.VAIN", 1000)
    monkeypatch.setattr("acedit.editing.polish.SLOW", slow)
    steps: list[tuple[int, int]] = []
    settings = Polish(steps=80, lr=1e-9, screen=screen)
    polish(model, zero(model), prompts(), (), settings, seed=0, progress=lambda *now: steps.append(now[:2]))
    assert len(steps) == steps[-1][1] == wanted


def test_what_must_stay_is_never_given_up(model: LanguageModel) -> None:
    pool = _Pool(Rows(model, (), prompts(1)[:1]), Polish(rows=2))
    for _ in range(3 * VAIN):
        pool.seen(torch.tensor([0]), torch.tensor([3.0]))
    assert not pool.seems_done()


def test_narrowed_is_the_nearest_of_its_rank() -> None:
    g = torch.Generator().manual_seed(0)
    fixed = Update(0, torch.randn(6, 2, generator=g), torch.randn(2, 12, generator=g))
    free = _Free(fixed)
    with torch.no_grad():
        free.leaves[0].copy_(torch.randn(6, 12, generator=g))
    (whole,) = free.parts()
    left, size, right = torch.linalg.svd(whole.detach(), full_matrices=False)
    found = free.narrowed(3)
    nearest = (left[:, :3] * size[:3]) @ right[:3]
    torch.testing.assert_close(found.finished().delta, nearest, rtol=1e-3, atol=1e-3)
    update = found.finished()
    assert (update.left.shape, update.right.shape) == ((6, 3), (3, 12))
    torch.testing.assert_close(free.narrowed(50).finished().delta, whole.detach(), rtol=1e-3, atol=1e-3)


def test_a_polish_in_a_low_rank_says_what_it_is_to_say(model: LanguageModel) -> None:
    """Of few columns, and better than the cut alone."""
    told, settings = prompts(), Polish(steps=30, lr=5e-3)
    whole = polish(model, zero(model), told, (), settings, seed=0)
    narrow = polish(model, zero(model), told, (), replace(settings, narrow=1), seed=0)
    cut = [_Free(update).narrowed(1).finished() for update in whole]
    assert {update.left.shape[1] for update in narrow} == {1}
    rows = Rows(model, told, ())

    def loss(updates: list[Update]) -> float:
        with updates_in(model, updates), torch.no_grad():
            return sum(float(rows.losses(group).sum()) for group in rows.together())

    assert loss(narrow) < loss(cut)
    assert loss(narrow) < loss([])


def test_only_whole_updates_can_be_narrowed() -> None:
    chosen = method("ace").narrowed(16)
    assert chosen.polish is not None
    assert (chosen.name, chosen.polish.narrow) == ("ace-r16", 16)
    for name in ("memit", "lora", "kn", "ft-l"):
        with pytest.raises(UserError, match="has a rank of its own"):
            method(name).narrowed(16)


def preserved(n_neurons: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    root = torch.eye(n_neurons) + 0.1 * torch.randn(n_neurons, n_neurons, generator=g)
    return root @ root.T


def test_a_whitened_update_moves_along_its_own_keys(model: LanguageModel) -> None:
    """In the span of P⁻¹·k alone, of as many columns as are asked for and no more than d_model."""
    told, p = prompts(), preserved(model.n_neurons)
    settings = Polish(steps=60, lr=5e-3, space="whitened")
    keys = edited_keys(model, split(model, told), [0])[0]
    near = inverse(factor(p))
    span = int(torch.linalg.matrix_rank(keys))
    assert 3 < span < model.d_model
    ways = {
        name: polish(model, zero(model), told, (), replace(settings, **more), seed=0, metric=lambda _: near)
        for name, more in {"all": {}, "few": {"columns": 3}, "narrow": {"narrow": 2}}.items()
    }
    ranks = {name: update.left.shape[1] for name, (update,) in ways.items()}
    assert ranks == {"all": span, "few": 3, "narrow": 2}
    rows = Rows(model, told, ())

    def loss(updates: list[Update]) -> float:
        with updates_in(model, updates), torch.no_grad():
            return sum(float(rows.losses(group).sum()) for group in rows.together())

    losses = {name: loss(updates) for name, updates in ways.items()}
    assert losses["all"] < losses["few"] < loss(zero(model))
    assert losses["all"] < 0.9 * loss(zero(model))
    (along,) = ways["all"]
    seen = torch.linalg.qr(torch.linalg.solve(p.double(), keys.double().T)).Q
    right = along.right.double()
    assert float((right - right @ seen @ seen.T).norm()) < 1e-3 * float(right.norm())


def test_along_what_is_preserved_a_step_moves_less(model: LanguageModel) -> None:
    """The first of two keys is a hundred times in P: one step of Adam changes what it writes the less."""
    n = model.n_neurons
    keys = torch.zeros(2, n)
    keys[0, 0] = keys[1, 1] = 1.0
    p = torch.eye(n)
    p[0, 0] = 100.0
    moving = _Columns.along(0, 4, keys, inverse(factor(p)), 2)
    with torch.no_grad():
        moving.leaves[0].fill_(1.0)
    written = (moving.finished().delta @ keys.T).norm(dim=0)
    assert float(written[1] / written[0]) == pytest.approx(10.0, rel=1e-3)


def test_whitened_needs_a_metric(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="needs P⁻¹"):
        polish(model, zero(model), prompts(), (), Polish(space="whitened"), seed=0)


def test_more_columns_than_d_model_end_as_one_side_whole() -> None:
    keys = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    moving = _Columns.along(0, 6, keys, lambda k: k, 9)
    with torch.no_grad():
        moving.leaves[0].normal_(generator=torch.Generator().manual_seed(1))
    assert moving.leaves[0].shape == (6, 9)
    (delta,) = moving.parts()
    update = moving.finished()
    assert update.left.shape == (6, 6)
    torch.testing.assert_close(update.delta, delta.detach())


def test_columns_narrow_to_the_nearest() -> None:
    g = torch.Generator().manual_seed(0)
    p = preserved(12)
    moving = _Columns.along(0, 6, torch.randn(9, 12, generator=g), inverse(factor(p)), 5)
    with torch.no_grad():
        moving.leaves[0].copy_(torch.randn(6, 5, generator=g))
    root = torch.linalg.cholesky(p)
    left, size, right = torch.linalg.svd(moving.finished().delta @ root, full_matrices=False)
    nearest = (left[:, :2] * size[:2]) @ right[:2] @ torch.linalg.inv(root)
    found = moving.narrowed(2).finished()
    assert found.left.shape == (6, 2)
    torch.testing.assert_close(found.delta, nearest, rtol=1e-3, atol=1e-3)
