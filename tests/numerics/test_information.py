"""Laws of the Informax masks and of the entropy factor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.numerics import information as module
from efface.numerics.information import (
    code_information,
    entropy_factor,
    fired,
    information_of_counts,
    normalise,
    population_information,
    rowwise_information,
    sample_information,
    saturation,
)

D, LN2 = 24, math.log(2)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def setting(o: int, m: int, n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """W (o, d), concepts (m, d), neutral (d,), draws (m, n, d) twice."""
    return tuple(  # type: ignore[return-value]
        randn(*shape, seed=10 * seed + i) for i, shape in enumerate([(o, D), (m, D), (D,), (m, n, D), (m, n, D)])
    )


def information(o: int = 40, m: int = 3, sigma: float = 1.5, seed: int = 0) -> Tensor:
    return code_information(*setting(o, m, seed=seed), sigma)


def test_five_draws_know_three_values() -> None:
    """1.11-8."""
    mi = information(400, 3)
    values = torch.tensor([0.020136, 0.192745, 0.693147], dtype=torch.float64)
    distance = (mi[..., None] - values).abs()
    assert distance.amin(-1).max() <= 1e-6
    assert all(bool((distance[..., i] <= 1e-6).any()) for i in range(3))
    n11 = torch.arange(6)
    table = information_of_counts(n11, 5 - n11, 5, 5)  # without ties five samples fire
    assert torch.allclose(table, table.flip(0), rtol=0, atol=1e-15)
    assert table[5] - table[4] > 0.4


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=12, max_size=12))
def test_information_is_that_of_its_definition_also_with_ties(levels: list[int]) -> None:
    """1.11-8."""
    A = torch.tensor(levels, dtype=torch.float64).reshape(2, 6)
    found = float(sample_information(A[0], A[1]))
    tau = sorted(levels)[5]
    joint = [[sum(x > tau for x in levels[:6]), sum(x > tau for x in levels[6:])]]
    joint.append([6 - joint[0][0], 6 - joint[0][1]])
    p = [[(c + 1e-8) / 12 for c in line] for line in joint]
    mi = sum(p[z][y] * math.log(p[z][y] / (sum(p[z]) * (p[0][y] + p[1][y]))) for z in (0, 1) for y in (0, 1))
    assert found == pytest.approx(mi, abs=1e-12)
    assert -1e-8 <= found <= LN2 + 1e-7  # the smoothed cells sum to a little more than 1


def test_the_median_is_the_lower_one_and_firing_is_strict() -> None:
    """1.11-8."""
    separated = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    assert float(sample_information(*separated)) == pytest.approx(LN2, abs=1e-6)
    tied = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 2.0])  # 2 is not above 2
    assert float(sample_information(*tied)) == pytest.approx(0.215762, abs=1e-5)


@pytest.mark.parametrize("o", [320, 640, 1280])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saturated_masks_are_half_to_the_power(o: int, dtype: torch.dtype) -> None:
    """1.11-9."""
    W, c, e, plus, minus = setting(o, 1)
    side = (c[0] - e) / torch.linalg.norm(c[0] - e)
    W += (W @ side).sign()[:, None] * side  # no row is near the border
    mi = code_information(W.to(dtype), c, e, plus, minus, 1e-4)
    assert saturation(mi) == 1.0
    for p in (1, 2, 5, 8):
        assert (normalise(mi, "zscore", power=p) - 0.5**p).abs().max() <= 1e-6
        # the mean's rounding, divided by 1e-8, would show from the ninth digit on
        assert (normalise(mi, "zscore", power=p) - 0.5**p).abs().max() <= 1e-12
    one_lost = mi.clone()
    one_lost[0] = 0.192745
    assert (normalise(one_lost, "zscore", power=1)[1:] - 0.5).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["zscore", "max", "unit"])
@pytest.mark.parametrize("p", [2, 5])
def test_power_acts_on_the_mask_and_more_information_never_masks_less(how: str, p: int) -> None:
    """1.11-10."""
    mi = information()
    mask = normalise(mi, how, power=p)
    assert torch.allclose(mask, normalise(mi, how) ** p, rtol=0, atol=1e-12)
    order = mi.argsort(0)
    assert bool((mask.gather(0, order).diff(dim=0) >= 0).all())
    assert bool((mask >= 0).all())
    assert float(mask.max()) <= 1
    assert float(mask.std(0).min()) > 1e-4  # and it does tell channels apart


def test_zscore_mask_is_that_of_its_definition() -> None:
    """1.11-10."""
    mi = information(7, 1)[:, 0]
    zeta = (mi - mi.mean()) / (mi.std(correction=1) + 1e-8)
    assert (normalise(mi[:, None], "zscore", power=2)[:, 0] - torch.sigmoid(zeta / 0.7) ** 2).abs().max() <= 1e-12


def test_masks_do_not_see_row_lengths_and_follow_the_channels() -> None:
    """1.11-10."""
    W, c, e, plus, minus = setting(40, 3)
    mask = normalise(code_information(W, c, e, plus, minus, 1.5), "zscore", power=2)
    scaled = torch.logspace(-2, 2, 40, dtype=torch.float64)[:, None] * W
    assert torch.equal(code_information(scaled, c, e, plus, minus, 1.5), code_information(W, c, e, plus, minus, 1.5))
    turn = torch.arange(40).roll(7)
    moved = normalise(code_information(W[turn], c, e, plus, minus, 1.5), "zscore", power=2)
    assert torch.allclose(moved, mask[turn], rtol=0, atol=1e-14)
    assert not torch.equal(code_information(-W, c, e, plus, minus, 1.5), code_information(W, c, e, plus, minus, 1.5))


def test_masks_turn_with_the_text_basis() -> None:
    """1.11-25."""
    W, c, e, plus, minus = setting(40, 3)
    Q = torch.linalg.qr(randn(D, D, seed=5))[0]
    turned = code_information(W @ Q, c @ Q, e @ Q, plus @ Q, minus @ Q, 1.5)
    assert torch.equal(turned, code_information(W, c, e, plus, minus, 1.5))
    assert not torch.equal(code_information(W @ Q, c, e, plus, minus, 1.5), turned)


def test_neutral_texts_may_differ_by_draw_and_by_concept() -> None:
    W, c, e, plus, minus = setting(40, 3)
    same = code_information(W, c, e.expand(5, D), plus, minus, 1.5)
    assert torch.equal(same, code_information(W, c, e, plus, minus, 1.5))
    guides = randn(3, 1, D, seed=8)
    each = torch.cat([code_information(W, c[k : k + 1], guides[k, 0], plus[k : k + 1], minus[k : k + 1], 1.5)
                      for k in range(3)], 1)  # fmt: skip
    assert torch.equal(code_information(W, c, guides, plus, minus, 1.5), each)


def test_population_information_is_even_and_runs_from_zero_to_ln_two() -> None:
    """1.11-11."""
    W, c, e, _, _ = setting(40, 3)
    W[0] -= (W[0] @ (c[0] - e)) / ((c[0] - e) @ (c[0] - e)) * (c[0] - e)
    assert float(population_information(W, c, e, 0.5)[0, 0]) <= 1e-15
    gap = (W @ (c - e).T).abs() / torch.linalg.norm(W, dim=1)[:, None]  # (o, m)
    far = gap / 0.01 > 20
    assert bool(far.any())
    assert (population_information(W, c, e, 0.01)[far] - LN2).abs().max() <= 1e-12
    mirrored = population_information(W, 2 * e - c, e, 0.5)
    assert torch.allclose(mirrored, population_information(W, c, e, 0.5), rtol=0, atol=1e-12)
    near, wide = population_information(W, c, e, 0.5)[1:], population_information(W, c, e, 1.0)[1:]
    assert bool((near >= wide).all())  # noise hides
    assert float((near - wide).max()) > 0.1


def test_many_draws_reach_the_population() -> None:
    """1.11-11."""
    W, c, e, _, _ = setting(7, 2)
    plus, minus = randn(7, 2, 20_000, seed=3), randn(7, 2, 20_000, seed=4)
    sampled = rowwise_information(W, c, e, plus, minus, 1.0)
    assert (sampled - population_information(W, c, e, 1.0)).abs().max() <= 0.01
    assert (sampled - population_information(W, c, e, 1.3)).abs().max() > 0.02


def test_population_of_several_neutrals_is_the_limit_of_draws_in_turn() -> None:
    """1.11-11, for neutral texts in turn."""
    W, c, _, _, _ = setting(7, 2)
    neutral, n = randn(3, D, seed=6), 30_000
    plus, minus = randn(2, n, D, seed=3), randn(2, n, D, seed=4)
    sampled = code_information(W, c, neutral.repeat(n // 3, 1), plus, minus, 1.0)
    exact = population_information(W, c, neutral, 1.0)
    assert (sampled - exact).abs().max() <= 0.01
    assert (population_information(W, c, neutral[0], 1.0) - exact).abs().max() > 0.02
    alone = population_information(W, c, neutral[:1], 1.0)
    assert torch.allclose(alone, population_information(W, c, neutral[0], 1.0), rtol=0, atol=1e-12)


def test_scalar_draws_have_the_law_of_full_draws() -> None:
    """1.11-11."""
    (W, c, e, _, _), repeats = setting(40, 1), 2_000
    many = c.expand(repeats, D)
    full = code_information(W, many, e, randn(repeats, 5, D, seed=1), randn(repeats, 5, D, seed=2), 2.0)
    draws = randn(2, 40, repeats, 5, seed=3)
    scalar = rowwise_information(W, many, e, draws[0], draws[1], 2.0)
    assert abs(float(full.mean() - scalar.mean())) <= 0.01
    assert (full.mean(1) - scalar.mean(1)).abs().max() <= 0.04  # 4 standard errors of a row
    louder = rowwise_information(W, many, e, draws[0], draws[1], 1.0)
    assert abs(float(full.mean() - louder.mean())) > 0.05


def test_largest_channel_of_a_matrix_gets_one() -> None:
    """1.11-12."""
    assert float(normalise(information(), "max").max()) == 1.0
    saturated = torch.full((40, 3), LN2, dtype=torch.float64)
    assert (normalise(saturated, "max") - 1).abs().max() <= 1e-7
    assert saturation(saturated) == 1.0
    assert saturation(information()) < 0.9
    assert torch.equal(normalise(torch.zeros(4, 2), "max"), torch.zeros(4, 2))


def test_unit_masks_compare_between_matrices() -> None:
    mi = information()
    assert torch.allclose(normalise(mi[:5], "unit"), normalise(mi, "unit")[:5], rtol=0, atol=0)
    assert not torch.allclose(normalise(mi[:5], "zscore"), normalise(mi, "zscore")[:5])


def test_unknown_normalisation_is_named() -> None:
    with pytest.raises(ValueError, match="softmax"):
        normalise(information(), "softmax")


def test_one_concept_without_noise_has_entropy_factor_one() -> None:
    """1.11-13."""
    W, c, _, draws, _ = setting(40, 1)
    assert (entropy_factor(W, c, draws, 0.0, 20) - 1).abs().max() <= 1e-6
    assert entropy_factor(W, c, draws, 0.1, 20).max() < 0.9


def test_activations_spread_evenly_over_the_bins_have_entropy_factor_zero() -> None:
    """1.11-13."""
    bins = 20
    levels = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    levels[0], levels[-1] = 0.0, 1.0
    draws, W = levels.repeat(3)[None, :, None], torch.ones(1, 1, dtype=torch.float64)
    e = float(entropy_factor(W, torch.zeros(1, 1), draws, 1.0, bins))
    assert -1e-6 <= e <= 1e-6
    draws[0, 1] = 0.0
    assert float(entropy_factor(W, torch.zeros(1, 1), draws, 1.0, bins)) > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 10), st.integers(2, 30), st.sampled_from([1, 3, 8]))
def test_entropy_factor_is_a_share_and_sees_neither_row_length_nor_order(
    seed: int, sigma: float, bins: int, m: int
) -> None:
    """1.11-13."""
    W, c, _, draws, _ = setting(7, m, 9, seed)
    e = entropy_factor(W, c, draws, sigma, bins)
    assert bool(((e >= -1e-6) & (e <= 1)).all())
    turn = torch.arange(m).flip(0)
    assert torch.equal(entropy_factor(W, c[turn], draws[turn], sigma, bins), e)
    for factor in (4.0, 2.0**40):  # the second makes the 1e-8 beside the range vanish: the top is in the last bin
        assert (entropy_factor(factor * W, c, draws, sigma, bins) - e).abs().max() <= 1e-6


def test_entropies_turn_with_the_text_basis() -> None:
    """1.11-25."""
    W, c, _, draws, _ = setting(40, 3, 9)
    Q = torch.linalg.qr(randn(D, D, seed=5))[0]
    e = entropy_factor(W, c, draws, 1.0, 20)
    assert torch.allclose(entropy_factor(W @ Q, c @ Q, draws @ Q, 1.0, 20), e, rtol=0, atol=1e-12)
    assert not torch.allclose(entropy_factor(W @ Q, c, draws, 1.0, 20), e, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(D,), (5, D), (8, 1, D)])
@pytest.mark.parametrize(("sigma", "least", "most"), [(1e-4, 0.1, 1.0), (0.02, 0.1, 0.99), (1.5, 0.0, 0.3)])
def test_what_the_lengths_of_draws_settle_is_what_all_activations_say(
    shape: tuple[int, ...], sigma: float, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.11-8: no activation is left out that could change a count."""
    W, c, _, plus, minus = setting(40, 8)
    side = (c[0] - c[1:]).sum(0)
    W += 3 * (W @ side).sign()[:, None] * side / side.norm()
    W[7] = 0  # every activation is equal: nothing fires
    neutral = randn(*shape, seed=9)
    positive = (c[:, None] + sigma * plus) @ W.T  # (m, n, o)
    negative = (neutral + sigma * minus) @ W.T
    every = sample_information(positive.movedim(-1, 0), negative.movedim(-1, 0))
    assert torch.equal(code_information(W, c, neutral, plus, minus, sigma), every)
    monkeypatch.setattr(module, "FEW", 1.0)  # products with single rows also where they are many
    assert torch.equal(code_information(W, c, neutral, plus, minus, sigma), every)
    over, under = module._separated(W, c, neutral, sigma * plus, sigma * minus)
    settled = (over | under)[torch.arange(40) != 7]
    assert least <= float(settled.double().mean()) <= most
    assert not bool((over | under)[7].any())
    n11, n10 = fired(torch.cat([positive, negative], 1).movedim(1, -1), 5)  # (m, o)
    assert bool((n11.T[over] == 5).all())
    assert bool((n10.T[under] == 5).all())


