"""The closed form against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acedit.editing.solve import directions, factor, inverse, mean_diagonal, null_space, solve


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
    left, right = solve(residual, keys, inverse(factor(lam * c, ridge=1e-6)))
    p = (lam * c).double()
    p = p + 1e-6 * p.trace() / 12 * torch.eye(12, dtype=torch.float64)
    k, r = keys.double(), residual.double()
    wanted = r @ k.T @ torch.linalg.inv(p + k @ k.T)
    assert torch.allclose((left @ right).double(), wanted, rtol=1e-4, atol=1e-5)


def test_minimises_the_objective() -> None:
    residual, keys, c = problem(6, 1)
    left, right = solve(residual, keys, inverse(factor(2.0 * c)))
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
    metric = inverse(factor(c))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    a = torch.matmul(*solve(residual, keys, metric))
    b = torch.matmul(*solve(residual[:, order], keys[:, order], metric))
    assert torch.allclose(a, b, atol=1e-5)


def test_singular_preservation_is_refused() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        factor(torch.zeros(4, 4))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), repeated=st.booleans(), count=st.integers(1, 40))
def test_directions_are_the_keys_main_ones_in_the_metric(n: int, repeated: bool, count: int) -> None:
    """R P Rᵀ = I, and R P^(1/2) are the first right singular vectors of the keys in the space Δ·P^(1/2)."""
    _, keys, p = problem(n, 7)
    if repeated:
        keys = keys[:, :1].repeat(1, n)
    rows = directions(keys, inverse(factor(p)), count).double()
    assert len(rows) == min(count, 1 if repeated else n, 12)
    eye = torch.eye(len(rows), dtype=torch.float64)
    assert torch.allclose(rows @ p.double() @ rows.T, eye, atol=1e-4)
    values, vectors = torch.linalg.eigh(p.double())
    root = (vectors * values.sqrt()) @ vectors.T
    main = torch.linalg.svd(keys.double().T @ torch.linalg.inv(root), full_matrices=False).Vh[: len(rows)]
    found = rows @ root
    assert torch.allclose(found.T @ found, main.T @ main, atol=1e-3)


def test_no_directions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        directions(torch.ones(4, 2), lambda k: k, 0)


def test_the_mean_diagonal_is_near_it() -> None:
    _, _, p = problem(3, 5)
    exact = float(torch.linalg.inv(p.double()).diagonal().mean())
    found = mean_diagonal(inverse(factor(p)), 12, torch.device("cpu"))
    assert found == pytest.approx(exact, rel=0.2)
    assert mean_diagonal(lambda k: 3 * k, 640, torch.device("cpu")) == pytest.approx(3.0)


def test_equality_holds_exactly_and_moves_least() -> None:
    """EMMET: Δ K = R, and no other Δ that does so is smaller in C's norm."""
    residual, keys, c = problem(4, 3)
    left, right = solve(residual, keys, inverse(factor(c)), slack=0.0)
    delta = (left @ right).double()
    assert torch.allclose(delta @ keys.double(), residual.double(), atol=1e-5)
    root = torch.linalg.cholesky(c.double())
    basis = torch.linalg.qr(keys.double(), mode="complete").Q[:, 4:]
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = delta + 0.1 * torch.randn(5, 8, generator=g, dtype=torch.float64) @ basis.T
        assert torch.allclose(other @ keys.double(), residual.double(), atol=1e-5)
        assert ((delta @ root) ** 2).sum() < ((other @ root) ** 2).sum()


def test_equality_gives_keys_that_repeat_the_mean_of_their_targets() -> None:
    residual, keys, c = problem(4, 3)
    keys[:, 3] = keys[:, 0]
    left, right = solve(residual, keys, inverse(factor(c)), slack=0.0)
    wanted = residual.clone()
    wanted[:, [0, 3]] = residual[:, [0, 3]].mean(1, keepdim=True)
    assert torch.allclose((left @ right).double() @ keys.double(), wanted.double(), atol=1e-5)


def test_equality_for_one_key_is_rome_s_rank_one_update() -> None:
    residual, keys, c = problem(1, 4)
    left, right = solve(residual, keys, inverse(factor(c)), slack=0.0)
    u = torch.linalg.solve(c.double(), keys[:, 0].double())
    wanted = torch.outer(residual[:, 0].double(), u) / (u @ keys[:, 0].double())
    assert torch.allclose((left @ right).double(), wanted, atol=1e-5)


def test_null_space_leaves_kept_keys_alone() -> None:
    """AlphaEdit: the update vanishes on what is kept, and equals its own formula."""
    g = torch.Generator().manual_seed(0)
    kept = torch.randn(12, 7, generator=g, dtype=torch.float64)
    residual, keys, _ = problem(3, 6)
    left, right = solve(residual, keys, null_space(kept @ kept.T, share=1e-8))
    delta = (left @ right).double()
    assert (delta @ kept).abs().max() < 1e-5
    assert (delta @ keys.double()).norm() > 0.1
    q = torch.linalg.qr(kept, mode="complete").Q[:, 7:]
    p, k = q @ q.T, keys.double()
    wanted = residual.double() @ k.T @ p @ torch.linalg.inv(k @ k.T @ p + torch.eye(12, dtype=torch.float64))
    assert torch.allclose(delta, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="raise the share"):
        null_space(torch.eye(5), share=0.1)


def test_null_space_spares_the_keys_of_earlier_edits() -> None:
    """AlphaEdit's formula with K_p: R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + I)⁻¹."""
    g = torch.Generator().manual_seed(1)
    kept = torch.randn(12, 7, generator=g, dtype=torch.float64)
    earlier = 10 * torch.randn(12, 3, generator=g, dtype=torch.float64)
    residual, keys, _ = problem(3, 6)
    left, right = solve(residual, keys, null_space(kept @ kept.T, share=1e-8, earlier=earlier))
    delta = (left @ right).double()
    q = torch.linalg.qr(kept, mode="complete").Q[:, 7:]
    p, k, eye = q @ q.T, keys.double(), torch.eye(12, dtype=torch.float64)
    inside = earlier @ earlier.T @ p + k @ k.T @ p + eye
    assert torch.allclose(delta, residual.double() @ k.T @ p @ torch.linalg.inv(inside), atol=1e-5)
    careless = solve(residual, keys, null_space(kept @ kept.T, share=1e-8))
    moved = (careless[0] @ careless[1]).double() @ earlier
    assert (delta @ earlier).norm() < 0.2 * moved.norm()
