"""What a model's neurons mean in vocabulary space, worked out once a model and kept on disk.

    atlas = build_atlas(lm)                     # minutes for a large model; resumes; instant the next time
    atlas.high[3][211]                          # the largest logit of neuron 211 of layer 3
    atlas.top_tokens(lm, 3, 211)                # (' Peru', ...)

A neuron's logits are W_U (γ ⊙ fc2_k): its subvalue through γ of the final norm (centred first where that
norm centres), and through γ of the FFN's post-norm in families that have one. The scales of both norms and
the coefficient belong to a prompt and multiply these logits there. `high` and `low` are rounded outward by
the most that float32 arithmetic can be off. Scoring needs none of this (`certified`, `spread`).

Neurons and tokens are taken in tiles, so memory stays bounded: one tile of logits, a layer's directions (in
float64 on the way), and the unembedding as the model holds it. A layer is a file, mapped into memory, so an
interrupted build goes on with the next layer.

Footguns: the atlas is of the unedited weights; a patched model is refused. Head biases are no neuron's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acedit.attribution.directions import (
    lengths,
    longest_row,
    neuron_directions,
    refuse_other,
    rounding,
    whole_products,
)
from acedit.lm.cache import default_cache, kept_or_made
from acedit.lm.model import LanguageModel

TOKENS = 10  # top and bottom tokens kept a neuron
NEURON_TILE = 2048
TOKEN_TILE = 16384
FORM = 2  # what is kept, and how it is worked out: part of where it is kept

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Atlas:
    """Bounds of every neuron's logits, and the tokens at both ends, best first; an entry a layer, on the
    CPU."""

    high: tuple[Float[Tensor, " n_neurons"], ...]
    low: tuple[Float[Tensor, " n_neurons"], ...]
    top: tuple[Int[Tensor, "n_neurons k"], ...]
    bottom: tuple[Int[Tensor, "n_neurons k"], ...]
    fingerprint: str

    def ids(self, layer: int, index: int, *, sign: float = 1.0) -> Int[Tensor, " k"]:
        """The tokens the neuron raises most when its coefficient has `sign`, best first."""
        return (self.top if sign >= 0 else self.bottom)[layer][index]

    def top_tokens(self, lm: LanguageModel, layer: int, index: int, *, sign: float = 1.0) -> tuple[str, ...]:
        """`ids` as text.

        Raises UserError if the atlas is of another model than `lm`.
        """
        refuse_other(lm, self.fingerprint, "the atlas")
        return tuple(str(lm.tokenizer.decode([i])) for i in self.ids(layer, index, sign=sign).tolist())


@torch.no_grad()
def build_atlas(
    lm: LanguageModel,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    neuron_tile: int = NEURON_TILE,
    token_tile: int = TOKEN_TILE,
) -> Atlas:
    """The atlas of `lm`, from disk where it is whole there, layer by layer otherwise.

    cache_dir: None takes `default_cache()`. progress: told layers done and in all. Raises UserError for
    a patched model or weights that are not finite.
    """
    lm.refuse_patched("the atlas")
    lm.refuse_broken()
    folder = (cache_dir or default_cache()) / "atlas" / f"{FORM}-{lm.fingerprint[:32]}"
    starts = dict.fromkeys(("high", "low", "top", "bottom"), (lm.n_neurons,))
    longest = longest_row(lm)
    rows = []
    for layer in range(lm.n_layers):
        make = partial(_layer, lm, layer, longest, neuron_tile, token_tile)
        with whole_products(lm.device):
            rows.append(kept_or_made(folder / f"{layer}.safetensors", starts, make, of=lm.fingerprint))
        if progress is not None:
            progress(layer + 1, lm.n_layers)
    return Atlas(**{name: tuple(row[name] for row in rows) for name in starts}, fingerprint=lm.fingerprint)


def _layer(
    lm: LanguageModel, layer: int, longest: float, neuron_tile: int, token_tile: int
) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {"high": [], "low": [], "top": [], "bottom": []}
    for vectors in neuron_directions(lm, layer, dtype=lm.wide).split(neuron_tile):
        best: tuple[Tensor, Tensor] | None = None
        worst: tuple[Tensor, Tensor] | None = None
        start = 0
        for tile in lm.unembedding.split(token_tile):
            logits = vectors @ tile.to(vectors).T
            best = _merge(best, logits, start, largest=True)
            worst = _merge(worst, logits, start, largest=False)
            start += len(tile)
        assert best is not None
        assert worst is not None
        slack = rounding(lm.d_model, vectors.dtype) * longest * lengths(vectors).to(vectors)
        parts["high"].append(best[0][:, 0] + slack)
        parts["low"].append(worst[0][:, 0] - slack)
        parts["top"].append(best[1].int())
        parts["bottom"].append(worst[1].int())
    return {name: torch.cat(tensors).cpu() for name, tensors in parts.items()}


def _merge(
    kept_so_far: tuple[Tensor, Tensor] | None, logits: Tensor, start: int, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """The extreme logits of the tiles so far, and their tokens."""
    values, ids = logits.topk(min(TOKENS, logits.shape[1]), dim=1, largest=largest)
    ids = ids + start
    if kept_so_far is not None:
        values = torch.cat([kept_so_far[0], values], dim=1)
        ids = torch.cat([kept_so_far[1], ids], dim=1)
        values, order = values.topk(min(TOKENS, values.shape[1]), dim=1, largest=largest)
        ids = ids.gather(1, order)
    return values, ids
