"""Laws of the shared factorisation and of ScaPre's row systems."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.numerics.geometry import combine, row_prox
from efface.numerics.ridge import ridge_operator
from efface.numerics.spectral import (
    Gate,
    Pairs,
    Shared,
    factors,
    gate_values,
    gram_of,
    low_rank,
    pair_rows,
    penalised,
    penalties,
    residual_concepts,
    residual_term,
    right_side,
    shared_factor,
    target,
    weighted,
)

D, T, LAM, ETA = 24, 9, 0.5, 2.0


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))


def blocks(m: int, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Context and guide rows of m concepts; even ones share a guide, of one row less each time."""
    context, guide, shared = [], [], randn(T, D, seed=seed + 99)
    for k in range(m):
        length = T - k // 2 % 3
        context.append(randn(length, D, seed=seed + k))
        guide.append(shared[:length] if k % 2 == 0 else randn(length, D, seed=seed + 50 + k))
    return context, guide


def stream(context: list[Tensor], lam: float = LAM, gate: Gate | None = None, concept_gram: bool = True) -> Shared:
    C, X = torch.stack([x[0] for x in context]), torch.cat(context)
    weights = torch.tensor([float(concept_gram)] * len(C) + [ETA] * len(X))
    return shared_factor(torch.cat([C, X]), weights, lam, C, gate)


def gram(context: list[Tensor], lam: float = LAM, concept_gram: bool = True) -> Tensor:
    C, X = torch.stack([x[0] for x in context]), torch.cat(context)
    return lam * torch.eye(D, dtype=torch.float64) + float(concept_gram) * C.T @ C + ETA * X.T @ X


def spectral_term(concepts: Tensor, strength: float, gate: Gate) -> Tensor:
    """R = strength U diag(pen) U^T, (d, d)."""
    U, weight = penalised(concepts, gate)
    return (U * (strength * weight)) @ U.T


def solve_site(
    W0: Tensor, shared: Shared, V: Tensor, mu: float = 0.0, a: Tensor | None = None, **more: Tensor
) -> Tensor:
    """The edited weight of one site before any geometry."""
    return shared.solve(right_side(W0, V, shared.lam + mu, **more), mu, a)


def projector(context: list[Tensor]) -> Tensor:
    C = torch.stack([x[0] for x in context]).T  # (d, m)
    return C @ torch.linalg.solve(C.T @ C + 1e-8 * torch.eye(C.shape[1], dtype=torch.float64), C.T)