def test_unequal_numbers_of_draws_are_never_settled_by_length() -> None:
    W, c, e, plus, minus = setting(40, 3)
    over, under = module._separated(W, c, e, 1e-9 * plus, 1e-9 * minus[:, :4])
    assert not bool((over | under).any())
    wanted = sample_information(
        ((c[:, None] + 1e-9 * plus) @ W.T).movedim(-1, 0), ((e + 1e-9 * minus[:, :4]) @ W.T).movedim(-1, 0)
    )
    assert torch.equal(code_information(W, c, e, plus, minus[:, :4], 1e-9), wanted)


def test_every_kind_of_draws_takes_several_neutral_texts_in_turn_or_one_a_concept() -> None:
    W, c, _, plus, minus = setting(40, 3)
    neutral = randn(2, D, seed=8)
    turn = neutral[torch.tensor([0, 1, 0, 1, 0])]
    full = module.information(W, c, neutral, 1.5, (plus, minus))
    assert torch.equal(full, code_information(W, c, turn, plus, minus, 1.5))
    assert not torch.equal(full, code_information(W, c, neutral[0], plus, minus, 1.5))
    scalar = randn(2, 3, 40, 5, seed=4)  # (side, m, o, n)
    found = module.information(W, c, neutral, 1.5, (scalar[0], scalar[1]), rowwise=True)
    sides = [x.movedim(0, 1) for x in scalar]
    assert torch.equal(found, rowwise_information(W, c, turn, sides[0], sides[1], 1.5))
    each = randn(3, 1, D, seed=8)
    for k in range(3):
        one = [x[:, k : k + 1] for x in sides]
        alone = rowwise_information(W, c[k : k + 1], each[k, 0], one[0], one[1], 1.5)
        assert torch.equal(rowwise_information(W, c, each, sides[0], sides[1], 1.5)[:, k : k + 1], alone)
        alone = population_information(W, c[k : k + 1], each[k, 0], 1.5)
        assert torch.allclose(module.information(W, c, each, 1.5, None)[:, k : k + 1], alone, rtol=0, atol=1e-12)


def test_entropy_factors_do_not_hang_on_how_many_rows_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    W, c, _, draws, _ = setting(40, 3, 9)
    whole = entropy_factor(W, c, draws, 1.0, 20)
    monkeypatch.setattr(module, "BLOCK", 27 * 3)
    assert torch.allclose(entropy_factor(W, c, draws, 1.0, 20), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [2, 9])
def test_draws_take_neutral_rows_from_the_whole_list(rows: int) -> None:
    """1.11-23: five draws of nine rows are not the first five, and two rows serve all five."""
    W, C, _, positive, negative = setting(40, 3)
    neutral = randn(rows, D, seed=77)
    which = [0, 1, 0, 1, 0] if rows == 2 else [0, 1, 3, 5, 7]
    found = module.information(W, C, neutral, 1.5, (positive, negative))
    assert torch.equal(found, code_information(W, C, neutral[which], positive, negative, 1.5))
    assert not torch.equal(found, code_information(W, C, neutral[[0] * 5], positive, negative, 1.5))
