"""How widely each neuron's logits spread over the vocabulary, without working any of them out.

    spread = measure_spread(lm)          # one product of W_U with itself, one with every layer's subvalues
    spread.energy[3, 211]                # Σ_t (a_t − ā)², a the logits of neuron 211 of layer 3

With a = W_U v, the sum is vᵀ G v for G = Σ_t (e_t − ē)(e_t − ē)ᵀ over W_U's rows: d_model² numbers a model
instead of vocab × n_neurons a layer. It is what the bounds of `certified` need; the atlas, which knows each
neuron's extremes and tokens, costs vocab / d_model times as much.

Energies are rounded up by the most that arithmetic can be off. Kept on disk, a file a layer.

Footguns: of the unedited weights; a patched model is refused. Head biases are no neuron's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from acedit.attribution.directions import (
    longest_row,
    neuron_directions,
    refuse_other,
    rounding,
    whole_products,
)
from acedit.errors import UserError
from acedit.lm.cache import default_cache, kept_or_made
from acedit.lm.model import LanguageModel

TILE = 256  # tokens whose products are summed in float32; few, since that sum's rounding grows with them
ROUND = 1e-6  # relative; more than lengths and sums lose that are taken in float64 of numbers in float32
FORM = 3  # what is kept, and how it is worked out: part of where it is kept


@dataclass(frozen=True)
class Spread:
    """What is known of a model's logits by neuron, and of W_U's rows e_t.

    mean: ē, the mean row (float64). energy: Σ_t (a_t − ā)², ā being ē's logit, and a little more. reach: at
    least the largest |a_t − ā|. longest: at least the largest length of a row. fingerprint: the model's.
    """

    energy: Float[Tensor, "layers n_neurons"]
    reach: Float[Tensor, "layers n_neurons"]
    mean: Float[Tensor, " d_model"]
    longest: float
    fingerprint: str

    def checked(self, lm: LanguageModel) -> "Spread":
        """This spread, if it is of `lm` as it stands. Raises UserError for another or a patched model."""
        lm.refuse_patched("the spread of logits")
        refuse_other(lm, self.fingerprint, "the spread of logits")
        return self


@torch.no_grad()
def measure_spread(
    lm: LanguageModel,
    *,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Spread:
    """The spread of `lm`'s neurons' logits, from disk where it is whole there.

    cache_dir: None takes `default_cache()`. progress: told layers done and in all. Raises UserError for a
    patched model or weights that are not finite.
    """
    lm.refuse_patched("the spread of logits")
    lm.refuse_broken()
    folder = (cache_dir or default_cache()) / "spread" / f"{FORM}-{lm.fingerprint[:32]}"
    starts = {"mean": (lm.d_model,), "longest": (), "widest": ()}
    rows = kept_or_made(folder / "unembedding.safetensors", starts, lambda: _rows(lm), of=lm.fingerprint)
    mean = rows["mean"].to(lm.device)
    widest = float(rows["widest"])
    unit = 2.0 ** math.frexp(widest)[1]
    gram = cache(lambda: _gram(lm, mean, unit))
    starts = dict.fromkeys(("energy", "reach"), (lm.n_neurons,))
    layers = []
    for layer in range(lm.n_layers):
        make = partial(_layer, lm, layer, gram, unit, widest)
        with whole_products(lm.device):
            path = folder / f"{layer}.safetensors"
            layers.append(kept_or_made(path, starts, make, of=lm.fingerprint))
        if progress is not None:
            progress(layer + 1, lm.n_layers)
    energy, reach = (torch.stack([row[name] for row in layers]) for name in ("energy", "reach"))
    return Spread(energy.to(lm.device), reach.to(lm.device), mean, float(rows["longest"]), lm.fingerprint)


def _rows(lm: LanguageModel) -> dict[str, Tensor]:
    """The mean of W_U's rows, the length of the longest, and the longest distance from the mean (float64)."""
    longest = torch.tensor(longest_row(lm), dtype=torch.float64)
    tiles = lm.unembedding.split(TILE)
    mean = torch.zeros(lm.d_model, dtype=torch.float64, device=lm.device)
    for tile in tiles:
        mean += tile.to(mean).sum(0) / len(lm.unembedding)
    widest = torch.stack([(tile.to(mean) - mean).norm(dim=1).max() for tile in tiles]).max()
    return {"mean": mean.cpu(), "longest": longest * (1 + ROUND), "widest": widest.cpu() * (1 + ROUND)}


def _gram(
    lm: LanguageModel, mean: Float[Tensor, " d_model"], unit: float
) -> Float[Tensor, "d_model d_model"]:
    """G / unit² in float64: products of a tile's rows in working precision, tiles summed whole.

    unit: about the length of the longest row, so that products neither vanish nor overflow.
    """
    gram = torch.zeros(lm.d_model, lm.d_model, dtype=torch.float64, device=lm.device)
    for tile in lm.unembedding.split(TILE):
        centred = ((tile.to(mean) - mean) / unit).to(lm.wide)
        gram += centred.T @ centred
    return gram


def _layer(
    lm: LanguageModel, layer: int, gram_of: Callable[[], Tensor], unit: float, widest: float
) -> dict[str, Tensor]:
    """vᵀ G v of a layer's neurons and what rounding may have taken from it; |v| · widest, or its root.

    A tile's entries of G are off by at most rounding(TILE) Σ_t |e_ti e_tj|, so vᵀ G v by that times
    |v|² tr G; the product with G by rounding(d_model) |v|² ‖G‖_F.
    """
    gram, whole = gram_of(), neuron_directions(lm, layer, dtype=torch.float64)
    length = whole.norm(dim=1)
    # Of length about one, as the rows are, so that no square of a float32 vanishes or overflows.
    scale = length.clamp(min=torch.finfo(torch.float64).tiny)
    directions = (whole / scale[:, None]).to(lm.wide)
    energy = ((directions @ gram.to(directions)) * directions).sum(1, dtype=torch.float64)
    off = rounding(TILE, lm.wide) * gram.trace() + rounding(lm.d_model, lm.wide) * gram.norm()
    root = (energy + off).sqrt() * length * (unit * (1 + ROUND))
    if not bool(torch.isfinite(root).all()):
        raise UserError(f"layer {layer}: the logits of its neurons overflow")
    reach = torch.minimum(length * widest, root) * (1 + ROUND)
    return {"energy": root.square().cpu(), "reach": reach.cpu()}
