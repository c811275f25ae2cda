"""Row systems that share one matrix, solved for all rows, sites and strengths from one eigendecomposition.

For row i of a weight (o, d), with G0 = lam I + sum_n a_n x_n x_n^T over the stream's rows:

    w_i (G0 + mu H + a_i Pi_C) = b_i,   b_i = (lam + mu) w0_i + V_i,   H = I + U diag(pen) U^T
    H^-1/2 G0 H^-1/2 = Q diag(L) Q^T,   K = H^-1/2 Q,   (G0 + mu H)^-1 = K diag(1 / (L + mu)) K^T

U, s: left singular vectors and values of the concepts; pen: `penalties(s)`; Pi_C = C (C^T C + 1e-8 I)^-1 C^T.
Concepts are rows (m, d) here; all weights are float64.

Source: Deng et al., "Forget Many, Forget Right" (ScaPre), ICLR 2026, arXiv 2601.06162: Sylvester equation and
spectral trace regulariser, in the anchored form of the released code; the shared factorisation is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.numerics.ridge import tensor_targets

__all__ = [
    "Gate",
    "Pairs",
    "Shared",
    "concept_directions",
    "factors",
    "gate_values",
    "gram_of",
    "low_rank",
    "pair_rows",
    "penalised",
    "penalties",
    "residual_concepts",
    "residual_term",
    "right_side",
    "shared_factor",
    "target",
    "weighted",
]


@dataclass(frozen=True)
class Gate:
    """`g_j = sigmoid((s_j - lower median) / T)^p` and what is penalised: `code` 1 - g (directions with
    small s), `shared` g with T in units of the median (those with large s), `paper` (1 - sigmoid(s)) s."""

    temperature: float = 1.0
    power: float = 1.0
    kind: str = "code"


def concept_directions(concepts: Tensor) -> tuple[Tensor, Tensor]:
    """U (d, k) and s (k,), k = min(m, d); largest first."""
    U, s, _ = torch.linalg.svd(concepts.double().T, full_matrices=False)
    return U, s


def gate_values(s: Tensor, gate: Gate) -> Tensor:
    """g (k,), not decreasing in s."""
    lower = s.median()  # of an even number: the lower of the two in the middle
    return torch.sigmoid((s - lower) / (gate.temperature + 1e-8)) ** gate.power


def penalties(s: Tensor, gate: Gate) -> Tensor:
    """Penalty (k,) of each concept direction, not negative."""
    if gate.kind == "code":
        return 1 - gate_values(s, gate)
    if gate.kind == "shared":
        return gate_values(s, Gate(gate.temperature * float(s.median()), gate.power))
    if gate.kind == "paper":
        return (1 - torch.sigmoid(s)) * s
    raise ValueError(f"gate must be code, shared or paper, not {gate.kind!r}")


def penalised(concepts: Tensor, gate: Gate) -> tuple[Tensor, Tensor]:
    """U (d, r) and penalties (r,) of `R = mu U diag(pen) U^T`; directions of zero length are arbitrary and left out."""
    U, s = concept_directions(concepts)
    real = s > 1e-12 * s[0]
    return U[:, real], penalties(s, gate)[real]


def residual_concepts(concepts: Tensor, gate: Gate) -> Tensor:
    """Concepts (m, d) less their gated part: `(I - U diag(g) U^T) c`."""
    U, s = concept_directions(concepts)
    c = concepts.double()
    return c - ((c @ U) * gate_values(s, gate)) @ U.T


def residual_term(W0: Tensor, concepts: Tensor, gate: Gate) -> Tensor:
    """`W0 C_res C_res^T` (o, d), which the roll-back form takes off its right side."""
    C_res = residual_concepts(concepts, gate)  # (m, d)
    return (W0 @ C_res.T) @ C_res


@dataclass(frozen=True)
class Shared:
    """What all sites of a stream have in common."""

    values: Tensor  # (d,) L
    vectors: Tensor  # (d, d) K
    span: Tensor  # (d, r) Uh, Pi_C = Uh Uh^T
    lam: float
    gram: Tensor  # (d, d) G0
    directions: Tensor  # (d, r) U of H
    penalty: Tensor  # (r,) pen of H

    def solve(self, B: Tensor, mu: float | Tensor = 0.0, a: Tensor | None = None) -> Tensor:
        """Rows w_i with `w_i (G0 + mu H + a_i Pi_C) = b_i`, (o, d).

        mu may be (o, 1), a strength a row, as long as `a` is None: then this is the Sylvester equation
        `diag(mu) W + W G0 = B`.
        """
        if a is not None and isinstance(mu, Tensor):
            raise ValueError("a strength a row can stand in mu or in a, not in both")
        bare = ((B @ self.vectors) / (self.values + mu)) @ self.vectors.T
        if a is None:
            return bare
        F = self.vectors @ ((self.vectors.T @ self.span) / (self.values + mu)[:, None])  # (d, r)
        inner = self.span.T @ F
        kap, Y = torch.linalg.eigh((inner + inner.T) / 2)  # (r,), (r, r)
        J, a = F @ Y, a[:, None]
        return bare - ((B @ J) * (a / (1 + a * kap))) @ J.T

    def residual(
        self, W: Tensor, B: Tensor, mu: float | Tensor = 0.0, a: Tensor | None = None, probe: Tensor | None = None
    ) -> float:
        """`|W M - B| / |B|` over all rows, W and B (o, d), from the matrices themselves and not from their factor.

        probe (d, p): a look through p random directions instead of all, at p/d of the cost.
        """
        Z = torch.eye(len(self.gram), dtype=W.dtype) if probe is None else probe
        HZ = Z + self.directions @ (self.penalty[:, None] * (self.directions.T @ Z))
        wanted = B @ Z  # (o, p)
        missed = W @ (self.gram @ Z) + mu * (W @ HZ) - wanted
        if a is not None:
            missed = missed + a[:, None] * (W @ (self.span @ (self.span.T @ Z)))
        scale = float(torch.linalg.norm(wanted))
        return float(torch.linalg.norm(missed)) / scale if scale else 0.0

    def condition(self, mu: float = 0.0) -> float:
        """Condition number of the shared matrix at this mu, measured in H."""
        return float((self.values.max() + mu) / (self.values.min() + mu))

    def effective_rank(self, mu: float = 0.0) -> float:
        """How many directions the rows decide and not the ridge: `sum_j (L_j - lam) / (L_j + mu)`."""
        return float(((self.values - self.lam).clamp(min=0) / (self.values + mu)).sum())


def weighted(blocks: Sequence[tuple[Tensor, float | Tensor]]) -> tuple[Tensor, Tensor]:
    """Blocks of rows (n_b, d) with one weight each, or one a row, as rows (n, d) and weights (n,)."""
    weights = [torch.as_tensor(w, dtype=torch.float64).expand(len(rows)) for rows, w in blocks]
    return torch.cat([rows.double() for rows, _ in blocks]), torch.cat(weights)


def gram_of(blocks: Sequence[tuple[Tensor, float]]) -> Tensor:
    """`sum_b w_b R_b^T R_b` (d, d) of blocks of rows (n_b, d), one at a time: no copy holds them all."""
    width = blocks[0][0].shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=blocks[0][0].device)
    for rows, weight in blocks:
        wide = rows.double()
        total.addmm_(wide.T, wide, alpha=weight)
    return total


def shared_factor(
    rows: Tensor,
    weights: Tensor,
    lam: float,
    concepts: Tensor,
    gate: Gate | None = None,
    kept: Tensor | None = None,
) -> Shared:
    """Factor of all `G0 + mu H`: rows (n, d), weights (n,) make G0; concepts (m, d) span Pi_C and H.

    kept: the Gram matrix (d, d) of further rows, a part of G0.
    """
    if not lam > 0:
        raise ValueError(f"lam must be positive, not {lam}")
    X, C = rows.double(), concepts.double()
    G0 = X.T @ (weights.double()[:, None] * X)  # (d, d)
    G0.diagonal().add_(lam)
    if kept is not None:
        G0 += kept
    U, s = concept_directions(C)
    half, whole = None, G0
    D, weight = U[:, :0], s[:0]
    if gate is not None:
        D, weight = penalised(C, gate)
        half = torch.eye(len(G0), dtype=G0.dtype, device=G0.device) + (D * ((1 + weight).rsqrt() - 1)) @ D.T
        G0 = half @ G0 @ half
    values, Q = torch.linalg.eigh((G0 + G0.T) / 2)
    span = U * (s / (s**2 + 1e-8).sqrt())
    return Shared(values, Q if half is None else half @ Q, span, lam, whole, D, weight)


@dataclass(frozen=True)
class Pairs:
    """Context rows of each concept and the guide rows they are paired with, one guide stored once."""

    context: Tensor  # (m, T, d), zero rows at the end of short concepts
    guide: Tensor  # (g, T, d)
    which: tuple[int, ...]  # guide of each concept

    def stacked(self) -> Tensor:
        """All context rows, (m T, d); zero rows add nothing to a Gram matrix."""
        return self.context.flatten(0, 1)


def pair_rows(context: Sequence[Tensor], guide: Sequence[Tensor]) -> Pairs:
    """Pairs from one (T_k, d) block a concept; guides that agree on their common rows are one."""
    if any(x.shape != g.shape for x, g in zip(context, guide, strict=True)):
        raise ValueError("context and guide rows are paired one to one and must have equal shapes")
    distinct: list[Tensor] = []
    which = [0] * len(guide)
    for k in sorted(range(len(guide)), key=lambda k: -len(guide[k])):  # longest first: it holds the others
        found = [g for g, known in enumerate(distinct) if torch.equal(known[: len(guide[k])], guide[k])]
        if not found:
            distinct.append(guide[k])
        which[k] = found[0] if found else len(distinct) - 1
    length = max(len(x) for x in context)

    def padded(blocks: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.nn.functional.pad(b.double(), (0, 0, 0, length - len(b))) for b in blocks])

    return Pairs(padded(context), padded(distinct), tuple(which))


def target(
    W0: Tensor,
    pairs: Pairs,
    masks: Tensor,
    eta: float,
    *,
    technique: str = "replace",
    interpolate: bool = False,
) -> Tensor:
    """Right side V (o, d) of the row systems; masks (o, m).

    replace: `eta sum_k diag(m_k) W0 X*_k^T X_k`;
    tensor: guide outputs less their part along the concept's own;
    interpolate: what the mask does not take keeps its own output, `(1 - m_k) W0 X_k^T X_k` is added.
    """
    if not eta > 0:
        raise ValueError(f"eta must be positive, not {eta}: at 0 the concepts' Gram matrix alone would erase")
    if technique not in ("replace", "tensor"):
        raise ValueError(f"technique must be replace or tensor, not {technique!r}")
    V = _guided(W0, pairs, masks)
    own = torch.zeros_like(masks)  # weight of W0 Q_k, (o, m)
    if technique == "tensor":
        own = own - masks * _gammas(W0, pairs)
    if interpolate:
        own = own + (1 - masks)
    for k in own.any(0).nonzero().flatten().tolist():
        X = pairs.context[k]
        V += own[:, k, None] * ((W0 @ X.T) @ X)
    return eta * V


def _guided(W0: Tensor, pairs: Pairs, masks: Tensor) -> Tensor:
    """`sum_k diag(m_k) W0 X*_k^T X_k`: a concept's commonest mask value at once, other rows apart."""
    common = masks.mode(0).values  # (m,)
    outputs = W0 @ pairs.guide.transpose(1, 2)  # (g, o, T)
    V = torch.zeros_like(W0)
    for g, Y in enumerate(outputs):
        of_g = [k for k, w in enumerate(pairs.which) if w == g]
        context = pairs.context if len(of_g) == len(common) else pairs.context[of_g]  # one guide for all: no copy
        V += Y @ torch.einsum("k,ktd->td", common[of_g], context)
    off = (masks - common).T.contiguous()  # (m, o), zero but for a few pairs in a hundred when masks saturate
    rows = off.nonzero()[:, 1].split((off != 0).sum(1).tolist())  # of each concept
    for g, r, change, X in zip(pairs.which, rows, off, pairs.context, strict=True):
        if len(r):
            V.index_add_(0, r, change[r, None] * (outputs[g][r] @ X))
    return V


