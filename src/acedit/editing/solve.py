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

PROBES = 64
SAME = 1e-9  # eigenvalues of Kᵀ Q K below this share of the largest come from keys that repeat


def factor(
    preserve: Float[Tensor, "n_neurons n_neurons"], ridge: float = 0.0
) -> Float[Tensor, "n_neurons n_neurons"]:
    """Cholesky factor (lower) of P + ridge·tr(P)/N·I, in float64.

    Raises torch.linalg.LinAlgError where P is not positive definite: raise the ridge.
    """
    p = preserve.double()
    n = p.shape[0]
    if ridge:
        p = p + ridge * p.diagonal().sum() / n * torch.eye(n, dtype=p.dtype, device=p.device)
    lower: Tensor = torch.linalg.cholesky(p)
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


def directions(
    keys: Float[Tensor, "n_neurons n"], metric: Metric, count: int
) -> Float[Tensor, "rows n_neurons"]:
    """The main directions that keys use in the space Δ·P^(1/2), P⁻¹ being the metric: R with R P Rᵀ = I.

    Float32, Δ = B·R then costs tr(Δ P Δᵀ) = ‖B‖², and the first rows hold most of the keys' Kᵀ P⁻¹ K. At
    most `count` rows, fewer where the keys span less. No root of P is taken. Raises ValueError for none.
    """
    if count < 1:
        raise ValueError(f"{count} directions were asked for; at least 1")
    k = keys.double()
    moved = metric(k)
    values, vectors = torch.linalg.eigh(k.T @ moved)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    used = values > SAME * values[0]
    rows: Tensor = ((moved @ vectors[:, used]) * values[used].rsqrt()).T.float()
    return rows


def mean_diagonal(metric: Metric, n_neurons: int, device: torch.device) -> float:
    """tr(Q)/N, from `PROBES` vectors of random signs (Hutchinson 1990): to a hundredth at N = 640."""
    g = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (n_neurons, PROBES), generator=g).double().mul_(2).sub_(1).to(device)
    return float((signs * metric(signs)).mean())
