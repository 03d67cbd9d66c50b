"""The closed form against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acedit.editing.solve import factor, solve, whitening


def problem(n: int, seed: int, d: int = 5, width: int = 12) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(width, n, generator=g)
    residual = torch.randn(d, n, generator=g)
    text = torch.randn(width, 40, generator=g)
    return residual, keys, text @ text.T / 40


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 20), seed=st.integers(0, 10**6), lam=st.sampled_from([0.1, 3.0, 100.0]))
def test_equals_the_normal_equations(n: int, seed: int, lam: float) -> None:
    residual, keys, c = problem(n, seed)
    left, right = solve(residual, keys, factor(lam * c, ridge=1e-6))
    p = (lam * c).double()
    p = p + 1e-6 * p.trace() / 12 * torch.eye(12, dtype=torch.float64)
    k, r = keys.double(), residual.double()
    wanted = r @ k.T @ torch.linalg.inv(p + k @ k.T)
    assert torch.allclose((left @ right).double(), wanted, rtol=1e-4, atol=1e-5)


def test_minimises_the_objective() -> None:
    residual, keys, c = problem(6, 1)
    left, right = solve(residual, keys, factor(2.0 * c))
    best = left.double() @ right.double()
    root = torch.linalg.cholesky(2.0 * c.double())

    def objective(delta: torch.Tensor) -> float:
        missed = delta @ keys.double() - residual.double()
        return float((missed**2).sum() + ((delta @ root) ** 2).sum())

    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = 1e-2 * torch.randn(best.shape, generator=g, dtype=torch.float64)
        assert objective(best) <= objective(best + step)


def test_order_of_a_batch_does_not_matter() -> None:
    residual, keys, c = problem(7, 2)
    cholesky = factor(c)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    a = torch.matmul(*solve(residual, keys, cholesky))
    b = torch.matmul(*solve(residual[:, order], keys[:, order], cholesky))
    assert torch.allclose(a, b, atol=1e-5)


def test_singular_preservation_is_refused() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        factor(torch.zeros(4, 4))


def test_whitening_is_the_inverse_square_root() -> None:
    _, _, c = problem(3, 5)
    white = whitening(c, ridge=0.0).double()
    product = white @ c.double() @ white
    assert torch.allclose(product, product.diagonal().mean() * torch.eye(12, dtype=torch.float64), atol=1e-4)
