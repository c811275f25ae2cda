"""Garbage rate: shown, replaced and garbage, three outcomes that sum to one, beside every forgetting rate.

A judge of presence gives noise a perfect score. Headline efficacy is therefore the share that is *replaced* by a
proper picture of something else; garbage is never counted as erased.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from efface.metrics import Metric, Scored, Specimen, presence
from efface.numerics.intervals import wilson
from efface.scores.cells import Cell, Left, by_prompt, noted, rate_cell
from efface.scores.readings import Reading, Readings

__all__ = ["GarbageRate"]


@dataclass(frozen=True)
class GarbageRate(Metric):
    """What became of the images of each role."""

    red: float = 0.10
    """Share of garbage that makes a cell red when the interval's lower end exceeds it."""
    one_label: float = 0.5
    """Share of one answer over prompts of several concepts that raises the alarm of a collapsed model."""
    direction: ClassVar[str] = "down"

    def score(self, specimen: Specimen) -> Scored:
        """hit: the concept is shown; value: 1 for garbage. NA when the judge has no such label."""
        found, detail = presence(specimen), {"garbage": specimen.garbage}
        if found.state != "ok":
            return replace(found, detail=detail)
        return Scored(hit=found.hit, value=float(specimen.garbage), detail=detail)

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """For each role and side: shares shown, replaced, garbage (of the same images), and the two alarms as notes.

        Readings with `seen`, the judge's likeliest label, also tell what took the concept's place (five labels), and
        are looked through for one label that takes over.
        """
        return [
            cell
            for role, part in Readings.of(rows).roles().items()
            for side, own in part.sides().items()
            for cell in self._outcomes(role, side, own)
        ]

    def _outcomes(self, role: str, side: str, rows: Readings) -> list[Cell]:
        ok, na, error = rows.states()
        bad, hit = rows.flags(lambda r: r.garbage) & ok, rows.hits() & ok
        shares = (("shown", hit & ~bad), ("replaced", ok & ~hit & ~bad), ("garbage", bad))
        one = np.zeros(int(ok.sum()), np.int64)
        sizes, *sums = by_prompt(one, rows.prompts()[ok], 1, *(s[ok] for _, s in shares))[0]
        left = Left.of(na, error)
        cells = [rate_cell(f"{role}.{n}", h, sizes, left, side=side) for (n, _), h in zip(shares, sums, strict=True)]
        seen = rows.where(lambda r: r.state == "ok" and not r.hit and not r.garbage and bool(r.word("seen")))
        return [*cells[:2], self._alarmed(cells[2], rows), *_substitutes(f"{role}.seen instead", side, seen)]

    def _alarmed(self, cell: Cell, rows: Readings) -> Cell:
        red = f"red: more than {self.red:.0%} garbage" if cell.low is not None and cell.low > self.red else ""
        seen = [r.word("seen") for r in rows if r.word("seen") and r.state == "ok"]
        return replace(cell, note=noted(cell.note, red, self._one_label(seen) if len(rows.concepts()[0]) > 1 else ""))

    def _one_label(self, seen: list[str]) -> str:
        """Said where one answer takes over."""
        if not seen:
            return ""
        names, n = np.unique(seen, return_counts=True)
        if n.max() <= self.one_label * len(seen):
            return ""
        return f"one label takes {n.max()} of {len(seen)}: {names[n.argmax()]}"


def _substitutes(name: str, side: str, rows: Readings) -> list[Cell]:
    """The five labels most seen in images that were replaced, with their shares: was the anchor reached?"""
    common = sorted(Counter(r.word("seen") for r in rows).items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    n, prompts = len(rows), len({r.shot.prompt for r in rows})
    cells = []
    for label, k in common:
        low, high = wilson(k, n)
        cells.append(Cell(name, label, side, value=k / n, low=low, high=high, hits=k, n=n, clusters=prompts))
    return cells


PLUGIN = GarbageRate
