"""One ridge operator edits every matrix of a text stream.

Constraints `W' x_i = W g_i` of weight `a_i`, pulled towards the old weight by `lam`:

    min_W'  sum_i a_i |W' x_i - W g_i|^2 + lam |W' - W|_F^2
    W' = W + W S,   S = (G - X)^T A X (lam I + X^T A X)^-1

S does not contain W, so one solve serves all layers. Kept constraints have g = x and add nothing to the left
factor: rank(S) <= number e of erased constraints. Texts are rows here: X and G are (n, d). Nothing is larger than the
rows or (d, d): with many constraints n x n and e x n never stand in memory.

Source: Gandikota et al., "Unified Concept Editing in Diffusion Models", WACV 2024, arXiv 2308.14761; the
ridge and the weights as in the released code, the operator form is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["KeptBlocks", "Ridge", "kept_blocks", "ridge_operator", "tensor_delta", "tensor_targets"]

CONDITION_LIMIT = 1e10  # above it Cholesky, which sees squared singular values, keeps too few digits
RANK_CUT = 1e-12  # relative; singular values below count as zero when there is no ridge to decide
RESIDUAL_LIMIT = 1e-6


@dataclass(frozen=True)
class Ridge:
    """`S = left @ right.T`; column j belongs to constraint `index[j]` of the caller."""

    left: Tensor  # (d, e) guide minus row
    right: Tensor  # (d, e)
    index: Tensor  # (e,)
    condition: float
    residual: float
    solver: str  # cholesky | svd

    @property
    def thin(self) -> bool:
        """Whether the factors have no more columns than S itself."""
        return self.left.shape[1] <= self.left.shape[0]

    def operator(self) -> Tensor:
        """S, (d, d)."""
        return self.left @ self.right.T

    def delta(self, W: Tensor) -> Tensor:
        """W' - W, (o, d), without forming S."""
        return (W.double() @ self.left) @ self.right.T


def ridge_operator(rows: Tensor, guides: Tensor, weights: Tensor, lam: float, *, erased: Tensor | None = None) -> Ridge:
    """The edit that sends each of `rows` (n, d) where its guide (n, d) goes now.

    `erased` (n,) marks the constraints that get a column; by default those whose guide differs from the row.
    """
    X, G, a = _checked(rows, guides, weights, lam)
    moving = (X != G).any(1) & (a > 0) if erased is None else erased.bool()
    order = _canonical_order(X, G, a, moving)
    X, G, a, moving = X[order], G[order], a[order], moving[order]
    root = a.sqrt()[:, None]  # (n, 1)
    Xh = root * X  # (n, d)
    left = (G - X)[moving].T.contiguous()  # (d, e)
    small = Xh @ Xh.T if len(Xh) <= Xh.shape[1] else Xh.T @ Xh  # (min, min)
    Y, condition, solver = _inverse_times(Xh, small, moving, lam)
    right = Y * root[moving].T  # (d, e)
    residual = _residual(left * root[moving].T, Y, Xh, small, moving, lam)
    if residual > RESIDUAL_LIMIT:
        raise ArithmeticError(f"ridge residual {residual:.1e} is above {RESIDUAL_LIMIT:.0e}; raise lam")
    return Ridge(left, right, order[moving], condition, residual, solver)


def _checked(rows: Tensor, guides: Tensor, weights: Tensor, lam: float) -> tuple[Tensor, Tensor, Tensor]:
    X, G, a = rows.double(), guides.double(), weights.double()
    if X.ndim != 2 or X.shape != G.shape or a.shape != X.shape[:1]:
        shapes = f"{tuple(X.shape)}, {tuple(G.shape)}, {tuple(a.shape)}"
        raise ValueError(f"rows, guides and weights must be (n, d), (n, d) and (n,), not {shapes}")
    if not (lam >= 0 and np.isfinite(lam)):
        raise ValueError(f"lam must be finite and not negative, not {lam}")
    if not all(bool(t.isfinite().all()) for t in (X, G, a)) or bool((a < 0).any()):
        raise ValueError("rows, guides and weights must be finite, and weights not negative")
    return X, G, a


def _canonical_order(X: Tensor, G: Tensor, a: Tensor, moving: Tensor) -> Tensor:
    """Erased first, then by content, so that sums do not depend on the order of the request."""
    key = torch.cat([(~moving).double()[:, None], X, G, a[:, None]], 1).add_(0.0)  # turns -0.0 into 0.0
    lines = np.ascontiguousarray(key.cpu().numpy().astype(">f8"))  # (n, 2d + 2), big-endian: exponent leads
    as_bytes = lines.view(np.dtype((np.void, lines.dtype.itemsize * lines.shape[1]))).ravel()
    return torch.from_numpy(np.argsort(as_bytes, kind="stable")).to(X.device)


def _inverse_times(Xh: Tensor, small: Tensor, moving: Tensor, lam: float) -> tuple[Tensor, float, str]:
    """Columns `moving` of `Xh^T (lam I + Xh Xh^T)^-1` (d, e), condition of `lam I + Xh^T Xh`, solver.

    `small` is the smaller of the two products of Xh with itself.
    """
    n, d = Xh.shape
    values = torch.linalg.eigvalsh(small).clamp(min=0) if n else Xh.new_zeros(1)
    top, bottom = float(values[-1]), float(values[0]) if n >= d else 0.0
    condition = (lam + top) / (lam + bottom) if lam + bottom > 0 else float("inf")
    if condition <= CONDITION_LIMIT:
        system = small + lam * torch.eye(len(small), dtype=small.dtype, device=small.device)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not int(failed):
            if n > d:
                return torch.cholesky_solve(Xh.T[:, moving], factor), condition, "cholesky"
            unit = torch.eye(n, dtype=Xh.dtype, device=Xh.device)[:, moving]  # (n, e)
            return Xh.T @ torch.cholesky_solve(unit, factor), condition, "cholesky"
    U, s, Vt = torch.linalg.svd(Xh, full_matrices=False)  # (n, k), (k,), (k, d)
    kept = s > RANK_CUT * s[:1] if lam == 0 else s > 0
    gain = torch.where(kept, s / (s**2 + lam).clamp(min=torch.finfo(s.dtype).tiny), 0.0)  # (k,)
    return (Vt.T * gain) @ U[moving].T, condition, "svd"


