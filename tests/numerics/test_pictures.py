"""PSNR and SSIM: worked numbers and the definition, window by window."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from efface.numerics.pictures import psnr, ssim


def flat(value: float, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), value)


def noise(seed: int, shape: tuple[int, ...] = (20, 17, 3)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_worked_signal_to_noise() -> None:
    """E-30."""
    assert psnr(flat(0.5), flat(0.5) + 1 / 255) == pytest.approx(48.1308036086791, abs=1e-9)
    assert psnr(flat(0.2), flat(0.3)) == pytest.approx(20, abs=1e-9)
    assert psnr(noise(1), noise(1)) == inf
    assert psnr(noise(1), noise(2)) == psnr(noise(2), noise(1))


def test_worked_similarity() -> None:
    """E-30."""
    assert ssim(flat(0.5), flat(0.7)) == pytest.approx(0.9459532495608701, abs=1e-12)
    assert ssim(flat(0), flat(1)) == pytest.approx(9.9990e-05, abs=1e-9)
    assert ssim(noise(1), noise(1)) == pytest.approx(1, abs=1e-12)
    assert ssim(noise(1), noise(2)) == pytest.approx(ssim(noise(2), noise(1)), abs=1e-12)
    assert ssim(noise(1), noise(2)) < 0.2


def test_similarity_is_that_of_its_definition() -> None:
    """E-30: every window by hand, population moments under the Gaussian weights."""
    x, y = noise(3), 0.7 * noise(3) + 0.3 * noise(4)
    at = np.arange(11) - 5
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights = (weights / weights.sum())[..., None]
    found = []
    for i in range(10):
        for j in range(7):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (weights * a).sum((0, 1)), (weights * b).sum((0, 1))
            va, vb = (weights * (a - ma) ** 2).sum((0, 1)), (weights * (b - mb) ** 2).sum((0, 1))
            cov = (weights * (a - ma) * (b - mb)).sum((0, 1))
            found.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    assert ssim(x, y) == pytest.approx(np.mean(found), abs=1e-12)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_that_do_not_fit_are_refused(measure) -> None:
    for x, y in ((flat(0.5), flat(0.5, 17)), (flat(0.5), flat(200.0)), (flat(0.5) * np.nan, flat(0.5))):
        with pytest.raises(ValueError, match="expected"):
            measure(x, y)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(flat(0.5, 8), flat(0.5, 8))
