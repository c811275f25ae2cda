"""How far a number reaches: one-sided 95 % bounds for these prompts, and for other concepts and wordings.

Given the prompts, images are independent, and Clopper-Pearson holds also where prompts differ in their rates (Hoeffding
1956); losses of pairs have Tango's bound. Of other concepts speaks what differs between concepts: they are resampled
whole. Fewer than 8 say nothing of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from efface.numerics import clusters, intervals
from efface.numerics.clusters import FEW
from efface.numerics.intervals import Interval
from efface.work import seed_of

if TYPE_CHECKING:
    from efface.scores.tables import Row

__all__ = ["LEVEL", "Counts", "Reach", "alone", "counts_of", "tellable"]

LEVEL = 0.95


class Counts(NamedTuple):
    """What was counted of one concept or of several."""

    n: int
    """Images or pairs."""
    hits: int
    """Images that are hits; of a loss, pairs that only the base shows."""
    won: int | None = None
    """Of a loss, pairs that only the edited model shows."""

    @property
    def estimate(self) -> float:
        return (self.hits - (self.won or 0)) / self.n


class Reach(NamedTuple):
    """Bounds of one number."""

    these: Interval
    """For further seeds of the same prompts."""
    others: Interval | None
    """For other concepts and wordings; None where there are too few concepts to tell."""
    concepts: int

    @classmethod
    def of(cls, found: Mapping[str, Counts]) -> Reach:
        """found: by concept, at least one of them with an image."""
        parts = [c for c in found.values() if c.n]
        whole = _together(parts)
        return cls(alone(whole), _others(parts) if len(parts) >= FEW else None, len(parts))

    @property
    def high(self) -> float:
        """What a claim of "at most" states: of others where they can be told of."""
        return max(self.these.high, self.others.high) if self.others else self.these.high


def counts_of(row: Row, metric: str) -> Counts:
    """Of a row's shown, garbage or loss; none where it was not counted."""
    if metric != "loss":
        rate = row.edited if metric == "shown" else row.garbage
        return Counts(rate.n, rate.hits) if rate else Counts(0, 0)
    if row.base is None or row.edited is None:
        return Counts(0, 0, 0)
    both = row.both or 0
    return Counts(row.base.n, row.base.hits - both, row.edited.hits - both)


def alone(counts: Counts, level: float = LEVEL) -> Interval:
    """Both one-sided bounds at this level, each image for itself."""
    if counts.won is None:
        return Interval(*(b(counts.hits, counts.n, level) for b in (intervals.lower_bound, intervals.upper_bound)))
    found = intervals.tango(counts.hits, counts.won, counts.n, 2 * level - 1)
    return Interval(found.low, found.high)


def tellable(counts: Sequence[Counts], limit: float) -> list[int]:
    """Which concepts have so many pairs that even a total loss of one is surely beyond the limit, after Holm over them.

    From the numbers of pairs alone, so that the choice knows nothing of the result.
    """
    order = sorted(range(len(counts)), key=lambda i: -counts[i].n)
    for family in range(len(order), 0, -1):
        least = counts[order[family - 1]]
        total = least._replace(hits=least.n, won=None if least.won is None else 0)
        if least.n and alone(total, 1 - (1 - LEVEL) / family).low > limit:
            return sorted(order[:family])
    return []


def _together(parts: Sequence[Counts]) -> Counts:
    won = None if parts[0].won is None else sum(c.won or 0 for c in parts)
    return Counts(sum(c.n for c in parts), sum(c.hits for c in parts), won)


def _others(parts: Sequence[Counts]) -> Interval:
    parts = sorted(parts)  # the same counts in another order give the same bound
    generator = np.random.default_rng(seed_of("other concepts", *(c.n for c in parts)))
    n, hits = (np.asarray(column, np.float64) for column in list(zip(*parts, strict=True))[:2])
    if parts[0].won is None:
        return clusters.cluster_rate_bounds(hits, n, generator)
    won = np.asarray([c.won for c in parts], np.float64)
    return clusters.cluster_loss_bounds(hits, won, n, generator)
