"""Saliency of single weights: what FIA's equations promise (docs/methods/fia.md)."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from typing import Literal

import pytest
import torch
from torch import Tensor

from efface.numerics.saliency import (
    Moments,
    Sensitivity,
    column_norms,
    contrast,
    cosine_energy,
    fuse,
    kth_largest,
    moments,
    ratio,
    select,
    share,
    spared_from,
    weighted,
)

OUT, D, N, T, P = 7, 12, 50, 4, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W (o, d), X (n, d), Y (n, o)."""
    W, X = drawn(OUT, D, seed=seed), drawn(N, D, seed=seed + 100)
    return W, X, X @ W.T


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


def sensitivity(steps: Tensor, r1: float = 0.1, at: bool = False) -> Sensitivity:
    """All steps of S (t, o, d)."""
    sums = Sensitivity.empty(steps[0])
    for S in steps:
        sums.add(S, r1, at)
    return sums


def surpluses(seed: int = 3) -> Tensor:
    """S of T steps, positive, without ties (t, o, d)."""
    return drawn(T, OUT, D, seed=seed).abs()


# --- Eq. 1 ---------------------------------------------------------------------------------------------------------


def loop(W: Tensor, X: Tensor, eps: float) -> Tensor:
    """Eq. 1 as it is written."""
    Y, U = X @ W.T, torch.zeros(OUT, D, dtype=torch.float64)
    for o in range(OUT):
        for j in range(D):
            nx, ny = X[:, j].norm(), Y[:, o].norm()
            U[o, j] = W[o, j].abs() * nx * (X[:, j] @ Y[:, o]).abs() / (nx * ny + eps)
    return U


def test_one_product_is_the_equation() -> None:
    """2.9-1. Also from the Gram matrix alone."""
    W, X, Y = layer()
    close(W.abs() * cosine_energy(X, Y, eps=0.0), loop(W, X, 0.0), 1e-12)
    close(W.abs() * cosine_energy(X, Y), loop(W, X, 1e-8), 1e-12)
    close(W.abs() * cosine_energy(X, Y), loop(W, X, 0.0), 1e-9)
    G = X.T @ X  # (d, d)
    close(W.abs() * (W @ G).abs() / (W @ G @ W.T).diagonal().sqrt()[:, None], loop(W, X, 0.0), 1e-10)


def test_the_cosine_factor_is_not_one() -> None:
    """The released code drops it; on random rows it is far from 1, row-normalised or not."""
    _, X, Y = layer()
    rows = X / X.norm(dim=1, keepdim=True)
    W = drawn(OUT, D)
    for inputs, outputs in ((X, Y), (rows, rows @ W.T)):
        cosine = cosine_energy(inputs, outputs) / inputs.norm(dim=0)
        assert 0.1 < float(cosine.mean()) < 0.5


def test_outputs_less_bias_are_those_without() -> None:
    """2.9-2. And a bias that stays in them moves the score."""
    _, X, Y = layer()
    bias = 3 * drawn(OUT, seed=9)
    close(cosine_energy(X, (Y + bias) - bias), cosine_energy(X, Y), 1e-12)
    assert float((cosine_energy(X, Y + bias) - cosine_energy(X, Y)).abs().max()) > 0.1


def test_score_lies_between_zero_and_the_column_norm() -> None:
    """2.9-3. With one input column the cosine is 1."""
    _, X, Y = layer()
    Z = cosine_energy(X, Y, eps=0.0)
    assert bool((Z >= 0).all())
    assert bool((X.norm(dim=0) * (1 + 1e-12) >= Z).all())
    one, W = drawn(N, 1), drawn(OUT, 1)
    close(cosine_energy(one, one @ W.T, eps=0.0), one.norm().expand(OUT, 1), 1e-12)


def test_order_of_rows_does_not_matter_and_scale_goes_through() -> None:
    """2.9-4."""
    _, X, Y = layer()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    close(cosine_energy(X[order], Y[order]), cosine_energy(X, Y), 1e-12)
    close(column_norms(X[order], True), column_norms(X, True), 1e-12)
    close(cosine_energy(3 * X, 3 * Y, eps=0.0), 3 * cosine_energy(X, Y, eps=0.0), 1e-12)
    lengths = drawn(N, 1, seed=4).exp()
    close(column_norms(lengths * X, True), column_norms(X, True), 1e-12)
    assert float((column_norms(lengths * X, False) - column_norms(X, False)).abs().max()) > 1e-3
    parts = [column_norms(part, True) ** 2 for part in X.split(17)]
    close(torch.stack(parts).sum(0).sqrt(), column_norms(X, True), 1e-12)


