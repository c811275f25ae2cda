"""Accuracy by class: the share of images in which the judge finds what was asked for, per concept and together.

Forgetting accuracy (targets, should fall) and preserving accuracy (kept concepts, should stay) of the papers are the
means over concepts; pooled rates stand beside them. A target that the base draws in less than half of its images is
NA: not known to this model, never a success.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from efface.metrics import Cell, Item, Row, Scored, Table, by_prompt, loss_cell, presence, rate_cell
from efface.numerics.intervals import corrected_rate, mean_of_rates
from efface.scores.tables import KNOWN_AT_LEAST, NAMED, SURE_AT_LEAST

__all__ = ["Accuracy"]

# `efface.scores.tables` counts pairs of base and edited for the report; this counts the rows of each side, also of a
# gold, and corrects for the judge's errors. They share the rules and the intervals, not what is counted.


@dataclass(frozen=True)
class Accuracy:
    """roles: which roles are targets; their concepts need a base rate of at least one half.

    errors: by label, the judge's measured (true positives, positives, true negatives, negatives), from
    `efface.judges.errors_of`; rates are then also printed freed from them, beside the raw ones.
    """

    errors: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    roles: tuple[str, ...] = NAMED
    direction: ClassVar[str] = "same"
    of_pairs: ClassVar[bool] = False
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The judge's, unchanged."""
        return item.features

    def score(self, item: Item) -> Scored:
        """Does the judge find the concept? NA when it has no such label."""
        return presence(item)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """Per role: a cell a concept and side, the loss in pairs, the mean over scored concepts, the pooled rate."""
        table = Table.of(rows)
        cells: list[Cell] = []
        for role in sorted({str(r.get("role", "")) for r in table}):
            cells += self._role(role, table.where(lambda r, role=role: r.get("role", "") == role))
        return cells

    def _role(self, role: str, table: Table) -> list[Cell]:
        sides = sorted({str(r.get("side", "")) for r in table})
        found = {side: _by_concept(role, side, table.where(lambda r, s=side: r.get("side") == s)) for side in sides}
        unknown = self._unknown(role, found.get("base", []))
        cells = [_judged(c, unknown) for side in sides for c in found[side]]
        for side in sides:
            cells += _together(role, side, [c for c in cells if c.side == side])
        if {"base", "edited"} <= {*sides}:
            cells += [_judged(c, unknown) for c in _losses(f"{role}.loss", table)]
        if {"gold", "edited"} <= {*sides}:
            both = table.where(lambda r: r.get("side") in ("gold", "edited"))
            cells += [_judged(c, unknown) for c in _losses(f"{role}.excess over gold", both, "edited", "gold")]
        return [*cells, *(_corrected(c, self.errors[c.concept]) for c in cells if self._correctable(role, c))]

    def _correctable(self, role: str, cell: Cell) -> bool:
        return cell.name == role and cell.state == "ok" and cell.concept in self.errors

    def _unknown(self, role: str, base: list[Cell]) -> dict[str, tuple[bool, str]]:
        """Targets that the base does not or hardly knows: (leave out, what to say)."""
        said: dict[str, tuple[bool, str]] = {}
        for cell in base if role in self.roles else ():
            if cell.state != "ok" or cell.value is None:
                said[cell.concept] = (True, f"the base was not scored: {cell.reason}")
            elif cell.value < KNOWN_AT_LEAST:
                said[cell.concept] = (True, f"not known to this model: the base shows it in {cell.hits} of {cell.n}")
            elif cell.value < SURE_AT_LEAST:
                said[cell.concept] = (False, f"the base shows it in only {cell.hits} of {cell.n}")
        return said


def _by_concept(role: str, side: str, table: Table) -> list[Cell]:
    names, concepts = table.codes("concept")
    ok, na, error = table.states()
    prompts = table.codes("prompt")[1]
    n_na, n_error = (np.bincount(concepts[m], minlength=len(names)) for m in (na, error))
    parts = by_prompt(concepts[ok], prompts[ok], len(names), table.flags("hit")[ok])
    return [
        rate_cell(role, hits, sizes, n_na=int(n_na[k]), n_error=int(n_error[k]), concept=str(names[k]), side=side)
        for k, (sizes, hits) in enumerate(parts)
    ]


def _judged(cell: Cell, unknown: dict[str, tuple[bool, str]]) -> Cell:
    out, said = unknown.get(cell.concept, (False, ""))
    if out and cell.state == "ok":
        # counts stay, so that nothing is hidden; the number goes, so that no mean can take it up
        return replace(cell, state="na", value=None, low=None, high=None, reason=said)
    return replace(cell, note="; ".join(t for t in (cell.note, said) if t)) if said and cell.state == "ok" else cell


def _together(role: str, side: str, cells: list[Cell]) -> list[Cell]:
    """The mean over scored concepts ("macro") and hits over images of the same concepts ("micro")."""
    scored = [c for c in cells if c.state == "ok"]
    caption = f"{len(scored)} of {len(cells)} scored"
    counts: dict[str, Any] = {"n_na": sum(c.n_na for c in cells), "n_error": sum(c.n_error for c in cells)}
    if any(c.state == "error" for c in cells):
        reason = f"{sum(c.state == 'error' for c in cells)} concepts failed"
        return [Cell(f"{role}.{m}", side=side, state="error", reason=reason, **counts) for m in ("macro", "micro")]
    if not scored:
        return [Cell(f"{role}.{m}", side=side, state="na", reason=caption, **counts) for m in ("macro", "micro")]
    rates = [(c.value or 0.0, c.low or 0.0, 1.0 if c.high is None else c.high) for c in scored]
    macro, low, high = mean_of_rates(np.asarray(rates))
    hits, n, prompts = (sum(int(v or 0) for v in column)
                        for column in zip(*((c.hits, c.n, c.clusters) for c in scored), strict=True))  # fmt: skip
    total: dict[str, Any] = {"hits": hits, "n": n, "clusters": prompts, "note": caption, "side": side, **counts}
    # unequal concepts: the pooled interval is that of the mean with each concept weighed by its images
    weights = np.asarray([c.n for c in scored]) / n
    micro = mean_of_rates(np.asarray(rates), weights)
    return [
        Cell(f"{role}.macro", value=macro, low=low, high=high, **total),
        Cell(f"{role}.micro", value=hits / n, low=micro.low, high=micro.high, **total),
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


def _losses(name: str, table: Table, first: str = "base", second: str = "edited") -> list[Cell]:
    base, edited = table.pairs(first, second)
    fine = base.states()[0] & edited.states()[0]
    b, e = base.flags("hit"), edited.flags("hit")
    names, concepts = base.codes("concept")
    prompts = base.codes("prompt")[1]
    parts = by_prompt(concepts[fine], prompts[fine], len(names), (b & ~e)[fine], (e & ~b)[fine])
    failed = base.states()[2] | edited.states()[2]
    n_error = np.bincount(concepts[failed], minlength=len(names))
    n_na = np.bincount(concepts[~fine & ~failed], minlength=len(names))
    return [
        loss_cell(name, lost, won, sizes, n_na=int(n_na[k]), n_error=int(n_error[k]), concept=str(names[k]))
        for k, (sizes, lost, won) in enumerate(parts)
    ]


PLUGIN = Accuracy
