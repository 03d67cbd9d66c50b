"""C = E[k kᵀ]: the second moment of the down projection's inputs over text, for Eq. 12.

    c = covariances(lm, texts, layers=[3, 4, 5])  # {layer: (n_neurons, n_neurons)}, float32, CPU

One pass over the text serves all layers whose sums fit in `ROOM`. Results are kept on disk, one file a
layer, under a key of everything they depend on (model fingerprint, text, window, sample size), so changing
any of these never meets an old file. Sums are float32 over a few batches and float64 beyond
(`keys.second_moments`).

Footguns: uncentred. Of the unedited model: patches that are on come off while it is taken. C stays on the
CPU, memory-mapped: move the layer at hand. While the text is read it is 8 bytes × N² a layer, and 4 more on
the layer's device: 1.2 and 0.6 GB for Qwen3-8B's N = 12,288, whose 36 layers are read in four passes. Every
other text is another set of files, which stay until they are removed by hand.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.editing.keys import second_moments
from acedit.editing.patch import patches_off
from acedit.errors import UserError
from acedit.lm.cache import default_cache, keep, kept
from acedit.lm.model import LanguageModel
from acedit.lm.tokens import Encoded

Progress = Callable[[int, int], None]

TEXT_READ = "windows of text read for the keys' covariance, once a model and text"
WINDOWS = 10_000
ROOM = 2**34  # bytes, of sums that are taken together
WINDOW_TOKENS = 128
LARGE = 2**30  # bytes on disk that are told of

log = logging.getLogger("acedit")


@torch.no_grad()
def covariances(
    lm: LanguageModel,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    windows: int = WINDOWS,
    window_tokens: int = WINDOW_TOKENS,
    batch_windows: int = 32,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """C of each layer over the first `windows` windows of at most `window_tokens` tokens.

    cache_dir: where results are kept; None takes `default_cache()`. progress: told windows
    done and in all. Raises UserError for texts without tokens.
    """
    rows = _windows(lm, texts, windows, window_tokens)
    if not rows:
        raise UserError("the text for the covariance holds no tokens")
    key = _key(lm, rows)
    folder = cache_dir or default_cache()
    found = {layer: _kept(_file(folder, key, layer)) for layer in layers}
    missing = [layer for layer, c in found.items() if c is None]
    size = len(missing) * 4 * lm.n_neurons**2
    if size > LARGE:
        log.warning("%.0f GB of key covariances of this model and text go to %s", size / 1e9, folder)
    for some in _groups(lm, missing):
        with patches_off(lm):
            made = _sums(lm, rows, some, batch_windows, progress)
        for layer in some:
            path, c = _file(folder, key, layer), made.pop(layer)
            keep(path, {"c": c})
            found[layer] = c if (there := _kept(path)) is None else there  # mapped, not in memory
    return {layer: c for layer, c in found.items() if c is not None}


def _groups(lm: LanguageModel, layers: Sequence[int]) -> list[Sequence[int]]:
    """The layers in runs whose sums fit in `ROOM` together: more are more passes over the text."""
    size = max(1, ROOM // (12 * lm.n_neurons**2))
    return [layers[at : at + size] for at in range(0, len(layers), size)]


def _windows(lm: LanguageModel, texts: Sequence[str], count: int, width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for text in texts:
        ids: list[int] = lm.tokenizer(text)["input_ids"] if text else []
        rows += [ids[i : i + width] for i in range(0, len(ids), width)]
        if len(rows) >= count:
            break
    return rows[:count]


def _sums(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    batch_windows: int,
    progress: Progress | None,
) -> dict[int, Tensor]:
    order = sorted(rows, key=len)

    def runs() -> Iterator[tuple[Encoded, Tensor, Tensor]]:
        for at in range(0, len(order), batch_windows):
            some = order[at : at + batch_windows]
            encoded = lm.padded(some)
            row, token = encoded.attention_mask.nonzero(as_tuple=True)
            yield encoded, row, token
            if progress is not None:
                progress(at + len(some), len(rows))

    return second_moments(lm, layers, runs())


def _key(lm: LanguageModel, rows: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256(f"{lm.fingerprint};{lm.dtype};{len(rows)};".encode())
    for row in rows:
        digest.update(f"{row};".encode())
    return digest.hexdigest()[:32]


def _file(folder: Path, key: str, layer: int) -> Path:
    return folder / "covariance" / f"{key}-{layer}.safetensors"


def _kept(path: Path) -> Tensor | None:
    found = kept(path)
    return None if found is None else found.get("c")