def masks(o: int, m: int, seed: int = 7) -> Tensor:
    """Mostly one value, as saturated masks are."""
    values = torch.rand(o, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(values < 0.7, 0.25, values)


def slow_target(W0: Tensor, context: list[Tensor], guide: list[Tensor], M: Tensor) -> Tensor:
    pairs = zip(context, guide, strict=True)
    return ETA * torch.stack([M[:, k, None] * (W0 @ g.T @ x) for k, (x, g) in enumerate(pairs)]).sum(0)


@pytest.mark.parametrize(("o", "m"), [(7, 1), (40, 3), (40, 8)])
@pytest.mark.parametrize("gate", [None, Gate(0.5, 2.0), Gate(1.0, 1.0, "shared")])
def test_every_row_solves_its_own_system(o: int, m: int, gate: Gate | None) -> None:
    """1.11-1."""
    (context, guide), W0, mu = blocks(m), randn(o, D, seed=3), 0.4
    a = torch.tensor([0, 1e-6, 1.0, 100.0], dtype=torch.float64).repeat(o)[:o]
    M = masks(o, m)
    V = target(W0, pair_rows(context, guide), M, ETA)
    assert relative(V, slow_target(W0, context, guide, M)) <= 1e-13
    found = solve_site(W0, stream(context, gate=gate), V, mu, a)
    C, P = torch.stack([x[0] for x in context]), projector(context)
    R = spectral_term(C, mu, gate) if gate else 0
    for i in range(o):
        b = (LAM + mu) * W0[i] + V[i]
        system = gram(context) + mu * torch.eye(D, dtype=torch.float64) + R + a[i] * P
        assert (found[i] @ system - b).norm() <= 1e-9 * b.norm()
        assert relative(found[i], torch.linalg.solve(system, b)) <= 1e-8
    assert relative(solve_site(W0, stream(context, gate=gate), V, mu, a.flip(0)), found) > 1e-6


def test_constant_strength_is_one_system_and_zero_strength_no_correction() -> None:
    """1.11-2."""
    (context, _), B, mu = blocks(3), randn(40, D, seed=3), 0.4
    shared, plain = stream(context), gram(context) + mu * torch.eye(D, dtype=torch.float64)
    wanted = torch.linalg.solve(plain + 3.0 * projector(context), B.T).T
    assert relative(shared.solve(B, mu, torch.full((40,), 3.0, dtype=torch.float64)), wanted) <= 1e-10
    none = shared.solve(B, mu, torch.zeros(40, dtype=torch.float64))
    assert torch.equal(none, shared.solve(B, mu))
    assert relative(none, wanted) > 1e-3


@pytest.mark.parametrize("mu", [0.0, 0.1, 0.5, 5.0])
@pytest.mark.parametrize("gate", [None, Gate(), Gate(2.0, 3.0)])
def test_one_eigendecomposition_serves_every_strength(mu: float, gate: Gate | None) -> None:
    """1.11-3."""
    context, eye = blocks(3)[0], torch.eye(D, dtype=torch.float64)
    C = torch.stack([x[0] for x in context])
    H = eye + (spectral_term(C, 1.0, gate) if gate else 0)
    inverse = stream(context, gate=gate).solve(eye, mu)
    assert torch.linalg.norm(inverse @ (gram(context) + mu * H) - eye) <= 1e-10
    assert torch.linalg.norm(inverse @ (gram(context) + (mu + 0.01) * H) - eye) > 1e-4


def test_a_strength_a_row_solves_the_sylvester_equation() -> None:
    """1.11-20, numerics part."""
    (context, _), B, alpha = blocks(3), randn(40, D, seed=3), torch.rand(40, 1, dtype=torch.float64)
    W = stream(context).solve(B, alpha)
    assert relative(alpha * W + W @ gram(context), B) <= 1e-9
    assert torch.allclose(stream(context).solve(B, 0 * alpha), stream(context).solve(B), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="not in both"):
        stream(context).solve(B, alpha, alpha[:, 0])


def test_without_concept_gram_and_masks_it_is_the_ridge() -> None:
    """1.11-4, 1.11-5."""
    (context, guide), W0 = blocks(3), randn(40, D, seed=3)
    V = target(W0, pair_rows(context, guide), torch.ones(40, 3, dtype=torch.float64), ETA)
    X, G = torch.cat(context), torch.cat(guide)
    wanted = W0 + ridge_operator(X, G, torch.full((len(X),), ETA), LAM).delta(W0)
    bare = solve_site(W0, stream(context, concept_gram=False), V)
    assert relative(bare, wanted) <= 1e-10
    with_gram = solve_site(W0, stream(context), V)
    rhs = LAM * W0 + slow_target(W0, context, guide, torch.ones(40, 3, dtype=torch.float64))
    assert relative(with_gram, torch.linalg.solve(gram(context), rhs.T).T) <= 1e-10
    assert relative(with_gram, wanted) > 1e-3
    p, q = row_prox(with_gram, W0, LAM, 0.0, 2)
    assert relative(combine(p, with_gram, q, W0), with_gram) <= 1e-12


@pytest.mark.parametrize("mu", [0.0, 0.4])
def test_a_huge_ridge_returns_the_original(mu: float) -> None:
    """1.11-5."""
    (context, guide), W0 = blocks(3), randn(40, D, seed=3)
    V = target(W0, pair_rows(context, guide), masks(40, 3), ETA)
    for lam, kept in ((1e10, True), (1.0, False)):
        W = solve_site(W0, stream(context, lam), V, mu, torch.ones(40, dtype=torch.float64))
        assert (relative(W, W0) <= 1e-6) == kept


def test_the_concept_gram_alone_erases_and_a_scale_of_zero_is_refused() -> None:
    """1.11-6."""
    c, W0 = randn(1, D), randn(7, D, seed=3)
    left = []
    for lam in (10.0, 1.0, 0.1, 1e-6):
        W = solve_site(W0, shared_factor(c, torch.ones(1), lam, c), torch.zeros_like(W0))
        left.append(float((W @ c[0]).norm() / (W0 @ c[0]).norm()))
    assert left == sorted(left, reverse=True)
    assert left[-1] <= 1e-5 < left[0]
    for eta in (0.0, -1.0):
        with pytest.raises(ValueError, match="eta"):
            target(W0, pair_rows([c], [c]), torch.ones(7, 1), eta)
    with pytest.raises(ValueError, match="lam"):
        shared_factor(c, torch.ones(1), 0.0, c)


def test_one_row_meets_its_guide_and_orthogonal_directions_stay() -> None:
    """1.11-7."""
    c, guide, W0 = randn(1, D), randn(1, D, seed=1), randn(7, D, seed=3)
    shared = shared_factor(c, torch.ones(1), 1e-6, c)
    V = target(W0, pair_rows([c], [guide]), torch.ones(7, 1, dtype=torch.float64), 1.0)
    W = solve_site(W0, shared, V)
    assert relative(W @ c[0], W0 @ guide[0]) <= 1e-5
    aside = randn(D, seed=5)
    aside -= (aside @ c[0]) / (c[0] @ c[0]) * c[0]
    assert relative(W @ aside, W0 @ aside) <= 1e-7
    assert relative(W @ randn(D, seed=5), W0 @ randn(D, seed=5)) > 1e-3


@pytest.mark.parametrize("m", [1, 3, 8])
def test_spectral_term_is_bounded_and_blind_outside_the_concepts(m: int) -> None:
    """1.11-15."""
    C, mu, gate = randn(m, D), 0.6, Gate(0.5, 2.0)
    R = spectral_term(C, mu, gate)
    values = torch.linalg.eigvalsh(R)
    assert torch.equal(R, R.T) or relative(R, R.T) <= 1e-14
    assert float(values.min()) >= -1e-14
    assert 1e-3 < float(values.max()) <= mu
    x = randn(D, seed=5)
    x -= torch.linalg.lstsq(C.T, x[:, None]).solution[:, 0] @ C
    assert (R @ x).norm() <= 1e-13
    if m == 1:
        u = C[0] / C[0].norm()
        assert relative(R, (1 - 0.5**gate.power) * mu * torch.outer(u, u)) <= 1e-12
    twice = torch.cat([C, C[:1]])  # a concept listed twice opens no new direction
    assert (spectral_term(twice, mu, gate) @ x).norm() <= 1e-12


def test_code_gate_spares_large_values_and_the_paper_gate_peaks() -> None:
    """1.11-15."""
    s = torch.linspace(10, 0, 1001, dtype=torch.float64)
    assert bool((penalties(s, Gate()).diff() >= 0).all())  # s falls here
    assert bool((penalties(s, Gate(kind="shared")).diff() <= 0).all())
    paper = penalties(s, Gate(kind="paper"))
    assert float(paper.max()) == pytest.approx(0.2785, abs=5e-5)
    assert float(s[paper.argmax()]) == pytest.approx(1.278, abs=0.01)
    with pytest.raises(ValueError, match="soft"):
        penalties(s, Gate(kind="soft"))


def test_the_gate_is_centred_on_the_lower_median() -> None:
    """1.11-15."""
    g = gate_values(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64), Gate())
    assert float(g[2]) == 0.5
    assert float(g[1]) > 0.7


