"""Worked numbers to six digits, and agreement with scipy or statsmodels where they go another way."""

from __future__ import annotations

import pytest
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar

from efface.numerics.intervals import (
    clopper_pearson,
    mcnemar_exact,
    paired_difference,
    paired_loss_upper,
    upper_bound,
    wilson,
)

RATES = [
    # hits, n, Wilson, Clopper-Pearson
    (0, 10, (0, 0.277533), (0, 0.308497)),
    (0, 50, (0, 0.071348), (0, 0.071122)),
    (1, 50, (0.003539, 0.104954), (0.000506, 0.106470)),
    (2, 100, (0.005502, 0.070012), (0.002431, 0.070384)),
    (0, 142, (0, 0.026340), (0, 0.025643)),
    (108, 142, (0.684103, 0.823297), (0.681807, 0.828130)),
    (113, 142, (0.722095, 0.853873), (0.720048, 0.858756)),
    (0, 240, (0, 0.015754), (0, 0.015253)),
    (12, 240, (0.028830, 0.085348), (0.026099, 0.085711)),
    (25, 500, (0.034094, 0.072768), (0.032615, 0.072928)),
    (250, 500, (0.456341, 0.543659), (0.455286, 0.544714)),
    (1000, 1000, (0.996173, 1), (0.996318, 1)),
]

PAIRED = [
    ((36, 12, 2, 0), (0.2000, 0.0569, 0.3404)),
    ((20, 12, 2, 16), (0.2000, 0.0562, 0.3292)),
    ((53, 8, 3, 26), (0.0556, -0.0189, 0.1292)),
    ((230, 6, 2, 2), (0.0167, -0.0099, 0.0469)),
    ((0, 230, 0, 10), (0.9583, 0.9215, 0.9772)),
    ((50, 0, 0, 0), (0.0, -0.0713, 0.0713)),
]


@pytest.mark.parametrize(("hits", "n", "score", "exact"), RATES)
def test_worked_rates(hits: int, n: int, score: tuple[float, float], exact: tuple[float, float]) -> None:
    assert wilson(hits, n) == pytest.approx(score, abs=6e-7)
    assert clopper_pearson(hits, n) == pytest.approx(exact, abs=6e-7)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 24), (12, 240), (99, 100)])
def test_rates_agree_with_scipy(hits: int, n: int, level: float) -> None:
    test = binomtest(hits, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence_level=level, method=method)
        assert ours(hits, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    one_sided = binomtest(hits, n, alternative="less").proportion_ci(confidence_level=level).high
    assert upper_bound(hits, n, level) == pytest.approx(one_sided, abs=1e-12)


def test_ends_are_exact() -> None:
    for n in range(1, 400):
        for interval in (wilson, clopper_pearson):
            assert interval(0, n).low == 0.0
            assert interval(n, n).high == 1.0


@pytest.mark.parametrize(
    ("n", "bound"), [(24, 0.117), (50, 0.058), (100, 0.030), (142, 0.021), (240, 0.0124), (500, 0.0060)]
)
def test_bound_after_no_hits(n: int, bound: float) -> None:
    assert upper_bound(0, n) == pytest.approx(bound, abs=5e-4)


@pytest.mark.parametrize(("n", "hits"), [(149, 0), (236, 1), (313, 2), (386, 3), (523, 5)])
def test_fewest_images_that_show_at_most_two_per_cent(n: int, hits: int) -> None:
    assert upper_bound(hits, n) <= 0.02 < upper_bound(hits, n - 1)


def test_bound_is_where_so_few_hits_become_unlikely() -> None:
    assert binom.cdf(7, 120, upper_bound(7, 120, 0.9)) == pytest.approx(0.1, abs=1e-9)


@pytest.mark.parametrize(("table", "expected"), PAIRED)
def test_worked_pairs(table: tuple[int, int, int, int], expected: tuple[float, float, float]) -> None:
    assert paired_difference(*table) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("table", [t for t, _ in PAIRED] + [(1, 9, 9, 1), (0, 0, 0, 3)])
def test_swapping_the_models_mirrors_the_loss(table: tuple[int, int, int, int]) -> None:
    both, base_only, edited_only, neither = table
    loss = paired_difference(both, base_only, edited_only, neither)
    gain = paired_difference(both, edited_only, base_only, neither)
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low), abs=1e-12)
    assert -1 <= loss.low <= loss.estimate <= loss.high <= 1


def test_pairing_narrows_the_interval() -> None:
    agreeing, opposed = paired_difference(40, 5, 5, 40), paired_difference(5, 40, 40, 5)
    assert agreeing.high - agreeing.low < 0.6 * (opposed.high - opposed.low)


def test_one_sided_loss_is_the_end_of_the_ninety_per_cent_interval() -> None:
    table = (230, 6, 2, 2)
    assert paired_loss_upper(*table) == paired_difference(*table, level=0.9).high
    assert paired_loss_upper(*table) < paired_difference(*table).high


@pytest.mark.parametrize(
    ("base_only", "edited_only", "p"),
    [(0, 5, 0.0625), (0, 6, 0.03125), (2, 10, 0.0385742), (12, 2, 0.0129395), (8, 3, 0.226562),
     (5, 5, 1), (10, 20, 0.0987371), (0, 0, 1)],
)  # fmt: skip
def test_worked_mcnemar(base_only: int, edited_only: int, p: float) -> None:
    assert mcnemar_exact(base_only, edited_only) == pytest.approx(p, abs=6e-7)
    if base_only + edited_only:
        theirs = mcnemar([[17, base_only], [edited_only, 4]], exact=True).pvalue
        assert mcnemar_exact(base_only, edited_only) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("function", [wilson, clopper_pearson, upper_bound])
@pytest.mark.parametrize(("hits", "n", "level"), [(0, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_rates_refuse_what_has_no_answer(function, hits: int, n: int, level: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        function(hits, n, level)


@pytest.mark.parametrize("table", [(0, 0, 0, 0), (-1, 2, 3, 4)])
def test_pairs_refuse_what_has_no_answer(table: tuple[int, int, int, int]) -> None:
    for function in (paired_difference, paired_loss_upper):
        with pytest.raises(ValueError, match="expected"):
            function(*table)
    with pytest.raises(ValueError, match="level"):
        paired_loss_upper(5, 1, 1, 5, level=0.5)
    with pytest.raises(ValueError, match="expected"):
        mcnemar_exact(-1, 2)
