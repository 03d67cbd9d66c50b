"""Polish: gradient steps on an edit's updates, where something is still wrong.

    updates = polish(lm, updates, told, kept, Polish(), seed=0)

Starts from nothing, in the "weights" space from what the closed form wrote (`stages.sweep`). Prompts that
were wrong when last seen, or not seen yet, come first: those of the edit that are not said surely enough,
those to be kept that drifted. A share of every step goes to those seen longest ago, since what was right
may be so no more; other prompts of the edit that are said would add nothing to the loss and are not run.
When none is left, all are looked at once more, and if none is wrong the work is done. So an edit of one
fact takes a few steps and one of a hundred takes as many as it needs. A prompt of the edit that many looks
bring no nearer (its answer holds a token the model cannot say, or another prompt denies it) is given up:
else its steps would undo the rest.

Footguns: weights are never touched, others stand in for them (`stages.replacing`). `drift` and `stop` are
tolerances on the prompts at hand; what no prompt asks is protected by the space Δ moves in, not by them.
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

from acedit.attribution.layers import spaced
from acedit.editing.batch import split
from acedit.editing.keys import edited_keys
from acedit.editing.patch import edits_on, patches_off
from acedit.editing.rows import Rows
from acedit.editing.solve import Metric, directions, mean_diagonal
from acedit.editing.stages import Parts, Update, added_by, replacing
from acedit.knowledge.compose import Prompt
from acedit.lm.model import LanguageModel
from acedit.lm.trace import at_tokens

# A fact of few prompts, all of them in every step, is learned by heart before the steps have gone far.
FEWEST, SHARE = 16, 20
LEAST = 60  # steps that `passes` leaves to the fewest prompts
SLOW = 0.2  # while this share of the edit's prompts is unsaid the rate does not begin to fall
LONG = 60  # steps for all prompts to have their turn: beyond, more of a step goes to those seen longest ago
MOST = 2  # times the steps, for all of that
VAIN = 12  # looks that bring a prompt of the edit no nearer, and it is given up
NARROWING = 0.4  # as many steps after the cut to a lower rank
BETTER = 0.95  # of a prompt's best loss so far: what counts as nearer


@dataclass(frozen=True)
class Polish:
    """Gradient steps after the closed form.

    space: "weights" moves Δ freely, "whitened" moves B in Δ = B·R, where the rows of R are the main `columns`
    directions of the prompts' own keys in the space Δ·P^(1/2) (`solve.directions`): steps are small along
    keys that are to be preserved; "low_rank" moves both factors of Δ = 2·B·A of `rank` (LoRA with α =
    2·rank). narrow: at the end Δ (in that space) is cut to this rank, and what is left of it takes
    `NARROWING` as many steps again; 0 leaves it whole. near: weight in P of the keys of kin (other subjects
    that are held), against the text's; 0 leaves P to the text. lr is Adam's. replay: weight of the KL (nats a
    token) from the unedited model on what must stay. shift: weight of ‖Δk‖²/‖Wk‖² (both summed over the
    layers) beyond `unfelt`, at each row's subject token, which keeps what else is known of a subject from
    being drowned there; more than `crowd` edits at once may write more there, in proportion. limit: in the
    "weights" space, what no entry may move by, in multiples of the weights' root mean square; 0 for none.
    shrink: for n edits made beside patches, the share of itself that what moves loses a step is an nth of
    this, and Adam has one second moment a matrix (`EvenAdam`). Both keep the change small: hundreds of such
    edits add up. 0 for neither.
    rows: a step at most, half of each sort where both have so many. screen: draw those that are wrong first,
    and end when none is; without it all in turn. passes: as many steps (but `LEAST`) as give so many looks at
    a prompt on average, and at most 1/`SHARE` of all prompts a step (but `FEWEST`); None: `steps` and `rows`
    for any. The rate falls in the second half, which with screening begins later where much is unsaid. stale:
    with screening, the share of a step's rows that are those seen longest ago; it grows, up to `most_stale`,
    where all prompts take more than `LONG` steps. stop: a prompt of the edit is done below this NLL,
    drift: a kept one is unharmed below this KL (both nats a token).
    """

    steps: int = 100
    passes: int | None = None
    lr: float = 1e-3
    space: Literal["weights", "whitened", "low_rank"] = "weights"
    rank: int = 8
    columns: int = 256
    narrow: int = 0
    near: float = 0.0
    replay: float = 1.0
    shift: float = 0.0
    unfelt: float = 0.0
    crowd: int = 32
    limit: float = 0.0
    shrink: float = 0.0
    rows: int = 64
    screen: bool = True
    stale: float = 0.25
    most_stale: float = 0.6
    stop: float = 0.05
    drift: float = 0.02


def polish(
    lm: LanguageModel,
    updates: Sequence[Update],
    told: Sequence[Prompt],
    kept: Sequence[Prompt],
    settings: Polish,
    *,
    seed: int,
    metric: Callable[[int], Metric] | None = None,
    progress: Callable[[int, int, Mapping[str, int]], None] | None = None,
) -> list[Update]:
    """Adam, or `EvenAdam`, on the updates: NLL of what is `told`, plus KL on `kept` prompts (nats a token).

    What moves lies on its layer's device, and so do Adam's moments of it: in float32 some six times a layer's
    down projection, in the whitened space R and four times B, and Δ where it is of full rank.
    Returns new updates; weights are never touched. An update comes back as (Δ, I) or (I, Δ), whichever is
    smaller, of a lower rank as its factors (only "weights" go on from `updates`, which
    else give the layers alone).
    metric: of each layer Q = P⁻¹, for the whitened space; ValueError there without one. progress: step,
    steps, and how many prompts of each sort are worked on.
    """
    if not told or settings.steps <= 0:
        return list(updates)
    with patches_off(lm):
        rows = Rows(lm, told, kept)
    steps, count = settings.steps, settings.rows
    if settings.passes is not None:
        count = min(count, max(FEWEST, len(rows) // SHARE))
        steps = max(LEAST, round(settings.passes * len(rows) / count))
    edits = len({p.edit for p in told if p.edit >= 0})
    unfelt = settings.unfelt * max(1.0, edits / settings.crowd)
    settings = replace(settings, rows=count, unfelt=unfelt)
    generator = torch.Generator().manual_seed(seed)
    moving = _movable(lm, updates, told, settings, metric, generator)
    decay = settings.shrink / edits if edits_on(lm) else 0.0
    _descend(lm, rows, moving, settings, steps, decay, generator, progress)
    if settings.narrow:
        moving = [one.narrowed(settings.narrow) for one in moving]
        _descend(lm, rows, moving, settings, round(NARROWING * steps), decay, generator, progress)
    return [one.finished() for one in moving]


def _descend(
    lm: LanguageModel,
    rows: Rows,
    moving: Sequence["_Moving"],
    settings: Polish,
    steps: int,
    decay: float,
    generator: torch.Generator,
    progress: Callable[[int, int, Mapping[str, int]], None] | None,
) -> None:
    """The steps themselves: so many of them, fewer where all is done, more where much is unsaid."""
    leaves = [leaf for one in moving for leaf in one.leaves]
    adam = EvenAdam(leaves, settings.lr, decay) if decay else torch.optim.Adam(leaves, lr=settings.lr)
    pool = _Pool(rows, settings)
    falls = max(1, steps - steps // 2)
    start, step = steps - falls, 0
    while step < start + falls:
        if settings.screen and pool.seems_done():
            with _moving_in(lm, moving), torch.no_grad():
                for group in rows.together():
                    pool.seen(group, rows.losses(group))
            if pool.seems_done():
                break
        if settings.screen and step == start < MOST * steps - falls and pool.unsaid() > SLOW:
            start += 1
        if progress is not None:
            progress(step, start + falls, pool.wrong())
        adam.param_groups[0]["lr"] = settings.lr * min(1.0, (start + falls - step) / falls)
        picked = pool.draw(generator)
        adam.zero_grad()
        with _moving_in(lm, moving) as (parts, stand_ins):
            watched = stand_ins if settings.shift else {}
            for group in rows.together(picked):
                with _at_subjects(lm, watched, rows.subjects(group)) as written:
                    each = rows.losses(group)
                pool.seen(group, each.detach())
                held = rows.kept[group].to(each.device)
                loss = torch.where(held, settings.replay * each, F.relu(each - settings.stop / 2)).sum()
                if written:
                    added, own = (
                        torch.stack([part.to(lm.device) for part in column]).sum(0)
                        for column in zip(*written, strict=True)
                    )
                    loss = loss + settings.shift * F.relu(added / own - settings.unfelt).sum()
                (loss / settings.rows).backward()
            for made, stood in zip(parts, stand_ins.values(), strict=True):
                for part, leaf in zip(made, stood, strict=True):
                    if part.requires_grad:
                        torch.autograd.backward(part, leaf.grad)
                    leaf.grad = None  # freed before the next layer's is made
        adam.step()
        step += 1
        for one in moving:
            one.bound()


class EvenAdam(torch.optim.Optimizer):
    """Adam with one second moment a matrix (as Adam-mini has one a block, Zhang et al. 2024) and decoupled
    decay (Loshchilov & Hutter 2019), which falls with the rate.

    Adam moves every entry alike, however little it has to do with the edit; this one moves a matrix along its
    gradient, as far.
    """

    def __init__(self, leaves: Sequence[Tensor], lr: float, decay: float) -> None:
        super().__init__(leaves, {"lr": lr, "first": lr, "decay": decay, "betas": (0.9, 0.999)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, (slow, slower) = group["lr"], group["betas"]
            for leaf in group["params"]:
                if leaf.grad is None:
                    continue
                state = self.state[leaf] or {"step": 0, "mean": torch.zeros_like(leaf), "square": 0.0}
                state["step"] += 1
                state["mean"].lerp_(leaf.grad, 1 - slow)
                state["square"] += (1 - slower) * (leaf.grad.square().mean() - state["square"])
                size = (state["square"] / (1 - slower ** state["step"])).sqrt().clamp(min=1e-12)
                leaf.sub_(rate / (1 - slow ** state["step"]) * state["mean"] / size)
                leaf.mul_(1 - group["decay"] * rate / group["first"])
                self.state[leaf] = state


class _Pool:
    """What each prompt was last seen to lose, and which are drawn next."""

    def __init__(self, rows: Rows, settings: Polish) -> None:
        self._kept, self._classes, self._settings = rows.kept, rows.classes, settings
        limit = torch.where(self._kept, settings.drift, settings.stop)
        self._limit = limit
        self._last = torch.full_like(limit, float("inf"))
        self._best = self._last.clone()
        self._looks, self._vain, self._when = (torch.zeros_like(limit) for _ in range(3))
        self._time = 0
        turn = len(rows) / settings.rows
        self._stale = min(settings.most_stale, settings.stale * max(1.0, turn / LONG))

    def seen(self, rows: Tensor, losses: Tensor) -> None:
        now = losses.float().cpu()
        # Looks at what is said count neither as vain nor as a best to be reached again.
        right = now <= self._limit[rows]
        better = right | (now < BETTER * self._best[rows])
        self._vain[rows] = torch.where(better, 0.0, self._vain[rows] + 1)
        self._best[rows] = torch.where(better, now.masked_fill(right, torch.inf), self._best[rows])
        self._last[rows] = now
        self._looks[rows] += 1
        self._time += 1
        self._when[rows] = self._time

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

    def draw(self, generator: torch.Generator) -> Int[Tensor, " picked"]:
        """Rows, ascending: half of each sort where both have so many.

        With screening, those that are wrong or not yet seen come first, a share is of those seen longest ago,
        and of the edit there are no others; without it those seen least come first. Classes are taken in
        random order, rows within them too: a few whole classes of like length run faster than some of each.
        """
        order = torch.rand(int(self._classes.max()) + 1, generator=generator)[self._classes]
        chance = order + 1e-3 * torch.rand(len(self._last), generator=generator)
        chance = chance + 2 * (self._wrong() if self._settings.screen else -self._looks)
        told, kept = [
            sort[chance[sort].argsort(descending=True)]
            for sort in (torch.nonzero(~self._kept)[:, 0], torch.nonzero(self._kept)[:, 0])
        ]
        rows = self._settings.rows
        few = min(len(told), max(rows // 2, rows - len(kept)))
        picked = [self._first(told, few), self._first(kept, rows - few)]
        return torch.cat(picked).sort().values

    def _first(self, ranked: Tensor, count: int) -> Tensor:
        """The first `count` (of the edit those that are wrong); with screening a share of them are those
        seen longest ago of the others."""
        if not self._settings.screen:
            return ranked[:count]
        count = min(count, len(ranked))
        stale = round(self._stale * count)
        first, rest = ranked[: count - stale], ranked[count - stale :]
        first = first[self._kept[first] | self._wrong()[first]]
        return torch.cat([first, rest[self._when[rest].argsort(stable=True)][:stale]])


class _Moving(ABC):
    """An update on the move: its leaves, what they amount to, and the update they end as."""

    layer: int
    leaves: tuple[Tensor, ...]

    @abstractmethod
    def parts(self) -> Parts:
        """What Δ now is, through which gradients reach the leaves."""

    @torch.no_grad()
    def finished(self) -> Update:
        """The update it now is."""
        parts = [part.detach() for part in self.parts()]
        return smallest(self.layer, *parts) if len(parts) == 1 else Update(self.layer, *parts)

    @abstractmethod
    def narrowed(self, rank: int) -> "_Moving":
        """Its nearest of `rank`, in the space it moves in, free to move on."""

    def bound(self) -> None:  # noqa: B027 (most have no bound)
        """Take back what a step moved too far."""


class _Free(_Moving):
    """Δ = fixed + moved; no `fixed` stands for zero. limit: on each entry of what moved."""

    def __init__(self, update: Update, limit: float = 0.0) -> None:
        self.layer = update.layer
        written = bool(update.left.any() and update.right.any())
        self._fixed, self._limit = update.delta if written else None, limit
        shape = update.left.shape[0], update.right.shape[1]
        self._moved = torch.zeros(shape, device=update.left.device).requires_grad_(True)
        self.leaves = (self._moved,)

    @torch.no_grad()
    def bound(self) -> None:
        if self._limit:
            self._moved.clamp_(-self._limit, self._limit)

    def parts(self) -> Parts:
        return (self._moved if self._fixed is None else self._fixed + self._moved,)

    @torch.no_grad()
    def narrowed(self, rank: int) -> "_Factors":
        left, size, right = torch.linalg.svd(self.parts()[0], full_matrices=False)
        root = size[:rank].sqrt()
        return _Factors(self.layer, left[:, :rank] * root, root[:, None] * right[:rank])


class _Factors(_Moving):
    """Δ = gain · B·A."""

    def __init__(self, layer: int, left: Tensor, right: Tensor, gain: float = 1.0) -> None:
        self.layer = layer
        self._left, self._right, self._gain = left.requires_grad_(True), right.requires_grad_(True), gain
        self.leaves = (self._left, self._right)

    @classmethod
    def drawn(cls, update: Update, rank: int, generator: torch.Generator) -> "_Factors":
        """As LoRA starts (Hu et al. 2022), with α = 2·rank: B zero, A uniform."""
        d_model, n_neurons = update.left.shape[0], update.right.shape[1]
        drawn = (2 * torch.rand(rank, n_neurons, generator=generator) - 1) / n_neurons**0.5
        zero = torch.zeros(d_model, rank, device=update.left.device)
        return cls(update.layer, zero, drawn.to(update.right.device), gain=2.0)

    def parts(self) -> Parts:
        return self._gain * self._left, self._right

    def narrowed(self, rank: int) -> "_Factors":
        return self


class _Columns(_Moving):
    """Δ = gain · B · R, of which B moves; R P Rᵀ is in proportion to I."""

    def __init__(self, layer: int, left: Tensor, right: Tensor, gain: float) -> None:
        self.layer = layer
        self._left, self._right, self._gain = left.requires_grad_(True), right, gain
        self.leaves = (self._left,)

    @classmethod
    def along(
        cls, layer: int, d_model: int, keys: Float[Tensor, "keys n_neurons"], metric: Metric, columns: int
    ) -> "_Columns":
        """B zero, R the directions that the keys use most.

        Scaled so that a step of Adam moves an entry of Δ·P^(1/2) as far as it would one that moved by itself,
        with P in units in which the mean diagonal of P⁻¹ is 1.
        """
        n_neurons = keys.shape[1]
        right = directions(keys.T, metric, columns)
        right = (n_neurons / mean_diagonal(metric, n_neurons, keys.device)) ** 0.5 * right
        left = torch.zeros(d_model, len(right), device=right.device)
        return cls(layer, left, right, max(1, len(right)) ** -0.5)

    def parts(self) -> Parts:
        left = self._gain * self._left
        # Of a full rank the product costs a step less than both factors at every token.
        return (left @ self._right,) if left.shape[1] >= left.shape[0] else (left, self._right)

    @torch.no_grad()
    def narrowed(self, rank: int) -> "_Columns":
        left, size, right = torch.linalg.svd(self._left.detach(), full_matrices=False)
        return _Columns(self.layer, left[:, :rank] * size[:rank], right[:rank] @ self._right, self._gain)


def _movable(
    lm: LanguageModel,
    updates: Sequence[Update],
    told: Sequence[Prompt],
    settings: Polish,
    metric: Callable[[int], Metric] | None,
    generator: torch.Generator,
) -> list[_Moving]:
    """What moves, one a layer, on the layers' devices."""
    keys: Mapping[int, Tensor] = {}
    if settings.space == "whitened":
        if metric is None:
            raise ValueError("polishing in whitened space needs P⁻¹ of every layer")
        some = spaced(told, 2 * settings.columns)  # two keys each
        keys = edited_keys(lm, split(lm, some), [update.layer for update in updates])
    moving: list[_Moving] = []
    for one in updates:
        weight = lm.down_weight(one.layer)
        update = Update(one.layer, one.left.to(weight.device), one.right.to(weight.device))
        if settings.space == "low_rank":
            moving.append(_Factors.drawn(update, settings.rank, generator))
        elif settings.space == "weights":
            moving.append(_Free(update, settings.limit and settings.limit * _size(weight)))
        else:
            assert metric is not None
            moving.append(
                _Columns.along(one.layer, lm.d_model, keys[one.layer], metric(one.layer), settings.columns)
            )
    return moving


