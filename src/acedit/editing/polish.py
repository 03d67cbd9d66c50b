"""Polish: gradient steps on an edit's updates, where something is still wrong.

    updates = polish(lm, updates, edit_batches, replay_batches, Polish(), seed=0)

Starts from what the closed form wrote (`stages.sweep`). Every few steps all prompts are screened: those
of the edit that are said surely enough, and those to be kept that have not drifted, are left alone until
the next screening; when none is left, the work is done. So an edit of one fact takes a few steps and
one of a hundred takes as many as it needs.

Footguns: weights are never touched, the updates act through hooks. `drift` and `stop` are tolerances on
the prompts at hand; what no prompt asks is protected by the space Δ moves in, not by them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acedit.editing.batch import Batch
from acedit.editing.stages import Update
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix


@dataclass(frozen=True)
class Polish:
    """Gradient steps after the closed form.

    space: "targets" moves only the targets R, so Δ keeps the closed form's rank and the span of its
    whitened keys; "weights" moves Δ freely; "whitened" moves Z in Δ = Δ₀ + Z·P^(-1/2), so that steps
    are small along keys that are to be preserved. lr is Adam's, relative to the mean |entry| of what
    moves for "targets", absolute otherwise. replay: weight of the KL (nats a token) from the unedited
    model on what must stay. rows: a step, half of each sort where both have so many. screen: steps
    between two screenings, 0 for none (every prompt counts at every step). stop: a prompt of the edit is
    done below this NLL, drift: a kept one is unharmed below this KL (both nats a token).
    """

    steps: int = 60
    lr: float = 1e-3
    space: Literal["targets", "weights", "whitened"] = "weights"
    replay: float = 1.0
    rows: int = 192
    screen: int = 5
    stop: float = 0.05
    drift: float = 0.02


class _Part:
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


Rows = list[tuple[int, int]]  # (part, row)


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

    Returns new updates; weights are never touched. In "weights" and "whitened" space an update comes
    back as (Δ, I) or (I, Δ), whichever is smaller. progress: step, steps, and how many prompts of each
    sort are worked on.
    """
    if not edit_batches or settings.steps <= 0:
        return list(updates)
    generator = torch.Generator().manual_seed(seed)
    first_layer = min(update.layer for update in updates)
    parts = [_Part(lm, batch, first_layer, kept=False) for batch in edit_batches]
    parts += [_Part(lm, batch, first_layer, kept=True) for batch in replay_batches]
    moving: list[_Moving] = []
    groups: list[dict[str, object]] = []
    for update in updates:
        one, lr = _movable(update, settings, whiten)
        moving.append(one)
        groups.append({"params": [one.left], "lr": lr})
    adam = torch.optim.Adam(groups)
    active: tuple[Rows, Rows] = _all_rows(parts)
    for step in range(settings.steps):
        if settings.screen and step % settings.screen == 0:
            with _moving_in(lm, moving), torch.no_grad():
                active = _wrong(parts, settings)
            if not any(active):
                break
        if progress is not None:
            progress(step, settings.steps, {"edit": len(active[0]), "replay": len(active[1])})
        scale = min(1.0, 2 * (1 - step / settings.steps))
        for group, own in zip(adam.param_groups, groups, strict=True):
            group["lr"] = float(own["lr"]) * scale  # type: ignore[arg-type]
        picked = _draw(active, settings.rows, generator)
        adam.zero_grad()
        with _moving_in(lm, moving):
            for i in sorted({i for i, _ in picked}):
                part = parts[i]
                rows = torch.tensor(sorted(row for j, row in picked if j == i), device=lm.device)
                each = part.losses(rows)
                loss = settings.replay * each.sum() if part.kept else F.relu(each - settings.stop / 2).sum()
                (loss / len(picked)).backward()
        adam.step()
    return [update.finished() for update in moving]


def _all_rows(parts: Sequence[_Part]) -> tuple[Rows, Rows]:
    edit: Rows = [(i, row) for i, part in enumerate(parts) if not part.kept for row in range(len(part.batch))]
    kept: Rows = [(i, row) for i, part in enumerate(parts) if part.kept for row in range(len(part.batch))]
    return edit, kept


def _wrong(parts: Sequence[_Part], settings: Polish) -> tuple[Rows, Rows]:
    """The rows of the edit not yet said, and those to be kept that have drifted."""
    found: tuple[Rows, Rows] = ([], [])
    for i, part in enumerate(parts):
        limit = settings.drift if part.kept else settings.stop
        rows = (part.losses() > limit).nonzero().flatten().tolist()
        found[part.kept].extend((i, row) for row in rows)
    return found


def _draw(active: tuple[Rows, Rows], rows: int, generator: torch.Generator) -> Rows:
    """At most `rows` of the active rows, half of each sort where both have so many."""
    edit, kept = active
    few = min(len(edit), max(rows // 2, rows - len(kept)))
    picked: Rows = []
    for sort, count in ((edit, few), (kept, min(len(kept), rows - few))):
        order = torch.randperm(len(sort), generator=generator)[:count].tolist()
        picked += [sort[i] for i in order]
    return picked


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


def _smallest(layer: int, delta: Float[Tensor, "d_model n_neurons"]) -> Update:
    d_model, n_neurons = delta.shape
    if d_model <= n_neurons:
        return Update(layer, torch.eye(d_model, device=delta.device), delta)
    return Update(layer, delta, torch.eye(n_neurons, device=delta.device))
