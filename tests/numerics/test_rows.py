"""Laws of the rules that pick token rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efface.numerics.ridge import ridge_operator
from efface.numerics.rows import (
    Spans,
    aligned_guide_index,
    end_row,
    last_row,
    paired_rows,
    tail_pairs,
    without_start,
)

L = 77
counts = st.integers(0, 5)


def text(length: int = L) -> Tensor:
    """Row i holds the number i."""
    return torch.arange(length, dtype=torch.float64)[:, None].expand(length, 3)


def numbers(rows: Tensor) -> list[int]:
    return rows[:, 0].int().tolist()


def clip(content: int, length: int = L) -> Spans:
    return Spans.of(content, length)


@given(counts)
def test_each_rule_takes_the_rows_it_names(n: int) -> None:
    assert numbers(last_row(text(), clip(n))) == [n]  # for an empty text that is BOS
    assert numbers(without_start(text(), clip(n))) == list(range(1, L))
    assert numbers(end_row(text(), clip(n))) == [n + 1]


@given(counts)
def test_the_parts_of_a_text_follow_each_other_and_fill_the_window(n: int) -> None:
    for start in (0, 1):
        spans = Spans.of(n, L, start)
        parts = (spans.start, spans.content, spans.end, spans.padding)
        assert [row for part in parts for row in range(*part)] == list(range(L))
        assert (spans.size, spans.end[0]) == (n, start + n)


def test_encoders_without_bos_start_at_row_zero() -> None:
    assert [Spans.of(n, L, start=0).last for n in (0, 1, 3)] == [0, 0, 2]
    assert numbers(last_row(text(), Spans.of(2, L, start=0))) == [1]
    assert numbers(without_start(text(), Spans.of(2, L, start=0))) == list(range(L))


@given(st.integers(1, 5), counts)
def test_without_bos_guides_have_the_role_of_their_row(n_o: int, n_g: int) -> None:
    spans, guide = (Spans.of(n, L, start=0) for n in (n_o, n_g))
    index = aligned_guide_index(L, spans, guide).tolist()  # index[i] belongs to row i
    assert index[n_o] == n_g  # the end to the end
    assert index[:n_o] == [min(i, n_g - 1) if n_g else 0 for i in range(n_o)]
    X, G, goal = paired_rows("content", text(), spans, text(), guide)
    assert numbers(X) == list(range(n_o))
    assert int(goal[0]) == numbers(G)[-1] == index[n_o - 1]


@given(counts, counts)
def test_tail_slices_are_equal_and_start_at_each_texts_last_content_row(n_o: int, n_g: int) -> None:
    """3.P-6."""
    X, G = tail_pairs(text(), clip(n_o), text(), clip(n_g))
    far = max(n_o, n_g)
    assert numbers(X) == list(range(n_o, L - (far - n_o)))
    assert numbers(G) == list(range(n_g, L - (far - n_g)))
    assert len(X) == len(G) == L - far


@pytest.mark.parametrize(("n_o", "n_g"), [(1, 0), (3, 1), (1, 2)])
def test_first_row_of_the_tail_rule_is_the_last_row_rule(n_o: int, n_g: int) -> None:
    """3.P-5."""
    E, F = torch.randn(2, L, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    X, G = tail_pairs(E, clip(n_o), F, clip(n_g))
    one, last = torch.ones(1), (last_row(E, clip(n_o)), last_row(F, clip(n_g)))
    S = ridge_operator(*last, one, 0.5).operator()
    assert torch.linalg.norm(ridge_operator(X[:1], G[:1], one, 0.5).operator() - S) <= 1e-12 * S.norm()
    assert torch.linalg.norm(ridge_operator(X, G, torch.ones(len(X)), 0.5).operator() - S) > 1e-3 * S.norm()


@given(counts, counts)
def test_aligned_guides_have_the_role_of_their_row(n_o: int, n_g: int) -> None:
    index = aligned_guide_index(L, clip(n_o), clip(n_g)).tolist()  # index[i - 1] belongs to row i
    assert len(index) == L - 1
    assert index[n_o] == n_g + 1  # EOS to EOS
    assert all(1 <= g < L for g in index)  # BOS is no guide
    if n_g:
        assert index[:n_o] == [min(i, n_g) for i in range(1, n_o + 1)]
    else:
        assert index[:n_o] == [1] * n_o
    assert index[n_o:] == sorted(index[n_o:])


@pytest.mark.parametrize("call", [lambda: last_row(text(), clip(L)), lambda: clip(-1)])
def test_counts_past_the_text_are_refused(call) -> None:
    with pytest.raises(ValueError, match=r"content|end"):
        call()


def test_texts_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        tail_pairs(text(), clip(1), text(24), clip(1, 24))


@given(st.integers(1, 5), counts)
def test_pairs_of_every_kind_name_the_guide_row_of_the_last_content_token(n: int, n_g: int) -> None:
    guide = text() + 1000
    for kind, first, length in (("last", n, 1), ("content", 1, n), ("content-to-end", 1, L - 1)):
        X, G, goal = paired_rows(kind, text(), clip(n), guide, clip(n_g))
        assert (numbers(X)[0], len(X), len(G)) == (first, length, length)
        assert int(goal[0]) == numbers(G)[n - first]
    X, G, goal = paired_rows("tail", text(), clip(n), guide, clip(n_g))
    assert (numbers(X), numbers(G)) == tuple(numbers(t) for t in tail_pairs(text(), clip(n), guide, clip(n_g)))
    assert int(goal[0]) == numbers(G)[0] == 1000 + n_g
    with pytest.raises(ValueError, match="tails"):
        paired_rows("tails", text(), clip(n), guide, clip(n_g))
