"""The closed forms, with the number of keys as the small side.

    left, right = solve(residuals, keys, inverse(factor(p)))           # MEMIT, PMET, ACE (Eq. 12)
    left, right = solve(residuals, keys, inverse(factor(c)), slack=0)  # ROME, EMMET
    left, right = solve(residuals, keys, null_space(c))                # AlphaEdit
    # Δ = left @ right, (d_model, n_neurons)

All are Δ = R (s·I + Kᵀ Q K)⁻¹ Kᵀ Q for a symmetric Q (a `Metric`: K ↦ Q K) and a slack s:
- Q = P⁻¹ with P = λ·C + known keys + ridge·I and s = 1 is R Kᵀ (P + K Kᵀ)⁻¹ (Eq. 11 and 12) by the
  push-through identity: P is factored once a layer and each edit solves n × n;
- s = 0 makes Δ K = R hold exactly (Gupta et al. 2024, Eq. 8; for one key Meng et al. 2022, Eq. 2);
- Q the projector on the null space of what is kept makes Δ vanish there (Fang et al. 2025, Eq. 14), and
  moves little along the keys of edits that were made earlier.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Metric = Callable[[Tensor], Tensor]
"""K ↦ Q K, both (n_neurons, n) float64."""

SAME = 1e-9  # eigenvalues of Kᵀ Q K below this share of the largest come from keys that repeat


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


def inverse(cholesky: Float[Tensor, "n_neurons n_neurons"]) -> Metric:
    """Q = P⁻¹, from P's Cholesky factor."""

    def apply(keys: Tensor) -> Tensor:
        solved: Tensor = torch.cholesky_solve(keys, cholesky)
        return solved

    return apply


def null_space(
    moments: Float[Tensor, "n_neurons n_neurons"],
    share: float = 0.02,
    *,
    earlier: Float[Tensor, "n_neurons m"] | None = None,
) -> Metric:
    """Q projects on the directions that kept keys hardly use (AlphaEdit).

    share: the least used directions that together hold at most so much of tr(moments) count as null.
    AlphaEdit cuts at an absolute eigenvalue of 2e-2, a figure for the models it names. earlier: keys K_p of
    edits that are in the model already; with U an orthonormal basis of the null space,
    Q = U (I + Uᵀ K_p K_pᵀ U)⁻¹ Uᵀ, which is the paper's R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + I)⁻¹. Raises
    ValueError where no direction is null.
    """
    values, vectors = torch.linalg.eigh(moments.double())
    null = vectors[:, values.clamp(min=0).cumsum(0) <= share * values.sum()]
    if not null.shape[1]:
        raise ValueError("no direction is left free of what is kept; raise the share")
    if earlier is None:
        return lambda keys: null @ (null.T @ keys)
    before = null.T @ earlier.double()
    lower = torch.linalg.cholesky(torch.eye(len(before)).to(before) + before @ before.T)
    return lambda keys: null @ torch.cholesky_solve(null.T @ keys, lower)


def solve(
    residuals: Float[Tensor, "d_model n"],
    keys: Float[Tensor, "n_neurons n"],
    metric: Metric,
    *,
    slack: float = 1.0,
) -> tuple[Float[Tensor, "d_model n"], Float[Tensor, "n n_neurons"]]:
    """Δ = left @ right for targets R and keys K; the factors are float32.

    `left` is R itself, so what is optimised further can stay in the space of targets; `right` is
    (s·I + Kᵀ Q K)⁻¹ Kᵀ Q. With slack 0 a pseudo-inverse: keys that repeat (edits of one subject whose
    prompts start with it) get the mean of their targets.
    """
    k = keys.double()
    moved = metric(k)
    gram = slack * torch.eye(k.shape[1], dtype=k.dtype, device=k.device) + k.T @ moved
    if slack:
        right = torch.linalg.solve(gram, moved.T)
    else:
        right = torch.linalg.pinv(gram, rtol=SAME, hermitian=True) @ moved.T
    return residuals.float(), right.float()


def inverse_root(
    preserve: Float[Tensor, "n_neurons n_neurons"], ridge: float = 0.05
) -> Float[Tensor, "n_neurons n_neurons"]:
    """(P + ridge·tr(P)/N·I)^(-1/2), symmetric, float32."""
    p = preserve.double()
    lift = ridge * p.diagonal().mean() * torch.eye(p.shape[0], dtype=p.dtype, device=p.device)
    values, vectors = torch.linalg.eigh(p + lift)
    root: Tensor = ((vectors * values.clamp(min=1e-12).rsqrt()) @ vectors.T).float()
    return root


def root_beside(
    root: Float[Tensor, "n_neurons n_neurons"], keys: Float[Tensor, "keys n_neurons"], weight: float
) -> Float[Tensor, "n_neurons n_neurons"]:
    """T with T (P + weight·KᵀK) Tᵀ = I, from P's symmetric `inverse_root` and a few keys K, one a row.

    With A = P^(-1/2) Kᵀ·√weight it is (I + A Aᵀ)^(-1/2) P^(-1/2), and I + A Aᵀ differs from I in as many
    directions as there are keys: no matrix of N × N is factored (at N = 12,288 that takes minutes a layer).
    """
    a = weight**0.5 * (root @ keys.T.to(root))
    squares, vectors = torch.linalg.eigh(a.T.double() @ a.double())
    squares = squares.clamp(min=0)
    # (1 + s)^(-1/2) - 1 = s·f(s); A f(AᵀA) Aᵀ needs no division by what may be zero.
    factor = -1 / ((1 + squares).sqrt() * (1 + (1 + squares).sqrt()))
    middle = ((vectors * factor) @ vectors.T).to(root)
    moved: Tensor = root + a @ (middle @ (a.T @ root))
    return moved