def test_column_norms_are_those_of_rows_of_length_one() -> None:
    X = drawn(N, D)
    close(column_norms(X, True), torch.nn.functional.normalize(X, dim=1).norm(dim=0), 1e-12)
    close(column_norms(X, False), X.norm(dim=0), 1e-12)
    assert column_norms(torch.zeros(3, D), True).tolist() == [0.0] * D


def test_few_rows_at_a_time_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> list[Tensor]:
        W, X, Y = layer()
        sums = sensitivity(surpluses())
        A = sums.value()
        masks = [select(A, 0.3, "row"), select(A, 0.3), select(A.round(decimals=1), 0.3, "row")]
        return [cosine_energy(X, Y), weighted(W, surpluses()[0]), sums.passed, A, *masks]

    whole = everything()
    monkeypatch.setattr("efface.numerics.saliency.ROWS", 2)  # seven rows: four parts, the last of one row
    assert all(a.equal(b) for a, b in zip(everything(), whole, strict=True))


def test_a_step_is_weighted_by_the_size_of_its_weights() -> None:
    """2.9-8."""
    W, s = layer()[0], drawn(D, seed=5).abs()
    assert weighted(W, s).equal(W.abs() * s)
    assert weighted(W, s.expand(OUT, D).clone()).equal(W.abs() * s)


# --- running sums and Eq. 2 ------------------------------------------------------------------------------------------


def joined(values: Tensor, sizes: tuple[int, ...], overwrite: bool = False) -> Moments:
    found = Moments(0, torch.zeros(()), torch.zeros(()))
    for part in values.split(list(sizes)):
        found = found.merge(moments(part), overwrite)
    return found


@pytest.mark.parametrize("values", [drawn(P, D), 1e6 + 1e-3 * drawn(P, D)], ids=["spread", "nearly constant"])
def test_any_partition_of_the_prompts_gives_the_two_pass_result(values: Tensor) -> None:
    """2.9-6."""
    spread = values.std(0, correction=0)
    for sizes in ((5,), (1, 4), (2, 1, 2), (1, 1, 1, 1, 1)):
        found = joined(values, sizes)
        assert found.count == P
        close(found.mean, values.mean(0), 1e-12)
        again = joined(values.clone(), sizes, overwrite=True)
        assert again.mean.equal(found.mean)
        assert again.m2.equal(found.m2)
        near = 1e-12 if float(values.max()) < 1e3 else 1e-5
        close((found.m2 / P).sqrt(), spread, near)
    naive = (values.float().square().mean(0) - values.float().mean(0).square()).clamp_min(0).sqrt()
    if float(values.max()) > 1e3:
        assert float((naive - spread).abs().max()) > 0.5 * float(spread.max())


def test_equal_values_have_no_spread() -> None:
    """However they are split: rounding would select weights for nothing."""
    values = (0.1 + drawn(1, D).abs().float()).expand(P, D)
    for sizes in ((5,), (1, 4), (1, 1, 1, 1, 1)):
        found = joined(values, sizes)
        assert found.level().equal(values[0])


def test_pooled_prompts_have_another_norm() -> None:
    """2.9-5. Prompts of a batch have to be told apart before the norm."""
    X = drawn(P, N, D)
    apart = torch.stack([column_norms(x, True) for x in X]).mean(0)
    pooled = column_norms(X.reshape(-1, D), True) / P
    assert float((apart - pooled).abs().max()) > 0.1 * float(apart.max())


def test_contrast_is_zero_unless_the_concept_exceeds_mean_and_spread() -> None:
    """2.9-7."""
    base, concept = drawn(P, OUT, D).abs(), drawn(P, OUT, D, seed=5).abs()
    level, mean = moments(base).level(), moments(concept).mean
    S = contrast(mean, level)
    assert bool((S >= 0).all())
    assert bool((S[mean <= base.mean(0) + base.std(0, correction=0)] == 0).all())
    assert bool((S > 0).any())
    assert not bool(contrast(moments(base).mean, level).any())
    assert ratio(contrast(moments(base).mean, level), level) == 0
    assert ratio(level, level) == pytest.approx(1)


# --- Eq. 3 -----------------------------------------------------------------------------------------------------------


def test_threshold_lets_one_less_than_k_pass() -> None:
    """2.9-9."""
    S = drawn(OUT, D).abs()
    for r1 in (0.05, 0.1, 0.5):
        k = share(r1, S.numel())
        sums = sensitivity(S[None], r1)
        assert int(sums.passed.sum()) == k - 1
        assert int(sensitivity(S[None], r1, at=True).passed.sum()) == k
    assert int(sensitivity(S[None], 1e-9).passed.sum()) == 0  # k = 1
    assert int(sensitivity(torch.ones(1, OUT, D)).passed.sum()) == 0
    few = torch.where(S.flatten().sort().values[-4] <= S, S, 0)
    assert sensitivity(few[None], 0.5).passed.bool().equal(few > 0)
    assert sensitivity(few[None], 0.5, at=True).passed.bool().equal(few > 0)


