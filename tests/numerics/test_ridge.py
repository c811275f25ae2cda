"""Laws of the ridge operator and of UCE's closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from efface.numerics.ridge import Ridge, kept_blocks, ridge_operator, tensor_delta, tensor_targets

D = 40


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=gen(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))


def problem(n: int, erased: int, seed: int = 0, d: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """rows, guides (n, d) with the first `erased` moved, weights (n,) between 0.5 and 1.5."""
    X, G = randn(n, d, seed=seed), randn(n, d, seed=seed + 1)
    G[erased:] = X[erased:]
    return X, G, 0.5 + torch.rand(n, dtype=torch.float64, generator=gen(seed + 2))


def definition(X: Tensor, G: Tensor, a: Tensor, lam: float) -> Tensor:
    """S by the formula, d x d."""
    left = (G - X).T @ (a[:, None] * X)
    gram = lam * torch.eye(X.shape[1], dtype=torch.float64) + X.T @ (a[:, None] * X)
    return torch.linalg.solve(gram, left.T).T


def rotation(d: int, seed: int = 9) -> Tensor:
    return torch.linalg.qr(randn(d, d, seed=seed))[0]


@pytest.mark.parametrize("n", [3, 12, 70])
@pytest.mark.parametrize("lam", [0.01, 0.5, 10.0])
def test_both_sizes_of_system_equal_the_definition(n: int, lam: float) -> None:
    """2.P-1."""
    X, G, a = problem(n, min(n, 5))
    S = ridge_operator(X, G, a, lam).operator()
    assert relative(S, definition(X, G, a, lam)) <= 1e-11
    assert relative(S, definition(X, G, a, 1.01 * lam)) > 1e-6


def test_concepts_added_and_dropped_equal_the_joint_solve() -> None:
    """2.P-2."""
    X, G, a = problem(12, 6)
    erased, kept = slice(0, 6), slice(6, 12)
    full = kept_blocks(X[kept], a[kept], 0.3).add(X[erased], G[erased], a[erased])
    left, right = full.factors()
    assert relative(left @ right.T, ridge_operator(X, G, a, 0.3).operator()) <= 1e-11
    gone = torch.tensor([False, True, False, False, True, False])
    left, right = full.drop(gone).factors()
    stay = torch.cat([~gone, torch.ones(6, dtype=torch.bool)])
    assert relative(left @ right.T, ridge_operator(X[stay], G[stay], a[stay], 0.3).operator()) <= 1e-11


def test_adding_then_dropping_a_concept_returns_the_first_factors() -> None:
    """2.P-2."""
    X, G, a = problem(12, 6)
    first = kept_blocks(X[6:], a[6:], 0.3).add(X[:4], G[:4], a[:4])
    both = first.add(X[4:6], G[4:6], a[4:6])
    again = both.drop(torch.arange(6) >= 4)
    for found, wanted in zip(again.factors(), first.factors(), strict=True):
        assert relative(found, wanted) <= 1e-10
    assert relative(both.factors()[1][:, :4], first.factors()[1]) > 1e-3  # the others did move meanwhile


def test_rank_is_at_most_the_number_of_moved_rows() -> None:
    """2.P-3."""
    X, G, a = problem(20, 6)
    G[5] = X[5]
    ridge = ridge_operator(X, G, a, 0.5)
    assert int(torch.linalg.matrix_rank(ridge.operator(), rtol=1e-10)) == 5
    assert ridge.left.shape == ridge.right.shape == (D, 5)


def test_without_erased_rows_nothing_moves() -> None:
    """2.P-3, 3.P-4."""
    X, _, a = problem(8, 0)
    ridge = ridge_operator(X, X, a, 0.5)
    assert ridge.left.shape == (D, 0)
    assert torch.equal(ridge.operator(), torch.zeros(D, D, dtype=torch.float64))
    assert ridge_operator(X, X + 1e-6, a, 0.5).operator().norm() > 0


def test_only_ratios_of_weights_and_ridge_matter() -> None:
    """2.P-4."""
    X, G, a = problem(12, 5)
    S = ridge_operator(X, G, a, 0.5).operator()
    assert relative(ridge_operator(X, G, 7 * a, 3.5).operator(), S) <= 1e-12
    assert relative(ridge_operator(X, G, 7 * a, 0.5).operator(), S) > 1e-3


def test_large_ridge_leaves_the_weight_like_one_over_lam() -> None:
    """2.P-4."""
    X, G, a = problem(12, 5)
    S = {lam: ridge_operator(X, G, a, lam).operator() for lam in (1e8, 1e9)}
    assert relative(10 * S[1e9], S[1e8]) <= 1e-5
    assert S[1e9].norm() < 1e-5


@pytest.mark.parametrize("n", [12, 70])
def test_directions_orthogonal_to_all_rows_do_not_move(n: int) -> None:
    """2.P-4."""
    X, G, a = problem(n, 5)
    X[:, D // 2 :] = 0
    G[5:] = X[5:]
    S = ridge_operator(X, G, a, 0.5).operator()
    e = randn(D, seed=5)
    e[: D // 2] = 0
    assert (S @ e).norm() <= 1e-13 * e.norm()
    e[0] = 1
    assert (S @ e).norm() > 1e-4


@pytest.mark.parametrize("n", [12, 70])
def test_gradient_of_the_objective_vanishes(n: int) -> None:
    """2.P-5."""
    X, G, a = problem(n, 6)
    W = randn(10, D, seed=4)
    for lam, solved in ((0.5, True), (0.55, False)):
        new = (W + ridge_operator(X, G, a, lam).delta(W)).requires_grad_()
        loss = (a[:, None] * (X @ new.T - G @ W.T) ** 2).sum() + 0.5 * ((new - W) ** 2).sum()
        (slope,) = torch.autograd.grad(loss, new)
        size = torch.linalg.norm((a[:, None] * (G @ W.T)).T @ X)
        assert (slope.norm() <= 1e-10 * size) == solved


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(14)))
def test_order_of_constraints_does_not_matter_to_the_bit(order: list[int]) -> None:
    """2.P-6."""
    X, G, a = problem(14, 6)
    G[4], X[4], a[4] = G[3], X[3], a[3]  # a concept listed twice
    one, other = ridge_operator(X, G, a, 0.5), ridge_operator(X[order], G[order], a[order], 0.5)
    assert torch.equal(one.left, other.left)
    assert torch.equal(one.right, other.right)
    for ridge, rows, guides in ((one, X, G), (other, X[order], G[order])):
        assert torch.equal(ridge.left.T, (guides - rows)[ridge.index])


@pytest.mark.parametrize("row", [1, 9])
def test_weight_two_equals_the_row_twice(row: int) -> None:
    """2.P-6, 3.P-9."""
    X, G, a = problem(12, 5)
    again = [*range(12), row]
    split = a[again].clone()
    split[row] = split[-1] = a[row] / 2
    assert (
        relative(ridge_operator(X[again], G[again], split, 0.5).operator(), ridge_operator(X, G, a, 0.5).operator())
        <= 1e-12
    )


def test_doubled_erase_scale_equals_every_concept_twice() -> None:
    """3.P-9."""
    X, G, a = problem(12, 5)
    twice, doubled = [*range(5), *range(12)], a.clone()
    doubled[:5] *= 2
    S = ridge_operator(X, G, doubled, 0.5).operator()
    assert relative(ridge_operator(X[twice], G[twice], a[twice], 0.5).operator(), S) <= 1e-12
    assert relative(ridge_operator(X, G, a, 0.5).operator(), S) > 1e-3


@pytest.mark.parametrize("n", [12, 70])
def test_operator_turns_with_the_text_basis(n: int) -> None:
    """2.P-7."""
    (X, G, a), Q = problem(n, 5), rotation(D)
    S = ridge_operator(X, G, a, 0.5).operator()
    assert relative(ridge_operator(X @ Q.T, G @ Q.T, a, 0.5).operator(), Q @ S @ Q.T) <= 1e-11


def test_operators_add_up_only_for_orthogonal_groups() -> None:
    """2.P-8."""
    X, G, a = problem(12, 6)
    groups = torch.arange(12) % 2 == 0
    apart = X.clone()
    apart[groups, D // 2 :] = 0
    apart[~groups, : D // 2] = 0
    moved = torch.arange(12) < 6
    for rows, additive in ((apart, True), (X, False)):
        guides = torch.where(moved[:, None], G, rows)
        joint = ridge_operator(rows, guides, a, 0.5).operator()
        total = torch.zeros_like(joint)
        for group in (groups, ~groups):
            pick = group | ~moved  # one group's concepts and all kept rows
            total += ridge_operator(rows[pick], guides[pick], a[pick], 0.5).operator()
        error = relative(total, joint)
        assert error <= 1e-11 if additive else error > 1e-3


@pytest.mark.parametrize(("n", "erased"), [(12, 6), (70, 6), (70, 60)])
def test_reported_residual_and_condition_are_those_of_the_factors(n: int, erased: int) -> None:
    """2.P-10."""
    X, G, a = problem(n, erased)
    ridge = ridge_operator(X, G, a, 0.5)
    gram = X.T @ (a[:, None] * X) + 0.5 * torch.eye(D, dtype=torch.float64)
    assert ridge.condition == pytest.approx(float(torch.linalg.cond(gram)), rel=1e-9)
    wanted = (G - X).T @ (a[:, None] * X)
    assert abs(ridge.residual - relative(ridge.operator() @ gram, wanted)) <= 1e-14
    assert ridge.residual < 1e-12
    assert ridge.solver == "cholesky"


class Largest(TorchDispatchMode):
    """Sees the size of every tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            self.size = max(self.size, one.numel()) if isinstance(one, Tensor) else self.size
        return out


