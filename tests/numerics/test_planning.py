"""Sample sizes: every worked table, and monotony."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest

from efface.numerics.intervals import mcnemar_exact, upper_bound, wilson
from efface.numerics.planning import (
    detectable_difference,
    detectable_loss,
    images_for_half_width,
    images_for_two_rates,
    images_to_show_at_most,
    mcnemar_power,
    pairs_for_margin,
    pass_at,
    two_rate_power,
)


@pytest.mark.parametrize(
    ("rate", "needed"),
    [(0.02, (792, 223, 113, 52)), (0.05, (1838, 469, 215, 83)), (0.1, (3461, 868, 388, 141)),
     (0.5, (9600, 2398, 1064, 381))],
)  # fmt: skip
def test_worked_half_widths(rate: float, needed: tuple[int, ...]) -> None:
    """E-52."""
    assert tuple(images_for_half_width(h, rate) for h in (0.01, 0.02, 0.03, 0.05)) == needed
    low, high = wilson(rate * needed[0], needed[0])
    assert (high - low) / 2 <= 0.01


@pytest.mark.parametrize(
    ("limit", "needed"),
    [(0.02, (149, 236, 313, 386, 523)), (0.01, (299, 473, 628, 773, 1049)), (0.05, (59, 93, 124, 153, 208))],
)
def test_worked_claims_of_smallness(limit: float, needed: tuple[int, ...]) -> None:
    """E-52."""
    assert tuple(images_to_show_at_most(limit, k) for k in (0, 1, 2, 3, 5)) == needed
    assert all(upper_bound(k, n) <= limit < upper_bound(k, n - 1) for k, n in zip((0, 1, 2, 3, 5), needed, strict=True))


def test_worked_power_of_two_papers_rates() -> None:
    """E-52."""
    assert two_rate_power(0.76, 0.80, 142) == pytest.approx(0.127, abs=2e-3)
    assert images_for_two_rates(0.76, 0.80) == pytest.approx(1682, abs=1)


@pytest.mark.parametrize(
    ("n", "points"),
    [(50, (20, 23, 27, 27, 23)), (142, (9.9, 12.2, 16.3, 15.4, 12.2)), (1000, (3.1, 4.1, 6.2, 5.5, 4.1))],
)  # fmt: skip
def test_worked_detectable_differences(n: int, points: tuple[float, ...]) -> None:
    """E-52."""
    found = [100 * (detectable_difference(n, p) or 0) for p in (0.05, 0.1, 0.5, 0.76, 0.9)]
    assert found == pytest.approx(points, abs=0.5 if n == 50 else 0.051)


@pytest.mark.parametrize(("n", "points"), [(100, (9.6, 11.0, 14.2)), (240, (4.8, 5.8, 7.9)), (500, (2.8, 3.6, 5.0))])
def test_worked_detectable_losses(n: int, points: tuple[float, ...]) -> None:
    """E-52: pairing halves what can be seen."""
    found = [100 * (detectable_loss(n, f) or 0) for f in (0.01, 0.02, 0.05)]
    assert found == pytest.approx(points, abs=0.051)


def test_too_few_images_detect_nothing() -> None:
    assert detectable_loss(3, 0.01) is None
    assert detectable_difference(2, 0.5) is None
    assert mcnemar_power(5, 0.9, 0.0) == 0
    assert mcnemar_power(100, 0.0, 0.0) == 0


def test_worked_pairs_for_a_margin() -> None:
    """E-52."""
    rows = [[pairs_for_margin(m, f) for m in (0.02, 0.03, 0.05)] for f in (0.01, 0.02, 0.05)]
    assert rows == [[310, 138, 50], [619, 275, 99], [1546, 687, 248]]


@pytest.mark.parametrize(
    ("draws", "hits", "k", "wanted"), [(10, 1, 5, 0.5), (20, 3, 10, 0.894737), (40, 2, 10, 0.442308)]
)
def test_worked_best_of_k(draws: int, hits: int, k: int, wanted: float) -> None:
    """E-51."""
    assert pass_at(draws, hits, k) == pytest.approx(wanted, abs=6e-7)


def test_best_of_k_is_the_mean_over_all_choices_and_grows() -> None:
    """E-51."""
    pool = [True, True, False, False, False, False]
    for k in range(1, 7):
        every = [any(pick) for pick in combinations(pool, k)]
        assert pass_at(6, 2, k) == pytest.approx(sum(every) / len(every))
    assert pass_at(17, 5, 1) == pytest.approx(5 / 17)
    assert all(pass_at(20, c, 5) <= pass_at(20, c + 1, 5) for c in range(20))
    for bad in ((5, 6, 1), (5, 2, 0), (5, 2, 6)):
        with pytest.raises(ValueError, match="expected"):
            pass_at(*bad)


def test_a_search_that_does_nothing_is_not_told_from_its_control() -> None:
    """E-51: 2,000 runs of 100 prompts, 40 draws each at 2 %, stopped at the first hit, beside as many random ones."""
    draw = np.random.default_rng(0)
    found = draw.random((2, 2000, 100)) < 1 - 0.98**40
    assert found.mean() == pytest.approx(0.554, abs=0.01)  # more than half "succeed"
    won, lost = (found[0] & ~found[1]).sum(1), (found[1] & ~found[0]).sum(1)
    p = cache(mcnemar_exact)  # few tables occur
    alarms = [p(int(i), int(j)) <= 0.05 for i, j in zip(won, lost, strict=True)]
    assert np.mean(alarms) <= 0.05


def test_a_limit_that_no_number_meets_is_refused() -> None:
    with pytest.raises(ValueError, match="widen"):
        images_to_show_at_most(0.0)
