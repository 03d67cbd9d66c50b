"""The closed form (Eq. 11 and 12), with the number of keys as the small side.

    left, right = solve(residuals, keys, preserve=factor(c, ridge=...))
    # Δ = left @ right, (d_model, n_neurons)

    Δ = R Kᵀ (P + K Kᵀ)⁻¹,   P = λ·C + known keys + ridge·I

By the push-through identity Δ = R (I + Kᵀ P⁻¹ K)⁻¹ Kᵀ P⁻¹, so P is factored once a layer and each edit
solves n × n: no N × N matrix is inverted.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def factor(
    preserve: Float[Tensor, "n_neurons n_neurons"], ridge: float = 0.0
) -> Float[Tensor, "n_neurons n_neurons"]:
    """Cholesky factor (lower) of P + ridge·tr(P)/N·I, in float64.

    Raises torch.linalg.LinAlgError where P is not positive definite: raise the ridge.
    """
    p = preserve.double()
    n = p.shape[0]
    lift = ridge * p.diagonal().sum() / n
    lower: Tensor = torch.linalg.cholesky(p + lift * torch.eye(n, dtype=p.dtype, device=p.device))
    return lower


def solve(
    residuals: Float[Tensor, "d_model n"],
    keys: Float[Tensor, "n_neurons n"],
    cholesky: Float[Tensor, "n_neurons n_neurons"],
) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, "n n_neurons"]]:
    """Δ = left @ right for targets R and keys K (Eq. 12); the factors are float32.

    `left` is R itself, so what is optimised further can stay in the space of targets; `right` is
    (I + Kᵀ P⁻¹ K)⁻¹ Kᵀ P⁻¹.
    """
    k = keys.double()
    whitened = torch.cholesky_solve(k, cholesky)  # P⁻¹ K
    gram = torch.eye(k.shape[1], dtype=k.dtype, device=k.device) + k.T @ whitened
    right = torch.linalg.solve(gram, whitened.T)
    return residuals.float(), right.float()


def whitening(
    preserve: Float[Tensor, "n_neurons n_neurons"], ridge: float = 0.05
) -> Float[Tensor, "n_neurons n_neurons"]:
    """P^(-1/2), symmetric, scaled so that its mean diagonal is 1; ridge in multiples of tr(P)/N."""
    p = preserve.double()
    lift = ridge * p.diagonal().mean() * torch.eye(p.shape[0], dtype=p.dtype, device=p.device)
    values, vectors = torch.linalg.eigh(p + lift)
    root = (vectors * values.clamp(min=1e-12).rsqrt()) @ vectors.T
    scaled: Tensor = (root / root.diagonal().mean()).float()
    return scaled
