"""Stages: how an edit's targets become one low-rank update a layer.

A method is a list of stages, and a stage says on which prompts, at which token, in which layers, and
how the residual is spread over them. Every stage's targets are searched on the *unedited* model; then
one ascending sweep writes each layer towards its fixed targets, on the weights as they then are
(Eq. 12). `editing.polish` goes on from there with gradients.

    updates = sweep(lm, writings, metric)

Footguns: written one stage after the other with targets searched on the model as it then is, the first write
stops the second search early (docs/decisions.md): do not reorder.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from acedit.editing.batch import Batch
from acedit.editing.keys import keys_at
from acedit.editing.solve import Metric, solve
from acedit.editing.target import Targets, TargetSettings
from acedit.knowledge.compose import Kind
from acedit.lm.model import LanguageModel
from acedit.lm.trace import at_tokens, run_by

Where = Literal["query", "middle", "value"]
Token = Literal["subject", "last"]
Spread = Literal["even", "root"]


@dataclass(frozen=True)
class Stage:
    """One write: `kinds` of prompts, at `token`, in the plan's `where` layers.

    spread: of the residual over the remaining layers, "even" (MEMIT) or "root" (PMET, ACE). deepest: the
    last of those layers alone (ROME, EMMET). width: so many layers at least, from the first of those of an
    automatic plan upward but below the value layers, for methods that their papers write in a range.
    mean_keys: one key an edit, the mean over its prompts, in place of one a prompt.
    """

    name: str
    kinds: tuple[Kind, ...]
    token: Token
    where: Where
    spread: Spread = "root"
    deepest: bool = False
    width: int = 0
    mean_keys: bool = False
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
def adding(lm: LanguageModel, added: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Add `added[layer]`, of the down projection's input, to its output at run time; weights untouched."""
    with ExitStack() as stack:
        for layer, term in added.items():

            def add(
                _: object, args: tuple[Tensor, ...], output: Tensor, term: Callable[[Tensor], Tensor] = term
            ) -> Tensor:
                return output + term(args[0]).to(output.dtype)

            stack.callback(lm.down(layer).register_forward_hook(add).remove)
        yield


Parts = tuple[Tensor, ...]
"""Δ as it is, (Δ,), or as its factors, (left, right)."""


def added_by(parts: Parts, key: Float[Tensor, "*rows n_neurons"]) -> Float[Tensor, "*rows d_model"]:
    """What Δ adds to the down projection's output."""
    for part in reversed(parts):
        key = key @ part.T
    return key


