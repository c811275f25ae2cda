"""Which single weights of a linear layer respond to a concept and not to its surroundings.

Deng et al., "Forget-It-All", arXiv 2601.06163: equations 1 (`cosine_energy`), 2 (`contrast`), 3 (`Sensitivity`), 4 to 6
(`select`), 7 and 8 (`spared_from`, `fuse`); the released code's score is `column_norms`. Layer `Y = X W^T`, W (o, d),
X (n, d). Everything keeps the dtype that it gets: at the size of a layer that is float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Moments",
    "Sensitivity",
    "column_norms",
    "contrast",
    "cosine_energy",
    "fuse",
    "kth_largest",
    "moments",
    "ratio",
    "select",
    "spared_from",
    "weighted",
]

EPS = 1e-8  # of Eq. 1, which gives no value: it guards 0 / 0
ROWS = 128  # of a matrix at a time, where a temporary of its whole size would be the larger part of the memory
Rule = Literal["exact", "code"]


# --- scores of one prompt ------------------------------------------------------------------------------------------


def cosine_energy(X: Tensor, Y: Tensor, eps: float = EPS) -> Tensor:
    """Eq. 1 without the factor |W|: `||X_j|| |cos(X_j, Y_o)|` for X (n, d) and Y (n, o) without bias -> (o, d).

    The column norm cancels but for eps, so one product `Y^T X` is all the work.
    """
    nx, ny = torch.linalg.vector_norm(X, dim=0), torch.linalg.vector_norm(Y, dim=0)  # (d,), (o,)
    energy = Y.T @ X  # (o, d)
    for rows, own in zip(energy.split(ROWS), ny.split(ROWS), strict=True):
        rows.abs_().mul_(nx).div_(torch.outer(own, nx).add_(eps))
    return energy


def column_norms(X: Tensor, normalise: bool) -> Tensor:
    """Norm of every column of X (n, d) -> (d,) float64; normalise: every row is scaled to length 1 before."""
    squares = X.square()  # (n, d)
    if not normalise:
        return squares.sum(0).double().sqrt()
    lengths = squares.sum(1).clamp_min_(1e-24)  # (n,)
    return (lengths.reciprocal() @ squares).double().sqrt()


# --- running sums over prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of values of one shape. `merge` is associative (Chan et al. 1983)."""

    count: int
    mean: Tensor
    m2: Tensor

    def merge(self, other: Moments, overwrite: bool = False) -> Moments:
        """Moments of both sets together. overwrite: their memory is taken, and neither is used again."""
        if not self.count or not other.count:
            return other if other.count else self
        n = self.count + other.count
        delta = other.mean.sub_(self.mean) if overwrite else other.mean - self.mean
        mean = torch.add(self.mean, delta, alpha=other.count / n, out=self.mean if overwrite else None)
        m2 = delta.square_().mul_(self.count * other.count / n).add_(self.m2).add_(other.m2)
        return Moments(n, mean, m2)

    def level(self) -> Tensor:
        """Mean plus population standard deviation: what a concept has to exceed (Eq. 2)."""
        return self.mean + (self.m2 / self.count).sqrt_()  # m2 may be one number for all: one prompt has no spread


def moments(values: Tensor) -> Moments:
    """Moments over the first dimension of (n, ...). Shifted by the first value, so equal values have spread 0."""
    shifted = values - values[0]
    mean = shifted.mean(0)
    return Moments(len(values), values[0] + mean, (shifted - mean).square().sum(0))


# --- Eq. 2 and 3 ---------------------------------------------------------------------------------------------------


def contrast(concept: Tensor, level: Tensor) -> Tensor:
    """Eq. 2: what the concept's mean exceeds the base's mean + standard deviation by, never below 0."""
    return (concept - level).clamp_min_(0)


def ratio(surplus: Tensor, level: Tensor) -> float:
    """How much of the base level the surplus is: near rounding where concept and base are drawn alike."""
    return float(surplus.sum()) / max(float(level.sum()), 1e-300)


def weighted(W: Tensor, above: Tensor) -> Tensor:
    """S (o, d) of one step: |W| times Eq. 2, which is (o, d), and then overwritten, or (d,) for the norm score."""
    if above.ndim == 1:
        return W.abs().mul_(above)
    for rows, own in zip(above.split(ROWS), W.split(ROWS), strict=True):
        rows.mul_(own.abs())
    return above


