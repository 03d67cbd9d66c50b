"""Stages: how an edit's targets become one low-rank update a layer.

A method is a list of stages, and a stage says on which prompts, at which token, in which layers, and
how the residual is spread over them. Every stage's targets are searched on the *unedited* model; then
one ascending sweep writes each layer towards its fixed targets, on the weights as they then are
(Eq. 12). `polish` goes on from there with gradients, on the same prompts, with what must stay replayed.

    updates = sweep(lm, stages, layers, batches, targets, preserve)

Footguns: `sweep` writes to the live model and puts it back before it returns, also when it raises.
Written one stage after the other with targets searched on the model as it then is, the first write
stops the second search early (docs/decisions.md): do not reorder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from acedit.editing.batch import Batch
from acedit.editing.keys import keys_at
from acedit.editing.solve import factor, solve
from acedit.editing.target import Targets, TargetSettings
from acedit.knowledge.compose import Kind
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix

Where = Literal["query", "middle", "value"]
Token = Literal["subject", "last"]
Spread = Literal["even", "root"]


@dataclass(frozen=True)
class Stage:
    """One write: `kinds` of prompts, at `token`, in the plan's `where` layers.

    spread: of the residual over the remaining layers, "even" (MEMIT) or "root" (PMET, ACE).
    """

    name: str
    kinds: tuple[Kind, ...]
    token: Token
    where: Where
    spread: Spread = "root"
    target: TargetSettings = field(default_factory=TargetSettings)


@dataclass
class Update:
    """Δ of one layer as left @ right, in the down projection's output and input space, float32."""

    layer: int
    left: Float[Tensor, "d_model n"]
    right: Float[Tensor, "n n_neurons"]

    @property
    def delta(self) -> Float[Tensor, "d_model n_neurons"]:
        """The product."""
        return self.left @ self.right


