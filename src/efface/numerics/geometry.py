"""Pulling an edited weight back towards the original one.

Squared Bures distance of the covariances: `B^2(W, W0) = |W|^2 + |W0|^2 - 2 |W0^T W|_*`; for single rows
`|w|^2 + |w0|^2 - 2 |w . w0|`. Row steps return coefficients (p, q) of `w = p a + q w0`; `a` is the edited
row, `lp` the weight of staying with it, `mu` that of the original. All tensors are float64.

Source: Deng et al., "Forget Many, Forget Right" (ScaPre), ICLR 2026, arXiv 2601.06162: geometry alignment;
the row iteration, the blend and the roll-back as in the released code. The closed form of the full step is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "bures_step",
    "combine",
    "energy_angle_blend",
    "entropy_rollback",
    "row_prox",
]

TINY = 1e-8  # norms are clamped here, as in the released code, so that zero rows stay zero


def combine(p: Tensor, a: Tensor, q: Tensor, w0: Tensor) -> Tensor:
    """`diag(p) a + diag(q) w0`, (o, d)."""
    return p[:, None] * a + q[:, None] * w0


def row_prox(a: Tensor, w0: Tensor, lp: float, mu: float, iterations: int) -> tuple[Tensor, Tensor]:
    """The released iteration on rows a, w0 (o, d); p, q (o,).

    kappa = max(0, u . u0); r = (lp |a| + mu |w0| kappa) / (lp + mu); u = normalise(lp a + mu |w0| kappa u0).
    """
    aa, ww, aw = (a * a).sum(1), (w0 * w0).sum(1), (a * w0).sum(1)  # (o,)
    norm_a, norm_0 = aa.sqrt().clamp(min=TINY), ww.sqrt().clamp(min=TINY)
    x, y = 1 / norm_a, torch.zeros_like(norm_a)  # u = x a + y w0
    r = norm_a
    for _ in range(max(iterations, 1)):
        kappa = ((x * aw + y * ww) / norm_0).clamp(min=0)
        r = (lp * norm_a + mu * norm_0 * kappa) / (lp + mu)
        x, y = torch.full_like(x, lp), mu * kappa
        # kappa > 0 only for rows with aw > 0: all three terms are then positive and nothing cancels
        length = (x**2 * aa + 2 * x * y * aw + y**2 * ww).clamp(min=0).sqrt().clamp(min=TINY)
        x, y = x / length, y / length
    return r * x, r * y


def energy_angle_blend(w: Tensor, w0: Tensor, h: Tensor) -> Tensor:
    """Rows between w0 and w, (o, d): further to w the larger the entropy h (o,) of the row."""
    q = 1 - torch.exp(-h / h.max().clamp(min=1e-6))  # (o,)
    norm, norm_0 = torch.linalg.norm(w, dim=1).clamp(min=TINY), torch.linalg.norm(w0, dim=1).clamp(min=TINY)
    u, u0 = w / norm[:, None], w0 / norm_0[:, None]  # (o, d)
    beta = q * (u * u0).sum(1).clamp(min=0)
    mixed = (1 - beta)[:, None] * u0 + beta[:, None] * u  # (o, d)
    energy = torch.exp((1 - q) * (norm_0**2).log() + q * (norm**2).log())  # squared norm
    scale = energy.sqrt() / torch.linalg.norm(mixed, dim=1).clamp(min=TINY)
    return scale[:, None] * mixed


def entropy_rollback(w: Tensor, w0: Tensor, e: Tensor, floor: float) -> Tensor:
    """`alpha w + (1 - alpha) w0`, alpha = floor + (1 - floor) e (o,); alpha = 1 returns w exactly."""
    alpha = floor + (1 - floor) * e[:, None]
    return alpha * w + (1 - alpha) * w0


def bures_step(W: Tensor, W0: Tensor, t: float, rtol: float = 1e-4) -> Tensor:
    """The share t of the way from W to W0 (o, d) along the Bures geodesic of W W^T, as the nearest factor.

    `W~ = (1 - t) W + t W0 O`, O the polar factor of `W0^T W` on singular values above rtol of the largest:
    without the cut an erased direction of a tall matrix comes back in an arbitrary output direction. The step
    acts on outputs only: `W c = 0` gives `W~ c = 0`.
    """
    if t == 0:
        return W.clone()
    left, s, right = _cross_svd(W, W0)
    keep = s > rtol * s[:1]
    return (1 - t) * W + t * (W0 @ left[:, keep]) @ right[:, keep].T


def _cross_svd(W: Tensor, W0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of `W0^T W`: (d, k), (k,), (d, k), k = min(o, d); wide matrices through their row spaces."""
    o, d = W.shape
    if o >= d:
        U, s, Vt = torch.linalg.svd(W0.T @ W)
        return U, s, Vt.T
    (Q0, R0), (Q1, R1) = torch.linalg.qr(W0.T), torch.linalg.qr(W.T)  # (d, o), (o, o)
    U, s, Vt = torch.linalg.svd(R0 @ R1.T)
    return Q0 @ U, s, Q1 @ Vt.T