def kth_largest(values: Tensor, k: int) -> Tensor:
    """k-th largest entry along the last dimension, kept as a dimension of size 1."""
    array = values.detach().cpu().numpy()
    at = array.shape[-1] - k
    return torch.from_numpy(np.partition(array, at, axis=-1)[..., at : at + 1].copy())


def share(fraction: float, size: int) -> int:
    """How many entries a fraction is: rounded down, at least one."""
    return max(1, int(fraction * size))


@dataclass
class Sensitivity:
    """Eq. 3 as running sums over steps: the sum of S and how often an entry is among the top r1 of its layer.

    at: entries equal to the threshold pass too, if positive; without it exactly k - 1 entries pass, k = r1 o d.
    """

    total: Tensor  # (o, d)
    passed: Tensor  # (o, d) uint8
    steps: int

    @classmethod
    def empty(cls, like: Tensor) -> Sensitivity:
        return cls(torch.zeros_like(like), torch.zeros(like.shape, dtype=torch.uint8), 0)

    def add(self, S: Tensor, r1: float, at: bool = False) -> Tensor:
        """One more step; returns its threshold."""
        tau = kth_largest(S.reshape(-1), share(r1, S.numel()))
        for passed, rows in zip(self.passed.split(ROWS), S.split(ROWS), strict=True):
            passed.add_((tau <= rows).logical_and_(rows > 0) if at else tau < rows)
        self.total += S
        self.steps += 1
        return tau[0]

    def value(self, scale: Literal["max", "raw"] = "max") -> Tensor:
        """A (o, d): half the mean of S, half the frequency. "max" divides the mean by its largest entry (the released
        code), which puts both halves into [0, 1]; "raw" is the paper's."""
        mean = self.total / self.steps
        if scale == "max":
            mean /= mean.max().clamp_min(1e-12)
        for rows, passed in zip(mean.split(ROWS), self.passed.split(ROWS), strict=True):
            rows.add_(passed.to(mean.dtype).div_(self.steps)).div_(2)
        return mean


# --- Eq. 4 to 8 ----------------------------------------------------------------------------------------------------


def select(A: Tensor, r2: float, which: Literal["both", "row", "layer"] = "both", zeros: bool = False) -> Tensor:
    """Q (o, d) bool: top r2 of every row and top r2 of the layer. Ties go to the lower flat index.

    zeros: entries with A = 0 may be taken when too few are positive, as in the released code.
    """
    found = torch.ones(A.shape, dtype=torch.bool)
    if which != "layer":
        for own, rows in zip(found.split(ROWS), A.split(ROWS), strict=True):
            own.logical_and_(_top(rows, share(r2, A.shape[1])))
    if which != "row":
        found &= _top(A.reshape(1, -1), share(r2, A.numel())).reshape(A.shape)
    return found if zeros else found.logical_and_(A > 0)


def _top(A: Tensor, k: int) -> Tensor:
    """The k largest of every row, as a stable sort would pick them."""
    least = kth_largest(A, k)  # (rows, 1)
    taken = least < A
    open_places = k - _count(taken)
    ties = least == A
    if bool((_count(ties) > open_places).any()):
        ties &= ties.cumsum(1, dtype=torch.int32) <= open_places
    return taken.logical_or_(ties)


def _count(marked: Tensor) -> Tensor:
    """How many of every row are marked (rows, 1); torch would make eight bytes of each entry first."""
    return torch.from_numpy(np.count_nonzero(marked.numpy(), axis=1, keepdims=True))


def spared_from(alpha: float, concepts: int, rule: Rule = "exact") -> int:
    """In how many concepts' masks a weight has to be to count as shared by them and stay.

    "exact": `max(2, ceil(alpha C))` without rounding errors; a weight of one mask alone is not shared. "code": the
    ceiling of the floating-point product, which is 1 for a single concept, so that nothing is pruned.
    """
    if rule == "code":
        return math.ceil(alpha * concepts)
    return max(2, math.ceil(Fraction(str(alpha)) * concepts))


def fuse(counts: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """(pruned, agnostic) from how many masks hold each weight: 0 < s < least, and s >= least."""
    return (counts > 0) & (counts < least), counts >= least
