"""Distances between two pictures of one size: PSNR and SSIM.

Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
IEEE Transactions on Image Processing 13 (2004): Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03.
"""

from __future__ import annotations

from math import inf, log10

import numpy as np
from scipy.ndimage import correlate1d

__all__ = ["psnr", "ssim"]

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """10 log10(1 / MSE) in dB of pictures in [0, 1]; infinity for identical ones."""
    x, y = _pair(x, y)
    error = float(((x - y) ** 2).mean())
    return inf if error == 0 else -10 * log10(error)


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Mean structural similarity of (h, w, c) pictures in [0, 1] over places where the window fits and channels."""
    x, y = _pair(x, y)
    if x.ndim != 3 or min(x.shape[:2]) < WINDOW:
        raise ValueError(f"expected (h, w, c) with sides of at least {WINDOW} pixels, got {x.shape}; enlarge both")
    mx, my = _blur(x), _blur(y)
    vx, vy, both = _blur(x * x) - mx * mx, _blur(y * y) - my * my, _blur(x * y) - mx * my
    c1, c2 = K1**2, K2**2
    found = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(found.mean())


def _blur(x: np.ndarray) -> np.ndarray:
    """Weighted window means at every place where the whole window lies inside: (h - 10, w - 10, c)."""
    at = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(at**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    edge = slice(WINDOW // 2, -(WINDOW // 2))
    return correlate1d(correlate1d(x, weights, axis=0), weights, axis=1)[edge, edge]


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or not x.size:
        raise ValueError(f"expected two pictures of one size, got {x.shape} and {y.shape}; draw both alike")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(f"expected values in [0, 1], got {low:.3g} to {high:.3g}; divide uint8 by 255")
    return x, y
