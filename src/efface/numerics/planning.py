"""How many images a sentence needs, and what a given number can show.

Power of two independent rates from statsmodels; power of exact McNemar over the number of changed pairs; Wilson and
Clopper-Pearson turned round; best of k draws without bias (Chen et al. 2021, "pass at k").
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, comb, sqrt

import numpy as np
from scipy.optimize import root_scalar
from scipy.stats import binom, norm
from statsmodels.stats.proportion import power_proportions_2indep, samplesize_proportions_2indep_onetail

from efface.numerics.intervals import upper_bound, wilson

__all__ = [
    "detectable_difference",
    "detectable_loss",
    "images_for_half_width",
    "images_for_two_rates",
    "images_to_show_at_most",
    "mcnemar_power",
    "pairs_for_margin",
    "pass_at",
    "two_rate_power",
]


def images_for_half_width(half: float, rate: float, level: float = 0.95) -> int:
    """Fewest images for which the Wilson interval around `rate` is at most 2 `half` long."""
    return _least(lambda n: _half_width(rate, n, level) <= half)


def images_to_show_at_most(limit: float, hits: int = 0, level: float = 0.95) -> int:
    """Fewest images, `hits` of them hits, that show "at most `limit`" with the one-sided exact bound."""
    return _least(lambda n: n > hits and upper_bound(hits, n, level) <= limit)


def two_rate_power(rate1: float, rate2: float, n: int, alpha: float = 0.05) -> float:
    """Probability that n images a side tell two true rates apart, independent sets, two-sided."""
    found = power_proportions_2indep(rate1 - rate2, rate2, n, alpha=alpha, return_results=False)
    return float(found)  # pyright: ignore[reportArgumentType]


def images_for_two_rates(rate1: float, rate2: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Images a side that tell two true rates apart, independent sets, two-sided."""
    found = samplesize_proportions_2indep_onetail(
        rate1 - rate2, rate2, power, alpha=alpha, alternative="two-sided"
    )  # fmt: skip
    return ceil(float(found))


def detectable_difference(n: int, rate: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest change of a rate towards 1/2 and beyond that n images a side detect; None when n is too small."""
    side = 1 if rate < 0.5 else -1
    most = (1 - rate if side > 0 else rate) - 1e-6
    if two_rate_power(rate + side * most, rate, n, alpha) < power:
        return None
    return _root(lambda d: two_rate_power(rate + side * d, rate, n, alpha) - power, 1e-6, most)


def mcnemar_power(n: int, lost: float, won: float, alpha: float = 0.05) -> float:
    """Probability that exact McNemar on n pairs reports a change; lost, won: true shares of pairs that flip."""
    if lost + won == 0:
        return 0.0
    changed = np.arange(n + 1)
    # largest k that is still significant among this many changed pairs, -1 where none is
    reject = binom.ppf(alpha / 2, changed, 0.5) - 1
    reject += 2 * binom.cdf(reject + 1, changed, 0.5) <= alpha
    share = won / (lost + won)
    chance = binom.cdf(reject, changed, share) + binom.cdf(reject, changed, 1 - share)
    return float((binom.pmf(changed, n, lost + won) * chance).sum())


def detectable_loss(n: int, flips: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest net loss that exact McNemar on n pairs detects; flips: share that flips each way besides the loss.

    None when n pairs cannot detect any.
    """
    most = 1 - 2 * flips
    if mcnemar_power(n, flips + most, flips, alpha) < power:
        return None
    return _root(lambda d: mcnemar_power(n, flips + d, flips, alpha) - power, 0.0, most)


def pairs_for_margin(margin: float, flips: float, power: float = 0.8, level: float = 0.95) -> int:
    """Pairs that show "loses less than `margin`" when nothing is lost: (z_level + z_power)^2 2 flips / margin^2."""
    z = float(norm.ppf(level) + norm.ppf(power))
    return ceil(z * z * 2 * flips / margin**2)


def pass_at(draws: int, hits: int, k: int) -> float:
    """Unbiased chance that at least one of k draws hits, from `hits` among `draws`: 1 - C(n - c, k) / C(n, k)."""
    if not (0 <= hits <= draws and 1 <= k <= draws):
        raise ValueError(f"expected 0 <= hits <= draws and 1 <= k <= draws, got {hits}, {draws}, {k}; draw more")
    return 1 - comb(draws - hits, k) / comb(draws, k)


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(f, bracket=(low, high), method="brentq", xtol=1e-6).root)


def _half_width(rate: float, n: float, level: float) -> float:
    low, high = wilson(rate * n, n, level)
    if 0 < rate < 1:
        return (high - low) / 2
    z2 = float(norm.ppf(0.5 + level / 2)) ** 2
    return sqrt(z2 * z2 / (4 * n * n)) / (1 + z2 / n)


def _least(good: Callable[[int], bool], most: int = 2**40) -> int:
    """Smallest n >= 1 that is good, given that larger n stay good."""
    low, high = 0, 1
    while not good(high):
        low, high = high, 2 * high
        if high > most:
            raise ValueError("expected a limit that some number of images meets, got one that none does; widen it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return high
