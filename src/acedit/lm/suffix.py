"""Run again only from a layer up.

    suffix = Suffix(lm, lm.encode(prompts), layer=l + 1)
    final = suffix.run(suffix.hidden + delta)               # autograd flows into delta
    suffix.logits(final[rows, positions])                   # (n, vocab), only where read

One pass without gradients records the residual stream that enters block `layer` and the arguments
(rotary tables, masks, positions) that every block from there on is given; `run` replays them.
`layer` may be `n_layers`: then nothing is left to run and the final residual is the input. What stands
before `start` can be left out where nothing there is changed: the blocks keep its keys and values.

Footguns:
- With a `start`, all positions of `hidden` and of what `run` returns are counted from there.
- Only the recording is frozen, weights are read live: after a change to a weight *below* `layer`
  the recorded `hidden` is stale, with a `start` after one to any weight; make a new Suffix.
- `hidden` is what the whole block `layer - 1` left, so a change to that block's FFN output is added
  to it after the family's post-norm, not before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache

from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded
from acedit.lm.trace import first, hidden_of


@dataclass(frozen=True)
class _Kept:
    """Keys and values of what stands before, by layer; what comes after is put to them and not kept."""

    of: Mapping[int, tuple[Tensor, Tensor]]

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """As a `Cache` is asked by an attention."""
        before = self.of[layer]
        return torch.cat([before[0], keys], dim=-2), torch.cat([before[1], values], dim=-2)


class Suffix:
    """Blocks `layer` … n_layers - 1 of `lm` on one encoded batch.

    hidden: (batch seq d_model), the residual stream entering block `layer` from token `start` on, detached;
    batch counts every copy.
    """

    lm: LanguageModel
    layer: int
    start: int
    hidden: Tensor

    def __init__(self, lm: LanguageModel, encoded: Encoded, layer: int, *, start: int = 0, copies: int = 1):
        """Record one pass. Raises `UserError` for a layer outside 0 … n_layers.

        start: the first token (of every row, none of them padding before it) that is run again. copies: each
        row is there so many times, next to each other, and what stands before `start` is run once for all.
        """
        if not 0 <= layer <= lm.n_layers:
            raise UserError(f"layer {layer} is not in 0..{lm.n_layers}")
        self.lm, self.layer, self.start = lm, layer, start
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        entering: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering.append(hidden_of(args, kwargs).detach())
            rest = {k: frozen(v) for k, v in kwargs.items() if k != "hidden_states"}
            self._calls.append((tuple(map(frozen, args[1:])), rest))

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            entering.append(first(output).detach())

        def frozen(given: Any) -> Any:
            return kept if isinstance(given, Cache) else given

        with torch.no_grad():
            past = lm.remember(encoded.input_ids[:, :start]) if start else None
        rest = Encoded(encoded.input_ids[:, start:], encoded.attention_mask[:, start:])
        if copies > 1:
            rows = torch.arange(len(rest), device=rest.input_ids.device)
            rest = rest.rows(rows.repeat_interleave(copies))
            if past is not None:
                past.batch_repeat_interleave(copies)
        earlier: Any = [] if past is None else past.layers[layer:]
        kept = _Kept({layer + i: (each.keys, each.values) for i, each in enumerate(earlier)})
        handles: list[Any] = [
            lm.block(above).register_forward_pre_hook(record, with_kwargs=True)
            for above in range(layer, lm.n_layers)
        ]
        if layer == lm.n_layers:
            handles.append(lm.block(layer - 1).register_forward_hook(leave))
        try:
            with torch.no_grad():
                lm.run_backbone(rest, past=past)
        finally:
            for handle in handles:
                handle.remove()
        self.hidden = entering[0].to(lm.device)

    def run(
        self, hidden: Float[Tensor, "batch seq d_model"] | None = None
    ) -> Float[Tensor, "batch seq d_model"]:
        """The final residual, before the final norm, of `hidden` (default: as recorded)."""
        hidden = self.hidden if hidden is None else hidden
        for layer, (args, kwargs) in zip(range(self.layer, self.lm.n_layers), self._calls, strict=True):
            hidden = first(self.lm.block(layer)(hidden, *args, **kwargs))
        return hidden.to(self.lm.device)

    def logits(self, final: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Logits of final residuals picked from what `run` returned, float32 at least."""
        return self.lm.unembed(final)
