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
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "code_information",
    "entropy_factor",
    "fired",
    "information",
    "information_of_counts",
    "normalise",
    "population_information",
    "rowwise_information",
    "sample_information",
    "saturation",
]

SMOOTH = 1e-8  # added to each cell of the table by the released code
LN2 = math.log(2.0)
BLOCK = 2**21  # activations that the entropy factor holds at once
FEW = 0.1  # share of pairs up to which products with single rows are cheaper than one for all


def information_of_counts(n11: Tensor, n10: Tensor, positives: int, negatives: int) -> Tensor:
    """MI (...) where n11 (...) of the positive and n10 (...) of the negative samples fire."""
    cells = torch.stack([n11, n10, positives - n11, negatives - n10]).double()  # (4, ...)
    p11, p10, p01, p00 = p = (cells + SMOOTH) / (positives + negatives)
    z1, z0, y1, y0 = p11 + p10, p01 + p00, p11 + p01, p10 + p00
    return (p * (p / torch.stack([z1 * y1, z1 * y0, z0 * y1, z0 * y0])).log()).sum(0)


def fired(activations: Tensor, positives: int) -> tuple[Tensor, Tensor]:
    """n11, n10 (...) of activations (..., P + N), the positive ones first: strictly above the lower median fires."""
    tau = activations.kthvalue((activations.shape[-1] + 1) // 2, dim=-1, keepdim=True).values
    above = activations > tau
    return above[..., :positives].sum(-1), above[..., positives:].sum(-1)


def _informed(n11: Tensor, n10: Tensor, P: int, N: int) -> Tensor:
    """MI (...) by a table of counts: equal counts get bit-equal information, which the z-score relies on."""
    pair, size = n11 * (N + 1) + n10, (P + 1) * (N + 1)
    if size <= pair.numel():
        every = torch.arange(size, device=pair.device)
        return information_of_counts(every // (N + 1), every % (N + 1), P, N)[pair]
    pair, at = pair.unique(return_inverse=True)
    return information_of_counts(pair // (N + 1), pair % (N + 1), P, N)[at]


def sample_information(positive: Tensor, negative: Tensor) -> Tensor:
    """MI (...) of activations (..., n) and (..., n'): strictly above the lower median of both fires."""
    P, N = positive.shape[-1], negative.shape[-1]
    return _informed(*fired(torch.cat([positive, negative], -1), P), P, N)


def code_information(
    W: Tensor, concepts: Tensor, neutral: Tensor, positive: Tensor, negative: Tensor, sigma: float
) -> Tensor:
    """MI (o, m) from full draws (m, n, d); `neutral` broadcasts to (m, n, d): (d,), (n, d) or (m, 1, d).

    Order statistics are taken only where the two sides overlap, with the released noise a few pairs of channel and
    concept in a hundred; activations are not even computed where the lengths of the draws settle the order.
    """
    W, C, e = W.double(), concepts.double(), neutral.double()
    plus, minus = sigma * positive.double(), sigma * negative.double()
    P, N = plus.shape[1], minus.shape[1]
    over, under = _separated(W, C, e, plus, minus)  # (o, m)
    samples = torch.cat([C[:, None] + plus, e + minus], 1)  # (m, P + N, d)
    left = ~(over | under).T  # (m, o)
    if float(left.double().mean()) > FEW:
        A = (samples.flatten(0, 1) @ W.T).unflatten(0, (len(C), P + N))  # (m, P + N, o)
        if P == N:  # else the lower median is not the border of two sides apart
            over = (A[:, :P].amin(1) > A[:, P:].amax(1)).T.contiguous()
            under = (A[:, :P].amax(1) < A[:, P:].amin(1)).T.contiguous()
            left = ~(over | under).T
        activations = A.movedim(1, 2)[left]  # (u, P + N)
    else:
        rows = left.nonzero()[:, 1].split(left.sum(1).tolist())  # of each concept
        activations = torch.cat([W[r] @ x.T for r, x in zip(rows, samples, strict=True)])
    n11, n10 = torch.where(over, P, 0), torch.where(under, N, 0)
    n11.T[left], n10.T[left] = fired(activations, P)
    return _informed(n11, n10, P, N)


def _separated(W: Tensor, C: Tensor, e: Tensor, plus: Tensor, minus: Tensor) -> tuple[Tensor, Tensor]:
    """Where (o, m) every positive sample is certainly above every negative one, and where below.

    A noisy activation is within |w| |noise| of its centre. Then as many fire as there are samples of one side.
    """
    centre_1, centre_0 = W @ C.T, _neutral_centres(W, e)  # (o, m), (o, 1 or m, 1 or n)
    reach = plus.norm(dim=-1).amax(1) + minus.norm(dim=-1).amax(1)  # (m,)
    rounding = 1e-9 * (C.norm(dim=1) + e.norm(dim=-1).amax())
    room = W.norm(dim=1)[:, None] * (reach + rounding)  # (o, m)
    over, under = centre_1 - centre_0.amax(-1) > room, centre_0.amin(-1) - centre_1 > room
    equal = plus.shape[1] == minus.shape[1]
    return over & equal, under & equal


def _neutral_centres(W: Tensor, neutral: Tensor) -> Tensor:
    """Activations of neutral (d,), (n, d) or (m, 1, d) as (o, 1, 1), (o, 1, n) or (o, m, 1)."""
    centre = neutral.double() @ W.T  # (..., o)
    return centre[..., None, None] if neutral.ndim == 1 else centre.movedim(-1, 0).reshape(len(W), *_lead(neutral))


def _lead(neutral: Tensor) -> tuple[int, int]:
    return (1, len(neutral)) if neutral.ndim == 2 else (len(neutral), 1)


def rowwise_information(
    W: Tensor, concepts: Tensor, neutral: Tensor, positive: Tensor, negative: Tensor, sigma: float
) -> Tensor:
    """MI (o, m) from scalar draws (o, m, n): the law of each row is that of full draws at 1/d of the cost.

    `neutral` as in `code_information`.
    """
    W = W.double()
    spread = sigma * torch.linalg.norm(W, dim=1)[:, None, None]  # (o, 1, 1)
    centre_1 = (W @ concepts.double().T)[..., None]  # (o, m, 1)
    centre_0 = _neutral_centres(W, neutral)  # (o, 1 or m, 1 or n)
    return sample_information(centre_1 + spread * positive.double(), centre_0 + spread * negative.double())


def information(
    W: Tensor, concepts: Tensor, neutral: Tensor, sigma: float, draws: Sequence[Tensor] | None, *, rowwise: bool = False
) -> Tensor:
    """MI (o, m) from positive and negative draws (m, n, d), scalar ones (m, o, n) if `rowwise`, else of the population.

    neutral: (d,), (r, d) taken in turn by the draws, or one a concept (m, 1, d).
    """
    if draws is None:
        return population_information(W, concepts, neutral, sigma)
    positive, negative = draws
    if neutral.ndim == 2:
        n, r = negative.shape[-1 if rowwise else 1], len(neutral)
        # fewer draws than rows: spread over all of them, not the first alone
        neutral = neutral[torch.arange(n) % r if r <= n else torch.arange(n) * r // n]  # (n, d)
    if rowwise:
        return rowwise_information(W, concepts, neutral, positive.movedim(0, 1), negative.movedim(0, 1), sigma)
    return code_information(W, concepts, neutral, positive, negative, sigma)


def population_information(W: Tensor, concepts: Tensor, neutral: Tensor, sigma: float) -> Tensor:
    """MI (o, m) in the limit of many draws: `ln 2 + u ln u + (1 - u) ln(1 - u)`, u = P(z = 1 | y = 1).

    For one neutral vector (d,) `u = Phi(|w.(c - e)| / (2 sigma |w|))`; several (r, d) are drawn from alike;
    (m, 1, d) holds one for each concept.
    """
    W = W.double()
    spread = (sigma * torch.linalg.norm(W, dim=1)).clamp(min=1e-300)[:, None]  # (o, 1)
    centre_1 = W @ concepts.double().T / spread  # (o, m), in units of the spread
    if neutral.ndim != 2:
        gap = centre_1 - _neutral_centres(W, neutral)[..., 0] / spread
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
        return (mi.clamp(min=0) / top) ** power if float(top) > 0 else torch.zeros_like(mi)
    if how == "unit":
        return (mi / LN2).clamp(0, 1) ** power
    raise ValueError(f"normalisation must be zscore, max or unit, not {how!r}")


def saturation(mi: Tensor, tol: float = 1e-6) -> float:
    """Share of (channel, concept) pairs at the largest possible information, ln 2."""
    return float((mi >= LN2 - tol).double().mean())


def entropy_factor(W: Tensor, concepts: Tensor, draws: Tensor, sigma: float, bins: int) -> Tensor:
    """`1 - H / ln bins` (o,) of a row's activations on noisy concepts; draws (m, s, d). 1: all in one bin."""
    samples = (concepts.double()[:, None] + sigma * draws.double()).flatten(0, 1)  # (m s, d)
    W = W.double()
    rows = max(1, BLOCK // len(samples))
    return torch.cat([_spread(block @ samples.T, bins) for block in W.split(rows)])


def _spread(A: Tensor, bins: int) -> Tensor:
    """`1 - H / ln bins` (o,) of the rows of A (o, n), which is overwritten."""
    low, high = (v[:, None] for v in A.aminmax(dim=1))
    which = A.sub_(low).div_(high - low + 1e-8).mul_(bins).long().clamp_(max=bins - 1)  # (o, n)
    counts = A.new_zeros(len(A), bins).scatter_add_(1, which, torch.ones_like(A))  # (o, bins)
    p = counts / (counts.sum(1, keepdim=True) + 1e-8)
    return 1 + (p * (p + 1e-8).log()).sum(1) / math.log(bins)
