"""Worked numbers to six digits, and agreement with scipy or statsmodels where they go another way."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest, false_discovery_control, norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep

from efface.numerics.intervals import (
    benjamini_hochberg,
    clopper_pearson,
    corrected_rate,
    difference,
    holm,
    lower_bound,
    mcnemar_exact,
    mcnemar_mid_p,
    mean_of_rates,
    non_inferiority,
    paired_difference,
    paired_loss_upper,
    rogan_gladen,
    sign_test,
    tango,
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
    """E-41."""
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
    """E-43."""
    assert paired_difference(*table) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("table", [t for t, _ in PAIRED] + [(1, 9, 9, 1), (0, 0, 0, 3)])
def test_swapping_the_models_mirrors_the_loss(table: tuple[int, int, int, int]) -> None:
    """E-43."""
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
    """E-44."""
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


def test_more_hits_mirror_the_interval_and_it_stays_inside() -> None:
    """E-41."""
    for n in (1, 7, 24, 50):
        for hits in range(n + 1):
            for interval in (wilson, clopper_pearson):
                low, high = interval(hits, n)
                other = interval(n - hits, n)
                assert (low, high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)
                assert 0 <= low <= hits / n <= high <= 1


@pytest.mark.parametrize(("n", "least"), [(24, 0.887), (50, 0.911), (240, 0.936)])
def test_true_coverage_by_exact_sums(n: int, least: float) -> None:
    """E-41: Clopper-Pearson keeps its word at every true rate, Wilson falls a little short of it somewhere."""
    rates, hits = np.arange(0.005, 0.9951, 0.005), np.arange(n + 1)
    weights = binom.pmf(hits[:, None], n, rates)  # (n + 1, rates)
    for interval, floor in ((clopper_pearson, 0.95), (wilson, least)):
        ends = np.asarray([interval(int(k), n) for k in hits])
        covered = (ends[:, :1] <= rates) & (rates <= ends[:, 1:])
        lowest = float((weights * covered).sum(0).min())
        assert lowest >= 0.95 - 1e-9 if interval is clopper_pearson else lowest == pytest.approx(floor, abs=1e-3)


def test_one_sided_bounds_mirror_each_other_and_bracket_the_two_sided_interval() -> None:
    for hits, n in ((0, 10), (3, 24), (24, 24), (12, 240)):
        assert lower_bound(hits, n) == pytest.approx(1 - upper_bound(n - hits, n), abs=1e-12)
        assert clopper_pearson(hits, n, 0.9).low == pytest.approx(lower_bound(hits, n), abs=1e-12)


UNPAIRED = [
    ((56, 70, 48, 80), (0.2000, 0.0524, 0.3339)),
    ((9, 10, 3, 10), (0.6000, 0.1705, 0.8090)),
    ((0, 50, 3, 50), (-0.0600, -0.1622, 0.0215)),
    ((5, 240, 20, 240), (-0.0625, -0.1060, -0.0231)),
    ((10, 10, 0, 20), (1.0, 0.6791, 1.0)),
    ((108, 142, 114, 142), (-0.0423, -0.1377, 0.0540)),
]


@pytest.mark.parametrize(("counts", "expected"), UNPAIRED)
def test_worked_independent_differences(counts: tuple[int, int, int, int], expected: tuple[float, ...]) -> None:
    """E-42: also where the score interval of statsmodels raises."""
    assert difference(*counts) == pytest.approx(expected, abs=6e-5)
    k1, n1, k2, n2 = counts
    there, back = difference(*counts), difference(k2, n2, k1, n1)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    theirs = confint_proportions_2indep(k1, n1, k2, n2, method="newcomb", compare="diff")
    assert (there.low, there.high) == pytest.approx(theirs, abs=1e-12)


TANGO = [
    ((12, 2, 50), (0.0611, 0.3447), (0.0855, 0.3204)),
    ((8, 3, 90), (-0.0193, 0.1386), (-0.0057, 0.1233)),
    ((6, 2, 240), (-0.0081, 0.0463), (-0.0032, 0.0404)),
    ((0, 0, 50), (-0.0713, 0.0713), (-0.0513, 0.0513)),
]


@pytest.mark.parametrize(("counts", "at95", "at90"), TANGO)
def test_worked_score_intervals_of_pairs(
    counts: tuple[int, int, int], at95: tuple[float, float], at90: tuple[float, float]
) -> None:
    """E-43."""
    assert tango(*counts)[1:] == pytest.approx(at95, abs=6e-5)
    assert tango(*counts, level=0.9)[1:] == pytest.approx(at90, abs=6e-5)


@pytest.mark.parametrize("counts", [c for c, *_ in TANGO] + [(230, 0, 240), (1, 9, 20), (50, 0, 50), (2.5, 1.5, 17.0)])
def test_score_limits_solve_the_score_equation(counts: tuple[float, float, float]) -> None:
    """E-43."""
    b, c, n = counts
    found, back = tango(b, c, n), tango(c, b, n)
    assert (found.low, found.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    for end, z in ((found.low, norm.ppf(0.975)), (found.high, -norm.ppf(0.975))):
        if abs(end) == 1:
            continue
        B, C = -b - c + (2 * n - b + c) * end, -c * end * (1 - end)
        q = (sqrt(B * B - 8 * n * C) - B) / (4 * n)
        assert (b - c - n * end) / sqrt(n * (2 * q + end * (1 - end))) == pytest.approx(z, abs=1e-7)


def test_without_a_change_the_interval_is_symmetric_and_shrinks() -> None:
    """E-43."""
    for interval in (lambda n: tango(0, 0, n), lambda n: paired_difference(n, 0, 0, 0)):
        found = [interval(n) for n in (10, 50, 240, 1000)]
        assert all(f.low == pytest.approx(-f.high, abs=1e-12) for f in found)
        assert all(a.high > b.high for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("base_only", "edited_only", "p"),
    [(0, 5, 0.03125), (0, 6, 0.015625), (2, 10, 0.0224609), (12, 2, 0.00738525), (8, 3, 0.145996),
     (5, 5, 0.753906), (10, 20, 0.0707555), (0, 0, 1)],
)  # fmt: skip
def test_worked_mid_p(base_only: int, edited_only: int, p: float) -> None:
    """E-44."""
    assert mcnemar_mid_p(base_only, edited_only) == pytest.approx(p, abs=6e-7)
    assert mcnemar_mid_p(base_only, edited_only) == mcnemar_mid_p(edited_only, base_only)
    assert mcnemar_mid_p(base_only, edited_only) <= mcnemar_exact(base_only, edited_only)
    assert sign_test(base_only, edited_only) == mcnemar_exact(base_only, edited_only)


@pytest.mark.parametrize(("changed", "exact", "mid"), [(10, 0.0215, None), (30, 0.0428, None), (16, None, 0.0768)])
def test_true_sizes_given_the_number_of_changed_pairs(changed: int, exact: float | None, mid: float | None) -> None:
    """E-44."""
    for test, wanted in ((mcnemar_exact, exact), (mcnemar_mid_p, mid)):
        size = sum(binom.pmf(k, changed, 0.5) for k in range(changed + 1) if test(k, changed - k) <= 0.05)
        assert wanted is None or size == pytest.approx(wanted, abs=6e-5)


def test_five_changed_pairs_never_suffice() -> None:
    """E-44."""
    assert all(mcnemar_exact(k, d - k) > 0.05 for d in range(6) for k in range(d + 1))
    assert mcnemar_exact(0, 6) < 0.05


def test_worked_corrections_for_many_tests() -> None:
    """E-49."""
    p = np.asarray([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-12)
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02], abs=1e-12)
    assert holm([]).shape == benjamini_hochberg([]).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_corrections_are_ordered_free_of_order_and_never_smaller(seed: int) -> None:
    """E-49."""
    draw = np.random.default_rng(seed)
    p, order = draw.random(40), draw.permutation(40)
    for adjust in (holm, benjamini_hochberg):
        found = adjust(p)
        assert (found >= p - 1e-15).all()
        assert adjust(p[order]) == pytest.approx(found[order], abs=1e-15)
        assert (np.diff(found[np.argsort(p)]) >= -1e-15).all()
    assert (benjamini_hochberg(p) <= holm(p) + 1e-15).all()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert benjamini_hochberg(p) == pytest.approx(false_discovery_control(p))


@pytest.mark.parametrize("bad", [[0.1, 1.2], [float("nan")], [[0.1]]])
def test_corrections_refuse_what_is_no_list_of_p_values(bad: list) -> None:
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(ValueError, match="p-values"):
            adjust(bad)


def test_non_inferiority_is_the_verdict_of_the_ninety_per_cent_interval() -> None:
    """E-50."""
    for b, c, n in ((6, 2, 240), (0, 0, 50), (30, 2, 240), (2, 6, 240)):
        found = [non_inferiority(b, c, n, margin) for margin in (0.01, 0.03, 0.05, 0.1, 0.2)]
        assert [f.passed for f in found] == sorted(f.passed for f in found)  # a wider margin never fails what passed
        assert all(f.passed == (tango(b, c, n, 0.9).high < f.margin) for f in found)
    assert non_inferiority(0, 0, 240, 0.03).passed
    assert not non_inferiority(0, 0, 24, 0.03).passed  # no change seen, and yet nothing shown


@pytest.mark.parametrize(("n", "margin", "level"), [(0, 0.03, 0.95), (10, 0.0, 0.95), (10, 1.5, 0.95), (10, 0.1, 0.5)])
def test_non_inferiority_never_passes_on_nothing(n: int, margin: float, level: float) -> None:
    """E-50."""
    with pytest.raises(ValueError, match="expected"):
        non_inferiority(0, 0, n, margin, level)


def test_a_mean_of_rates_with_one_rate_is_that_rate_and_two_opposite_ones_are_newcombes_difference() -> None:
    """The same recovery of variances that makes the unpaired interval."""
    one, two = (48 / 80, *wilson(48, 80)), (14 / 70, *wilson(14, 70))  # 14 of 70 fail: 56 do not
    assert mean_of_rates(np.asarray([one])) == pytest.approx(one, abs=1e-12)
    half = mean_of_rates(np.asarray([one, two]))
    gap = difference(48, 80, 56, 70)  # p1 - (1 - p2) = p1 + p2 - 1
    assert [2 * v - 1 for v in half] == pytest.approx(list(gap), abs=1e-12)
    with pytest.raises(ValueError, match="none"):
        mean_of_rates(np.zeros((0, 3)))


def test_worked_corrected_rates() -> None:
    """E-32."""
    assert rogan_gladen(0.05, 0.95, 0.98) == pytest.approx(0.0322581, abs=6e-8)
    assert rogan_gladen(0.01, 0.95, 0.98) == pytest.approx(-0.0107527, abs=6e-8)
    assert rogan_gladen(0.02, 0.90, 0.99) == pytest.approx(0.0112360, abs=6e-8)
    rows = [((12, 240, 190, 200, 392, 400), 0.0323, 0.0323, 0.0376, 0.0023, 0.0722),
            ((25, 500, 475, 500, 990, 1000), 0.0426, 0.0426, 0.0453, 0.0233, 0.0672),
            ((5, 500, 190, 200, 1960, 2000), -0.0108, 0.0, -0.0073, 0.0, 0.0055)]  # fmt: skip
    for counts, *wanted in rows:
        assert corrected_rate(*counts) == pytest.approx(wanted, abs=1e-4)


def test_the_correction_is_that_of_a_mixture() -> None:
    """E-32."""
    se, sp = 0.9, 0.97
    assert rogan_gladen(1 - sp, se, sp) == pytest.approx(0, abs=1e-12)
    assert rogan_gladen(se, se, sp) == pytest.approx(1, abs=1e-12)
    assert rogan_gladen(0.37, 1, 1) == pytest.approx(0.37, abs=1e-12)
    for theta in (0, 0.05, 0.5, 1):
        assert rogan_gladen(theta * se + (1 - theta) * (1 - sp), se, sp) == pytest.approx(theta, abs=1e-12)
    assert rogan_gladen(0.2, 0.4, 0.6) is None
    assert corrected_rate(3, 10, 4, 10, 5, 10) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        rogan_gladen(5.0, 0.9, 0.9)


def test_the_corrected_interval_covers_the_truth() -> None:
    """E-32: 2,000 simulations, true share 5 %, sensitivity 95 %, specificity 98 %."""
    draw = np.random.default_rng(0)
    theta, se, sp, runs = 0.05, 0.95, 0.98, 2000
    hits = draw.binomial(240, theta * se + (1 - theta) * (1 - sp), runs)
    tp, tn = draw.binomial(200, se, runs), draw.binomial(400, sp, runs)
    found = [corrected_rate(int(k), 240, int(a), 200, int(b), 400) for k, a, b in zip(hits, tp, tn, strict=True)]
    assert np.mean([f is not None and f.low <= theta <= f.high for f in found]) >= 0.93


def test_two_sided_exact_ends_are_quantiles_of_the_beta_law() -> None:
    low, high = clopper_pearson(12, 240)
    assert (low, high) == pytest.approx((beta.ppf(0.025, 12, 229), beta.ppf(0.975, 13, 228)), abs=1e-12)
