"""Clusters: the worked case of six prompts, agreement with scipy, what blind bootstraps miss, false alarms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test

from efface.numerics.clusters import (
    ASSUMED_ICC,
    cluster_bootstrap,
    cluster_mean,
    cluster_paired_difference,
    cluster_rate,
    effective_n,
    intraclass_correlation,
    resamples,
    sign_flip,
)
from efface.numerics.intervals import clopper_pearson, mcnemar_exact, mcnemar_mid_p, paired_difference, tango, wilson

HITS, SIZES = np.asarray([0, 0, 0, 1, 4, 2.0]), np.full(6, 4.0)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_worked_case_of_six_prompts() -> None:
    """E-46: standard deviation and quantiles of all 6^6 resamples, and what they are approached with."""
    every = np.asarray(list(product(range(6), repeat=6)))
    rates = HITS[every].sum(1) / 24
    assert rates.std() == pytest.approx(0.149265, abs=6e-7)
    assert np.quantile(rates, [0.025, 0.975]) == pytest.approx([1 / 24, 15 / 24])
    found = (resamples(6, draw(), 200_000) @ HITS) / 24
    assert found.std() == pytest.approx(0.149265, abs=1e-3)
    assert np.bincount((24 * found).round().astype(int), minlength=25) / 200_000 == pytest.approx(
        np.bincount((24 * rates).round().astype(int), minlength=25) / len(rates), abs=4e-3
    )
    low, high = cluster_bootstrap(HITS, SIZES, draw())
    assert float(low) == pytest.approx(1 / 24)
    assert 14 / 24 <= float(high) + 1e-9 <= 15 / 24 + 1e-6


def test_worked_correlation_and_effective_number() -> None:
    icc = intraclass_correlation(HITS, HITS, SIZES)
    assert icc == pytest.approx(0.583333, abs=6e-7)
    worth = effective_n(SIZES, icc)
    assert worth == pytest.approx(8.7273, abs=6e-5)
    assert wilson(worth * 7 / 24, worth) == pytest.approx((0.0961, 0.6146), abs=6e-5)
    shown = cluster_rate(HITS, SIZES, draw())
    assert (shown.low, shown.n, shown.clusters, shown.few) == (pytest.approx(1 / 24), 24, 6, True)
    assert shown.high - shown.low >= 0.6146 - 0.0961


def test_each_resample_draws_as_many_clusters_as_there_are() -> None:
    drawn = resamples(7, draw(), 500)
    assert (drawn.sum(1) == 7).all()
    assert drawn.mean() == pytest.approx(1.0)


def test_agrees_with_scipy() -> None:
    generator = draw(3)
    sizes = generator.integers(1, 9, 40).astype(float)
    hits = generator.binomial(sizes.astype(int), 0.3).astype(float)
    theirs = bootstrap(
        (hits, sizes), lambda h, n, axis: h.sum(axis) / n.sum(axis), paired=True, vectorized=True,
        n_resamples=10_000, method="percentile", random_state=draw(1),
    ).confidence_interval  # fmt: skip
    low, high = cluster_bootstrap(hits, sizes, draw(2))
    assert (float(low), float(high)) == pytest.approx((theirs.low, theirs.high), abs=6e-3)


def test_quantities_of_one_table_share_their_resamples() -> None:
    both = np.stack([HITS, 2 * HITS, 4 - HITS], 1)
    low, high = cluster_bootstrap(both, SIZES, draw())
    assert low.shape == high.shape == (3,)
    assert (low[1], high[1]) == pytest.approx((2 * low[0], 2 * high[0]), abs=1e-12)
    assert (low[2], high[2]) == pytest.approx((1 - high[0], 1 - low[0]), abs=1e-12)


def test_memory_stays_bounded_without_changing_the_law() -> None:
    """Many columns and many clusters are done in parts."""
    sums = draw().binomial(2, 0.5, (3000, 40)).astype(float)
    low, high = cluster_bootstrap(sums, np.full(3000, 2.0), draw(), draws=2000)
    assert low.shape == (40,)
    assert (high - low).mean() == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 6000), rel=0.1)


def test_copies_inside_a_prompt_add_nothing() -> None:
    """E-46: cluster intervals stay, those that take images for independent shrink by the root of two."""
    once = cluster_bootstrap(HITS, SIZES, draw())
    twice = cluster_bootstrap(2 * HITS, 2 * SIZES, draw())
    assert [float(v) for v in twice] == pytest.approx([float(v) for v in once], abs=1e-12)
    singles = np.repeat([1.0, 0.0], [30, 70])
    wide = np.subtract(*cluster_bootstrap(singles, np.ones(100), draw())[::-1])
    narrow = np.subtract(*cluster_bootstrap(np.tile(singles, 2), np.ones(200), draw())[::-1])
    assert wide / narrow == pytest.approx(np.sqrt(2), rel=0.1)


def test_with_one_image_a_prompt_it_is_the_plain_bootstrap() -> None:
    """E-46."""
    singles = np.repeat([1.0, 0.0], [12, 88])
    low, high = cluster_bootstrap(singles, np.ones(100), draw())
    spread = np.quantile(draw(5).binomial(100, 0.12, 200_000) / 100, [0.025, 0.975])
    assert (float(low), float(high)) == pytest.approx(tuple(spread), abs=0.011)
    assert effective_n(np.ones(100), None) == 100


@pytest.mark.parametrize("rate", [0, 1])
def test_nothing_or_everything_hit_still_has_an_interval(rate: int) -> None:
    """E-47."""
    sizes = np.full(10, 4.0)
    found = cluster_rate(rate * sizes, sizes, draw())
    assert found.effective_n == pytest.approx(40 / (1 + 3 * ASSUMED_ICC))
    exact = clopper_pearson(rate * found.effective_n, found.effective_n)
    assert (found.low, found.high) == pytest.approx(exact)
    assert found.high - found.low > clopper_pearson(40 * rate, 40).high - clopper_pearson(40 * rate, 40).low
    assert not found.few
    assert cluster_rate(rate * sizes[:7], sizes[:7], draw()).few


def test_pairs_without_a_change_still_have_an_interval() -> None:
    """E-47."""
    sizes = np.full(10, 4.0)
    found = cluster_paired_difference(np.zeros(10), np.zeros(10), sizes, draw())
    assert found.low == pytest.approx(-found.high)
    assert found.high == pytest.approx(tango(0, 0, found.effective_n).high)


def test_swapping_the_sides_mirrors_the_paired_difference() -> None:
    generator = draw(4)
    b, c = generator.binomial(4, 0.2, 30), generator.binomial(4, 0.05, 30)
    sizes = np.full(30, 10.0)
    there, back = cluster_paired_difference(b, c, sizes, draw()), cluster_paired_difference(c, b, sizes, draw())
    assert (there.estimate, there.low, there.high) == pytest.approx((-back.estimate, -back.high, -back.low), abs=1e-12)


def test_a_mean_covers_itself_and_shrinks_with_more_prompts() -> None:
    generator = draw(6)
    values = generator.normal(0.3, 1, (40, 5))
    found = cluster_mean(values.sum(1), (values**2).sum(1), np.full(40, 5.0), draw())
    assert found.estimate == pytest.approx(values.mean())
    assert found.low < values.mean() < found.high
    few = cluster_mean(values[:8].sum(1), (values[:8] ** 2).sum(1), np.full(8, 5.0), draw())
    assert few.high - few.low > found.high - found.low


def test_correlation_says_when_it_cannot_be_known() -> None:
    assert intraclass_correlation(np.asarray([3.0]), np.asarray([3.0]), np.asarray([5.0])) is None
    assert intraclass_correlation(np.zeros(6), np.zeros(6), SIZES) is None
    assert intraclass_correlation(np.ones(6), np.ones(6), np.ones(6)) is None
    assert intraclass_correlation(np.asarray([4.0, 0]), np.asarray([4.0, 0]), np.full(2, 4.0)) == pytest.approx(1)
    assert intraclass_correlation(np.full(6, 2.0), np.full(6, 2.0), SIZES) == 0  # prompts more alike than chance


def test_worked_sign_flip_is_exact() -> None:
    values = np.asarray([3, 2, 4, 0, 1, -1.0])
    assert sign_flip(values, draw()) == pytest.approx(0.1875, abs=1e-12)
    assert sign_flip(-values, draw()) == pytest.approx(0.1875, abs=1e-12)
    assert sign_flip(np.zeros(5), draw()) == 1
    theirs = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=10_000).pvalue
    assert sign_flip(values, draw()) == pytest.approx(theirs)
    with pytest.raises(ValueError, match="none"):
        sign_flip(np.zeros(0), draw())


@pytest.mark.parametrize(("sums", "sizes"), [([1.0], [0.0]), ([], []), ([1.0, 2.0], [3.0])])
def test_empty_clusters_are_refused(sums: list[float], sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        cluster_bootstrap(np.asarray(sums), np.asarray(sizes), draw())


# --- simulations -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("icc", "naive"), [(0.1, (0.93, 0.94, 0.93)), (0.3, (0.9, 0.9, 0.9))])
def test_the_displayed_interval_covers_where_the_naive_one_does_not(icc: float, naive: tuple[float, ...]) -> None:
    """E-48: 50 prompts x 4 seeds from a beta-binomial law, 2,000 runs a rate."""
    missed = []
    for rate, most in zip((0.02, 0.1, 0.5), naive, strict=True):
        generator, both = draw(7), np.zeros(2)
        strength = 1 / icc - 1
        for _ in range(2000):
            hits = generator.binomial(4, generator.beta(rate * strength, (1 - rate) * strength, 50)).astype(float)
            found = cluster_rate(hits, np.full(50, 4.0), generator, draws=1000)
            low, high = wilson(hits.sum(), 200)
            both += found.low <= rate <= found.high, low <= rate <= high
        assert both[0] / 2000 >= 0.93
        missed.append(both[1] / 2000 < most)
    assert all(missed)


@pytest.mark.slow
def test_no_test_cries_wolf_when_nothing_changed() -> None:
    """E-45: 10,000 simulated edits that change nothing, 60 prompts x 4 seeds, 5 % of pairs differ by chance."""
    runs, n, generator = 10_000, 240, draw(11)
    change = generator.choice([-1, 0, 1], p=[0.025, 0.95, 0.025], size=(runs, 60, 4))
    b, c = (change == 1).sum((1, 2)), (change == -1).sum((1, 2))

    def alarms(test: Callable[[int, int], bool]) -> float:
        known = cache(test)
        return float(np.mean([known(int(i), int(j)) for i, j in zip(b, c, strict=True)]))

    @cache
    def flipped(sizes: tuple[int, ...]) -> bool:
        return sign_flip(np.asarray(sizes, float), draw()) <= 0.05

    def outside(low: float, high: float) -> bool:
        return low > 0 or high < 0

    found = {
        "exact": alarms(lambda i, j: mcnemar_exact(i, j) <= 0.05),
        "mid-p": alarms(lambda i, j: mcnemar_mid_p(i, j) <= 0.05),
        "tango": alarms(lambda i, j: outside(*tango(i, j, n)[1:])),
        "newcombe": alarms(lambda i, j: outside(*paired_difference(150, i, j, n - 150 - i - j)[1:])),
        "sign flip": float(np.mean([flipped(tuple(sorted(s[s != 0]))) if s.any() else False for s in change.sum(2)])),
    }
    sums = change.sum(2).T.astype(float)  # (60, runs)
    low, high = cluster_bootstrap(sums, np.full(60, 4.0), generator, draws=2000)
    found["cluster bootstrap"] = float(((low > 0) | (high < 0)).mean())
    shown = [
        cluster_paired_difference((s == 1).sum(1), (s == -1).sum(1), np.full(60, 4.0), generator, draws=500)
        for s in change[:1000]
    ]
    displayed = float(np.mean([outside(s.low, s.high) for s in shown]))
    assert found["exact"] == pytest.approx(0.024, abs=0.005)
    assert found["mid-p"] == pytest.approx(0.043, abs=0.006)
    assert all(rate <= 0.057 for rate in found.values()), found
    assert found["cluster bootstrap"] >= 0.035
    assert displayed <= 0.057


def test_a_rate_of_everything_is_bounded_whatever_the_sizes_round_to() -> None:
    """The effective number of images times hits over images may come out above itself."""
    for seed in range(60):
        sizes = np.random.default_rng(seed).integers(1, 30, 5 + seed).astype(np.float64)
        found = cluster_rate(sizes, sizes, draw())
        assert found.estimate == found.high == 1
        assert 0 < found.low < 1
        assert cluster_rate(0 * sizes, sizes, draw()).low == 0
        assert cluster_paired_difference(sizes, 0 * sizes, sizes, draw(), draws=50).high == 1
        assert cluster_paired_difference(0 * sizes, sizes, sizes, draw(), draws=50).low == -1
