"""Intervals and tests for counts of images: rates, bounds, differences, clusters of one prompt, corrected rates.

Wilson (1927); Clopper and Pearson (1934); Newcombe, "Improved confidence intervals for the difference between
binomial proportions based on paired data", Statistics in Medicine 17 (1998), method 10, and "Interval estimation for
the difference between independent proportions", same volume, method 10; Tango, same volume; McNemar (1947);
Rogan and Gladen (1978) with the interval of Lang and Reiczigel (2014). What several prompts times several seeds need
stands in `clusters.py`, sample sizes in `planning.py`.
The normal ("Wald") interval is absent on purpose: near 0 %, where an erased concept lives, it covers far less
than it says (38 % instead of 95 % at a true rate of 2 % and 24 images).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import beta, binom, binomtest, false_discovery_control, norm
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

__all__ = [
    "Corrected",
    "Estimate",
    "Interval",
    "NonInferiority",
    "benjamini_hochberg",
    "clopper_pearson",
    "corrected_rate",
    "difference",
    "holm",
    "lower_bound",
    "mcnemar_exact",
    "mcnemar_mid_p",
    "mean_of_rates",
    "non_inferiority",
    "paired_difference",
    "paired_loss_upper",
    "rogan_gladen",
    "sign_test",
    "tango",
    "upper_bound",
    "wilson",
]


class Interval(NamedTuple):
    """A two-sided interval of a rate, both ends in [0, 1]."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A difference of two rates with its two-sided interval, all in [-1, 1]."""

    estimate: float
    low: float
    high: float


class NonInferiority(NamedTuple):
    """loss and its one-sided upper bound, both fractions; passed: the bound lies below the margin."""

    loss: float
    upper: float
    margin: float
    passed: bool


class Corrected(NamedTuple):
    """A rate freed from the judge's known errors; estimate is `raw` within [0, 1], as are low and high.

    centre: what the interval is built around, shrunk towards one half like Wilson's; not for display.
    """

    raw: float
    estimate: float
    centre: float
    low: float
    high: float


# --- one rate --------------------------------------------------------------------------------------------------------


def wilson(hits: float, n: float, level: float = 0.95) -> Interval:
    """Wilson score interval of hits / n: the one to print beside a rate. Fractions (an effective n) are accepted."""
    _check(hits, n, level)
    return _two_sided(hits, n, level, "wilson")


def clopper_pearson(hits: float, n: float, level: float = 0.95) -> Interval:
    """Exact interval of hits / n: covers at least `level` whatever the true rate."""
    _check(hits, n, level)
    return _two_sided(hits, n, level, "beta")


def upper_bound(hits: float, n: float, level: float = 0.95) -> float:
    """One-sided exact bound: "at most this", the number that a claim of smallness or a gate uses."""
    _check(hits, n, level)
    return 1.0 if hits == n else float(beta.ppf(level, hits + 1, n - hits))


def lower_bound(hits: float, n: float, level: float = 0.95) -> float:
    """One-sided exact bound: "at least this"."""
    _check(hits, n, level)
    return 0.0 if hits == 0 else float(beta.ppf(1 - level, hits, n - hits + 1))


def mean_of_rates(rates: np.ndarray, weights: np.ndarray | None = None) -> Estimate:
    """A weighted mean of independent rates; each end adds the squared arms of the rates' own intervals.

    rates: (m, 3) of rate, low, high. weights: (m,) that sum to 1; equal if None. Method of variance estimates
    recovery (Zou and Donner 2008), of which Newcombe's difference is the case of weights 1 and -1.
    """
    rates = np.asarray(rates, np.float64).reshape(-1, 3)
    if not len(rates):
        raise ValueError("expected at least one rate, got none; a mean over none is NA, not a number")
    w = np.full(len(rates), 1 / len(rates)) if weights is None else np.asarray(weights, np.float64)
    mean = float(w @ rates[:, 0])
    below, above = (float(np.sqrt((w**2) @ (rates[:, 0] - rates[:, k]) ** 2)) for k in (1, 2))
    return Estimate(mean, max(mean - below, 0.0), min(mean + above, 1.0))


# --- two rates -------------------------------------------------------------------------------------------------------


def difference(hits1: int, n1: int, hits2: int, n2: int, level: float = 0.95) -> Estimate:
    """Newcombe's hybrid score interval of hits1 / n1 - hits2 / n2, two independent sets of images."""
    _check(hits1, n1, level)
    _check(hits2, n2, level)
    low, high = confint_proportions_2indep(
        hits1, n1, hits2, n2, method="newcomb", compare="diff", alpha=1 - level
    )  # fmt: skip
    return Estimate(hits1 / n1 - hits2 / n2, float(low), float(high))