def test_interpolated_target_is_affine_in_the_mask_from_original_to_guide() -> None:
    """1.11-22."""
    (context, guide), W0 = blocks(3), randn(40, D, seed=3)
    pairs, shared = pair_rows(context, guide), stream(context, concept_gram=False)

    def edited(M: Tensor, interpolate: bool = True) -> Tensor:
        return solve_site(W0, shared, target(W0, pairs, M, ETA, interpolate=interpolate))

    M = masks(40, 3)
    zero, one = torch.zeros_like(M), torch.ones_like(M)
    assert relative(edited(zero), W0) <= 1e-12
    assert relative(edited(one), edited(one, interpolate=False)) <= 1e-12
    assert relative(edited(0.3 * M), 0.7 * edited(zero) + 0.3 * edited(M)) <= 1e-12
    assert relative(edited(M), edited(M, interpolate=False)) > 1e-2
    assert relative(edited(zero, interpolate=False), W0) > 1e-2  # the released target pulls to zero instead


def test_tensor_target_drops_the_share_of_each_concepts_own_outputs() -> None:
    """1.11-21."""
    (context, guide), W0, M = blocks(4), randn(40, D, seed=3), masks(40, 4)
    found = target(W0, pair_rows(context, guide), M, ETA, technique="tensor")
    wanted = torch.zeros_like(W0)
    for k, (x, g) in enumerate(zip(context, guide, strict=True)):
        own, guided = x @ W0.T, g @ W0.T
        gamma = (own * guided).sum() / (own * own).sum()
        wanted += ETA * M[:, k, None] * ((guided - gamma * own).T @ x)
    assert relative(found, wanted) <= 1e-12
    assert relative(target(W0, pair_rows(context, guide), M, ETA), wanted) > 1e-3
    longer = torch.cat([context[2], guide[0][-1:]])  # a guide that goes on after the concept it equals
    for guides in ([guide[0], guide[1], context[2], guide[3]], [longer, guide[1], context[2], guide[3]]):
        with pytest.raises(ValueError, match="zero target"):
            target(W0, pair_rows(context, guides), M, ETA, technique="tensor")
    with pytest.raises(ValueError, match="tensors"):
        target(W0, pair_rows(context, guide), M, ETA, technique="tensors")