@contextmanager
def updates_in(
    lm: LanguageModel, updates: Sequence[Update], dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Add the updates at run time, by hooks: weights untouched, gradients flow into the factors."""
    with ExitStack() as stack:
        for update in updates:

            def add(_: object, args: tuple[Tensor, ...], output: Tensor, update: Update = update) -> Tensor:
                key = args[0].to(dtype or update.right.dtype)
                return output + ((key @ update.right.T) @ update.left.T).to(output.dtype)

            handle = lm.down(update.layer).register_forward_hook(add)
            stack.callback(handle.remove)
        yield


def into_down_space(
    lm: LanguageModel, layer: int, residual: Float[Tensor, "n d_model"], output: Tensor
) -> Float[Tensor, "n d_model"]:
    """What the down projection must add for the stream to move by `residual`.

    The identity but for families with a post-norm, whose scale is frozen at the current output.
    """
    norm = lm.ffn_post_norm(layer)
    if norm is None:
        return residual
    frozen = lm.freeze_norm(norm, output)
    unit = frozen.apply(torch.ones_like(residual))
    floor = 0.05 * unit.abs().mean()
    return residual / torch.where(unit.abs() < floor, floor * unit.sign().add(1e-9).sign(), unit)


@dataclass(frozen=True)
class Writing:
    """A stage bound to its layers, its prompts and its targets."""

    stage: Stage
    layers: tuple[int, ...]
    batches: tuple[Batch, ...]
    targets: Targets


def sweep(
    lm: LanguageModel,
    writings: Sequence[Writing],
    preserve: Callable[[int], Float[Tensor, "n_neurons n_neurons"]],
    *,
    ridge: float,
) -> list[Update]:
    """One ascending pass over the layers; each is written towards the targets of its stages.

    preserve: P of a layer (see `solve`), asked for on the model as it then is. Returns one update a
    layer; the model is as before.
    """
    wanted = [_wanted(lm, w) for w in writings]
    updates: list[Update] = []
    for layer in sorted({layer for w in writings for layer in w.layers}):
        with updates_in(lm, updates):
            columns, residuals = [], []
            for writing, goals in zip(writings, wanted, strict=True):
                if layer not in writing.layers:
                    continue
                remaining = len([x for x in writing.layers if x >= layer])
                share = 1 / remaining if writing.stage.spread == "even" else remaining**-0.5
                top = writing.layers[-1]
                for batch, goal in zip(writing.batches, goals, strict=True):
                    position = batch.positions(writing.stage.token)
                    keys, _ = keys_at(lm, batch.encoded, layer, position)
                    _, now = keys_at(lm, batch.encoded, top, position)
                    columns.append(keys)
                    out = _ffn_output(lm, batch, layer, position)
                    residuals.append(into_down_space(lm, layer, (goal - now) * share, out))
            p = preserve(layer)
        keys, residual = torch.cat(columns), torch.cat(residuals)
        size = (keys.double() ** 2).sum() / keys.shape[0]
        lift = ridge * size * torch.eye(p.shape[0], dtype=torch.float64, device=p.device)
        left, right = solve(residual.T, keys.T, factor(p.double() + lift))
        updates.append(Update(layer, left, right))
    return updates


def _wanted(lm: LanguageModel, writing: Writing) -> list[Tensor]:
    """Where each row's residual stream should be after the stage's last layer."""
    goals = []
    for batch in writing.batches:
        position = batch.positions(writing.stage.token)
        _, residual = keys_at(lm, batch.encoded, writing.layers[-1], position)
        goals.append(residual + writing.targets.delta[batch.edits()].float())
    return goals


@torch.no_grad()
def _ffn_output(lm: LanguageModel, batch: Batch, layer: int, position: Tensor) -> Tensor:
    """The FFN's output before any post-norm, at one token a row; only post-norm families need it."""
    if lm.ffn_post_norm(layer) is None:
        return torch.empty(0)
    kept: list[Tensor] = []
    rows = torch.arange(len(batch), device=lm.device)

    def keep(_: object, __: object, output: Tensor) -> None:
        kept.append(output.reshape(len(batch), -1, lm.d_model)[rows, position].float())

    handle = lm.ffn_module(layer).register_forward_hook(keep)
    try:
        lm.run_backbone(batch.encoded)
    finally:
        handle.remove()
    return kept[0]


@dataclass(frozen=True)
class Polish:
    """Gradient steps after the closed form.

    space: "targets" moves only the targets R, so Δ keeps the closed form's rank and the span of its
    whitened keys; "weights" moves Δ freely; "whitened" moves Z in Δ = Δ₀ + Z·P^(-1/2), so that steps
    are small along keys that are to be preserved. lr is Adam's, relative to the mean |entry| of what
    moves for "targets", absolute otherwise. replay: weight of the KL (nats a token) from the unedited
    model on what must stay. rows: of each sort, a step.
    """

    steps: int = 60
    lr: float = 1e-3
    space: Literal["targets", "weights", "whitened"] = "weights"
    replay: float = 1.0
    rows: int = 96
    stop: float = 0.01


class _Part:
    """A batch with its suffix and, for replay, the unedited model's distribution (made once)."""

    def __init__(self, lm: LanguageModel, batch: Batch, layer: int) -> None:
        self.batch = batch
        self.suffix = Suffix(lm, batch.encoded, layer)
        self._reference: Tensor | None = None

    def logits(self) -> Tensor:
        return self.suffix.logits(self.batch.at_answers(self.suffix.run()))

    def reference(self) -> Tensor:
        """Called with no update in."""
        if self._reference is None:
            with torch.no_grad():
                self._reference = self.logits().log_softmax(-1)
        return self._reference


def polish(
    lm: LanguageModel,
    updates: Sequence[Update],
    edit_batches: Sequence[Batch],
    replay_batches: Sequence[Batch],
    settings: Polish,
    *,
    seed: int,
    whiten: Mapping[int, Float[Tensor, "n_neurons n_neurons"]] | None = None,
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
) -> list[Update]:
    """Adam on the updates: NLL of the edit's prompts plus KL on the replay (nats a token).

    Returns new updates; weights are never touched. In "weights" space an update comes back as
    (Δ, I) or (I, Δ), whichever is smaller.
    """
    if not edit_batches or settings.steps <= 0:
        return list(updates)
    generator = torch.Generator().manual_seed(seed)
    first_layer = min(update.layer for update in updates)
    edits = [_Part(lm, batch, first_layer) for batch in edit_batches]
    replays = [_Part(lm, batch, first_layer) for batch in replay_batches]
    for part in replays:
        part.reference()
    moving: list[_Moving] = []
    groups: list[dict[str, object]] = []
    for update in updates:
        one, lr = _movable(update, settings, whiten)
        moving.append(one)
        groups.append({"params": [one.left], "lr": lr})
    adam = torch.optim.Adam(groups)
    order: dict[str, list[int]] = {"edit": [], "replay": []}

    def draw(sort: str, parts: Sequence[_Part]) -> list[_Part]:
        picked: list[_Part] = []
        rows = 0
        while parts and rows < settings.rows and len(picked) < len(parts):
            if not order[sort]:
                order[sort] = torch.randperm(len(parts), generator=generator).tolist()
            picked.append(parts[order[sort].pop()])
            rows += len(picked[-1].batch)
        return picked

    for step in range(settings.steps):
        scale = min(1.0, 2 * (1 - step / settings.steps))
        for group, own in zip(adam.param_groups, groups, strict=True):
            group["lr"] = float(own["lr"]) * scale  # type: ignore[arg-type]
        adam.zero_grad()
        seen = {"edit": 0.0, "replay": 0.0}
        picked = draw("edit", edits)
        total_rows = sum(len(part.batch) for part in picked)
        with _moving_in(lm, moving):
            for part in picked:
                nll = part.batch.nll(part.logits())
                loss = F.relu(nll - settings.stop).sum() / total_rows
                loss.backward()
                seen["edit"] += float(loss.detach())
            kept = draw("replay", replays)
            kept_rows = sum(len(part.batch) for part in kept)
            for part in kept:
                now = part.logits().log_softmax(-1)
                kl = F.kl_div(now, part.reference(), log_target=True, reduction="none").sum(-1)
                loss = settings.replay * part.batch.row_mean(kl).sum() / kept_rows
                loss.backward()
                seen["replay"] += float(loss.detach())
        adam.step()
        if progress is not None:
            progress(step + 1, settings.steps, seen)
    return [update.finished() for update in moving]


@dataclass
class _Moving:
    """Δ = fixed + left @ right; no `right` stands for the identity."""

    layer: int
    left: Tensor
    right: Tensor | None
    fixed: Tensor | None

    def delta(self) -> Tensor:
        moved = self.left if self.right is None else self.left @ self.right
        return moved if self.fixed is None else self.fixed + moved

    def finished(self) -> Update:
        left = self.left.detach()
        if self.right is not None and self.fixed is None:
            return Update(self.layer, left, self.right)
        with torch.no_grad():
            return _smallest(self.layer, self.delta().detach())


def _movable(update: Update, settings: Polish, whiten: Mapping[int, Tensor] | None) -> tuple[_Moving, float]:
    """What of an update moves, and at which learning rate."""
    if settings.space == "targets":
        left = update.left.clone().requires_grad_(True)
        lr = settings.lr * float(update.left.abs().mean().clamp(min=1e-6))
        return _Moving(update.layer, left, update.right, None), lr
    if settings.space == "whitened":
        if whiten is None:
            raise ValueError("polishing in whitened space needs P^(-1/2) for every layer")
        left = torch.zeros_like(update.delta).requires_grad_(True)
        return _Moving(update.layer, left, whiten[update.layer], update.delta), settings.lr
    return _Moving(update.layer, update.delta.clone().requires_grad_(True), None, None), settings.lr


@contextmanager
def _moving_in(lm: LanguageModel, updates: Sequence[_Moving]) -> Iterator[None]:
    """Like `updates_in`, for updates under optimisation."""
    with ExitStack() as stack:
        for update in updates:

            def add(_: object, args: tuple[Tensor, ...], output: Tensor, update: _Moving = update) -> Tensor:
                return output + (args[0].to(update.left.dtype) @ update.delta().T).to(output.dtype)

            stack.callback(lm.down(update.layer).register_forward_hook(add).remove)
        yield


def whitening(
    preserve: Float[Tensor, "n_neurons n_neurons"], ridge: float = 0.05
) -> Float[Tensor, "n_neurons n_neurons"]:
    """P^(-1/2), symmetric, scaled so that its mean diagonal is 1; ridge in multiples of tr(P)/N."""
    p = preserve.double()
    lift = ridge * p.diagonal().mean() * torch.eye(p.shape[0], dtype=p.dtype, device=p.device)
    values, vectors = torch.linalg.eigh(p + lift)
    root = (vectors * values.clamp(min=1e-12).rsqrt()) @ vectors.T
    scaled: Tensor = (root / root.diagonal().mean()).float()
    return scaled


def _smallest(layer: int, delta: Float[Tensor, "d_model n_neurons"]) -> Update:
    d_model, n_neurons = delta.shape
    if d_model <= n_neurons:
        return Update(layer, torch.eye(d_model, device=delta.device), delta)
    return Update(layer, delta, torch.eye(n_neurons, device=delta.device))