class _Rounded(torch.autograd.Function):
    """key · round(W + left·right)ᵀ, in W's dtype; gradients pass the rounding unchanged.

    W + Δ is made anew on the way back, and Δ's gradient never whole, so that no layer's is held.
    """

    @staticmethod
    def forward(ctx: Any, key: Tensor, own: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(key, own, left, right)
        return key @ _whole(own, left @ right).to(own.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        key, own, left, right = ctx.saved_tensors
        (grad,) = grads
        to_key = grad @ _whole(own, left @ right).to(own.dtype) if ctx.needs_input_grad[0] else None
        flat, keys = grad.flatten(0, -2).to(left), key.flatten(0, -2).to(left)
        to_right = (flat @ left).T @ keys if ctx.needs_input_grad[3] else None
        return to_key, None, flat.T @ (keys @ right.T), to_right


def _whole(own: Tensor, delta: Tensor) -> Tensor:
    """W + Δ in the wider of their dtypes, where W lies."""
    return own.to(torch.promote_types(own.dtype, delta.dtype)) + delta.to(own.device)


@contextmanager
def replacing(lm: LanguageModel, deltas: Mapping[int, Parts]) -> Iterator[None]:
    """Run with W + Δ for the down projections' W, rounded to W's dtype as `Patch.apply` leaves it; gradients
    pass the rounding unchanged. Weights are untouched, and of factors no layer's product is held."""
    with ExitStack() as stack:
        for layer, parts in deltas.items():
            own, bias = lm.subvalues(layer).T, lm.down_bias(layer)
            parts = tuple(part.to(own.device) for part in parts)
            forward = _by_whole(own, bias, *parts) if len(parts) == 1 else _by_factors(own, bias, *parts)
            stack.enter_context(run_by(lm.down(layer), forward))
        yield


def _by_whole(own: Tensor, bias: Tensor | None, delta: Tensor) -> Callable[[Tensor], Tensor]:
    whole = _whole(own, delta)
    if own.dtype != whole.dtype:
        whole = whole + (whole.to(own.dtype).to(whole.dtype) - whole).detach()

    def forward(key: Tensor) -> Tensor:
        written = F.linear(key.to(whole.dtype), whole)
        return (written if bias is None else written + bias).to(key.dtype)

    return forward


def _by_factors(own: Tensor, bias: Tensor | None, left: Tensor, right: Tensor) -> Callable[[Tensor], Tensor]:
    rounds = own.dtype != torch.promote_types(own.dtype, left.dtype)

    def forward(key: Tensor) -> Tensor:
        if rounds:
            written: Tensor = _Rounded.apply(key, own, left, right)  # type: ignore[no-untyped-call]
            return written if bias is None else written + bias
        return F.linear(key, own, bias) + added_by((left, right), key.to(left)).to(key.dtype)

    return forward


@contextmanager
def updates_in(lm: LanguageModel, updates: Sequence[Update]) -> Iterator[None]:
    """Run the model with the updates (one a layer) in."""

    def term(update: Update) -> Callable[[Tensor], Tensor]:
        def added(key: Tensor) -> Tensor:
            left, right = update.left.to(key.device), update.right.to(key.device)
            return added_by((left, right), key.to(right.dtype))

        return added

    with adding(lm, {update.layer: term(update) for update in updates}):
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
    """A stage bound to its layers, its prompts and its targets.

    aim: a layer, and where the stream of each batch's rows should be after it; None: after the stage's last
    layer, as far off as the targets say from where it now is.
    """

    stage: Stage
    layers: tuple[int, ...]
    batches: tuple[Batch, ...]
    targets: Targets
    aim: tuple[int, list[Tensor]] | None = None

    def aimed(self, lm: LanguageModel) -> "Writing":
        """The writing with its aim fixed on the model as it stands."""
        return replace(self, aim=(self.layers[-1], _wanted(lm, self)))


def sweep(
    lm: LanguageModel,
    writings: Sequence[Writing],
    metric: Callable[[int, float], Metric],
    *,
    slack: float = 1.0,
) -> list[Update]:
    """One ascending pass over the layers; each is written towards the targets of its stages.

    metric, slack: see `solve`; asked for a layer and its keys' mean squared length, on the model as it
    then is. Returns one update a layer; the model is as before.
    """
    aims = [w.aim or (w.layers[-1], _wanted(lm, w)) for w in writings]
    updates: list[Update] = []
    for layer in sorted({layer for w in writings for layer in w.layers}):
        with updates_in(lm, updates):
            columns, residuals = [], []
            for writing, (top, goals) in zip(writings, aims, strict=True):
                if layer not in writing.layers:
                    continue
                remaining = len([x for x in writing.layers if x >= layer])
                share = 1 / remaining if writing.stage.spread == "even" else remaining**-0.5
                keys_of, residuals_of = [], []
                for batch, goal in zip(writing.batches, goals, strict=True):
                    position = batch.positions(writing.stage.token)
                    keys, _ = keys_at(lm, batch.encoded, layer, position)
                    _, now = keys_at(lm, batch.encoded, top, position)
                    keys_of.append(keys)
                    out = _ffn_output(lm, batch, layer, position)
                    residuals_of.append(into_down_space(lm, layer, (goal - now) * share, out))
                keys, residual = torch.cat(keys_of), torch.cat(residuals_of)
                if writing.stage.mean_keys:
                    edit = torch.cat([batch.edits() for batch in writing.batches])
                    keys, residual = mean_by(edit, keys), mean_by(edit, residual)
                columns.append(keys)
                residuals.append(residual)
            keys, residual = torch.cat(columns), torch.cat(residuals)
            size = float((keys.double() ** 2).sum() / keys.shape[0])
            q = metric(layer, size)
        left, right = solve(residual.T, keys.T, q, slack=slack)
        updates.append(Update(layer, left, right))
    return updates


def added_up(updates: Sequence[Update], more: Sequence[Update]) -> list[Update]:
    """Both sets of updates, one a layer: factors side by side."""
    by_layer: dict[int, list[Update]] = {}
    for update in [*updates, *more]:
        by_layer.setdefault(update.layer, []).append(update)
    return [
        Update(layer, torch.cat([u.left for u in some], 1), torch.cat([u.right for u in some]))
        for layer, some in sorted(by_layer.items())
    ]


def mean_by(edit: Tensor, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "edits width"]:
    """Mean of the rows of each edit that has any."""
    return torch.stack([rows[edit == i].mean(0) for i in edit.unique().tolist()])


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
        shaped = output.reshape(len(batch), -1, lm.d_model)
        kept.append(at_tokens(shaped, rows, position).float().to(lm.device))

    handle = lm.ffn_module(layer).register_forward_hook(keep)
    try:
        lm.run_backbone(batch.encoded)
    finally:
        handle.remove()
    return kept[0]