def test_equal_guides_are_stored_once_and_unequal_pairs_refused() -> None:
    context, guide = blocks(8)
    pairs = pair_rows(context, guide)
    assert len(pairs.guide) == 5
    assert len({pairs.which[k] for k in (0, 2, 4, 6)}) == 1
    assert len(set(pairs.which)) == 5
    assert isinstance(pairs, Pairs)
    assert relative(pairs.stacked().T @ pairs.stacked(), torch.cat(context).T @ torch.cat(context)) <= 1e-13
    with pytest.raises(ValueError, match="equal shapes"):
        pair_rows([context[0]], [context[0][:-1]])


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(5)))
def test_order_of_concepts_does_not_matter(order: list[int]) -> None:
    """1.11-23, numerics part."""
    (context, guide), W0, M = blocks(5), randn(7, D, seed=3), masks(7, 5)
    a, gate = M.amax(1), Gate()

    def edited(pick: list[int]) -> Tensor:
        rows, guides = [context[k] for k in pick], [guide[k] for k in pick]
        V = target(W0, pair_rows(rows, guides), M[:, pick], ETA)
        return solve_site(W0, stream(rows, gate=gate), V, 0.4, a)

    assert relative(edited(order), edited([0, 1, 2, 3, 4])) <= 1e-10
    assert relative(edited([0, 1, 2, 3]), edited([0, 1, 2, 3, 4])) > 1e-2


def test_a_concept_listed_twice_leaves_the_projector() -> None:
    """1.11-23, numerics part."""
    context = blocks(3)[0]
    once, twice = stream(context), stream([*context, context[0]])
    assert relative(twice.span @ twice.span.T, once.span @ once.span.T) <= 1e-6
    assert relative(once.span @ once.span.T, projector(context)) <= 1e-9


@pytest.mark.parametrize("gate", [None, Gate(0.5, 2.0)])
def test_edit_turns_with_the_text_basis_and_follows_the_channels(gate: Gate | None) -> None:
    """1.11-25."""
    (context, guide), W0, M = blocks(3), randn(40, D, seed=3), masks(40, 3)
    Q, turn = torch.linalg.qr(randn(D, D, seed=5))[0], torch.arange(40).roll(7)

    def edited(W0: Tensor, M: Tensor, Q: Tensor) -> Tensor:
        rows, guides = [x @ Q for x in context], [g @ Q for g in guide]
        V = target(W0, pair_rows(rows, guides), M, ETA, technique="tensor")
        return solve_site(W0, stream(rows, gate=gate), V, 0.4, M.amax(1))

    plain = edited(W0, M, torch.eye(D, dtype=torch.float64))
    assert relative(edited(W0 @ Q, M, Q), plain @ Q) <= 1e-9
    assert relative(edited(W0, M, Q), plain @ Q) > 1e-2
    # gamma is one number for all channels, so this holds for technique tensor as well
    assert relative(edited(W0[turn], M[turn], torch.eye(D, dtype=torch.float64)), plain[turn]) <= 1e-9


