"""Polish: gradient steps on an edit's updates, where something is still wrong.

    updates = polish(lm, updates, edit_batches, replay_batches, Polish(), seed=0)

Starts from what the closed form wrote (`stages.sweep`). Prompts that were wrong when last seen, or not
seen yet, come first: those of the edit that are not said surely enough, those to be kept that drifted. A
share of every step goes to those seen longest ago, since what was right may be so no more. When none is
left, all are looked at once more, and if none is wrong the work is done. So an edit of one fact takes a
few steps and one of a hundred takes as many as it needs. A prompt of the edit that many looks bring no
nearer (its answer holds a token the model cannot say, or another prompt denies it) is given up: else its
steps would undo the rest.

Footguns: weights are never touched, the updates act through hooks. `drift` and `stop` are tolerances on
the prompts at hand; what no prompt asks is protected by the space Δ moves in, not by them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acedit.editing.batch import Batch
from acedit.editing.stages import Update, adding, product
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix

# A fact of few prompts, all of them in every step, is learned by heart before the steps have gone far.
FEWEST, SHARE = 16, 20
LEAST = 60  # steps that `passes` leaves to the fewest prompts
STALE = 0.25  # of a step's rows, those seen longest ago
SLOW, MOST = (
    0.2,
    2,
)  # the rate stays while this share of the edit is unsaid, at most for so many times the steps
VAIN, BETTER = (
    12,
    0.95,
)  # a prompt is given up after so many looks at no less than this share of its best loss


@dataclass(frozen=True)
class Polish:
    """Gradient steps after the closed form.

    space: "weights" moves Δ freely, "whitened" moves Z in Δ = Δ₀ + Z·P^(-1/2), so that steps are small
    along keys that are to be preserved, "low_rank" moves both factors of Δ = 2·B·A of `rank` (LoRA with
    α = 2·rank). near: weight in P of the keys of kin (other subjects that are held), against the text's; 0
    leaves P to the text. lr is Adam's. replay: weight of the KL (nats a token) from the unedited model on
    what must stay. shift: weight of ‖Δk‖²/‖Wk‖² (both summed over the layers) beyond `unfelt`, at each row's
    subject token, which keeps what else is known of a subject from being drowned there. limit: in the
    "weights" space, what no entry of Δ may exceed, in multiples of the weights' root mean square; 0 for none.
    rows: a step, half of each sort where both have so many. screen: draw those that are wrong first, and
    end when none is; without it all in turn. passes: as many steps (but `LEAST`) as give so many looks at a
    prompt on average, and at most 1/`SHARE` of all prompts a step (but `FEWEST`); None: `steps` and `rows`
    for any. The rate falls in the second half, which with screening begins later where much is unsaid.
    stop: a prompt of the edit is done below this NLL, drift: a kept one is unharmed below this KL (both nats
    a token).
    """

    steps: int = 100
    passes: int | None = None
    lr: float = 1e-3
    space: Literal["weights", "whitened", "low_rank"] = "weights"
    rank: int = 8
    near: float = 0.0
    replay: float = 1.0
    shift: float = 0.0
    unfelt: float = 0.0
    limit: float = 0.0
    rows: int = 64
    screen: bool = True
    stop: float = 0.05
    drift: float = 0.02


class Part:
    """A batch with its suffix; for what must stay, the unedited model's distribution too."""

    def __init__(self, lm: LanguageModel, batch: Batch, layer: int, *, kept: bool) -> None:
        """Made with no update in."""
        self.batch, self.kept = batch, kept
        self.suffix = Suffix(lm, batch.encoded, layer)
        self.reference = Tensor()
        if kept:
            with torch.no_grad():
                self.reference = self._logits(batch, None).log_softmax(-1)

    def _logits(self, batch: Batch, rows: Int[Tensor, " picked"] | None) -> Tensor:
        return self.suffix.logits(batch.at_answers(self.suffix.run(rows=rows)))

    def losses(self, rows: Int[Tensor, " picked"] | None = None) -> Float[Tensor, " picked"]:
        """NLL, or KL from the unedited model, of the rows (ascending; default all), nats a token."""
        batch = self.batch if rows is None else self.batch.pick(rows)
        logits = self._logits(batch, rows)
        if not self.kept:
            return batch.nll(logits)
        answered = self.batch.answer_row
        reference = self.reference if rows is None else self.reference[torch.isin(answered, rows)]
        kl = F.kl_div(logits.log_softmax(-1), reference, log_target=True, reduction="none").sum(-1)
        return batch.row_mean(kl)


