"""Numbers about an edit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efface.numerics.effects import effects, power_of_ten, short
from efface.numerics.rows import Spans


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_nothing_moved_leaves_all_outputs_and_a_perfect_edit_no_error() -> None:
    W0, concepts, goals, empty = (randn(*s, seed=i) for i, s in enumerate([(7, 5), (2, 5), (2, 5), (4, 5)]))
    still = effects(W0, W0, concepts, goals, empty, Spans.of(0, 4))
    assert still["concept_output"] == 1
    assert [still[k] for k in still if k.endswith("change")] == [0, 0, 0, 0]
    assert still["target_error"] > 0.1
    # a weight that sends the concepts exactly to their goals
    move = torch.linalg.pinv(concepts) @ ((goals - concepts) @ W0.T)  # (d, o)
    moved = effects(W0 + move.T, W0, concepts, goals, empty, Spans.of(0, 4))
    assert moved["target_error"] <= 1e-12
    for i, name in enumerate(("empty_bos_change", "empty_text_change")):
        assert moved[name] == pytest.approx(float((empty[i] @ move).norm() / (W0 @ empty[i]).norm()), rel=1e-5)
    padding = float((empty[2:] @ move).norm() / (empty[2:] @ W0.T).norm())
    assert moved["empty_padding_change"] == pytest.approx(padding, rel=1e-5)
    assert moved["relative_change"] == pytest.approx(float(move.norm() / W0.norm()), rel=1e-5)


def test_long_padding_is_looked_at_in_eight_rows_evenly_spread() -> None:
    W0, W, rows, empty = randn(7, 5), randn(7, 5, seed=1), randn(2, 5, seed=2), randn(77, 5, seed=3)
    some = empty[[2, 11, 20, 30, 39, 48, 58, 67]]
    found = effects(W, W0, rows, rows, empty, Spans.of(0, 77))["empty_padding_change"]
    assert found == pytest.approx(float((some @ (W - W0).T).norm() / (some @ W0.T).norm()), rel=1e-5)


def test_what_there_is_nothing_to_compare_with_is_zero() -> None:
    zero, rows = torch.zeros(7, 5, dtype=torch.float64), randn(2, 5)
    assert set(effects(zero, zero, rows, rows, rows, Spans.of(0, 2)).values()) == {0.0}


def test_a_text_without_start_rows_has_no_start_that_moves() -> None:
    W0, W, rows, empty = randn(7, 5), randn(7, 5, seed=1), randn(2, 5, seed=2), randn(4, 5, seed=3)
    found = effects(W, W0, rows, rows, empty, Spans.of(0, 4, start=0))
    assert found["empty_bos_change"] == 0
    end = (empty[:1] @ (W - W0).T).norm() / (empty[:1] @ W0.T).norm()
    assert found["empty_text_change"] == pytest.approx(float(end), rel=1e-5)


def test_rounding_for_the_recipe() -> None:
    assert short(1 / 3) == 0.333333
    assert [power_of_ten(v) for v in (2e-15, 1e-12, 3e-7, 0.0)] == [1e-14, 1e-12, 1e-6, 1e-16]
