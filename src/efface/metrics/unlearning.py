"""UA, IRA and CRA: unlearning, in-domain retaining and cross-domain retaining accuracy.

Zhang et al., "UnlearnCanvas", NeurIPS 2024, arXiv 2402.11846. A prompt names a style, an object or both; one head of
the judge says the style, another the object. UA counts noise as success: it is printed with IRA, CRA and garbage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from efface.metrics import Metric, Scored, Specimen
from efface.numerics.intervals import mean_of_rates
from efface.scores.cells import Cell, Left, by_prompt, rate_cell, unknown
from efface.scores.readings import Reading, Readings

__all__ = ["Unlearning"]

ERASED = {"style": "style", "object": "target"}  # the role of what a request erases, by kind


@dataclass(frozen=True)
class Unlearning(Metric):
    """Three accuracies of the judge's heads.

    Readings carry `style` and `object` (what the prompt names, "" for none) and `style_seen`, `object_seen` (the heads'
    argmax). Several questions of one image are one reading. A target whose base rate may be below one half, by
    its interval, is NA, where readings of the base are there.
    """

    target: str = ""
    """One erased style or object of that kind; empty is every one that the readings' roles say."""
    kind: Literal["style", "object"] = "style"
    """What is erased."""
    scope: Literal["exclude-target", "all"] = "exclude-target"
    """Whether cross-domain accuracy skips target prompts, or counts them too, as the authors' script."""
    direction: ClassVar[str] = "up"

    def score(self, specimen: Specimen) -> Scored:
        """hit: the head of this kind says what the prompt names; None where the prompt names nothing of it."""
        if not specimen.heads:
            return Scored("na", reason="nothing is known of a judge's heads")
        detail = {head: named for head, (named, _) in specimen.heads.items()}
        detail |= {f"{head}_seen": seen for head, (_, seen) in specimen.heads.items()}
        named, seen = specimen.heads.get(self.kind, ("", ""))
        return Scored(hit=seen == named if named and seen else None, detail=detail)

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """UA, IRA and CRA of each side: means over targets, over the other styles (objects), over objects (styles).

        A reading counts for a head where its prompt names something of it; where the head is silent it is NA.
        """
        rows = Readings.of(rows)
        erased = {r.word(self.kind) for r in rows if r.role == ERASED[self.kind] and r.word(self.kind)}
        gone = erased | {self.target} if self.target else erased
        aims = {self.target} if self.target else gone
        sides = rows.images().sides()
        base = sides.get("base", Readings(())).where(lambda r: r.word(self.kind) in aims)
        said = _unknown(_rates("base", "base", base, self.kind))
        return [cell for side, part in sides.items() for cell in self._side(side, part, gone, aims, said)]

    def _side(self, side: str, rows: Readings, gone: set[str], aims: set[str], said: Mapping[str, str]) -> list[Cell]:
        """gone: all that was erased of this kind; aims: what of it is looked at; said: why some of it is NA."""
        own, other = ("style", "object") if self.kind == "style" else ("object", "style")
        aimed = rows.where(lambda r: r.word(own) in aims)
        spared = rows.where(lambda r: r.word(own) not in gone)
        ua = [_left_out(c, said) for c in _rates("UA", side, aimed, own, missed=True)]
        ira = _rates("IRA", side, spared, own)
        cra = _rates("CRA", side, spared if self.scope == "exclude-target" else rows, other)
        crossed = f"no prompt {'names' if self.scope == 'all' else 'without a target names'} {_article(other)}"
        return [
            _mean("UA", side, ua, "target", f"no prompt names {self.target or f'an erased {own}'}"),
            _mean("IRA", side, ira, own, f"no prompt names a kept {own}"),
            _mean("CRA", side, cra, other, crossed),
        ]


def _article(kind: str) -> str:
    return "an object" if kind == "object" else "a style"


def _rates(name: str, side: str, rows: Readings, head: str, missed: bool = False) -> list[Cell]:
    """One cell a named style (object): share of images in which the head says it, or does not."""
    named = rows.where(lambda r: bool(r.word(head)))
    rows = Readings([r if r.word(f"{head}_seen") else _silent(r) for r in named], ordered=True)
    names, wanted = rows.codes(lambda r: r.word(head))
    ok, na, error = rows.states()
    seen = rows.flags(lambda r: r.word(f"{head}_seen") == r.word(head))
    parts = by_prompt(wanted[ok], rows.prompts()[ok], len(names), (seen ^ missed)[ok])
    counts = [np.bincount(wanted[m], minlength=len(names)) for m in (na, error)]
    left = [Left(int(a), int(b)) for a, b in zip(*counts, strict=True)]
    return [rate_cell(name, hits, sizes, left[k], concept=names[k], side=side) for k, (sizes, hits) in enumerate(parts)]


def _unknown(base: list[Cell]) -> dict[str, str]:
    """Erased concepts that the base does not draw, with the reason: that they are missing is no success of an edit."""
    said = {c.concept: f"the base was not scored: {c.reason}" for c in base if c.state != "ok"}
    found = {c.concept: unknown(c.hits or 0, c.n, c.low, c.high) for c in base if c.state == "ok"}
    return said | {concept: f.words for concept, f in found.items() if f.out}


def _left_out(cell: Cell, said: Mapping[str, str]) -> Cell:
    if cell.state != "ok" or cell.concept not in said:
        return cell
    return replace(cell, state="na", value=None, low=None, high=None, reason=said[cell.concept])


def _silent(row: Reading) -> Reading:
    return row if row.state == "error" else replace(row, state="na")


def _mean(name: str, side: str, cells: list[Cell], over: str, absent: str) -> Cell:
    """absent: why there may be no cell at all."""
    good = [c for c in cells if c.state == "ok"]
    blank = Cell(name, side=side, n_na=sum(c.n_na for c in cells), n_error=sum(c.n_error for c in cells))
    if any(c.state == "error" for c in cells):
        return replace(blank, state="error", reason=next(c.reason for c in cells if c.state == "error"))
    if not good:
        why = next((c.reason for c in cells if c.n), f"the judge names no {over} of these prompts") if cells else absent
        return replace(blank, state="na", reason=why)
    value, low, high = mean_of_rates(np.asarray([(c.value, c.low, c.high) for c in good], np.float64))
    of = f" of {len(cells)}" if len(good) < len(cells) else ""
    hits, n, prompts = sum(c.hits or 0 for c in good), sum(c.n for c in good), sum(c.clusters for c in good)
    note = f"mean of {len(good)}{of} ({over})"
    return replace(blank, value=value, low=low, high=high, hits=hits, n=n, clusters=prompts, note=note)


PLUGIN = Unlearning
