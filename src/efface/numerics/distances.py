"""Distances between two sets of feature vectors: Frechet, polynomial and Gaussian maximum mean discrepancy.

Heusel et al. 2017 (FID); Binkowski et al. 2018, arXiv 1801.01401 (KID); Chong and Forsyth 2020, arXiv 1911.07023
(FID at an infinite number of images); Jayasumana et al. 2024, arXiv 2401.09603 (CMMD). Everything in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Intercept", "at_infinity", "cmmd", "frechet", "frechet_moments", "kid"]

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


class Intercept(NamedTuple):
    """Where a straight line in 1 / n meets n = infinity, and the standard error of that."""

    value: float
    error: float


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of Gaussians fitted to x (n, d) and y (m, d); covariances over n - 1, n and m >= 2.

    With A, B the centred features over sqrt(n - 1), tr (C1 C2)^(1/2) is the sum of singular values of A B^T: exact
    also where the covariances are singular, and never larger than n x m.
    """
    x, y = _features(x, y)
    mean = x.mean(0) - y.mean(0)
    a = (x - x.mean(0)) / np.sqrt(len(x) - 1)  # (n, d)
    b = (y - y.mean(0)) / np.sqrt(len(y) - 1)  # (m, d)
    if max(len(x), len(y)) > x.shape[1]:
        return frechet_moments(x.mean(0), a.T @ a, y.mean(0), b.T @ b)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(mean @ mean + (a * a).sum() + (b * b).sum() - 2 * cross)


def frechet_moments(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The same from means (d,) and covariances (d, d): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2))."""
    gap = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    cov1, cov2 = np.asarray(cov1, np.float64), np.asarray(cov2, np.float64)
    values, vectors = np.linalg.eigh(cov1)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    product = root @ cov2 @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    return float(gap @ gap + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def at_infinity(counts: np.ndarray, distances: np.ndarray) -> Intercept:
    """Extrapolate distances (k,) measured with counts (k,) images to n = infinity: least squares in 1 / n, k >= 3."""
    counts, distances = np.asarray(counts, np.float64), np.asarray(distances, np.float64)
    if len(counts) < 3 or len(np.unique(counts)) < 2:
        raise ValueError(f"expected at least three distances at two or more counts, got {len(counts)}; measure more")
    design = np.stack([np.ones_like(counts), 1 / counts], 1)  # (k, 2)
    (value, slope), *_ = np.linalg.lstsq(design, distances, rcond=None)
    left = distances - design @ (value, slope)
    spread = np.linalg.solve(design.T @ design, np.array([1.0, 0.0]))[0]  # the intercept's own variance, in units of
    return Intercept(float(value), float(np.sqrt(spread * (left @ left) / (len(counts) - 2))))  # that of one distance


def kid(x: np.ndarray, y: np.ndarray, *, biased: bool = False) -> float:
    """Squared MMD with the kernel (x . y / d + 1)^3. Unbiased, so it may be negative; nothing is clipped."""
    x, y = _features(x, y)
    own1, own2, cross = _cubic(x, x), _cubic(y, y), _cubic(x, y)
    return float(_mmd(own1, own2, cross, biased))


def cmmd(x: np.ndarray, y: np.ndarray) -> float:
    """1000 times the squared MMD, diagonal kept, of rows scaled to length 1 with the kernel exp(-|x - y|^2 / 200)."""
    x, y = _features(x, y)
    x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (x, y))
    gamma = 1 / (2 * CMMD_SIGMA**2)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        apart = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
        return np.expm1(-gamma * apart.clip(min=0))  # less 1, which cancels: small differences keep their digits

    return float(CMMD_SCALE * _mmd(kernel(x, x), kernel(y, y), kernel(x, y), biased=True))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mmd(own1: np.ndarray, own2: np.ndarray, cross: np.ndarray, biased: bool) -> float:
    if biased:
        return own1.mean() + own2.mean() - 2 * cross.mean()
    n, m = len(own1), len(own2)
    first = (own1.sum() - np.trace(own1)) / (n * (n - 1))
    return first + (own2.sum() - np.trace(own2)) / (m * (m - 1)) - 2 * cross.mean()


def _features(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"expected two tables of at least two feature rows of one width, got {x.shape} and {y.shape}; "
            "take both from one judge"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("expected finite features, got NaN or infinity; judge those images anew")
    return x, y


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """100 cos of every image (n, f) with every text (m, f): (n, m), not clipped."""
    a, b = (np.asarray(v, np.float64) for v in (images, texts))
    return 100 * (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
