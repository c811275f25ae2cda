"""Key steps, dynamic factors, targets and augmented texts: pure functions. Numbers are ids of the sheet."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.numerics.schedules import (
    KeyStep,
    augmented,
    augmented_from,
    by_index,
    by_noise,
    by_time,
    concept_target,
    empty_target,
    forward_rows,
    jumps,
    key_steps,
    last_start,
)


def draws(*shape: int, n: int, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(n)]


def starts(table: list[KeyStep]) -> list[int]:
    """The first step of every pass and concept."""
    return [table[i].step for i in jumps(table)]


# --- the table -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 60), st.integers(0, 59), st.integers(1, 9), st.integers(1, 4), st.data())
def test_a_table_is_passes_from_a_creeping_start_to_the_last_step(
    updates: int, steps: int, first: int, loops: int, concepts: int, data: st.DataObject
) -> None:
    """3.7-1, 3.7-2."""
    first %= last_start(steps) + 1
    cap = data.draw(st.integers(first, steps - 1))
    table = key_steps(updates, steps, first, loops, concepts, cap)
    assert len(table) == updates
    wanted: list[tuple[int, int, int]] = []
    for number in range(updates):
        start = min(first + number // loops, cap)
        wanted += [(c, i, number) for c in range(concepts) for i in range(start, steps)]
    assert [(e.concept, e.step, e.visit) for e in table] == wanted[:updates]
    assert max(starts(table)) <= cap


def test_one_concept_of_the_first_pass_is_the_single_table() -> None:
    """3.7-2."""
    several = key_steps(60, 10, 7, 8, concepts=4)
    single = key_steps(3, 10, 7, 8)
    for concept in range(4):
        own = [e.step for e in several if e.concept == concept and e.visit == 0]
        assert own == [e.step for e in single]


def test_loops_count_passes_over_all_concepts() -> None:
    """3.7-2."""
    table = key_steps(100, 10, 5, 2, concepts=3)
    assert starts(table)[:9] == [5] * 6 + [6] * 3


def test_the_order_of_a_pass_is_an_argument() -> None:
    """3.7-22."""
    orders = [[2, 0, 1], [1, 2, 0]]
    table = key_steps(12, 10, 8, 8, 3, order=orders.__getitem__)
    assert [table[i].concept for i in jumps(table)] == orders[0] + orders[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 12), st.integers(10, 400))
def test_shares_of_the_concepts_differ_by_one_pass_at_most(concepts: int, length: int, updates: int) -> None:
    """3.7-22."""
    table = key_steps(updates, 40, 40 - length, 10**6, concepts, cap=39)
    counts = [sum(e.concept == c for e in table) for c in range(concepts)]
    assert max(counts) - min(counts) <= length


def test_the_latest_start_is_strictly_below_nine_tenths() -> None:
    """3.7-3."""
    for steps in range(2, 1001):
        cap = last_start(steps)
        assert Fraction(cap) < Fraction(9, 10) * steps <= cap + 1
        assert cap == ceil(0.9 * steps) - 1
    assert [last_start(e) for e in (50, 28, 8, 10)] == [44, 25, 7, 8]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("first_step", (10, 50, 45, 8)),
        ("first_step", (10, 50, -1, 8)),
        ("first_step", (10, 50, 50, 8)),
        ("loops", (10, 50, 14, 0)),
        ("updates", (0, 50, 14, 8)),
        ("steps", (10, 0, 0, 8)),
        ("concepts", (10, 50, 14, 8, 0)),
    ],
)
def test_what_makes_no_table_raises_by_name(name: str, arguments: tuple[Any, ...]) -> None:
    """3.7-3."""
    with pytest.raises(ValueError, match=name):
        key_steps(*arguments)
    assert key_steps(10, 50, 44, 8)[0].step == 44


@pytest.mark.parametrize(
    ("updates", "steps", "first", "concepts", "wanted_jumps", "last", "rows"),
    [
        (750, 50, 14, 1, 22, 16, 6.816),
        (500, 50, 24, 1, 20, 26, 7.904),
        (200, 50, 40, 1, 22, 42, 14.78),
        (750, 50, 40, 3, 87, 43, 15.36),
        (750, 50, 14, 10, 21, 14, 6.73),
    ],
)
def test_jumps_last_starts_and_rows_of_the_default_runs(
    updates: int, steps: int, first: int, concepts: int, wanted_jumps: int, last: int, rows: float
) -> None:
    """3.7-4, 3.7-13: counted from the tables; tests/methods counts the rows of real runs."""
    table = key_steps(updates, steps, first, 8, concepts)
    assert len(jumps(table)) == wanted_jumps
    assert starts(table)[-1] == last
    assert forward_rows(table) / updates == pytest.approx(rows, abs=0.006)


def test_rows_of_the_cheaper_and_of_the_first_release() -> None:
    """3.7-13."""
    table, style = key_steps(750, 50, 14, 8), key_steps(500, 50, 24, 8)
    cut = augmented_from(750, 0.05)
    assert forward_rows(table, lagged=True, augmented=cut) / 750 <= 5
    assert forward_rows(style, lagged=True, augmented=augmented_from(500, 0.05)) / 500 <= 6.1
    assert forward_rows(table) / 750 <= 7
    assert forward_rows(style) / 500 <= 8
    first = key_steps(750, 50, 15, 8, cap=49)
    assert forward_rows(first, fresh=True) / 750 == pytest.approx(68.89, abs=0.005)


def test_a_change_of_concept_is_a_jump_even_to_the_next_step() -> None:
    assert jumps([KeyStep(0, 5, 0), KeyStep(1, 6, 0), KeyStep(1, 7, 0), KeyStep(1, 7, 1)]) == [0, 1, 3]


# --- factors and targets ---------------------------------------------------------------------------------------------


def test_dynamic_factors_grow_as_the_image_gets_cleaner() -> None:
    """3.7-5."""
    times = [1 + 20 * (49 - i) for i in range(50)]
    found = [by_time(t, 2e-5) for t in times]
    assert found == sorted(found)
    assert [found[i] for i in (14, 24, 40, 49)] == pytest.approx([0.00598, 0.00998, 0.01638, 0.01998], abs=1e-15)
    assert (by_time(-5, 2e-5), by_time(2000, 2e-5)) == (0.02, 0.0)
    assert [by_index(i, 1e-4) for i in (15, 49)] == pytest.approx([0.0015, 0.0049], abs=1e-15)
    assert [by_noise(s, 0.02) for s in (1.0, 0.0, 1.5, -1.0)] == [0.0, 0.02, 0.0, 0.02]


def test_targets_without_a_concept_are_the_empty_prediction() -> None:
    """3.7-7."""
    p, n = draws(2, 4, 8, 8, n=2)
    assert concept_target(n, n, 1.0).equal(n)
    assert empty_target(n, n, 0.3).equal(n)
    torch.testing.assert_close(concept_target(p, n, -1.0), p, rtol=1e-12, atol=1e-12)
    assert empty_target(p, n, 0.0).equal(n)
    assert not concept_target(p, n, 1.0).allclose(n)


def test_targets_are_linear() -> None:
    """3.7-7."""
    p, n, p2, n2 = draws(4, 8, 8, n=4)
    for target in (concept_target, empty_target):
        both = target(2 * p - 3 * p2, 2 * n - 3 * n2, 0.7)
        torch.testing.assert_close(both, 2 * target(p, n, 0.7) - 3 * target(p2, n2, 0.7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("g", "dynamic", "weight"), [(1.0, 0.01, 1e-4), (2.0, 0.8, 0.5), (0.3, 0.0, 0.0)])
def test_loss_of_the_first_update_has_a_closed_form(g: float, dynamic: float, weight: float) -> None:
    """3.7-6: the tuned predictions are still the frozen ones; both residuals are parallel to p - n."""
    p, n = draws(1, 4, 8, 8, n=2)
    rc, ru = p - concept_target(p, n, g), n - empty_target(p, n, dynamic)
    m = (p - n).square().mean()
    loss = rc.square().mean() + weight * ru.square().mean()
    torch.testing.assert_close(loss, ((1 + g) ** 2 + weight * dynamic**2) * m, rtol=1e-12, atol=0)
    torch.testing.assert_close(rc, (1 + g) * (p - n), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ru, dynamic * (p - n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0, 7.5])
def test_at_the_optimum_guidance_pushes_away_from_the_concept(w: float) -> None:
    """3.7-8."""
    p, n = draws(4, 8, 8, n=2)
    g, dynamic = 1.0, 0.02
    c, u = concept_target(p, n, g), empty_target(p, n, dynamic)
    wanted = n - (dynamic + w * (g - dynamic)) * (p - n)
    torch.testing.assert_close(u + w * (c - u), wanted, rtol=1e-12, atol=1e-12)


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_augmentation_begins_near_the_end() -> None:
    """3.7-19."""
    assert [augmented_from(n, 0.05) for n in (750, 500, 200, 2)] == [712, 475, 190, 1]
    assert 750 - augmented_from(750, 0.05) == 38
    assert 750 - augmented_from(750, 0.05, strict=True) == 37
    assert augmented_from(100, 0.0) == 100


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(["dog", "statue of liberty", "a a"]))
def test_an_operation_keeps_the_words_of_the_concept(seed: int, operation: int, name: str) -> None:
    """3.7-19."""
    rng = torch.Generator().manual_seed(seed)
    sentence = "an old picture with {} in it"
    before, found = sentence.format(name).split(), augmented(sentence, name, operation, rng).split()
    assert all(found.count(w) >= name.split().count(w) for w in name.split())
    if operation == 0:
        assert sorted(found) == sorted(before)
    elif operation == 1:
        assert len(found) == len(before) - 1
    else:
        extra, rest = (found[0], found[1:]) if operation == 2 else (found[-1], found[:-1])
        assert rest == before
        assert 1 <= len(extra) <= 3
        assert extra.isalnum()


def test_the_first_release_may_lose_a_word_of_the_concept() -> None:
    """3.7-19: the opposite."""
    rng = torch.Generator().manual_seed(0)
    found = {augmented("a {}", "dog", 1, rng, protect=False) for _ in range(50)}
    assert found == {"a", "dog"}
    assert {augmented("a {}", "dog", 1, rng) for _ in range(50)} == {"dog"}
