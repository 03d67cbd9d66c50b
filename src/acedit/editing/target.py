"""The v* search (Eq. 13): what a layer would have to write for the model to say the new object.

    found = search(lm, batch, layer, token="subject", settings=TargetSettings())
    found.delta       # (n_edits, d_model), to be added to the residual stream after block `layer`
    found.loss        # (n_edits,), nats a token, at the end: the *reach* of that layer and token

All edits of a batch are searched together; only the blocks above the layer run, and logits are taken
only where the loss reads them. δ is one vector an edit, shared by all its rows.

Deviations from the paper: steps are relative to the residual's own norm (lr·‖h‖/√d), δ is clamped at a
multiple of ‖h‖, and each edit stops by itself, by its loss instead of at KL < 0.01. The KL is taken over what
the unedited model goes on with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from acedit.editing.batch import Batch
from acedit.lm.model import LanguageModel
from acedit.lm.suffix import Suffix
from acedit.lm.trace import first

RESTING = 0.5  # of the rows still run: fewer that move, and the others are let go
PADDING = 32  # tokens that a row may add as padding before it begins a batch of its own


@dataclass(frozen=True)
class TargetSettings:
    """steps and lr as in appendix F, lr relative to ‖h‖/√d; clamp in multiples of ‖h‖; losses in nats."""

    steps: int = 30
    lr: float = 0.2
    clamp: float = 1.5
    stop: float = 0.02  # an edit whose NLL is below stops moving
    kl: float = 0.0625  # weight (μ) of what must stay said
    attention: bool = False  # PMET: optimise a delta on attention's output too, and drop it


@dataclass(frozen=True)
class Targets:
    """delta: (n_edits, d_model) in the residual stream after the block; loss: (n_edits,) nats."""

    delta: Float[Tensor, "n_edits d_model"]
    loss: Float[Tensor, " n_edits"]


def search(
    lm: LanguageModel,
    batches: Sequence[Batch],
    layer: int,
    *,
    token: str,
    n_edits: int,
    settings: TargetSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Targets:
    """Search δ for every edit at once, on the model as it stands.

    Rows of kind `keep` are held to the model's own distribution (KL, weight `kl`), the rest are pulled
    to their answer (φ = 1; the paper's later drop to 0.1 is the stop of each edit here). progress: told steps
    done, and how many there are at most.
    """
    runs = _runs(lm, batches, layer, token, attention=settings.attention)
    norm = torch.zeros(n_edits, device=lm.device)
    count = torch.zeros_like(norm)
    for run in runs:
        norm = norm.index_add(0, run.edit, run.at.norm(dim=-1))
        count = count.index_add(0, run.edit, torch.ones_like(run.at[:, 0]))
    norm = norm / count.clamp(min=1)
    scale = (norm / lm.d_model**0.5)[:, None]
    parts = 2 if settings.attention else 1
    raw = torch.zeros(parts, n_edits, lm.d_model, device=lm.device, requires_grad=True)
    adam = torch.optim.Adam([raw], lr=settings.lr)
    loss = torch.full((n_edits,), float("inf"), device=lm.device)
    moving = torch.ones_like(loss, dtype=torch.bool)

    def counted(wanting: bool) -> Tensor:
        return torch.cat([run.edit[run.wants == wanting] for run in runs]).bincount(minlength=n_edits)

    wanted, kept = counted(True), counted(False)
    for step in range(settings.steps + 1):
        if progress is not None:
            progress(step, settings.steps)
        delta = raw * scale
        limit = settings.clamp * norm[:, None]
        delta = delta * (limit / delta.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
        # No edit's δ is in another's rows, so each run goes backward by itself: one run's graph at a time.
        leaf = delta.detach().requires_grad_(True)
        nll = torch.zeros(n_edits, device=lm.device)
        for run in runs:
            pull, hold = run.losses(leaf)
            nll = nll.index_add(0, run.edit[run.wants], pull.detach().float())
            pulled = (pull / wanted[run.edit[run.wants]]).sum()
            (pulled + settings.kl * (hold / kept[run.edit[~run.wants]]).sum()).backward()
        loss = torch.where(moving, nll / wanted.clamp(min=1), loss)
        moving = loss > settings.stop
        if not bool(moving.any()):
            break
        adam.zero_grad()
        delta.backward(leaf.grad)
        before = raw.detach().clone()
        adam.step()
        with torch.no_grad():
            raw.copy_(torch.where(moving[None, :, None], raw, before))
        # An edit at rest stays there: its rows need not run.
        awake = [(run.batch, moving[run.edit].nonzero()[:, 0]) for run in runs]
        if sum(len(rows) for _, rows in awake) <= RESTING * sum(len(batch) for batch, _ in awake):
            some = [batch.pick(rows) for batch, rows in awake if len(rows)]
            runs = _runs(lm, some, layer, token, attention=settings.attention)
    return Targets(delta[-1].detach(), loss)


@torch.no_grad()
def loss_with(
    lm: LanguageModel,
    batches: Sequence[Batch],
    layer: int,
    delta: Float[Tensor, "n_edits d_model"],
    *,
    token: str,
) -> Float[Tensor, " n_edits"]:
    """Mean NLL (nats a token) of each edit's rows with its δ put in: what a δ found elsewhere does here.

    NaN for an edit without rows.
    """
    total = torch.zeros(len(delta), device=lm.device)
    count = torch.zeros_like(total)
    for run in _runs(lm, batches, layer, token, attention=False):
        nll = run.losses(delta[None])[0].float()
        edit = run.edit[run.wants]
        total = total.index_add(0, edit, nll)
        count = count.index_add(0, edit, torch.ones_like(nll))
    return total / count


def _runs(
    lm: LanguageModel, batches: Sequence[Batch], layer: int, token: str, *, attention: bool
) -> list["_Run"]:
    """`batches` in rows whose tokens from δ on stand much alike, since no other token is run again."""
    return [
        _Run(lm, batch.pick(rows), layer, token, attention)
        for batch in batches
        for rows in _windows(batch.positions(token), batch.encoded.lengths)
    ]


def _windows(start: Int[Tensor, " rows"], end: Int[Tensor, " rows"]) -> list[Int[Tensor, " picked"]]:
    """Rows by start, a new group where one more row would pad more tokens than `PADDING`."""
    starts, ends = start.tolist(), end.tolist()

    def padding(rows: list[int]) -> int:
        width = max(ends[i] for i in rows) - min(starts[i] for i in rows)
        return sum(width - (ends[i] - starts[i]) for i in rows)

    groups: list[list[int]] = []
    for row in sorted(range(len(starts)), key=lambda i: starts[i]):
        if groups and padding([*groups[-1], row]) - padding(groups[-1]) <= PADDING:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [torch.tensor(some, device=start.device) for some in groups]


class _Run:
    """One batch's suffix from the layer up, with δ put in."""

    def __init__(self, lm: LanguageModel, batch: Batch, layer: int, token: str, attention: bool) -> None:
        self.lm, self.batch, self.layer, self.attention = lm, batch, layer, attention
        self.edit: Int[Tensor, " rows"] = batch.edits()
        # Nothing before the first δ of a batch is moved: its keys and values are taken once.
        start = int(batch.positions(token).min())
        self.position = batch.positions(token) - start
        self.rows = torch.arange(len(batch), device=lm.device)
        self.wants = torch.tensor([p.kind != "keep" for p in batch.prompts], device=lm.device)
        self.suffix = Suffix(lm, batch.encoded, layer if attention else layer + 1, start=start)
        after = self.suffix if not attention else Suffix(lm, batch.encoded, layer + 1, start=start)
        self.at = after.hidden[self.rows, self.position].float()
        self.pulled = self.wants[batch.answer_row]
        with torch.no_grad():
            own = batch.at_answers(self.suffix.run(), start=start)[~self.pulled]
            self.reference = self.suffix.logits(own).log_softmax(-1)

    def _place(self, delta: Tensor, like: Tensor) -> Tensor:
        added = torch.zeros_like(like)
        where = (self.rows.to(like.device), self.position.to(like.device))
        return added.index_put(where, delta[self.edit].to(like))

    def losses(self, delta: Float[Tensor, "parts n_edits d_model"]) -> tuple[Tensor, Tensor]:
        """Of the rows that want it NLL of their answer, of the rest KL(edited ‖ unedited) there (Eq. 13);
        nats a token."""
        if self.attention:
            final = self._run_with_attention(delta)
        else:
            hidden = self.suffix.hidden
            final = self.suffix.run(hidden + self._place(delta[0], hidden))
        said = self.suffix.logits(self.batch.at_answers(final, start=self.suffix.start)).log_softmax(-1)
        token = F.nll_loss(said, self.batch.answer_ids, reduction="none")
        if not bool(self.pulled.all()):
            kl = F.kl_div(self.reference, said[~self.pulled], log_target=True, reduction="none").sum(-1)
            token = token.index_put((~self.pulled,), kl)
        each = self.batch.row_mean(token)
        return each[self.wants], each[~self.wants]

    def _run_with_attention(self, delta: Tensor) -> Tensor:
        lm, layer = self.lm, self.layer

        def on_attention(_: object, __: object, output: object) -> object:
            moved = first(output) + self._place(delta[0], first(output))
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        def on_block(_: object, __: object, output: object) -> object:
            moved = first(output) + self._place(delta[1], first(output))
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        added_by = lm.attention_post_norm(layer) or lm.attention(layer)
        handles = [
            added_by.register_forward_hook(on_attention),
            lm.block(layer).register_forward_hook(on_block),
        ]
        try:
            return self.suffix.run()
        finally:
            for handle in handles:
                handle.remove()
