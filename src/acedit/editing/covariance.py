"""C = E[k kᵀ]: the second moment of the down projection's inputs over text, for Eq. 12.

    c = covariances(lm, texts, layers=[3, 4, 5])        # {layer: (n_neurons, n_neurons)}, float32, CPU
    roots = inverse_roots(lm, texts, layers=[3, 4, 5])  # of C⁻¹, on the layers' devices

One pass over the text serves all layers whose sums fit in `ROOM`. Results are kept on disk, one file a
layer, under a key of everything they depend on (model fingerprint, text, window, sample size), so changing
any of these never meets an old file. Sums are float32 over a few batches and float64 beyond
(`keys.second_moments`).

Footguns: uncentred. Of the unedited model: patches that are on come off while it is taken. C stays on the
CPU, memory-mapped: move the layer at hand. While the text is read it is 8 bytes × N² a layer, and 4 more on
the layer's device: 1.2 and 0.6 GB for Qwen3-8B's N = 12,288, whose 36 layers are read in four passes.
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
ROOM = 2**34  # bytes, of sums that are taken together
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
    for some in _groups(lm, missing):
        with patches_off(lm):
            made = _sums(lm, rows, some, batch_windows, progress)
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
) -> Mapping[int, Float[Tensor, "n_neurons n_neurons"]]:
    """Of each layer a T with T P Tᵀ in proportion to I, its mean diagonal 1: a root of P⁻¹, P = C + ridge.

    C's own, which are symmetric, are kept on disk in C's place, under its key. ridge: in multiples of
    tr(C)/N. beside: of each layer keys whose second moment, scaled to C's trace, is added to P `weight` times
    (`solve.root_beside`). progress: told what takes long, with what is left of it. A T is brought to its
    layer's device when it is asked for: those of all layers are 22 GB at Qwen3-8B's N.
    """
    tell = progress or (lambda _: None)
    folder = cache_dir or default_cache()
    key = f"{_key(lm, _windows(lm, texts, WINDOWS, WINDOW_TOKENS))}-inverse{ridge:g}"
    paths = {layer: _file(folder, key, layer) for layer in layers}
    found = {layer: kept(path) for layer, path in paths.items()}
    missing = [
        layer for layer, tensors in found.items() if tensors is None or set(tensors) != {"root", "trace"}
    ]
    rooted, n = Countdown(tell, "layers' inverse roots, once a model and text"), 0
    for some in _groups(lm, missing):
        read = Countdown(tell, TEXT_READ)
        cs = covariances(lm, texts, some, cache_dir=cache_dir, keeping=False, progress=read)
        for layer in some:
            c = cs.pop(layer)
            root = inverse_root(c.to(lm.down_weight(layer).device), ridge).cpu()
            made = {"root": root, "trace": c.trace()[None]}
            keep(paths[layer], made)
            found[layer] = kept(paths[layer]) or made  # from the disk where it is there, not in memory
            rooted(n := n + 1, len(missing))

    def root_of(layer: int) -> Tensor:
        tensors = found[layer]
        assert tensors is not None
        root = tensors["root"].to(lm.down_weight(layer).device)
        if beside is not None and weight:
            keys = beside[layer]
            share = weight * float(tensors["trace"]) / max(float(keys.square().sum()), 1e-12)
            root = root_beside(root, keys, share)
        return root / root.diagonal().mean()

    return _Lazy(layers, root_of)


class _Lazy(Mapping[int, Tensor]):
    """A tensor a layer, made when it is asked for."""

    def __init__(self, layers: Sequence[int], make: Callable[[int], Tensor]) -> None:
        self._layers, self._make = tuple(layers), make

    def __getitem__(self, layer: int) -> Tensor:
        return self._make(layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


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
