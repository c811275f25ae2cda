"""Accuracy by class: the share of images in which the judge finds what was asked for, per concept and together.

Forgetting accuracy (targets, should fall) and preserving accuracy (kept concepts, should stay) of the papers are the
means over concepts; pooled rates stand beside them. A target whose base rate may be below one half, by its interval,
is NA, never a success. The report's tables count pairs of base and edited; this counts the
readings of each side, also of a gold, and corrects for the judge's errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from efface.metrics import Metric
from efface.numerics.intervals import corrected_rate, mean_of_rates
from efface.scores.cells import NAMED, Cell, Left, Unknown, by_prompt, loss_cell, noted, rate_cell, unknown
from efface.scores.readings import Reading, Readings

__all__ = ["Accuracy"]


@dataclass(frozen=True)
class Accuracy(Metric):
    """Rates by concept, their losses in pairs, and both means."""

    errors: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """By label, the judge's measured (true positives, positives, true negatives, negatives), from
    `efface.judges.errors_of`; rates are then also printed freed from them, beside the raw ones."""
    roles: tuple[str, ...] = NAMED
    """Which roles are targets; their concepts need a base rate that is at least one half by its interval."""
    direction: ClassVar[str] = "same"

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """Per role: a cell a concept and side, the loss in pairs, the mean over scored concepts, the pooled rate."""
        return [cell for role, part in Readings.of(rows).roles().items() for cell in self._role(role, part)]

    def _role(self, role: str, rows: Readings) -> list[Cell]:
        sides = rows.sides()
        found = {side: _by_concept(role, side, part) for side, part in sides.items()}
        said = self._unknown(role, found.get("base", []))
        cells = [_judged(c, said) for side in sides for c in found[side]]
        for side in sides:
            cells += _together(role, side, [c for c in cells if c.side == side])
        if {"base", "edited"} <= {*sides}:
            cells += [_judged(c, said) for c in _losses(f"{role}.loss", *rows.pairs())]
        if {"gold", "edited"} <= {*sides}:
            cells += [_judged(c, said) for c in _losses(f"{role}.excess over gold", *rows.pairs("edited", "gold"))]
        return [*cells, *(_corrected(c, self.errors[c.concept]) for c in cells if self._correctable(role, c))]

    def _correctable(self, role: str, cell: Cell) -> bool:
        return cell.name == role and cell.state == "ok" and cell.concept in self.errors

    def _unknown(self, role: str, base: list[Cell]) -> dict[str, Unknown]:
        """What the base's rates say of targets."""
        said: dict[str, Unknown] = {}
        for cell in base if role in self.roles else ():
            if cell.state != "ok":
                said[cell.concept] = Unknown(True, f"the base was not scored: {cell.reason}")
            else:
                said[cell.concept] = unknown(cell.hits or 0, cell.n, cell.low, cell.high)
        return said


def _by_concept(role: str, side: str, rows: Readings) -> list[Cell]:
    names, concepts = rows.concepts()
    ok, na, error = rows.states()
    parts = by_prompt(concepts[ok], rows.prompts()[ok], len(names), rows.hits()[ok])
    left = _left(concepts, len(names), na, error)
    return [rate_cell(role, hits, sizes, left[k], concept=names[k], side=side) for k, (sizes, hits) in enumerate(parts)]


def _left(concepts: np.ndarray, count: int, na: np.ndarray, error: np.ndarray) -> list[Left]:
    """What is not counted of each concept."""
    columns = (np.bincount(concepts[m], minlength=count) for m in (na, error))
    return [Left(int(a), int(b)) for a, b in zip(*columns, strict=True)]


def _judged(cell: Cell, said: Mapping[str, Unknown]) -> Cell:
    found = said.get(cell.concept, Unknown(False, ""))
    if cell.state != "ok":
        return cell
    if found.out:
        # counts stay, so that nothing is hidden; the number goes, so that no mean can take it up
        return replace(cell, state="na", value=None, low=None, high=None, reason=found.words)
    return replace(cell, note=noted(cell.note, found.words))


def _together(role: str, side: str, cells: list[Cell]) -> list[Cell]:
    """The mean over scored concepts ("macro") and hits over images of the same concepts ("micro")."""
    scored = [c for c in cells if c.state == "ok"]
    caption = f"{len(scored)} of {len(cells)} scored"
    failed = sum(c.state == "error" for c in cells)
    blank = Cell("", side=side, n_na=sum(c.n_na for c in cells), n_error=sum(c.n_error for c in cells))
    names = (f"{role}.macro", f"{role}.micro")
    if failed:
        return [replace(blank, name=n, state="error", reason=f"{failed} concepts failed") for n in names]
    if not scored:
        return [replace(blank, name=n, state="na", reason=caption) for n in names]
    rates = np.asarray([(c.value, c.low, c.high) for c in scored], np.float64)
    hits, n, prompts = sum(c.hits or 0 for c in scored), sum(c.n for c in scored), sum(c.clusters for c in scored)
    total = replace(blank, hits=hits, n=n, clusters=prompts, note=caption)
    macro = mean_of_rates(rates)
    # unequal concepts: the pooled interval is that of the mean with each concept weighed by its images
    micro = mean_of_rates(rates, np.asarray([c.n for c in scored]) / n)
    return [
        replace(total, name=names[0], value=macro.estimate, low=macro.low, high=macro.high),
        replace(total, name=names[1], value=hits / n, low=micro.low, high=micro.high),
    ]


def _corrected(cell: Cell, errors: tuple[int, int, int, int]) -> Cell:
    """Rogan-Gladen beside the raw rate; images count as independent, so with several seeds a prompt it is narrow."""
    found = corrected_rate(cell.hits or 0, cell.n, *errors)
    name, (tp, pos, tn, neg) = f"{cell.name}.corrected", errors
    if found is None:
        reason = f"the judge is no better than chance on {cell.concept}"
        return replace(cell, name=name, state="na", value=None, low=None, high=None, note="", reason=reason)
    said = f"raw {found.raw:.3f}; sensitivity {tp}/{pos}, specificity {tn}/{neg}; images taken as independent"
    return replace(cell, name=name, value=found.estimate, low=found.low, high=found.high, hits=None, note=said)


def _losses(name: str, base: Readings, edited: Readings) -> list[Cell]:
    fine = base.states()[0] & edited.states()[0]
    failed = base.states()[2] | edited.states()[2]
    b, e = base.hits(), edited.hits()
    names, concepts = base.concepts()
    parts = by_prompt(concepts[fine], base.prompts()[fine], len(names), (b & ~e)[fine], (e & ~b)[fine])
    left = _left(concepts, len(names), ~fine & ~failed, failed)
    return [loss_cell(name, lost, won, sizes, left[k], concept=names[k]) for k, (sizes, lost, won) in enumerate(parts)]


PLUGIN = Accuracy
