"""C = E[k kᵀ]: the second moment of the down projection's inputs over text, for Eq. 12.

    c = covariances(lm, texts, layers=[3, 4, 5])        # {layer: (n_neurons, n_neurons)}, float32, CPU
    roots = inverse_roots(lm, texts, layers=[3, 4, 5])  # of C⁻¹, on the layers' devices

One pass over the text serves all layers. Results are kept on disk, one file a layer, under a key of
everything they depend on (model fingerprint, text, window, sample size), so changing any of these never
meets an old file. Sums are float32 over a few batches and float64 beyond (`keys.second_moments`).

Footguns: uncentred. Of the unedited model: patches that are on come off while it is taken. C stays on the
CPU, memory-mapped: move the layer at hand. While the text is read it is 8 bytes × N² a layer, and 4 more on
the layer's device: 1.2 and 0.6 GB for Qwen3-8B's N = 12,288. All its 36 layers, as `ace` and screening want
them, are 43 and 22 GB.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.editing.keys import second_moments
from acedit.editing.patch import patches_off
from acedit.editing.solve import inverse_root, root_beside
from acedit.errors import UserError
from acedit.lm.cache import default_cache, keep, kept
from acedit.lm.model import Encoded, LanguageModel
from acedit.waiting import Countdown

Progress = Callable[[int, int], None]

TEXT_READ = "windows of text read for the keys' covariance, once a model and text"
WINDOWS = 10_000
WINDOW_TOKENS = 128


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
    keeping: bool = True,
    progress: Progress | None = None,
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """C of each layer over the first `windows` windows of at most `window_tokens` tokens.

    cache_dir: where results are kept; None takes `default_cache()`. keeping: put there what was not yet.
    progress: told windows done and in all. Raises UserError for texts without tokens.
    """
    rows = _windows(lm, texts, windows, window_tokens)
    if not rows:
        raise UserError("the text for the covariance holds no tokens")
    key = _key(lm, rows)
    folder = cache_dir or default_cache()
    found = {layer: _kept(_file(folder, key, layer)) for layer in layers}
    missing = [layer for layer, c in found.items() if c is None]
    if missing:
        with patches_off(lm):
            made = _sums(lm, rows, missing, batch_windows, progress)
        for layer, c in made.items():
            if keeping:
                keep(_file(folder, key, layer), {"c": c})
            found[layer] = c
    return {layer: c for layer, c in found.items() if c is not None}


def inverse_roots(
    lm: LanguageModel,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    ridge: float = 0.05,
    beside: Mapping[int, Float[Tensor, "keys n_neurons"]] | None = None,
    weight: float = 0.0,
    cache_dir: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[int, Float[Tensor, "n_neurons n_neurons"]]:
    """Of each layer a T with T P Tᵀ in proportion to I, its mean diagonal 1: a root of P⁻¹, P = C + ridge.

    C's own, which are symmetric, are kept on disk in C's place, under its key. ridge: in multiples of
    tr(C)/N. beside: of each layer keys whose second moment, scaled to C's trace, is added to P `weight` times
    (`solve.root_beside`). progress: told what takes long, with what is left of it.
    """
    tell = progress or (lambda _: None)
    folder = cache_dir or default_cache()
    key = f"{_key(lm, _windows(lm, texts, WINDOWS, WINDOW_TOKENS))}-inverse{ridge:g}"
    paths = {layer: _file(folder, key, layer) for layer in layers}
    found = {layer: kept(path) for layer, path in paths.items()}
    missing = [
        layer for layer, tensors in found.items() if tensors is None or set(tensors) != {"root", "trace"}
    ]
    if missing:
        read = Countdown(tell, TEXT_READ)
        cs = covariances(lm, texts, missing, cache_dir=cache_dir, keeping=False, progress=read)
        rooted = Countdown(tell, "layers' inverse roots, once a model and text")
        for n, layer in enumerate(missing, start=1):
            c = cs.pop(layer)
            root = inverse_root(c.to(lm.down_weight(layer).device), ridge).cpu()
            found[layer] = made = {"root": root, "trace": c.trace()[None]}
            keep(paths[layer], made)
            rooted(n, len(missing))
    roots = {}
    for layer, tensors in found.items():
        assert tensors is not None
        root = tensors["root"].to(lm.down_weight(layer).device)
        if beside is not None and weight:
            keys = beside[layer]
            share = weight * float(tensors["trace"]) / max(float(keys.square().sum()), 1e-12)
            root = root_beside(root, keys, share)
        roots[layer] = root / root.diagonal().mean()
    return roots


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
        for done, encoded in batched(lm, order, batch_windows):
            row, at = encoded.attention_mask.nonzero(as_tuple=True)
            yield encoded, row, at
            if progress is not None:
                progress(done, len(rows))

    return second_moments(lm, layers, runs())


def batched(lm: LanguageModel, rows: Sequence[Sequence[int]], size: int) -> Iterator[tuple[int, Encoded]]:
    """Rows of token ids, `size` at a time, right padded; with how many have come."""
    for at in range(0, len(rows), size):
        some = rows[at : at + size]
        ids = torch.zeros(len(some), max(map(len, some)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(some):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        yield at + len(some), Encoded(ids.to(lm.device), mask.to(lm.device))


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
