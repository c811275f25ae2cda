"""How much an output channel tells a concept from neutral text, and how spread its activations are.

A channel fires (z = 1) where its activation exceeds the median over noisy copies of the concept (y = 1) and
of a neutral vector (y = 0); its information is `MI = sum p(z, y) ln(p(z, y) / (p(z) p(y)))`. A row's entropy
factor is `1 - H / ln K` of its activations' histogram. Draws are arguments. W is (o, d), concepts are (m, d).

Source: Deng et al., "Forget Many, Forget Right: Scalable and Precise Concept Unlearning in Diffusion Models"
(ScaPre), ICLR 2026, arXiv 2601.06162: Informax decoupler; smoothing, z-score and power as in the released
code; the population and row-wise forms are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "code_information",
    "entropy_factor",
    "information_of_counts",
    "normalise",
    "population_information",
    "rowwise_information",
    "sample_information",
    "saturation",
]

SMOOTH = 1e-8  # added to each cell of the table by the released code
LN2 = math.log(2.0)


def information_of_counts(n11: Tensor, n10: Tensor, positives: int, negatives: int) -> Tensor:
    """MI (...) where n11 (...) of the positive and n10 (...) of the negative samples fire."""
    cells = torch.stack([n11, n10, positives - n11, negatives - n10]).double()  # (4, ...)
    p11, p10, p01, p00 = p = (cells + SMOOTH) / (positives + negatives)
    z1, z0, y1, y0 = p11 + p10, p01 + p00, p11 + p01, p10 + p00
    return (p * (p / torch.stack([z1 * y1, z1 * y0, z0 * y1, z0 * y0])).log()).sum(0)


def sample_information(positive: Tensor, negative: Tensor) -> Tensor:
    """MI (...) of activations (..., n) and (..., n'): strictly above the lower median of both fires."""
    pooled = torch.cat([positive, negative], -1)
    tau = pooled.kthvalue((pooled.shape[-1] + 1) // 2, dim=-1, keepdim=True).values
    n11, n10 = (positive > tau).sum(-1), (negative > tau).sum(-1)  # integers
    P, N = positive.shape[-1], negative.shape[-1]
    # a table of the pairs that occur: equal counts get bit-equal information, which the z-score relies on
    pair, at = (n11 * (N + 1) + n10).unique(return_inverse=True)
    return information_of_counts(pair // (N + 1), pair % (N + 1), P, N)[at]


def code_information(
    W: Tensor, concepts: Tensor, neutral: Tensor, positive: Tensor, negative: Tensor, sigma: float
) -> Tensor:
    """MI (o, m) from full draws (m, n, d); `neutral` broadcasts to (m, n, d): (d,), (n, d) or (m, 1, d)."""
    W = W.double()
    samples_1 = concepts.double()[:, None] + sigma * positive.double()  # (m, n, d)
    samples_0 = neutral.double() + sigma * negative.double()  # (m, n, d)
    return sample_information((samples_1 @ W.T).movedim(-1, 0), (samples_0 @ W.T).movedim(-1, 0))


def rowwise_information(
    W: Tensor, concepts: Tensor, neutral: Tensor, positive: Tensor, negative: Tensor, sigma: float
) -> Tensor:
    """MI (o, m) from scalar draws (o, m, n): the law of each row is that of full draws at 1/d of the cost."""
    W = W.double()
    spread = sigma * torch.linalg.norm(W, dim=1)[:, None, None]  # (o, 1, 1)
    centre_1 = (W @ concepts.double().T)[..., None]  # (o, m, 1)
    centre_0 = (W @ neutral.double())[:, None, None]  # (o, 1, 1)
    return sample_information(centre_1 + spread * positive.double(), centre_0 + spread * negative.double())


def population_information(W: Tensor, concepts: Tensor, neutral: Tensor, sigma: float) -> Tensor:
    """MI (o, m) in the limit of many draws: `ln 2 + u ln u + (1 - u) ln(1 - u)`, u = P(z = 1 | y = 1).

    For one neutral vector (d,) `u = Phi(|w.(c - e)| / (2 sigma |w|))`; several (r, d) are drawn from alike.
    """
    W = W.double()
    spread = (sigma * torch.linalg.norm(W, dim=1)).clamp(min=1e-300)[:, None]  # (o, 1)
    centre_1 = W @ concepts.double().T / spread  # (o, m), in units of the spread
    if neutral.ndim == 1:
        gap = centre_1 - (W @ neutral.double())[:, None] / spread
        miss = torch.special.ndtr(-gap.abs() / 2)  # (o, m)
    else:
        miss = torch.special.ndtr(_mixture_median(centre_1, W @ neutral.double().T / spread) - centre_1)
    return (LN2 + torch.xlogy(miss, miss) + torch.xlogy(1 - miss, 1 - miss)).clamp(min=0)


def _mixture_median(centre_1: Tensor, centre_0: Tensor) -> Tensor:
    """Median (o, m) of half N(centre_1, 1), half the even mixture of N(centre_0, 1); (o, m) and (o, r)."""
    low = torch.minimum(centre_1, centre_0.amin(1, keepdim=True)) - 1
    high = torch.maximum(centre_1, centre_0.amax(1, keepdim=True)) + 1
    for _ in range(60):  # bisection: 2^-60 of the bracket, below rounding
        middle = (low + high) / 2
        below = torch.special.ndtr(middle - centre_1)
        below = below + torch.special.ndtr(middle[..., None] - centre_0[:, None]).mean(-1)
        low, high = torch.where(below < 1, middle, low), torch.where(below < 1, high, middle)
    return (low + high) / 2


def normalise(mi: Tensor, how: str, *, power: float = 1.0, temperature: float = 0.7) -> Tensor:
    """Masks (o, m) from information (o, m) of one matrix.

    zscore: sigmoid of the z-score over channels, each concept apart (released code);
    max: over the matrix's largest (paper); unit: over ln 2, comparable between matrices.
    """
    if how == "zscore":
        centred = mi - mi.mean(0)
        std = centred.square().sum(0).div(max(len(mi) - 1, 1)).sqrt()  # (m,)
        # all channels alike: std is rounding noise, which must not be amplified by 1 / 1e-8
        zeta = torch.where(std < 1e-12, 0.0, centred / (std + 1e-8))
        return torch.sigmoid(zeta / temperature) ** power
    if how == "max":
        top = mi.amax()
        return (mi / top) ** power if float(top) > 0 else torch.zeros_like(mi)
    if how == "unit":
        return (mi / LN2).clamp(0, 1) ** power
    raise ValueError(f"normalisation must be zscore, max or unit, not {how!r}")


def saturation(mi: Tensor, tol: float = 1e-6) -> float:
    """Share of (channel, concept) pairs at the largest possible information, ln 2."""
    return float((mi >= LN2 - tol).double().mean())


def entropy_factor(W: Tensor, concepts: Tensor, draws: Tensor, sigma: float, bins: int) -> Tensor:
    """`1 - H / ln bins` (o,) of a row's activations on noisy concepts; draws (m, s, d). 1: all in one bin."""
    samples = (concepts.double()[:, None] + sigma * draws.double()).flatten(0, 1)  # (m s, d)
    A = W.double() @ samples.T  # (o, m s)
    low = A.amin(1, keepdim=True)
    scaled = (A - low) / (A.amax(1, keepdim=True) - low + 1e-8)  # (o, m s) in [0, 1)
    which = (scaled * bins).long().clamp(max=bins - 1)
    counts = A.new_zeros(len(A), bins).scatter_add_(1, which, torch.ones_like(A))  # (o, bins)
    p = counts / (counts.sum(1, keepdim=True) + 1e-8)
    return 1 + (p * (p + 1e-8).log()).sum(1) / math.log(bins)