@pytest.mark.parametrize("gate", [None, Gate(0.5, 2.0)])
def test_units_of_the_embeddings_cancel(gate: Gate | None) -> None:
    """1.11-26."""
    (context, guide), W0, M, s, mu = blocks(3), randn(40, D, seed=3), masks(40, 3), 3.0, 0.4
    a = ETA * M.amax(1)
    V = target(W0, pair_rows(context, guide), M, ETA)
    plain = solve_site(W0, stream(context, gate=gate), V, mu, a)
    rows, guides = [s * x for x in context], [s * g for g in guide]
    wider = None if gate is None else Gate(s * gate.temperature, gate.power)
    V = target(W0 / s, pair_rows(rows, guides), M, ETA)
    found = solve_site(W0 / s, stream(rows, LAM * s**2, wider), V, mu * s**2, a * s**2)
    assert relative(found, plain / s) <= 1e-9
    assert relative(solve_site(W0 / s, stream(rows, LAM, wider), V, mu * s**2, a * s**2), plain / s) > 1e-3


def test_kept_rows_hold_their_outputs() -> None:
    (context, guide), W0, kept = blocks(1), randn(7, D, seed=3), randn(2, D, seed=8)
    C, X = context[0][:1], context[0]
    V = target(W0, pair_rows(context, guide), torch.ones(7, 1, dtype=torch.float64), 1.0)
    moved = []
    for weight in (0.0, 1.0, 1e6):
        rows = gram_of([(kept[:1].float(), weight), (kept[1:], weight)])
        assert relative(rows + C.T @ C, weight * kept.T @ kept + C.T @ C) <= 1e-6
        W = solve_site(W0, shared_factor(X, torch.ones(len(X)), LAM, C, None, rows), V, kept=rows)
        stacked = shared_factor(torch.cat([X, kept]), torch.tensor([1.0] * len(X) + [weight] * 2), LAM, C)
        assert relative(W, solve_site(W0, stacked, V, kept=weight * kept.T @ kept)) <= 1e-6
        moved.append(relative(kept @ W.T, kept @ W0.T))
    assert moved == sorted(moved, reverse=True)
    assert moved[2] < 1e-4 < moved[0]


@pytest.mark.parametrize(("o", "d", "rank"), [(40, 24, 3), (7, 24, 2)])
def test_low_rank_finds_the_rank_and_meets_its_bound(o: int, d: int, rank: int) -> None:
    delta = randn(o, rank) @ randn(rank, d, seed=1)
    noisy = delta + 1e-6 * randn(o, d, seed=2)
    for tol in (1e-3, 1e-1):
        pair = low_rank(noisy, tol)
        assert pair is not None
        up, down = pair
        assert up.shape[1] == down.shape[0] <= rank
        assert relative(up @ down, noisy) <= tol
    assert low_rank(noisy, 1e-12) is None  # full rank takes more space than the delta
    up, down = low_rank(torch.zeros(o, d), 1e-3) or (None, None)
    assert up is not None
    assert down is not None
    assert up.shape == (o, 0)
    assert down.shape == (0, d)


@pytest.mark.parametrize("rank", [14, 15, 24])
def test_a_rank_that_saves_no_space_is_found_with_and_without_singular_values(rank: int) -> None:
    delta = randn(40, rank) @ randn(rank, D, seed=1)  # 40 x 24: from rank 15 on dense is smaller
    assert (low_rank(delta, 1e-6) is None) == (rank >= 15)
    hidden = delta.clone()
    hidden[:, 1] = hidden[:, 0]  # the columns that are looked at first no longer prove it
    values = torch.linalg.svdvals(hidden)
    assert (low_rank(hidden, 1e-6) is None) == (int((values > 1e-6 * values[0]).sum()) >= 15)