@pytest.mark.parametrize("erased", [5, 900])
def test_memory_grows_with_the_rows_and_not_with_their_square(erased: int) -> None:
    """Many texts of many rows are more constraints than directions."""
    X, G, a = problem(1000, erased)
    with Largest() as largest:
        ridge = ridge_operator(X, G, a, 0.5)
    assert 1000 * D <= largest.size <= 1000 * (2 * D + 2)
    assert ridge.thin == (erased <= D)
    assert relative(ridge.operator(), definition(X, G, a, 0.5)) <= 1e-11


def known_spectrum(n: int, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, V = torch.linalg.qr(randn(n, len(s)))[0], torch.linalg.qr(randn(D, len(s), seed=1))[0]
    return U, V, (U * s) @ V.T


def test_singular_values_take_over_when_the_gram_matrix_has_lost_its_digits() -> None:
    """2.P-10, section 2.3: the fallback sees cond(X), not its square."""
    s = torch.logspace(0, -6, 12, dtype=torch.float64)
    U, V, X = known_spectrum(12, s)
    G, lam = randn(12, D, seed=3), 1e-14
    ridge = ridge_operator(X, G, torch.ones(12), lam)
    exact = ((G - X).T @ U * (s / (s**2 + lam))) @ V.T
    assert ridge.solver == "svd"
    assert ridge.condition > 1e10
    assert relative(ridge.operator(), exact) <= 1e-8
    assert relative(definition(X, G, torch.ones(12, dtype=torch.float64), lam), exact) > 1e-7


@pytest.mark.parametrize("n", [12, 70])
def test_no_ridge_gives_the_minimum_norm_solution(n: int) -> None:
    """2.P-10, section 2.3."""
    _, _, X = known_spectrum(n, torch.linspace(1, 2, 8, dtype=torch.float64))
    G = randn(n, D, seed=3)
    S = ridge_operator(X, G, torch.ones(n), 0.0).operator()
    assert relative(S, (G - X).T @ torch.linalg.pinv(X.T, rtol=1e-10)) <= 1e-9


def test_one_concept_moves_along_the_line_to_its_guide() -> None:
    """3.P-2."""
    c, g, W, lam, scale = randn(D), randn(D, seed=1), randn(6, D, seed=2), 0.7, 1.3
    new = W + ridge_operator(c[None], g[None], torch.tensor([scale]), lam).delta(W)
    scale = float(torch.tensor(scale))  # as it was given, in float32
    s = scale * c @ c / (lam + scale * c @ c)
    assert relative(new @ c, (1 - s) * W @ c + s * W @ g) <= 1e-12


def test_vanishing_ridge_meets_all_independent_constraints() -> None:
    """3.P-3."""
    X, G, a = problem(12, 6)
    W = randn(6, D, seed=4)
    for lam, met in ((1e-12, True), (1.0, False)):
        new = W + ridge_operator(X, G, a, lam).delta(W)
        assert (relative(X[:6] @ new.T, G[:6] @ W.T) <= 1e-6) == met
        assert (relative(X[6:] @ new.T, X[6:] @ W.T) <= 1e-6) == met


def test_text_both_erased_and_kept_goes_to_the_weighted_mean() -> None:
    """3.P-8."""
    c, g, W = randn(D), randn(D, seed=1), randn(6, D, seed=2)
    a = torch.tensor([2.0, 0.5], dtype=torch.float64)
    new = W + ridge_operator(torch.stack([c, c]), torch.stack([g, c]), a, 1e-9).delta(W)
    assert relative(new @ c, (2.0 * W @ g + 0.5 * W @ c) / 2.5) <= 1e-6


def blocks(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two concepts of 4 and 3 rows, five kept rows."""
    X, G, a = problem(12, 7, seed)
    return X, G, a, torch.tensor([0] * 4 + [1] * 3 + [-1] * 5)


def test_tensor_target_is_orthogonal_to_the_block_and_solves_its_ridge() -> None:
    """3.P-7, 1.11-21, section 3.5."""
    (X, G, a, group), W = blocks(), randn(6, D, seed=4)
    outputs, guided = X[:7] @ W.T, G[:7] @ W.T
    target, _ = tensor_targets(outputs, guided, group[:7])
    for k in (0, 1):
        own, v, n = (t[group[:7] == k] for t in (outputs, target, guided))
        assert abs(float((own * v).sum())) <= 1e-12 * own.norm() * v.norm()
        assert abs(float((own * n).sum())) > 1e-3 * own.norm() * n.norm()  # it was not before
    ridge = ridge_operator(X, G, a, 0.5, erased=group >= 0)
    new = W + tensor_delta(W, ridge, X, G, group)
    goal = torch.cat([target, X[7:] @ W.T])  # (n, o)
    slope = 0.5 * (new - W) + (a[:, None] * (X @ new.T - goal)).T @ X
    assert slope.norm() <= 1e-10 * torch.linalg.norm((a[:, None] * goal).T @ X)
    assert relative(tensor_delta(W, ridge, X, G, group), ridge.delta(W)) > 1e-2


def test_replace_and_tensor_agree_when_guide_outputs_are_orthogonal_as_blocks() -> None:
    """3.P-7."""
    (X, G, a, group), W = blocks(), randn(6, D, seed=4)
    for k in (0, 1):
        pick = group == k
        own, guided = X[pick] @ W.T, G[pick] @ W.T
        G[pick] -= (own * guided).sum() / (own * own).sum() * X[pick]
    ridge = ridge_operator(X, G, a, 0.5, erased=group >= 0)
    assert relative(tensor_delta(W, ridge, X, G, group), ridge.delta(W)) <= 1e-12


def test_tensor_refuses_a_guide_that_is_its_concept() -> None:
    """1.11-21."""
    (X, G, a, group), W = blocks(), randn(6, D, seed=4)
    G[:4] = X[:4]
    ridge = ridge_operator(X, G, a, 0.5, erased=group >= 0)
    with pytest.raises(ValueError, match="zero target"):
        tensor_delta(W, ridge, X, G, group)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda X, G, a: (X, G[:, :-1], a, 0.5), "rows, guides and weights"),
        (lambda X, G, a: (X, G, -a, 0.5), "not negative"),
        (lambda X, G, a: (X * float("nan"), G, a, 0.5), "finite"),
        (lambda X, G, a: (X, G, a, -0.5), "lam"),
    ],
)
def test_impossible_input_is_refused_by_name(change, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ridge_operator(*change(*problem(6, 3)))


def test_result_is_frozen() -> None:
    ridge = ridge_operator(*problem(6, 3), 0.5)
    assert isinstance(ridge, Ridge)
    with pytest.raises(AttributeError):
        ridge.condition = 1.0  # type: ignore[misc]
