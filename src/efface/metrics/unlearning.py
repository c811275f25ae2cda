"""UA, IRA and CRA: unlearning, in-domain retaining and cross-domain retaining accuracy.

Zhang et al., "UnlearnCanvas", NeurIPS 2024, arXiv 2402.11846. A prompt names a style, an object or both; one head of
the judge says the style, another the object. UA counts noise as success: it is printed with IRA, CRA and garbage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from efface.metrics import Cell, Item, Row, Scored, Table, by_prompt, rate_cell
from efface.numerics.intervals import mean_of_rates
from efface.scores.tables import KNOWN_AT_LEAST

__all__ = ["Unlearning"]

ERASED = {"style": "style", "object": "target"}  # the role of what a request erases, by kind


@dataclass(frozen=True)
class Unlearning:
    """target: one erased style or object of that `kind`; "" is every one that the rows' roles say. scope: whether
    cross-domain accuracy skips target prompts ("exclude-target") or counts them too ("all", as the authors' script).

    Rows carry `style` and `object` (what the prompt names, "" for none) and `style_seen`, `object_seen` (the heads'
    argmax). Several questions of one image are one row. A target that the base draws in less than half of its images is
    NA, where rows of the base are there.
    """

    target: str = ""
    kind: Literal["style", "object"] = "style"
    scope: Literal["exclude-target", "all"] = "exclude-target"
    direction: ClassVar[str] = "up"
    of_pairs: ClassVar[bool] = False
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The judge's, unchanged."""
        return item.features

    def score(self, item: Item) -> Scored:
        """hit: the head of this kind says what the prompt names; None where the prompt names nothing of it."""
        if not item.heads:
            return Scored("na", reason="nothing is known of a judge's heads")
        detail = {head: named for head, (named, _) in item.heads.items()}
        detail |= {f"{head}_seen": seen for head, (_, seen) in item.heads.items()}
        named, seen = item.heads.get(self.kind, ("", ""))
        return Scored(hit=seen == named if named and seen else None, detail=detail)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """UA, IRA and CRA of each side: means over targets, over the other styles (objects), over objects (styles).

        A row counts for a head where its prompt names something of it; where the head is silent it is NA.
        """
        table = Table.of(rows)
        role = ERASED[self.kind]
        erased = {str(r[self.kind]) for r in table if r.get("role") == role and r.get(self.kind)}
        gone = erased | {self.target} if self.target else erased
        aims = {self.target} if self.target else gone
        whole, cells = table.images(), []
        sides = {s: whole.where(lambda r, s=s: str(r.get("side", "")) == s)
                 for s in sorted({str(r.get("side", "")) for r in whole})}  # fmt: skip
        base = sides.get("base", Table(())).where(lambda r: r.get(self.kind) in aims)
        unknown = _unknown(_rates("base", "base", base, self.kind))
        for side, part in sides.items():
            cells += self._side(side, part, gone, aims, unknown)
        return cells

    def _side(self, side: str, table: Table, gone: set[str], aims: set[str], unknown: dict[str, str]) -> list[Cell]:
        """gone: all that was erased of this kind; aims: what of it is looked at; unknown: why some of it is NA."""
        own, other = ("style", "object") if self.kind == "style" else ("object", "style")
        aimed = table.where(lambda r: r.get(own) in aims)
        spared = table.where(lambda r: r.get(own) not in gone)
        ua = [_left_out(c, unknown) for c in _rates("UA", side, aimed, own, missed=True)]
        ira = _rates("IRA", side, spared, own)
        cra = _rates("CRA", side, spared if self.scope == "exclude-target" else table, other)
        return [
            _mean("UA", side, ua, "target", f"no prompt names {self.target or f'an erased {own}'}"),
            _mean("IRA", side, ira, own, f"no prompt names a kept {own}"),
            _mean("CRA", side, cra, other, f"no prompt {'names' if self.scope == 'all' else 'without a target names'} "
                                           f"{'an object' if other == 'object' else 'a style'}"),
        ]  # fmt: skip


def _rates(name: str, side: str, table: Table, head: str, missed: bool = False) -> list[Cell]:
    """One cell a named style (object): share of images in which the head says it, or does not."""
    named = table.where(lambda r: bool(r.get(head)))
    table = Table([r if r.get(f"{head}_seen") else _silent(r) for r in named], ordered=True)
    names, wanted = table.codes(head)
    ok, na, error = table.states()
    seen = np.fromiter((r.get(f"{head}_seen") == r.get(head) for r in table), bool, len(table))
    parts = by_prompt(wanted[ok], table.codes("prompt")[1][ok], len(names), (seen ^ missed)[ok])
    counts = [np.bincount(wanted[m], minlength=len(names)) for m in (na, error)]
    return [
        rate_cell(
            name, hits, sizes, n_na=int(counts[0][k]), n_error=int(counts[1][k]), concept=str(names[k]), side=side
        )
        for k, (sizes, hits) in enumerate(parts)
    ]


def _unknown(base: list[Cell]) -> dict[str, str]:
    """Erased concepts that the base does not draw, with the reason: that they are missing is no success of an edit."""
    said = {c.concept: f"the base was not scored: {c.reason}" for c in base if c.state != "ok"}
    few = [c for c in base if c.value is not None and c.value < KNOWN_AT_LEAST]
    return said | {c.concept: f"not known to this model: the base shows it in {c.hits} of {c.n}" for c in few}


def _left_out(cell: Cell, unknown: dict[str, str]) -> Cell:
    if cell.state != "ok" or cell.concept not in unknown:
        return cell
    return replace(cell, state="na", value=None, low=None, high=None, reason=unknown[cell.concept])


def _silent(row: Row) -> Row:
    return row if row.get("state") == "error" else {**row, "state": "na"}


def _mean(name: str, side: str, cells: list[Cell], over: str, absent: str) -> Cell:
    """absent: why there may be no cell at all."""
    good = [c for c in cells if c.state == "ok"]
    counts: dict[str, Any] = {"n_na": sum(c.n_na for c in cells), "n_error": sum(c.n_error for c in cells)}
    if any(c.state == "error" for c in cells):
        return Cell(
            name, side=side, state="error", reason=next(c.reason for c in cells if c.state == "error"), **counts
        )
    if not good:
        why = next((c.reason for c in cells if c.n), f"the judge names no {over} of these prompts") if cells else absent
        return Cell(name, side=side, state="na", reason=why, **counts)
    rates = np.asarray([(c.value, c.low, c.high) for c in good], np.float64)
    value, low, high = mean_of_rates(rates)
    of = f" of {len(cells)}" if len(good) < len(cells) else ""
    return Cell(
        name, side=side, value=value, low=low, high=high, hits=sum(c.hits or 0 for c in good),
        n=sum(c.n for c in good), clusters=sum(c.clusters for c in good), note=f"mean of {len(good)}{of} ({over})",
        **counts,
    )  # fmt: skip


PLUGIN = Unlearning