def polish(
    lm: LanguageModel,
    updates: Sequence[Update],
    edit_batches: Sequence[Batch],
    replay_batches: Sequence[Batch],
    settings: Polish,
    *,
    seed: int,
    whiten: Mapping[int, Float[Tensor, "n_neurons n_neurons"]] | None = None,
    progress: Callable[[int, int, Mapping[str, int]], None] | None = None,
) -> list[Update]:
    """Adam on the updates: NLL of the edit's prompts plus KL on the replay (nats a token).

    Returns new updates; weights are never touched. An update comes back as (Δ, I) or (I, Δ), whichever is
    smaller, from the "low_rank" space as its factors (which start anew: `updates` give the layers alone).
    progress: step, steps, and how many prompts of each sort are worked on. Raises ValueError for the
    whitened space without `whiten`.
    """
    if not edit_batches or settings.steps <= 0:
        return list(updates)
    total = sum(map(len, [*edit_batches, *replay_batches]))
    if settings.passes is not None:
        settings = replace(settings, rows=min(settings.rows, max(FEWEST, total // SHARE)))
    generator = torch.Generator().manual_seed(seed)
    first_layer = min(update.layer for update in updates)
    parts = [Part(lm, batch, first_layer, kept=False) for batch in edit_batches]
    parts += [Part(lm, batch, first_layer, kept=True) for batch in replay_batches]
    moving = [_movable(lm, update, settings, whiten, generator) for update in updates]
    adam = torch.optim.Adam([leaf for one in moving for leaf in one.leaves], lr=settings.lr)
    pool = _Pool(parts, settings)
    steps = settings.steps
    if settings.passes is not None:
        steps = max(LEAST, round(settings.passes * total / settings.rows))
    falls = max(1, steps - steps // 2)
    start, step = steps - falls, 0
    while step < start + falls:
        if settings.screen and pool.seems_done():
            with _moving_in(lm, moving), torch.no_grad():
                pool.screen()
            if pool.seems_done():
                break
        if settings.screen and step == start < MOST * steps - falls and pool.unsaid() > SLOW:
            start += 1
        if progress is not None:
            progress(step, start + falls, pool.wrong())
        adam.param_groups[0]["lr"] = settings.lr * min(1.0, (start + falls - step) / falls)
        picked = pool.draw(generator)
        adam.zero_grad()
        with _moving_in(lm, moving) as deltas:
            for i, rows in picked.items():
                watched = list(zip(moving, deltas, strict=True)) if settings.shift else []
                with _at_subjects(lm, watched, parts[i].batch.subject[rows]) as written:
                    each = parts[i].losses(rows)
                pool.seen(i, rows, each.detach())
                kept = parts[i].kept
                loss = settings.replay * each.sum() if kept else F.relu(each - settings.stop / 2).sum()
                if written:
                    added, own = (torch.stack(column).sum(0) for column in zip(*written, strict=True))
                    loss = loss + settings.shift * F.relu(added / own - settings.unfelt).sum()
                (loss / sum(map(len, picked.values()))).backward()
            for one, delta in zip(moving, deltas, strict=True):
                one.delta().backward(delta.grad)
        adam.step()
        step += 1
        for one in moving:
            one.bound()
    return [one.finished() for one in moving]


class _Pool:
    """What each prompt was last seen to lose, and which are drawn next."""

    def __init__(self, parts: Sequence[Part], settings: Polish) -> None:
        self._parts, self._settings = parts, settings
        sizes = [len(part.batch) for part in parts]
        self._start = [sum(sizes[:i]) for i in range(len(sizes))]
        self._part = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])
        self._kept = torch.tensor([part.kept for part in parts])[self._part]
        limit = torch.where(self._kept, settings.drift, settings.stop)
        self._limit = limit
        self._last = torch.full_like(limit, float("inf"))
        self._best = self._last.clone()
        self._looks, self._vain, self._when = (torch.zeros_like(limit) for _ in range(3))
        self._time = 0

    def seen(self, part: int, rows: Tensor, losses: Tensor) -> None:
        at = self._start[part] + rows.cpu()
        now = losses.float().cpu()
        better = now < BETTER * self._best[at]
        self._vain[at] = torch.where(better, 0.0, self._vain[at] + 1)
        self._best[at] = torch.where(better, now, self._best[at])
        self._last[at] = now
        self._looks[at] += 1
        self._time += 1
        self._when[at] = self._time

    def screen(self) -> None:
        """Look at every prompt."""
        for i, part in enumerate(self._parts):
            self.seen(i, torch.arange(len(part.batch)), part.losses())

    def seems_done(self) -> bool:
        return not self._wrong().any()

    def _wrong(self) -> Tensor:
        """Those that were wrong when last seen, or were not seen yet, less those given up."""
        return (self._last > self._limit) & (self._kept | (self._vain < VAIN))

    def wrong(self) -> dict[str, int]:
        """How many prompts of each sort are worked on."""
        off = self._wrong()
        return {"edit": int((off & ~self._kept).sum()), "replay": int((off & self._kept).sum())}

    def unsaid(self) -> float:
        """The share of the edit's prompts that are worked on."""
        return self.wrong()["edit"] / max(1, int((~self._kept).sum()))

    def draw(self, generator: torch.Generator) -> dict[int, Tensor]:
        """Rows by part, ascending: half of each sort where both have so many.

        With screening, those that are wrong or not yet seen come first and a share is of those seen longest
        ago, without it those seen least come first.
        Parts are taken in random order, rows within them too: a few whole rows of like length run
        faster than some of each.
        """
        part = torch.rand(len(self._parts), generator=generator)[self._part]
        chance = part + 1e-3 * torch.rand(len(self._last), generator=generator)
        chance = chance + 2 * (self._wrong() if self._settings.screen else -self._looks)
        edit, kept = [
            sort[chance[sort].argsort(descending=True)]
            for sort in (torch.nonzero(~self._kept)[:, 0], torch.nonzero(self._kept)[:, 0])
        ]
        rows = self._settings.rows
        few = min(len(edit), max(rows // 2, rows - len(kept)))
        picked = torch.cat([self._first(edit, few), self._first(kept, rows - few)]).sort().values
        device = self._parts[0].batch.subject.device
        return {
            i: (picked[self._part[picked] == i] - self._start[i]).to(device)
            for i in self._part[picked].unique().tolist()
        }

    def _first(self, ranked: Tensor, count: int) -> Tensor:
        """The first `count`; with screening a share of them are those seen longest ago of the others."""
        count = min(count, len(ranked))
        stale = round(STALE * count) if self._settings.screen else 0
        rest = ranked[count - stale :]
        return torch.cat([ranked[: count - stale], rest[self._when[rest].argsort(stable=True)][:stale]])


class _Moving(ABC):
    """An update on the move: its leaves, what they amount to, and the update they end as."""

    layer: int
    leaves: tuple[Tensor, ...]

    @abstractmethod
    def delta(self) -> Tensor: ...

    @abstractmethod
    def finished(self) -> Update: ...

    def bound(self) -> None:  # noqa: B027 (most have no bound)
        """Take back what a step moved too far."""


class _Free(_Moving):
    """Δ = fixed + moved · white; no `white` stands for the identity. limit: on each entry of what moved."""

    def __init__(self, update: Update, white: Tensor | None, limit: float = 0.0) -> None:
        self.layer = update.layer
        self._fixed, self._white, self._limit = update.delta, white, limit
        self._moved = torch.zeros_like(self._fixed).requires_grad_(True)
        self.leaves = (self._moved,)

    @torch.no_grad()
    def bound(self) -> None:
        if self._limit:
            self._moved.clamp_(-self._limit, self._limit)

    def delta(self) -> Tensor:
        return self._fixed + (self._moved if self._white is None else self._moved @ self._white)

    def finished(self) -> Update:
        with torch.no_grad():
            return smallest(self.layer, self.delta().detach())


class _LowRank(_Moving):
    """Δ = 2·B·A, B zero at first and A drawn as LoRA draws it (Hu et al. 2022)."""

    def __init__(self, update: Update, rank: int, generator: torch.Generator) -> None:
        d_model, n_neurons = update.left.shape[0], update.right.shape[1]
        self.layer = update.layer
        drawn = (2 * torch.rand(rank, n_neurons, generator=generator) - 1) / n_neurons**0.5
        self._right = drawn.to(update.right.device).requires_grad_(True)
        self._left = torch.zeros(d_model, rank, device=update.left.device).requires_grad_(True)
        self.leaves = (self._left, self._right)

    def delta(self) -> Tensor:
        product: Tensor = self._left @ self._right
        return 2 * product

    def finished(self) -> Update:
        return Update(self.layer, 2 * self._left.detach(), self._right.detach())


def _movable(
    lm: LanguageModel,
    update: Update,
    settings: Polish,
    whiten: Mapping[int, Tensor] | None,
    generator: torch.Generator,
) -> _Moving:
    if settings.space == "low_rank":
        return _LowRank(update, settings.rank, generator)
    if settings.space == "weights":
        if not settings.limit:
            return _Free(update, None)
        size = lm.down_weight(update.layer).detach().float().square().mean().sqrt()
        return _Free(update, None, settings.limit * float(size))
    if whiten is None:
        raise ValueError("polishing in whitened space needs P^(-1/2) for every layer")
    return _Free(update, whiten[update.layer])


@contextmanager
def _moving_in(lm: LanguageModel, updates: Sequence[_Moving]) -> Iterator[list[Tensor]]:
    """Run with the updates in; yields each Δ as a leaf, to gather gradients over several runs."""
    deltas = {update.layer: update.delta().detach().requires_grad_(True) for update in updates}

    with adding(lm, {layer: product(delta) for layer, delta in deltas.items()}):
        yield list(deltas.values())


@contextmanager
def _at_subjects(
    lm: LanguageModel, watched: Sequence[tuple[_Moving, Tensor]], subject: Int[Tensor, " picked"]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Of each layer that is run, the squared lengths of what the update and of what the weights write at the
    rows' subject tokens. To be entered after the updates: their hooks come first."""
    written: list[tuple[Tensor, Tensor]] = []
    rows = torch.arange(len(subject), device=subject.device)
    with ExitStack() as stack:
        for one, delta in watched:

            def keep(_: object, args: tuple[Tensor, ...], output: Tensor, delta: Tensor = delta) -> None:
                key, whole = (
                    x.reshape(len(subject), -1, x.shape[-1])[rows, subject].to(delta.dtype)
                    for x in (args[0], output)
                )
                added = product(delta)(key)
                own = (whole - added).detach()
                written.append(((added**2).sum(-1), (own**2).sum(-1)))

            stack.callback(lm.down(one.layer).register_forward_hook(keep).remove)
        yield written


def smallest(layer: int, delta: Float[Tensor, "d_model n_neurons"]) -> Update:
    """Δ with the identity on its smaller side."""
    d_model, n_neurons = delta.shape
    if d_model <= n_neurons:
        return Update(layer, torch.eye(d_model, device=delta.device), delta)
    return Update(layer, delta, torch.eye(n_neurons, device=delta.device))
