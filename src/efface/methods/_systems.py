"""Row systems of closed forms: what all sites of a door share, one checked solve, and how a change is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.errors import BadRequest
from efface.methods._constraints import Block, rows_of
from efface.model.card import Door
from efface.numerics import spectral
from efface.numerics.effects import effects, power_of_ten, short
from efface.numerics.rows import Spans
from efface.patch import Dense, Edit, LowRank, Operator

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.work import Work

__all__ = ["Edited", "Numbers", "RowSystem", "TextRows", "one_operator", "stored"]

RESIDUAL_LIMIT = 1e-6

Numbers = dict[str, float]
"""Of one site, for the recipe."""


@dataclass(frozen=True)
class TextRows:
    """The rows that an equation is made of."""

    names: tuple[str, ...]
    """The text of every concept vector."""
    pairs: spectral.Pairs
    concepts: Tensor  # (m, d) last content rows
    goals: Tensor  # (m, d) the rows they shall become
    empty: Tensor  # (L, d)
    spans: Spans
    """Of the empty text."""

    @classmethod
    def of(cls, blocks: Sequence[Block], evidence: Evidence, door: Door, balance: bool = False) -> TextRows:
        """balance: every concept weighs the same, however many texts it has. Raises BadRequest."""
        for block in blocks:
            block.check()
        weights = [b.weight if balance else 1.0 for b in blocks]
        pairs = spectral.pair_rows(
            [w * b.rows.double() for w, b in zip(weights, blocks, strict=True)],
            [w * b.guides.double() for w, b in zip(weights, blocks, strict=True)],
        )
        concepts, goals = (torch.stack(v).double() for v in ([b.last for b in blocks], [b.goal for b in blocks]))
        empty = rows_of(evidence.text(""), door)[0]
        return cls(tuple(b.text for b in blocks), pairs, concepts, goals, empty.rows.double(), empty.spans)

    def effects(self, new: Tensor, weight: Tensor) -> Numbers:
        """What an edit does to the outputs of the concepts and of the empty text."""
        return effects(new, weight, self.concepts, self.goals, self.empty, self.spans)


class RowSystem:
    """One factorisation for all sites of a door, and the check of every solve."""

    def __init__(self, shared: spectral.Shared, rows: TextRows, kept_rows: int, work: Work) -> None:
        self.shared = shared
        # drawn once: a look through two random directions costs little and sees a wrong solve
        self.probe = torch.randn(rows.empty.shape[1], 2, generator=work.rng("residual"), dtype=torch.float64)
        sizes = {"concepts": len(rows.concepts), "rows": len(rows.pairs.stacked()), "kept_rows": kept_rows}
        self.numbers: Numbers = self.about(0.0) | sizes

    def about(self, mu: float) -> Numbers:
        return {"condition": short(self.shared.condition(mu)), "effective_rank": short(self.shared.effective_rank(mu))}

    def solve(self, right: Tensor, strength: float | Tensor, pull: Tensor | None, site: str) -> tuple[Tensor, Numbers]:
        """Rows (o, d) of one site, and how exact they are. Raises BadRequest where rounding spoils them."""
        solved = self.shared.solve(right, strength, pull)
        residual = self.shared.residual(solved, right, strength, pull, self.probe)
        if not residual < RESIDUAL_LIMIT:
            raise BadRequest(f"the equation at {site or 'all sites'} is solved to {residual:.0e} only; raise lam")
        return solved, {"residual": power_of_ten(residual)}


@dataclass(frozen=True)
class Edited:
    """A weight after its equation."""

    weight: Tensor  # (o, d) float64
    numbers: Numbers


def one_operator(
    door: Door, unit: Edited, rows: TextRows, model: Model, sites: Sequence[str]
) -> tuple[Edit, dict[str, Numbers]]:
    """Where nothing depends on the weight: the edit of the identity matrix is I + S, and one S serves every site."""
    numbers = {}
    for site in sites:
        weight = model.weight(site).cpu().double()  # (o, d)
        numbers[site] = unit.numbers | rows.effects(weight @ unit.weight, weight)
    change = unit.weight - torch.eye(door.width, dtype=torch.float64)
    left, right = spectral.factors(change)
    return Operator(door.name, left.float().contiguous(), right.float().contiguous(), tuple(sites)), numbers


def stored(site: str, change: Tensor) -> Dense | LowRank:
    """Low rank where the measured rank is smaller, else dense; float32 either way."""
    found = spectral.low_rank(change)
    if found is None:
        return Dense(site, change.float())
    return LowRank(site, found[0].float().contiguous(), found[1].float().contiguous())
