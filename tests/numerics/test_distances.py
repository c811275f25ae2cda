"""FID, KID, CMMD: worked numbers, laws, scipy's matrix square root, torchmetrics on the same features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from efface.numerics.distances import at_infinity, cmmd, frechet, frechet_moments, kid


def features(seed: int, n: int = 60, d: int = 8, shift: float = 0.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(shift, 1, (n, d)) @ draw.normal(0, 1, (d, d))


def by_sqrtm(x: np.ndarray, y: np.ndarray) -> float:
    """Straight from the definition, with scipy's square root of the product."""
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2))))


def test_worked_frechet_distances() -> None:
    """E-26."""
    zero = np.zeros(2)
    assert frechet_moments(zero, np.diag([1, 4]), np.asarray([3, 4]), np.diag([4, 1])) == pytest.approx(27, abs=1e-12)
    tilted = frechet_moments(zero, np.asarray([[2, 1], [1, 2]]), zero, np.diag([3, 1]))
    assert tilted == pytest.approx(0.5166852264521182, abs=1e-12)


@pytest.mark.parametrize(("n", "m", "tolerance"), [(60, 80, 1e-6), (9, 60, 1e-6), (5, 7, 1e-4), (3, 3, 1e-4)])
def test_frechet_agrees_with_the_square_root_of_scipy(n: int, m: int, tolerance: float) -> None:
    """E-26: also where a covariance is singular."""
    x, y = features(1, n), features(2, m, shift=0.5)
    assert frechet(x, y) == pytest.approx(by_sqrtm(x, y), rel=tolerance)


def test_frechet_laws() -> None:
    """E-26: symmetric, never negative, blind to rotation, the gap of means where covariances are equal."""
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(8, 8)))[0]
    for n in (6, 60):
        x, y = features(3, n), features(4, n)
        assert frechet(x, y) == pytest.approx(frechet(y, x), abs=1e-8)
        assert frechet(x @ turn, y @ turn) == pytest.approx(frechet(x, y), abs=1e-8)
        assert -1e-8 <= frechet(x, x) <= 1e-6
        step = np.arange(8.0)
        assert frechet(x, x + step) == pytest.approx(step @ step, abs=1e-6)
        assert frechet(x, y) > 1


def test_both_ways_to_the_frechet_distance_agree() -> None:
    x, y = features(5, 8), features(6, 8)
    moments = (x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    assert frechet(x, y) == pytest.approx(frechet_moments(*moments), rel=1e-6)


def test_a_distance_that_falls_with_n_is_read_off_at_infinity() -> None:
    """E-27: exact on c / n; on equal laws the distance falls with n while the intercept's interval covers 0."""
    n = np.asarray([10, 20, 50, 100, 400])
    value, error = at_infinity(n, 3 + 40 / n)
    assert (value, error) == pytest.approx((3, 0), abs=1e-10)
    draw = np.random.default_rng(0)
    counts = np.linspace(100, 1000, 15).astype(int)
    x, y = draw.normal(size=(1000, 6)), draw.normal(size=(1000, 6))
    found = np.asarray([frechet(draw.permutation(x)[:k], draw.permutation(y)[:k]) for k in counts])
    assert found[:3].mean() > 2 * found[-3:].mean() > 0
    value, error = at_infinity(counts, found)
    assert abs(value) <= 4 * error
    with pytest.raises(ValueError, match="three"):
        at_infinity(np.asarray([10, 20]), np.asarray([1.0, 2.0]))


X, Y = np.asarray([(0, 0), (1, 0), (0, 1)], float), np.asarray([(1, 1), (2, 0), (0, 2)], float)


def test_worked_kernel_distances() -> None:
    """E-28, E-29."""
    assert kid(X, Y) == pytest.approx(0.5, abs=1e-12)
    assert kid(X, Y, biased=True) == pytest.approx(6.0277778, abs=6e-8)
    unit = np.asarray([(1, 0), (0, 1)], float)
    assert cmmd(unit, np.asarray([(1, 0), (-1, 0)], float)) == pytest.approx(4.975083125416058, abs=1e-9)
    assert cmmd(unit, unit) == pytest.approx(0, abs=1e-9)
    assert cmmd(unit, 7 * unit) == pytest.approx(0, abs=1e-9)


def test_kid_of_equal_laws_is_zero_on_average_and_is_not_clipped() -> None:
    """E-28."""
    draw = np.random.default_rng(2)
    found = np.asarray([kid(draw.normal(size=(20, 4)), draw.normal(size=(20, 4))) for _ in range(400)])
    assert abs(found.mean()) <= 3 * found.std() / 20
    assert (found < 0).any()


def test_cmmd_is_never_negative_and_grows_with_the_gap() -> None:
    """E-29."""
    found = [cmmd(features(1), features(1) + s) for s in (0.0, 0.5, 2.0)]
    assert found[0] >= -1e-9
    assert found == sorted(found)
    assert cmmd(features(1), features(2)) == pytest.approx(cmmd(features(2), features(1)), abs=1e-9)


@pytest.mark.parametrize("measure", [frechet, kid, cmmd])
@pytest.mark.parametrize("bad", [np.zeros((1, 8)), np.zeros((5, 7)), np.zeros(8), np.full((5, 8), np.nan)])
def test_tables_that_do_not_fit_are_refused(measure, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        measure(features(1), bad)


def test_fid_and_kid_agree_with_torchmetrics_on_the_same_features() -> None:
    """E-26, E-28."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Pool(torch.nn.Module):
        """uint8 (n, 3, h, w) to (n, 12)."""

        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(x.double() / 255, 2).flatten(1)

    draw = np.random.default_rng(4)
    x, y = (torch.from_numpy(draw.integers(0, 256, (64, 3, 16, 16), dtype=np.uint8) // k) for k in (1, 2))
    ours = [Pool()(v).numpy() for v in (x, y)]
    fid = FrechetInceptionDistance(feature=Pool()).set_dtype(torch.float64)
    kid_ = KernelInceptionDistance(feature=Pool(), subsets=1, subset_size=64)
    for theirs in (fid, kid_):
        theirs.update(x, real=True)
        theirs.update(y, real=False)
    assert frechet(*ours) == pytest.approx(by_sqrtm(*ours), rel=1e-6)
    assert frechet(*ours) == pytest.approx(float(fid.compute()), rel=1e-5)
    assert kid(*ours) == pytest.approx(float(kid_.compute()[0]), rel=1e-4)