def paired_difference(both: int, base_only: int, edited_only: int, neither: int, level: float = 0.95) -> Estimate:
    """Newcombe's method 10 for the loss, rate of base minus rate of edited, at equal prompts and seeds."""
    n = _table(both, base_only, edited_only, neither)
    p1, p2 = (both + base_only) / n, (both + edited_only) / n
    low1, high1 = wilson(both + base_only, n, level)
    low2, high2 = wilson(both + edited_only, n, level)
    phi = _phi(both, base_only, edited_only, neither)
    loss = (base_only - edited_only) / n
    below = _side(p1 - low1, high2 - p2, phi)
    above = _side(high1 - p1, p2 - low2, phi)
    return Estimate(loss, loss - below, loss + above)


def tango(base_only: float, edited_only: float, n: float, level: float = 0.95) -> Estimate:
    """Tango's score interval of the loss (base_only - edited_only) / n of n pairs; fractions are accepted.

    Its ends solve (b - c - nD)^2 = z^2 n (2q + D(1 - D)), where q is the likeliest share of the rarer change at
    loss D.
    """
    _table(base_only, edited_only, n - base_only - edited_only)
    loss, z = (base_only - edited_only) / n, float(norm.ppf(0.5 + _level(level) / 2))

    def excess(at: float) -> float:
        return (n * (loss - at)) ** 2 - z * z * n * _score_variance(at, base_only, edited_only, n)

    # the estimate itself solves the squared equation when nothing changed, so the search starts beside it
    def end(side: float) -> float:
        near = loss + side * 1e-9
        if abs(near) >= 1 or excess(near) >= 0:
            return side
        return float(root_scalar(excess, bracket=(near, side), method="brentq", xtol=1e-15).root)

    return Estimate(loss, end(-1.0), end(1.0))


def paired_loss_upper(both: int, base_only: int, edited_only: int, neither: int, level: float = 0.95) -> float:
    """One-sided bound of the loss: "kept concepts lose at most this". The end of a 2 level - 1 interval."""
    return paired_difference(both, base_only, edited_only, neither, _two_of_one_sided(level)).high


def non_inferiority(
    base_only: float, edited_only: float, n: float, margin: float, level: float = 0.95
) -> NonInferiority:
    """Is the loss of n pairs shown to be below `margin`? One-sided, by Tango's bound; the margin is fixed beforehand.

    Not passing is no proof of harm, and passing a test of "no difference" is no proof of preservation.
    Raises ValueError for no pairs: over none the answer is NA, never "passed".
    """
    if not 0 < margin <= 1:
        raise ValueError(f"expected a margin in (0, 1], got {margin}; 0.03 means three points")
    found = tango(base_only, edited_only, n, _two_of_one_sided(level))
    return NonInferiority(found.estimate, found.high, margin, found.high < margin)


# --- tests -----------------------------------------------------------------------------------------------------------


def mcnemar_exact(base_only: int, edited_only: int) -> float:
    """Two-sided exact p-value that a change in either direction is equally likely; 1 when nothing changed."""
    if min(base_only, edited_only) < 0:
        raise ValueError(f"expected counts of at least 0, got {base_only} and {edited_only}; count again")
    if base_only + edited_only == 0:
        return 1.0
    # Pairs that did not change say nothing to this test: of those that did, half should go each way.
    return float(binomtest(base_only, base_only + edited_only, 0.5).pvalue)


def mcnemar_mid_p(base_only: int, edited_only: int) -> float:
    """The exact p-value less half of what the observed table itself weighs: less conservative, near 5 % on average.

    Single sizes may reach 7.7 % (16 changed pairs), so gates use `mcnemar_exact`.
    """
    exact, changed = mcnemar_exact(base_only, edited_only), base_only + edited_only
    return exact if changed == 0 else exact - float(binom.pmf(min(base_only, edited_only), changed, 0.5))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of "as many wins as losses"; ties are left out and printed beside. McNemar's test."""
    return mcnemar_exact(wins, losses)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values (m,): which of m concepts are harmed, with one false alarm at most 5 % likely."""
    p = _probabilities(p)
    # written out: statsmodels' multipletests collects garbage at each call, which takes longer than a table
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]).clip(max=1.0)
    adjusted = np.empty_like(p)
    adjusted[order] = stepped
    return adjusted


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values (m,) of Benjamini and Hochberg: for exploring; 5 % of what is named may be false."""
    p = _probabilities(p)
    return p if not len(p) else np.asarray(false_discovery_control(p))