@pytest.mark.parametrize("gate", [None, Gate(0.5, 2.0)])
def test_residual_is_that_of_the_matrices_and_sees_a_wrong_solution(gate: Gate | None) -> None:
    """1.11-1: the number in the recipe."""
    (context, _), B, mu = blocks(3), randn(40, D, seed=3), 0.4
    a, shared = torch.rand(40, dtype=torch.float64), stream(context, gate=gate)
    W = shared.solve(B, mu, a)
    C = torch.stack([x[0] for x in context])
    system = gram(context) + mu * torch.eye(D, dtype=torch.float64)
    system += spectral_term(C, mu, gate) if gate else 0
    wrong = W + 1e-3 * randn(40, D, seed=4)
    exact = wrong @ system + a[:, None] * (wrong @ projector(context)) - B
    assert shared.residual(wrong, B, mu, a) == pytest.approx(float(exact.norm() / B.norm()), rel=1e-6)
    probe = randn(D, 2, seed=5)
    for looked in (None, probe):
        assert shared.residual(W, B, mu, a, looked) <= 1e-12
        assert shared.residual(wrong, B, mu, a, looked) > 1e-4
    rows = torch.rand(40, 1, dtype=torch.float64)
    plain = stream(context)
    assert plain.residual(plain.solve(B, rows), B, rows) <= 1e-12
    assert plain.residual(plain.solve(B, rows), B, 2 * rows) > 1e-4


def test_condition_and_effective_rank_are_those_of_their_definitions() -> None:
    context, mu = blocks(1)[0], 0.3
    shared, G0, eye = stream(context), gram(context), torch.eye(D, dtype=torch.float64)
    values = torch.linalg.eigvalsh(G0)
    assert shared.condition(mu) == pytest.approx(float((values[-1] + mu) / (values[0] + mu)), rel=1e-9)
    share = torch.linalg.solve(G0 + mu * eye, G0 - LAM * eye).trace()
    assert shared.effective_rank(mu) == pytest.approx(float(share), rel=1e-9)
    assert shared.effective_rank(1e9) < 1e-3 < shared.effective_rank() <= T  # nine rows and the first of them again


def test_the_papers_spectral_term_is_one_more_gram_matrix() -> None:
    """1.11-15, 1.11-20: `A = lam I + S + R` with the strength of R one."""
    (context, _), B, alpha = blocks(3), randn(40, D, seed=3), torch.rand(40, 1, dtype=torch.float64)
    C, X, gate = torch.stack([x[0] for x in context]) / 5, torch.cat(context), Gate(kind="paper")
    directions, penalty = penalised(C, gate)
    rows, weights = weighted([(X, 1.0), (directions.T, penalty)])
    W = shared_factor(rows, weights, LAM, C).solve(B, alpha)
    A = LAM * torch.eye(D, dtype=torch.float64) + X.T @ X + spectral_term(C, 1.0, gate)
    assert relative(alpha * W + W @ A, B) <= 1e-12
    assert relative(alpha * W + W @ (A - spectral_term(C, 1.0, gate)), B) > 1e-3


def test_the_roll_backs_residual_term_is_what_the_gate_leaves_of_the_concepts() -> None:
    """1.11-15: the spectral term of the roll-back form."""
    C, W0, gate = randn(4, D), randn(7, D, seed=3), Gate(0.5, 2.0)
    U, s, _ = torch.linalg.svd(C.T, full_matrices=False)
    g = torch.sigmoid((s - s.sort().values[1]) / (0.5 + 1e-8)) ** 2
    C_res = C.T - (U * g) @ U.T @ C.T  # (d, m)
    assert relative(residual_concepts(C, gate).T, C_res) <= 1e-12
    assert relative(residual_term(W0, C, gate), (W0 @ C_res) @ C_res.T) <= 1e-12
    assert relative(residual_term(W0, C, Gate(0.5, 1.0)), (W0 @ C_res) @ C_res.T) > 1e-2


def test_the_right_side_holds_anchor_target_and_kept_rows() -> None:
    W0, V, kept = randn(7, D), randn(7, D, seed=1), randn(D, D, seed=2)
    assert torch.equal(right_side(W0, V, 0.0), V)
    assert relative(right_side(W0, V, 0.7, kept), 0.7 * W0 + V + W0 @ kept) <= 1e-14


def test_an_operator_is_stored_by_its_rank_or_whole() -> None:
    low, full = randn(D, 3) @ randn(3, D, seed=1), randn(D, D)
    for S, rank in ((low, 3), (full, D)):
        left, right = factors(S)
        assert left.shape == right.shape == (D, rank)
        assert relative(left @ right.T, S) <= 1e-6
    assert torch.equal(factors(full)[0], full)
