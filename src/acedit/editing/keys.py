"""Keys and the residual stream where an edit is written.

keys, residual = keys_at(lm, batch.encoded, layer, positions)
# (rows, n_neurons) the down projection's input; (rows, d_model) the stream after the block
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acedit.editing.batch import Batch
from acedit.lm.model import Encoded, LanguageModel
from acedit.lm.trace import at_tokens, first


@torch.no_grad()
def keys_at(
    lm: LanguageModel, encoded: Encoded, layer: int, positions: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, "rows n_neurons"], Float[Tensor, "rows d_model"]]:
    """Coefficients m (an edit's key) and the residual stream after block `layer`, at one token a row.

    The model as it stands is run: with earlier layers already written, these are the keys the paper's
    sweep needs (Eq. 12, layer by layer).
    """
    rows = torch.arange(len(encoded), device=encoded.input_ids.device)
    kept: dict[str, Tensor] = {}

    def on_keys(_: object, args: tuple[Tensor, ...]) -> None:
        shaped = args[0].reshape(len(encoded), -1, args[0].shape[-1])
        kept["keys"] = at_tokens(shaped, rows, positions).float().to(lm.device)

    def on_block(_: object, __: object, output: object) -> None:
        kept["residual"] = at_tokens(first(output), rows, positions).float().to(lm.device)

    handles = [
        lm.down(layer).register_forward_pre_hook(on_keys),
        lm.block(layer).register_forward_hook(on_block),
    ]
    try:
        lm.run_backbone(encoded)
    finally:
        for handle in handles:
            handle.remove()
    return kept["keys"], kept["residual"]


@torch.no_grad()
def second_moments(
    lm: LanguageModel,
    layers: Sequence[int],
    runs: Iterable[tuple[Encoded, Int[Tensor, " tokens"], Int[Tensor, " tokens"]]],
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """Mean of k kᵀ by layer over the tokens (rows, positions) of each run; float64.

    One pass serves all layers. Sums are float32 within a run and float64 across runs.
    """
    total = {layer: torch.zeros(lm.n_neurons, lm.n_neurons, dtype=torch.float64) for layer in layers}
    count = 0
    for encoded, rows, at in runs:

        def on(
            layer: int, encoded: Encoded = encoded, rows: Tensor = rows, at: Tensor = at
        ) -> Callable[..., None]:
            def add(_: object, args: tuple[Tensor, ...]) -> None:
                k = at_tokens(args[0].reshape(len(encoded), -1, lm.n_neurons), rows, at).float()
                total[layer] += (k.T @ k).double().cpu()

            return add

        handles = [lm.down(layer).register_forward_pre_hook(on(layer)) for layer in layers]
        try:
            lm.run_backbone(encoded)
        finally:
            for handle in handles:
                handle.remove()
        count += len(rows)
    return {layer: t / max(1, count) for layer, t in total.items()}


def key_moments(
    lm: LanguageModel, batches: Sequence[Batch], layers: Sequence[int]
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """Mean of k kᵀ by layer over the rows' edited positions (subject's last token, prompt's last)."""
    runs = (
        (
            batch.encoded,
            torch.arange(len(batch), device=lm.device).repeat(2),
            torch.cat([batch.subject, batch.last]),
        )
        for batch in batches
    )
    return {layer: t.to(lm.device) for layer, t in second_moments(lm, layers, runs).items()}