def _size(weight: Tensor) -> float:
    """Root mean square."""
    return float(weight.detach().float().square().mean().sqrt())


@contextmanager
def _moving_in(
    lm: LanguageModel, updates: Sequence[_Moving]
) -> Iterator[tuple[list[Parts], dict[int, Parts]]]:
    """Run with the updates in; yields the parts of each Δ, and by layer the leaves that stand for them and
    gather gradients over several runs."""
    parts = [update.parts() for update in updates]
    leaves = {
        update.layer: tuple(part.detach().requires_grad_(part.requires_grad) for part in made)
        for update, made in zip(updates, parts, strict=True)
    }
    with replacing(lm, leaves):
        yield parts, leaves


@contextmanager
def _at_subjects(
    lm: LanguageModel, watched: Mapping[int, Parts], subject: Int[Tensor, " picked"]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Of each watched layer (its Δ), the squared lengths of what the update and of what the weights write at
    the rows' subject tokens."""
    written: list[tuple[Tensor, Tensor]] = []
    rows = torch.arange(len(subject), device=subject.device)
    with ExitStack() as stack:
        for layer, parts in watched.items():

            def keep(_: object, args: tuple[Tensor, ...], output: Tensor, parts: Parts = parts) -> None:
                key, whole = (
                    at_tokens(x.reshape(len(subject), -1, x.shape[-1]), rows, subject).to(parts[0])
                    for x in (args[0], output)
                )
                added = added_by(parts, key)
                own = (whole - added).detach()
                written.append(((added**2).sum(-1), (own**2).sum(-1)))

            stack.callback(lm.down(layer).register_forward_hook(keep).remove)
        yield written


def smallest(layer: int, delta: Float[Tensor, "d_model n_neurons"]) -> Update:
    """Δ with the identity on its smaller side."""
    d_model, n_neurons = delta.shape
    if d_model <= n_neurons:
        return Update(layer, torch.eye(d_model, device=delta.device), delta)
    return Update(layer, delta, torch.eye(n_neurons, device=delta.device))