# --- what the judge gets wrong ---------------------------------------------------------------------------------------


def rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float | None:
    """True share behind an observed one, (p + Sp - 1) / (Se + Sp - 1), not clipped; None (NA) unless Se + Sp > 1."""
    for value in (rate, sensitivity, specificity):
        if not 0 <= value <= 1:
            raise ValueError(f"expected shares between 0 and 1, got {value}; divide per cent by 100")
    gain = sensitivity + specificity - 1
    return (rate + specificity - 1) / gain if gain > 0 else None


def corrected_rate(
    hits: int, n: int, true_positives: int, positives: int, true_negatives: int, negatives: int, level: float = 0.95
) -> Corrected | None:
    """Rogan-Gladen with the interval of Lang and Reiczigel, which knows that Se and Sp were themselves measured.

    hits / n: what the judge said of the images. true_positives / positives and true_negatives / negatives: its
    sensitivity and specificity on the same kind of images. None (NA) when the judge is no better than chance.
    """
    for part, whole in ((hits, n), (true_positives, positives), (true_negatives, negatives)):
        _check(part, whole, level)
    raw = rogan_gladen(hits / n, true_positives / positives, true_negatives / negatives)
    z = float(norm.ppf(0.5 + level / 2))
    m, m_se, m_sp = n + z * z, positives + 2, negatives + 2
    p, se, sp = (hits + z * z / 2) / m, (true_positives + 1) / m_se, (true_negatives + 1) / m_sp
    if raw is None or se + sp <= 1:
        return None
    theta, v_se, v_sp = (p + sp - 1) / (se + sp - 1), se * (1 - se) / m_se, sp * (1 - sp) / m_sp
    shift = 2 * z * z * (theta * v_se - (1 - theta) * v_sp)
    half = z * sqrt(p * (1 - p) / m + theta**2 * v_se + (1 - theta) ** 2 * v_sp) / (se + sp - 1)
    estimate, low, high = (min(max(x, 0.0), 1.0) for x in (raw, theta + shift - half, theta + shift + half))
    return Corrected(raw, estimate, theta, low, high)


# --- parts -----------------------------------------------------------------------------------------------------------


def _two_sided(hits: float, n: float, level: float, method: str) -> Interval:
    """At the ends the formulas give 0 and 1 up to a rounding error; a report should print them exactly."""
    low, high = np.asarray(proportion_confint(hits, n, alpha=1 - level, method=method), dtype=np.float64)
    return Interval(0.0 if hits == 0 else float(low), 1.0 if hits == n else float(high))


def _phi(both: int, base_only: int, edited_only: int, neither: int) -> float:
    """Correlation of the two columns, continuity-corrected when positive (Newcombe's method 10)."""
    margins = (both + base_only) * (edited_only + neither) * (both + edited_only) * (base_only + neither)
    if margins == 0:
        return 0.0
    n = both + base_only + edited_only + neither
    t = both * neither - base_only * edited_only
    return (max(t - n / 2, 0.0) if t >= 0 else t) / sqrt(margins)


def _side(own: float, other: float, phi: float) -> float:
    """Length of one arm; the square is never negative but for rounding when phi is near 1."""
    return sqrt(max(own * own - 2 * phi * own * other + other * other, 0.0))


def _score_variance(at: float, b: float, c: float, n: float) -> float:
    """n times the variance of the loss estimate when the loss is `at` (Tango's restricted likelihood)."""
    half = -b - c + (2 * n - b + c) * at
    q = (sqrt(max(half * half + 8 * n * c * at * (1 - at), 0.0)) - half) / (4 * n)
    return max(2 * q + at * (1 - at), 0.0)


def _probabilities(p: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(p, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"expected p-values between 0 and 1 in one list, got {p}; leave out what is NA")
    return values


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}; 0.95 is usual")
    return level


def _two_of_one_sided(level: float) -> float:
    if not 0.5 < level < 1:
        raise ValueError(f"expected a one-sided level between 0.5 and 1, got {level}; 0.95 is usual")
    return 2 * level - 1


def _check(hits: float, n: float, level: float) -> None:
    if not n > 0:
        raise ValueError(f"expected at least one image, got n = {n}; a rate over none is NA, not a number")
    if not 0 <= hits <= n:
        raise ValueError(f"expected hits between 0 and n = {n}, got {hits}; count hits and images together")
    _level(level)


def _table(*counts: float) -> float:
    if min(counts) < 0:
        raise ValueError(f"expected counts of at least 0, got {counts}; count the pairs anew")
    if sum(counts) == 0:
        raise ValueError("expected at least one pair, got none; a difference over none is NA, not a number")
    return sum(counts)
