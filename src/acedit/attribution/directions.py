"""Neurons in vocabulary space: the vectors whose products with W_U's rows are their logits.

    neuron_directions(lm, 5)        # γ ⊙ fc2_k of layer 5's neurons

And how far arithmetic may take such products from the truth: `rounding`, `whole_products`.

Footgun: the scales of the norms and the coefficient belong to a prompt and multiply these logits there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from acedit.errors import UserError
from acedit.lm.model import LanguageModel
from acedit.lm.norms import FrozenNorm

TILE = 4096  # rows of W_U at a time


def neuron_directions(
    lm: LanguageModel,
    layer: int,
    index: Int[Tensor, " n"] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n d_model"]:
    """γ ⊙ fc2_k (post-norm's γ too, centred for LayerNorm) of some neurons, or all, in `dtype`.

    W_U times a row is that neuron's logits.
    """
    vectors = lm.subvalues(layer)
    vectors = (vectors if index is None else vectors[index.to(vectors.device)]).to(lm.device, torch.float64)
    for norm in (lm.ffn_post_norm(layer), lm.final_norm):
        if norm is not None:
            vectors = unscaled(lm, norm).apply(vectors)
    return vectors.to(dtype)


def unscaled(lm: LanguageModel, norm: nn.Module) -> FrozenNorm:
    """The norm without its scale: what it does to every input alike, float64."""
    frozen = lm.freeze_norm(norm, torch.ones(lm.d_model, dtype=torch.float64, device=lm.device))
    frozen.inverse_scale = torch.ones_like(frozen.inverse_scale)
    return frozen


def rounding(d_model: int, dtype: torch.dtype) -> float:
    """The most by which a product of two vectors can be off, in units of the product of their lengths.

    A sum of d products, in any order, is off by at most (d + 1) u Σ|x_i y_i| to first order (Higham 2002,
    section 3.1), and both factors may have been rounded once: (d + 4) u, u half the machine epsilon, taken
    twice for good measure.
    """
    return (d_model + 4) * torch.finfo(dtype).eps


def lengths(vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"]:
    """Of each row, in float64: squares of a float32 vanish below some 1e-23."""
    found: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return found


@contextmanager
def whole_products(device: torch.device) -> Iterator[None]:
    """Float32 products in float32 while inside, whatever the process allows (TF32, bf16, autocast)."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul"))  # noqa: B009
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def refuse_other(lm: LanguageModel, fingerprint: str, what: str) -> None:
    """Raises UserError if `what`, worked out of the model with `fingerprint`, is of another than `lm`."""
    if fingerprint != lm.fingerprint:
        raise UserError(
            f"{what} is of another model (fingerprint {fingerprint[:12]}…, this one is "
            f"{lm.fingerprint[:12]}…): make it of this model"
        )


def longest_row(lm: LanguageModel) -> float:
    """The length of the longest row of W_U."""
    tiles = lm.unembedding.split(TILE)
    return float(torch.stack([tile.double().norm(dim=1).max() for tile in tiles]).max())
