"""A norm made linear, by freezing its scale where the model really was.

    frozen = lm.freeze_norm(lm.final_norm, trace.residual[-1][0, pos])
    frozen.apply(lm.subvalues(l))                       # rows of W_U's input, one a neuron

A norm divides by a number that depends on its whole input, so contributions do not add up through
it. With that number kept at its value in the real run they do, which is what `norm="frozen"` means
for Eq. 9, and what carries a neuron's vector to the subkeys above it in Eq. 10.

Footguns:
- `apply` leaves the bias β out, since β is nobody's contribution; ask for it once, with
  `bias=True`, to rebuild the norm's own output.
- Everything is computed in float32 at least, float64 for float64 inputs. Hugging Face's RMSNorms go
  through float32 even in a float64 model, so there the two agree to 1e-6, not to 1e-12.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acedit.lm.families import NormKind


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class FrozenNorm:
    """v ↦ γ ⊙ center(v) / σ, with σ taken from `x` and kept.

    x: (... d_model), the real input of `norm` at one or more positions. `norm=None` freezes to
    identity, for families without one there (olmo2). Attributes: `inverse_scale` 1/σ (... 1),
    `gamma` (d_model) with gamma's 1 already added, `beta` (d_model) or None, `centered` (whether
    the mean is taken off).
    """

    inverse_scale: Tensor
    gamma: Tensor
    beta: Tensor | None
    centered: bool

    def __init__(self, norm: nn.Module | None, x: Float[Tensor, "*pos d_model"], kind: NormKind):
        x = _wide(x.detach())
        self.beta = None
        self.centered = norm is not None and kind == "layer"
        if norm is None:
            self.inverse_scale = torch.ones_like(x[..., :1])
            self.gamma = torch.ones_like(x.reshape(-1, x.shape[-1])[0])
            return
        module: Any = norm
        eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
        spread = x - x.mean(-1, keepdim=True) if self.centered else x
        self.inverse_scale = torch.rsqrt(spread.pow(2).mean(-1, keepdim=True) + eps)
        if module.weight is None:
            self.gamma = torch.ones_like(x.reshape(-1, x.shape[-1])[0])
        else:
            self.gamma = module.weight.detach().to(x) + (1.0 if kind == "rms+1" else 0.0)
        bias = getattr(module, "bias", None)
        if bias is not None:
            self.beta = bias.detach().to(x)

    def apply(
        self, v: Float[Tensor, "*v d_model"], *, affine: bool = True, bias: bool = False
    ) -> Float[Tensor, "*out d_model"]:
        """The frozen norm of `v`, broadcast against the positions it was frozen at.

        affine=False leaves γ out; bias=True adds β, which is right once a position, for a whole
        stream.
        """
        v = v.to(self.gamma)
        if self.centered:
            v = v - v.mean(-1, keepdim=True)
        v = v * self.inverse_scale
        if affine:
            v = v * self.gamma
        return v + self.beta if bias and self.beta is not None else v

    def transpose(self, w: Float[Tensor, "*w d_model"]) -> Float[Tensor, "*out d_model"]:
        """The adjoint: `(apply(v) * w).sum(-1) == (v * transpose(w)).sum(-1)`.

        Moves a reading direction (a row of the unembedding, a subkey) to before the norm, so that
        many vectors can be scored by one product.
        """
        w = w.to(self.gamma) * self.gamma * self.inverse_scale
        return w - w.mean(-1, keepdim=True) if self.centered else w