def _residual(left: Tensor, Y: Tensor, Xh: Tensor, small: Tensor, moving: Tensor, lam: float) -> float:
    """|S (lam I + X^T A X) - (G - X)^T A X| over |(G - X)^T A X|, from the factors."""
    wanted, (n, d) = Xh[moving], Xh.shape  # (e, d)
    if len(wanted) > d:  # the d x d products are the smaller ones
        S, wanted = left @ Y.T, left @ wanted  # (d, d)
        missed, scale = lam * S + S @ small - wanted, float(torch.linalg.norm(wanted))
        return float(torch.linalg.norm(missed)) / scale if scale > 0 else 0.0
    missed = lam * Y.T + (Y.T @ small if n > d else (Y.T @ Xh.T) @ Xh) - wanted  # (e, d)
    triangle = torch.linalg.qr(left, mode="r")[1]  # |left M| = |triangle M| without the d x d product
    scale = float(torch.linalg.norm(triangle @ wanted))
    return float(torch.linalg.norm(triangle @ missed)) / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class KeptBlocks:
    """The same operator with the kept part solved once: concepts come and go by an e x e solve.

    `C = lam I + sum_kept a x x^T`, `Z = C^-1 Xh_E^T`, `right = Z (I + Xh_E Z)^-1 diag(sqrt a)`.
    """

    factor: Tensor  # (d, d) Cholesky factor of C
    rows: Tensor  # (e, d) erased rows, scaled by the root of their weights
    shift: Tensor  # (e, d) guide minus row
    root: Tensor  # (e,)
    solved: Tensor  # (d, e) Z

    def factors(self) -> tuple[Tensor, Tensor]:
        """left, right (d, e each) of the operator."""
        system = self.rows @ self.solved  # (e, e)
        system.diagonal().add_(1.0)
        right = torch.linalg.solve((system + system.T) / 2, self.solved.T).T  # (d, e)
        return self.shift.T, right * self.root

    def drop(self, gone: Tensor) -> KeptBlocks:
        """Without the erased constraints marked in `gone` (e,)."""
        stay = ~gone.bool()
        rows, shift, root = self.rows[stay], self.shift[stay], self.root[stay]
        return KeptBlocks(self.factor, rows, shift, root, self.solved[:, stay])

    def add(self, rows: Tensor, guides: Tensor, weights: Tensor) -> KeptBlocks:
        """With more erased constraints; O(d^2) a row."""
        X, G, a = _checked(rows, guides, weights, 0.0)
        Xh = a.sqrt()[:, None] * X  # (new, d)
        new = torch.cholesky_solve(Xh.T, self.factor)  # (d, new)
        return KeptBlocks(
            self.factor,
            torch.cat([self.rows, Xh]),
            torch.cat([self.shift, G - X]),
            torch.cat([self.root, a.sqrt()]),
            torch.cat([self.solved, new], 1),
        )


def kept_blocks(kept: Tensor, weights: Tensor, lam: float) -> KeptBlocks:
    """No erased constraint yet; `kept` (p, d) stays where it is. Needs lam > 0 or d independent kept rows."""
    X, _, a = _checked(kept, kept, weights, lam)
    d = X.shape[1]
    C = lam * torch.eye(d, dtype=X.dtype, device=X.device) + X.T @ (a[:, None] * X)  # (d, d)
    none = X.new_zeros(0, d)
    return KeptBlocks(torch.linalg.cholesky(C), none, none, X.new_zeros(0), X.new_zeros(d, 0))


def tensor_targets(outputs: Tensor, guided: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Technique "tensor": guided outputs (n, o) less their part along the block of own outputs; gammas.

    A block is one concept's rows taken as a single vector: `v = N - gamma O`, `gamma = <O, N> / <O, O>`.
    """
    blocks = int(group.max()) + 1
    total = outputs.new_zeros(3, blocks)
    for line, product in zip(total, (outputs * guided, outputs**2, guided**2), strict=True):
        line.index_add_(0, group, product.sum(1))
    gamma = total[0] / total[1].clamp(min=torch.finfo(total.dtype).tiny)  # (blocks,)
    left = total[2] - gamma * total[0]  # |v|^2 of each block
    if bool((left <= 1e-12 * total[2].clamp(min=torch.finfo(total.dtype).tiny)).any()):
        raise ValueError(
            "technique tensor leaves a zero target: a guide is its concept, or has no output; name another anchor"
        )
    return guided - gamma[group][:, None] * outputs, gamma


def tensor_delta(W: Tensor, ridge: Ridge, rows: Tensor, guides: Tensor, group: Tensor) -> Tensor:
    """W' - W (o, d) for technique "tensor", which needs each W; `group` (n,) numbers the concepts.

    `ridge` must come from the same constraints with every erased one marked, also where guide and row agree.
    """
    W, pick = W.double(), ridge.index
    own, guided = rows.double()[pick] @ W.T, guides.double()[pick] @ W.T  # (e, o)
    targets, _ = tensor_targets(own, guided, group[pick])
    return (targets - own).T @ ridge.right.T