def test_threshold_is_the_kth_largest() -> None:
    S = drawn(OUT, D)
    for k in (1, 2, 40, OUT * D):
        assert float(kth_largest(S.reshape(-1), k)) == float(S.flatten().sort(descending=True).values[k - 1])
    assert kth_largest(S, 3)[:, 0].equal(S.sort(1, descending=True).values[:, 2])


def test_sensitivity_lies_in_zero_to_one_and_does_not_see_units() -> None:
    """2.9-10. With the raw mean it does."""
    S = surpluses()
    A = sensitivity(S).value()
    assert 0 <= float(A.min()) <= float(A.max()) <= 1
    assert sensitivity(8 * S).value().equal(A)
    assert select(sensitivity(8 * S).value(), 0.2).equal(select(A, 0.2))
    small, large = (select(sensitivity(c * S).value("raw"), 0.2) for c in (1e-3, 1e3))
    assert not small.equal(large)
    assert not bool(sensitivity(torch.zeros(2, OUT, D)).value().any())


def test_sensitivity_is_half_mean_and_half_frequency() -> None:
    S = surpluses()
    passed = torch.stack([s > s.flatten().sort(descending=True).values[share(0.1, s.numel()) - 1] for s in S])
    close(sensitivity(S).value("raw"), S.mean(0) / 2 + passed.double().mean(0) / 2, 1e-12)
    close(sensitivity(S).value(), S.mean(0) / S.mean(0).max() / 2 + passed.double().mean(0) / 2, 1e-12)


def test_a_spike_counts_once_and_a_steady_weight_always() -> None:
    """2.9-11."""
    S = surpluses() / 10
    S[0, 0, 0], S[1:, 0, 0] = 1e6, 0
    for t in range(T):
        S[t, 1, 1] = float(kth_largest(S[t].reshape(-1), share(0.1, OUT * D) - 1)) + 1e-3
    passed = sensitivity(S).passed
    assert int(passed[0, 0]) == 1
    assert int(passed[1, 1]) == T


def test_more_of_a_layer_never_passes_less_often() -> None:
    """2.9-13."""
    S = surpluses()
    counts = [sensitivity(S, r1).passed.int() for r1 in (0.02, 0.05, 0.1, 0.3, 1.0)]
    assert all(bool((a <= b).all()) for a, b in pairwise(counts))


# --- Eq. 4 to 6 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r2", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_sizes_of_the_selection(r2: float) -> None:
    """2.9-12."""
    A = sensitivity(surpluses()).value()
    rows, layer_, both = (select(A, r2, which) for which in ("row", "layer", "both"))
    assert int(rows.sum()) == OUT * share(r2, D)
    assert int(layer_.sum()) == share(r2, OUT * D)
    assert both.equal(rows & layer_)
    assert int(both.sum(1).max()) <= share(r2, D)
    if r2 == 1:
        assert both.equal(A > 0)


def test_zero_is_never_selected_unless_asked_for() -> None:
    """2.9-12."""
    A = torch.zeros(OUT, D, dtype=torch.float64)
    A[0, :3] = 1.0
    assert select(A, 1.0).equal(A > 0)
    assert int(select(A, 1.0, zeros=True).sum()) == OUT * D
    assert not bool(select(torch.zeros(OUT, D), 0.5).any())


def test_ties_go_to_the_lower_index() -> None:
    """As a stable sort in falling order."""
    A = (drawn(OUT, D, seed=8) * 2).round().abs() + 1
    order = A.flatten().sort(descending=True, stable=True).indices
    for r2 in (0.1, 0.3, 0.7):
        wanted = torch.zeros(OUT * D, dtype=torch.bool)
        wanted[order[: share(r2, OUT * D)]] = True
        assert select(A, r2, "layer").flatten().equal(wanted)
        ranks = A.sort(dim=1, descending=True, stable=True).indices[:, : share(r2, D)]
        assert select(A, r2, "row").equal(torch.zeros(OUT, D).scatter(1, ranks, 1.0).bool())


@pytest.mark.parametrize("which", ["both", "row", "layer"])
def test_a_larger_share_holds_the_smaller(which: Literal["both", "row", "layer"]) -> None:
    """2.9-13. Also with ties."""
    for A in (sensitivity(surpluses()).value(), (drawn(OUT, D) * 2).round().abs()):
        masks = [select(A, r2, which) for r2 in (0.01, 0.05, 0.1, 0.3, 0.6, 1.0)]
        assert all(bool((a <= b).all()) for a, b in pairwise(masks))


