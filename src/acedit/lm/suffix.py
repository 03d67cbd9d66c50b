"""Run again only from a layer up.

    suffix = Suffix(lm, lm.encode(prompts), layer=l + 1)
    final = suffix.run(suffix.hidden + delta)               # autograd flows into delta
    suffix.logits(final[rows, positions])                   # (n, vocab), only where read

One pass without gradients records the residual stream that enters block `layer` and the arguments
(rotary tables, masks, positions) that every block from there on is given; `run` replays them.
`layer` may be `n_layers`: then nothing is left to run and the final residual is the input.

Footguns:
- Only the recording is frozen, weights are read live: after a change to a weight *below* `layer`
  the recorded `hidden` is stale; make a new Suffix.
- `hidden` is what the whole block `layer - 1` left, so a change to that block's FFN output is added
  to it after the family's post-norm, not before.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acedit.errors import UserError
from acedit.lm.model import Encoded, LanguageModel
from acedit.lm.trace import first, hidden_of


class Suffix:
    """Blocks `layer` … n_layers - 1 of `lm` on one encoded batch.

    hidden: (batch seq d_model), the residual stream entering block `layer`, detached.
    """

    lm: LanguageModel
    encoded: Encoded
    layer: int
    hidden: Tensor

    def __init__(self, lm: LanguageModel, encoded: Encoded, layer: int):
        """Record one pass. Raises `UserError` for a layer outside 0 … n_layers."""
        if not 0 <= layer <= lm.n_layers:
            raise UserError(f"layer {layer} is not in 0..{lm.n_layers}")
        self.lm, self.encoded, self.layer = lm, encoded, layer
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        entering: list[Tensor] = []

        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering.append(hidden_of(args, kwargs).detach())
            rest = {k: v for k, v in kwargs.items() if k != "hidden_states"}
            self._calls.append((args[1:], rest))

        def leave(_: nn.Module, __: Any, output: Any) -> None:
            entering.append(first(output).detach())

        handles: list[Any] = [
            lm.block(above).register_forward_pre_hook(record, with_kwargs=True)
            for above in range(layer, lm.n_layers)
        ]
        if layer == lm.n_layers:
            handles.append(lm.block(layer - 1).register_forward_hook(leave))
        try:
            with torch.no_grad():
                lm.run_backbone(encoded)
        finally:
            for handle in handles:
                handle.remove()
        self.hidden = entering[0]

    def run(
        self,
        hidden: Float[Tensor, "picked seq d_model"] | None = None,
        *,
        rows: Int[Tensor, " picked"] | Sequence[int] | None = None,
    ) -> Float[Tensor, "picked seq d_model"]:
        """The final residual, before the final norm, of `hidden` (default: as recorded).

        rows: which rows of the batch `hidden` holds, in its order, repeats allowed; default all.
        """
        index = None if rows is None else torch.as_tensor(rows, device=self.hidden.device)
        if hidden is None:
            hidden = self.hidden if index is None else self.hidden[index]
        for layer, (args, kwargs) in zip(range(self.layer, self.lm.n_layers), self._calls, strict=True):
            if index is not None:
                args, kwargs = self._pick(args, index), self._pick(kwargs, index)
            hidden = first(self.lm.block(layer)(hidden, *args, **kwargs))
        return hidden

    def _pick(self, value: Any, index: Tensor) -> Any:
        """Recorded arguments of the picked rows; what the batch shares (first axis 1) stays."""
        if isinstance(value, Tensor):
            if value.ndim > 1 and value.shape[0] == len(self.encoded):
                return value[index.to(value.device)]
            return value
        if isinstance(value, tuple):
            return tuple(self._pick(v, index) for v in value)
        if isinstance(value, list):
            return [self._pick(v, index) for v in value]
        if isinstance(value, dict):
            return {k: self._pick(v, index) for k, v in value.items()}
        return value

    def logits(self, final: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Logits of final residuals picked from what `run` returned, float32 at least."""
        return self.lm.unembed(final)
