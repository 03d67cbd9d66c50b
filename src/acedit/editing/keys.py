"""Keys and the residual stream where an edit is written.

keys, residual = keys_at(lm, batch.encoded, layer, positions)
# (rows, n_neurons) the down projection's input; (rows, d_model) the stream after the block
found = edited_keys(lm, batches, layers)           # of every layer in one pass
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acedit.editing.batch import Batch
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded
from acedit.lm.trace import at_tokens, first

FLUSH = 8  # runs whose sums stay on the model's device, in float32

Runs = Iterable[tuple[Encoded, Int[Tensor, " tokens"], Int[Tensor, " tokens"]]]
"""What is run, and the tokens (rows, positions) whose keys are wanted."""


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
    lm: LanguageModel, layers: Sequence[int], runs: Runs
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """Mean of k kᵀ by layer over the tokens of each run; float32, on the CPU.

    One pass serves all layers. Sums are float32 over `FLUSH` runs, on the layers' own devices, and float64
    beyond (8 bytes × N² a layer): moving N² numbers a layer for every run would take longer than the runs.
    """
    total = {layer: torch.zeros(lm.n_neurons, lm.n_neurons, dtype=torch.float64) for layer in layers}
    near: dict[int, Tensor] = {}

    def add(layer: int, k: Tensor) -> None:
        product = k.T @ k
        near[layer] = near[layer].add_(product) if layer in near else product

    def flush() -> None:
        for layer, product in near.items():
            total[layer] += product.cpu()
        near.clear()

    count = 0
    for n, tokens in enumerate(_run(lm, layers, runs, add), start=1):
        count += tokens
        if n % FLUSH == 0:
            flush()
    flush()
    return {layer: total.pop(layer).div_(max(1, count)).float() for layer in layers}


@torch.no_grad()
def edited_keys(
    lm: LanguageModel, batches: Sequence[Batch], layers: Sequence[int]
) -> dict[int, Float[Tensor, "keys n_neurons"]]:
    """By layer the keys at the rows' edited positions (subject's last token, prompt's last), float32, on the
    layer's device."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for _ in _run(lm, layers, _edited(lm, batches), lambda layer, k: found[layer].append(k)):
        pass
    return {layer: torch.cat(some) for layer, some in found.items()}


def key_moments(
    lm: LanguageModel, batches: Sequence[Batch], layers: Sequence[int]
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """Mean of k kᵀ by layer over the rows' edited positions, as in `edited_keys`; float32, on the CPU."""
    return second_moments(lm, layers, _edited(lm, batches))


def _edited(lm: LanguageModel, batches: Sequence[Batch]) -> Runs:
    for batch in batches:
        rows = torch.arange(len(batch), device=lm.device).repeat(2)
        yield batch.encoded, rows, torch.cat([batch.subject, batch.last])


def _run(
    lm: LanguageModel, layers: Sequence[int], runs: Runs, take: Callable[[int, Tensor], object]
) -> Iterator[int]:
    """Run each of `runs`, handing `take` every layer's keys, (tokens, n_neurons) float32; yields how many."""
    for encoded, rows, at in runs:

        def on(
            layer: int, encoded: Encoded = encoded, rows: Tensor = rows, at: Tensor = at
        ) -> Callable[..., None]:
            def hook(_: object, args: tuple[Tensor, ...]) -> None:
                take(layer, at_tokens(args[0].reshape(len(encoded), -1, lm.n_neurons), rows, at).float())

            return hook

        with ExitStack() as stack:
            for layer in layers:
                stack.callback(lm.down(layer).register_forward_pre_hook(on(layer)).remove)
            lm.run_backbone(encoded)
        yield len(rows)