def _gammas(W0: Tensor, pairs: Pairs) -> Tensor:
    """Share (m,) of each concept's own outputs in its guide's."""
    m, T, _ = pairs.context.shape
    real = (pairs.context != 0).any(-1).to(W0)[..., None]  # (m, T, 1); a guide may be longer than a concept
    own = pairs.context @ W0.T  # (m, T, o)
    guided = (pairs.guide[list(pairs.which)] * real) @ W0.T
    group = torch.arange(m, device=W0.device).repeat_interleave(T)
    return tensor_targets(own.flatten(0, 1), guided.flatten(0, 1), group)[1]


def right_side(W0: Tensor, V: Tensor, strength: float, kept: Tensor | None = None) -> Tensor:
    """b_i (o, d): `strength w0_i + V_i`, and `w0_i kept` for the Gram matrix (d, d) of rows that keep their outputs."""
    B = strength * W0 + V
    return B if kept is None else B + W0 @ kept


def low_rank(delta: Tensor, tol: float = 1e-6) -> tuple[Tensor, Tensor] | None:
    """up (o, r), down (r, d), `|delta - up down|_F <= tol |delta|_F`; None where that saves no space."""
    o, d = delta.shape
    if _too_many_directions(delta.double(), tol):
        return None
    U, s, Vt = torch.linalg.svd(delta.double(), full_matrices=False)
    tail = s.square().flip(0).cumsum(0).flip(0).sqrt()  # (k,) tail[r] is the error of rank r
    rank = int((tail > tol * tail[0]).sum())
    if rank * (o + d) >= o * d:
        return None
    root = s[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vt[:rank]


def factors(S: Tensor) -> tuple[Tensor, Tensor]:
    """left, right (d, r) of `S = left right^T`: of the measured rank where that is small, else S and the identity."""
    found = low_rank(S)
    return (S, torch.eye(len(S), dtype=S.dtype, device=S.device)) if found is None else (found[0], found[1].T)


def _too_many_directions(delta: Tensor, tol: float) -> bool:
    """True if a few columns alone prove that a low rank saves no space; False where only an SVD can tell.

    With R columns X, s_R(delta) >= s_R(X), and X^T X - t^2 I has a Cholesky factor only if s_R(X) > t.
    """
    o, d = delta.shape
    R = -(-o * d // (o + d))  # from this rank on
    X = delta[:, torch.arange(R) * d // R]  # (o, R), spread over the text's dimensions
    gram = X.T @ X
    gram.diagonal().sub_((2 * tol) ** 2 * delta.square().sum())  # twice: room for rounding
    return int(torch.linalg.cholesky_ex(gram)[1]) == 0
