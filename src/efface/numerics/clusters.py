"""Intervals for images that come in groups: several seeds of one prompt are alike, so prompts are resampled.

Percentile bootstrap over clusters (Davison and Hinkley 1997, section 3.8); intraclass correlation from one-way
analysis of variance; design effect (Kish 1965). Where the bootstrap is blind (no hit at all resamples to no hit at
all) an exact interval at the effective number of images takes its place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test

from efface.numerics.intervals import Interval, clopper_pearson, lower_bound, tango, upper_bound, wilson

__all__ = [
    "ASSUMED_ICC",
    "FEW",
    "Clustered",
    "cluster_bootstrap",
    "cluster_loss_bounds",
    "cluster_mean",
    "cluster_paired_difference",
    "cluster_rate",
    "cluster_rate_bounds",
    "effective_n",
    "grouped",
    "intraclass_correlation",
    "resamples",
    "sign_flip",
]

ASSUMED_ICC = 0.1  # where the data cannot tell: one cluster, or every image alike
FEW = 8  # with fewer clusters only the sign-flip test is to be trusted
_AT_ONCE = 4_000_000  # resampled numbers held in memory together


class Clustered(NamedTuple):
    """An estimate with a 95 % interval that knows about prompts; few: fewer than 8 of them."""

    estimate: float
    low: float
    high: float
    clusters: int
    n: int
    effective_n: float
    few: bool


def grouped(sizes: np.ndarray) -> bool:
    """Whether prompts can be resampled at all: one says nothing about others, and one image a prompt is no group."""
    return len(sizes) > 1 and float(np.max(sizes)) > 1


def resamples(clusters: int, generator: np.random.Generator, draws: int) -> np.ndarray:
    """How often each cluster occurs in each resample, float64 (draws, clusters); every row sums to `clusters`."""
    chosen = generator.integers(clusters, size=(draws, clusters))
    chosen += clusters * np.arange(draws)[:, None]  # ten times faster than one multinomial a row, and the same law
    counts = np.bincount(chosen.ravel(), minlength=draws * clusters)
    return counts.reshape(draws, clusters).astype(np.float64)


def cluster_bootstrap(
    sums: np.ndarray, sizes: np.ndarray, generator: np.random.Generator, draws: int = 10_000, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval (low, high) of sum(sums) / sum(sizes) when whole clusters are drawn again.

    sums: (g,) per-cluster totals, or (g, m) for m quantities that share the resamples; low and high are () or (m,).
    sizes: (g,) images a cluster. Bound by `draws` x m numbers; generator: seeded by the caller.
    """
    sums, sizes = np.asarray(sums, np.float64), _sizes(sizes)
    if len(sums) != len(sizes):
        raise ValueError(
            f"expected one sum a cluster, got {len(sums)} sums and {len(sizes)} sizes; group them together"
        )
    columns = sums.reshape(len(sums), -1)  # (g, m)
    rows = max(1, _AT_ONCE // len(sizes))
    weights = [resamples(len(sizes), generator, min(rows, draws - k)) for k in range(0, draws, rows)]
    tails = ((1 - level) / 2, (1 + level) / 2)
    total = np.concatenate([w @ sizes for w in weights])  # (draws,)
    ends = np.empty((2, columns.shape[1]))
    step = max(1, _AT_ONCE // draws)
    for k in range(0, columns.shape[1], step):
        part = np.concatenate([w @ columns[:, k : k + step] for w in weights]) / total[:, None]  # (draws, step)
        ends[:, k : k + step] = np.quantile(part, tails, axis=0)
    low, high = ends.reshape(2, *sums.shape[1:])
    return low, high


def intraclass_correlation(sums: np.ndarray, squares: np.ndarray, sizes: np.ndarray) -> float | None:
    """How alike images of one cluster are, floored at 0; None when the data cannot tell.

    sums, squares: (g,) per-cluster sums of the values and of their squares (for hits, both are the hits).
    """
    sizes, sums = _sizes(sizes), np.asarray(sums, np.float64)
    g, n = len(sizes), sizes.sum()
    if g < 2 or n <= g:
        return None
    between = (sums**2 / sizes).sum() - sums.sum() ** 2 / n
    within = np.asarray(squares, np.float64).sum() - (sums**2 / sizes).sum()
    if between + within <= 1e-12 * max(1.0, n):
        return None
    mean_size = (n - (sizes**2).sum() / n) / (g - 1)
    among, inside = between / (g - 1), within / (n - g)
    return float(max((among - inside) / (among + (mean_size - 1) * inside), 0.0))


def effective_n(sizes: np.ndarray, icc: float | None) -> float:
    """Number of independent images that n clustered ones are worth: n / (1 + (m - 1) icc), m the size-weighted size."""
    sizes = _sizes(sizes)
    m = (sizes**2).sum() / sizes.sum()
    return float(sizes.sum() / (1 + (m - 1) * (ASSUMED_ICC if icc is None else icc)))


def cluster_rate(
    hits: np.ndarray, sizes: np.ndarray, generator: np.random.Generator, draws: int = 10_000, level: float = 0.95
) -> Clustered:
    """A rate over prompts x seeds: the wider of bootstrap and Wilson at the effective n.

    hits, sizes: (g,) hits and images a prompt. With no hit, or nothing but hits, Clopper-Pearson at the effective n.
    """
    hits, sizes = np.asarray(hits, np.float64), _sizes(sizes)
    n, k = sizes.sum(), hits.sum()
    worth = effective_n(sizes, intraclass_correlation(hits, hits, sizes))
    if k in (0, n):
        return _clustered(k / n, clopper_pearson(worth if k else 0.0, worth, level), sizes, worth)
    low, high = cluster_bootstrap(hits, sizes, generator, draws, level)
    found = _wider(Interval(float(low), float(high)), wilson(worth * k / n, worth, level))
    return _clustered(k / n, found, sizes, worth)


def cluster_paired_difference(
    base_only: np.ndarray,
    edited_only: np.ndarray,
    sizes: np.ndarray,
    generator: np.random.Generator,
    draws: int = 10_000,
    level: float = 0.95,
) -> Clustered:
    """The loss over prompts x seeds in pairs: the wider of bootstrap and Tango at the effective number of pairs.

    base_only, edited_only, sizes: (g,) pairs of a prompt that only the base hits, only the edited model hits, all.
    """
    b, c, sizes = np.asarray(base_only, np.float64), np.asarray(edited_only, np.float64), _sizes(sizes)
    n = sizes.sum()
    worth = effective_n(sizes, intraclass_correlation(b - c, b + c, sizes))
    low, high = cluster_bootstrap(b - c, sizes, generator, draws, level)
    lost = min(worth * b.sum() / n, worth)  # all of them, but for a rounding error
    score = tango(lost, min(worth * c.sum() / n, worth - lost), worth, level)
    found = _wider(Interval(float(low), float(high)), Interval(score.low, score.high))
    return _clustered((b - c).sum() / n, found, sizes, worth)


def cluster_rate_bounds(
    hits: np.ndarray, sizes: np.ndarray, generator: np.random.Generator, draws: int = 2_000, level: float = 0.95
) -> Interval:
    """One-sided bounds of a rate for clusters that were not drawn: the wider of bootstrap and Clopper-Pearson.

    The exact bound stands at the effective number of images with `ASSUMED_ICC`, whatever the data say: else a first
    hit, which lets the likeness within a cluster be estimated, would make the bound smaller.
    """
    hits, sizes = np.asarray(hits, np.float64), _sizes(sizes)
    low, high = cluster_bootstrap(hits, sizes, generator, draws, 2 * level - 1)
    worth = effective_n(sizes, ASSUMED_ICC)
    k = min(worth * float(hits.sum() / sizes.sum()), worth)  # all of them, but for a rounding error
    return Interval(min(float(low), lower_bound(k, worth, level)), max(float(high), upper_bound(k, worth, level)))


def cluster_loss_bounds(
    base_only: np.ndarray,
    edited_only: np.ndarray,
    sizes: np.ndarray,
    generator: np.random.Generator,
    draws: int = 2_000,
    level: float = 0.95,
) -> Interval:
    """One-sided bounds of a loss of pairs for clusters that were not drawn, as `cluster_rate_bounds`, with Tango's."""
    b, c, sizes = np.asarray(base_only, np.float64), np.asarray(edited_only, np.float64), _sizes(sizes)
    low, high = cluster_bootstrap(b - c, sizes, generator, draws, 2 * level - 1)
    worth = effective_n(sizes, ASSUMED_ICC)
    lost = min(worth * float(b.sum() / sizes.sum()), worth)  # all of them, but for a rounding error
    score = tango(lost, min(worth * float(c.sum() / sizes.sum()), worth - lost), worth, 2 * level - 1)
    return Interval(min(float(low), score.low), max(float(high), score.high))


def cluster_mean(
    sums: np.ndarray,
    squares: np.ndarray,
    sizes: np.ndarray,
    generator: np.random.Generator,
    draws: int = 10_000,
    level: float = 0.95,
) -> Clustered:
    """The mean of a continuous value (a CLIP difference, a distance) with its bootstrap interval over prompts."""
    sizes = _sizes(sizes)
    low, high = cluster_bootstrap(sums, sizes, generator, draws, level)
    worth = effective_n(sizes, intraclass_correlation(sums, squares, sizes))
    return _clustered(np.sum(sums) / sizes.sum(), Interval(float(low), float(high)), sizes, worth)


def sign_flip(sums: np.ndarray, generator: np.random.Generator, draws: int = 10_000) -> float:
    """Two-sided p-value that every prompt's difference is as likely with the other sign.

    sums: (g,) paired differences summed within a prompt. Exact when 2^g <= draws.
    """
    sums = np.asarray(sums, np.float64)
    if not len(sums):
        raise ValueError("expected at least one prompt, got none; a test over none is NA, not a number")
    sums = sums[sums != 0]  # another sign changes nothing there
    if not len(sums):
        return 1.0
    # scipy 1.15 renamed random_state; both names work
    found = permutation_test(
        (sums,), lambda x, axis: np.sum(x, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=draws, batch=max(1, _AT_ONCE // len(sums)),
        random_state=generator,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    return float(found.pvalue)


def _wider(one: Interval, two: Interval) -> Interval:
    return one if one.high - one.low >= two.high - two.low else two


def _clustered(estimate: float, found: Interval, sizes: np.ndarray, worth: float) -> Clustered:
    few = len(sizes) < FEW
    return Clustered(float(estimate), found.low, found.high, len(sizes), int(sizes.sum()), worth, few)


def _sizes(sizes: np.ndarray) -> np.ndarray:
    values = np.asarray(sizes, np.float64)
    if values.ndim != 1 or not len(values) or values.min() < 1:
        raise ValueError("expected at least one image in every cluster; leave empty clusters out")
    return values