def mask_of(W: Tensor, prompts: Tensor, others: Tensor, score: str) -> Tensor:
    """Q from inputs (p, n, d) of concept and base prompts."""

    def scores(inputs: Tensor) -> Moments:
        if score == "norm":
            return moments(torch.stack([column_norms(X, True) for X in inputs]))
        return moments(torch.stack([cosine_energy(X, X @ W.T) for X in inputs]))

    S = W.abs() * contrast(scores(prompts).mean, scores(others).level())
    return select(sensitivity(S[None]).value(), 0.3)


@pytest.mark.parametrize("score", ["norm", "cosine"])
def test_the_mask_follows_its_rows_and_columns(score: str) -> None:
    """2.9-14."""
    W, X, B = drawn(OUT, D), drawn(P, N, D, seed=1), 0.8 * drawn(P, N, D, seed=2)
    X[..., :6] *= 3
    Q = mask_of(W, X, B, score)
    assert bool(Q.any())
    rows, columns = (torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (OUT, D))
    assert mask_of(W[rows], X, B, score).equal(Q[rows])
    assert mask_of(W[:, columns], X[..., columns], B[..., columns], score).equal(Q[:, columns])
    signs = drawn(OUT, D, seed=6).sign()
    assert score == "cosine" or mask_of(signs * W, X, B, score).equal(Q)


def test_the_norm_score_is_rank_one() -> None:
    """2.9-8. A column's score is the same for every row, so a vector a step is all that is stored."""
    W, X, B = drawn(OUT, D), drawn(P, N, D, seed=1) * 1.3, drawn(P, N, D, seed=2)
    norms = [moments(torch.stack([column_norms(x, True) for x in inputs])) for inputs in (X, B)]
    s = contrast(norms[0].mean, norms[1].level())  # (d,)
    full = torch.stack([torch.stack([W.abs() * column_norms(x, True) for x in inputs]) for inputs in (X, B)])
    S = contrast(full[0].mean(0), full[1].mean(0) + full[1].std(0, correction=0))  # (o, d)
    close(S, W.abs() * s, 1e-12)
    close(S / W.abs(), s.expand(OUT, D), 1e-12)
    assert select(sensitivity(S[None]).value(), 0.3).equal(select(sensitivity((W.abs() * s)[None]).value(), 0.3))


# --- Eq. 7 and 8 -----------------------------------------------------------------------------------------------------


def masks(concepts: int) -> Tensor:
    return drawn(concepts, OUT, D, seed=concepts) > 0.3


def counts(found: Tensor) -> Tensor:
    return found.sum(0)


@pytest.mark.parametrize("concepts", [1, 2, 3, 5])
def test_fusion_parts_the_union(concepts: int) -> None:
    """2.9-15."""
    Q, before = masks(concepts), torch.zeros(OUT, D, dtype=torch.bool)
    for alpha in (0.2, 0.4, 0.6, 0.8, 1.0):
        pruned, agnostic = fuse(counts(Q), spared_from(alpha, concepts))
        assert not bool((pruned & agnostic).any())
        assert (pruned | agnostic).equal(Q.any(0))
        assert bool((before <= pruned).all())
        before = pruned
    if concepts > 1:
        assert before.equal(Q.any(0) & ~Q.all(0))
    for order in permutations(range(concepts)):
        assert counts(Q[list(order)]).equal(counts(Q))


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.6, 1.0])
def test_one_concept_is_pruned_whole_and_by_the_released_rule_not_at_all(alpha: float) -> None:
    """2.9-16."""
    Q = masks(1)
    assert fuse(counts(Q), spared_from(alpha, 1))[0].equal(Q[0])
    assert not bool(fuse(counts(Q), spared_from(alpha, 1, "code"))[0].any())


@pytest.mark.parametrize(("alpha", "concepts"), [(0.5, 2), (0.25, 4), (0.2, 5), (0.1, 3)])
def test_where_the_released_rule_is_empty_ours_prunes_what_one_mask_holds(alpha: float, concepts: int) -> None:
    """2.9-16."""
    Q = masks(concepts)
    assert spared_from(alpha, concepts, "code") == 1
    assert not bool(fuse(counts(Q), spared_from(alpha, concepts, "code"))[0].any())
    assert fuse(counts(Q), spared_from(alpha, concepts))[0].equal(Q.sum(0) == 1)


@pytest.mark.parametrize(
    ("alpha", "concepts", "exact", "code"), [(0.07, 100, 7, 8), (0.28, 25, 7, 8), (0.56, 50, 28, 29), (0.6, 10, 6, 6)]
)
def test_the_ceiling_is_exact(alpha: float, concepts: int, exact: int, code: int) -> None:
    """2.9-17."""
    assert spared_from(alpha, concepts) == exact
    assert spared_from(alpha, concepts, "code") == code == math.ceil(alpha * concepts)
