"""Laws of the steps back towards the original weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.numerics.geometry import (
    bures_step,
    combine,
    energy_angle_blend,
    entropy_rollback,
    row_prox,
)

D, LP, MU = 24, 0.9, 0.4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))


def pulled(a: Tensor, w0: Tensor, lp: float = LP, mu: float = MU, iterations: int = 3) -> Tensor:
    p, q = row_prox(a, w0, lp, mu, iterations)
    return combine(p, a, q, w0)


def square_root(S: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def row_objective(w: Tensor, a: Tensor, w0: Tensor, lp: float, mu: float) -> Tensor:
    distance = (w * w).sum(-1) + (w0 * w0).sum(-1) - 2 * (w * w0).sum(-1).abs()
    return lp * ((w - a) ** 2).sum(-1) + mu * distance


def row_minimiser(a: Tensor, w0: Tensor, lp: float, mu: float) -> Tensor:
    """Where `row_objective` is least: an average with w0 on the side of a."""
    side = torch.where((a * w0).sum(1, keepdim=True) < 0, -1.0, 1.0).to(a)
    return (lp * a + mu * side * w0) / (lp + mu)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_original_rows_stay_and_without_strength_nothing_moves(iterations: int) -> None:
    """1.11-16, 1.11-5."""
    a, w0 = randn(40, D), randn(40, D, seed=1)
    assert relative(pulled(w0, w0, iterations=iterations), w0) <= 1e-12
    assert relative(pulled(a, w0, mu=0.0, iterations=iterations), a) <= 1e-12
    assert relative(pulled(a, w0, iterations=iterations), a) > 1e-2


@pytest.mark.parametrize("iterations", [1, 4])
def test_reversed_rows_shrink_in_place_and_zero_rows_stay_zero(iterations: int) -> None:
    """1.11-16."""
    a, w0 = randn(40, D), randn(40, D, seed=1)
    w = pulled(a, w0, iterations=iterations)
    reverse = (a * w0).sum(1) < 0
    assert relative(w[reverse], LP / (LP + MU) * a[reverse]) <= 1e-12
    assert relative(w[~reverse], LP / (LP + MU) * a[~reverse]) > 1e-2
    zero = torch.zeros(3, D, dtype=torch.float64)
    assert torch.equal(pulled(zero, w0[:3], iterations=iterations), zero)


def test_row_iteration_is_the_one_written_with_unit_vectors() -> None:
    """1.11-16: the coefficients stand for `r u` of the iteration."""
    a, w0 = randn(D), randn(D, seed=1)
    a = a if a @ w0 > 0 else -a
    u, r = a / a.norm(), a.norm()
    for steps in (1, 2, 3):
        kappa = (u @ w0 / w0.norm()).clamp(min=0)
        r = (LP * a.norm() + MU * w0.norm() * kappa) / (LP + MU)
        u = LP * a + MU * kappa * w0
        u = u / u.norm()
        assert relative(pulled(a[None], w0[None], iterations=steps)[0], r * u) <= 1e-12


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 10), st.floats(0.01, 10))
def test_exact_row_step_is_never_above_the_iteration(seed: int, lp: float, mu: float) -> None:
    """1.11-17."""
    a, w0 = randn(40, 6, seed=seed), randn(40, 6, seed=seed + 1)
    exact = row_objective(row_minimiser(a, w0, lp, mu), a, w0, lp, mu)
    iterated = row_objective(pulled(a, w0, lp, mu), a, w0, lp, mu)
    assert bool((exact <= iterated * (1 + 1e-12)).all())
    assert bool((exact < 0.999 * iterated).any())


def test_no_perturbation_betters_the_exact_row_step() -> None:
    """1.11-17."""
    a, w0 = randn(5, D), randn(5, D, seed=1)
    w = row_minimiser(a, w0, LP, MU)
    nearby = w + 1e-3 * randn(1000, 5, D, seed=2)
    assert bool((row_objective(nearby, a, w0, LP, MU) > row_objective(w, a, w0, LP, MU)).all())
    iterated = pulled(a, w0)
    step = iterated + 0.1 * (w - iterated)  # from the iteration there is a way down
    assert bool((row_objective(step, a, w0, LP, MU) < row_objective(iterated, a, w0, LP, MU)).all())


def test_blend_keeps_rows_without_entropy_and_interpolates_energy() -> None:
    w, w0, h = randn(40, D), randn(40, D, seed=1), torch.rand(40, dtype=torch.float64)
    h[3] = 0
    blended = energy_angle_blend(w, w0, h)
    assert relative(blended[3], w0[3]) <= 1e-12
    share = 1 - torch.exp(-h / h.max())
    energy = (1 - share) * w0.norm(dim=1).log() + share * w.norm(dim=1).log()
    assert relative(blended.norm(dim=1).log(), energy) <= 1e-12
    assert relative(blended, w0) > 1e-2
    assert relative(energy_angle_blend(w0, w0, h), w0) <= 1e-12


@pytest.mark.parametrize("floor", [0.1, 0.8, 1.0])
def test_roll_back_scales_the_change_of_each_row(floor: float) -> None:
    """1.11-14."""
    w, w0, e = randn(40, D), randn(40, D, seed=1), torch.rand(40, dtype=torch.float64)
    alpha = floor + (1 - floor) * e
    found = entropy_rollback(w, w0, e, floor)
    assert relative(found - w0, alpha[:, None] * (w - w0)) <= 1e-13
    assert torch.equal(found, w) == (floor == 1.0)


@pytest.mark.parametrize("t", [0.1, 0.3, 0.9])
def test_full_step_is_the_geodesic_point_at_the_least_distance(t: float) -> None:
    """1.11-18."""
    W, W0 = randn(7, D), randn(7, D, seed=1)
    found = bures_step(W, W0, t, rtol=1e-12)
    S, S0 = W @ W.T, W0 @ W0.T
    half = square_root(S)
    moved = torch.linalg.solve(half, square_root(half @ S0 @ half))  # half^-1 (half S0 half)^1/2
    T = torch.linalg.solve(half, moved.T).T  # optimal map of the geodesic
    mix = (1 - t) * torch.eye(7, dtype=torch.float64) + t * T
    assert relative(found @ found.T, mix @ S @ mix.T) <= 1e-9
    assert relative(found, mix @ W) <= 1e-9
    distance = float((W**2).sum() + (W0**2).sum() - 2 * torch.linalg.svdvals(W0.T @ W).sum()) ** 0.5
    assert float(torch.linalg.norm(found - W)) == pytest.approx(t * distance, rel=1e-9)


@pytest.mark.parametrize("o", [7, 24, 40])
def test_full_step_runs_from_the_edit_to_the_original_covariance(o: int) -> None:
    """1.11-18."""
    W, W0 = randn(o, D), randn(o, D, seed=1)
    assert torch.equal(bures_step(W, W0, 0.0), W)
    end = bures_step(W, W0, 1.0, rtol=1e-12)
    assert relative(end @ end.T, W0 @ W0.T) <= 1e-9
    assert relative(bures_step(W, W0, 0.5, rtol=1e-12) @ W.T, W0 @ W0.T) > 1e-2


@pytest.mark.parametrize("o", [7, 24, 40])
def test_erased_stays_erased_under_the_full_step_and_not_under_the_row_step(o: int) -> None:
    """1.11-19."""
    W0, c = randn(o, D), randn(D, seed=1)
    c = c / c.norm()
    W = W0 + 0.3 * randn(o, D, seed=2)
    W = W - (W @ c)[:, None] * c
    assert (bures_step(W, W0, 0.3) @ c).norm() <= 1e-9
    assert (pulled(W, W0) @ c).norm() > 1e-2
    if o > D:  # without the cut it comes back
        assert (bures_step(W, W0, 0.3, rtol=0.0) @ c).norm() > 1e-2


@pytest.mark.parametrize("o", [7, 40])
def test_full_step_sees_the_original_covariance_only_and_the_row_step_its_rows(o: int) -> None:
    """1.11-25, its opposite: turning one side alone."""
    W, W0, Q = randn(o, D), randn(o, D, seed=1), torch.linalg.qr(randn(D, D, seed=2))[0]
    assert relative(bures_step(W, W0 @ Q, 0.3, rtol=1e-12), bures_step(W, W0, 0.3, rtol=1e-12)) <= 1e-9
    assert relative(bures_step(W, 2 * W0, 0.3), bures_step(W, W0, 0.3)) > 1e-2
    assert relative(pulled(W, W0 @ Q), pulled(W, W0)) > 1e-2


@pytest.mark.parametrize("o", [7, 40])
def test_steps_turn_with_the_text_basis_and_follow_the_channels(o: int) -> None:
    """1.11-25."""
    W, W0 = randn(o, D), randn(o, D, seed=1)
    Q, turn = torch.linalg.qr(randn(D, D, seed=2))[0], torch.arange(o).roll(3)
    for step in (lambda W, W0: bures_step(W, W0, 0.3), pulled):
        assert relative(step(W @ Q, W0 @ Q), step(W, W0) @ Q) <= 1e-9
        assert relative(step(W[turn], W0[turn]), step(W, W0)[turn]) <= 1e-9
