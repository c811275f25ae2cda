"""Composite scores: Overall (FIA, ScaPre), H_o, H_c, H_a (MACE), UQ (ScaPre), mean rank (FIA), with exact formulas.

FIA's Overall; ScaPre, arXiv 2601.06162 (UQ); MACE, arXiv 2403.06135, equations 8 and 9. UQ and mean rank are
set-dependent: they change when a method enters or leaves the table, so the pool is printed with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from efface.metrics import Metric
from efface.numerics import composites
from efface.scores.cells import Cell
from efface.scores.readings import Reading, Readings

__all__ = ["Composites", "Summary"]


# what a role adds to, where it is not a part of its own
PART = {"neighbour": "kept", "other": "kept", "other-style": "kept", "style": "target"}


@dataclass(frozen=True)
class Summary:
    """What one method scores before anything is combined; None is NA. Rates are fractions, CLIP scores points."""

    method: str
    erased: float | None = None
    kept: float | None = None
    synonyms: float | None = None
    clip_erased: float | None = None
    clip_kept: float | None = None
    clip_coco: float | None = None
    classes: tuple[tuple[float, float, float], ...] = ()
    """(erased, kept, synonyms) per erased class, for the mean of H_o over classes."""


@dataclass(frozen=True)
class Composites(Metric):
    """Scores of whole methods, each from several rates."""

    base: str = "base"
    """Name of the unedited model: part of UQ's pool, left out of the mean rank."""
    ranks: tuple[tuple[str, bool], ...] = (("erased", False), ("kept", True), ("clip_coco", True))
    """Columns of the mean rank, and whether up is good."""
    direction: ClassVar[str] = "up"
    set_dependent: ClassVar[bool] = True

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """From readings with `method`, `role` (a target, synonym, kept or quality) and hits.

        In role "quality" `value` is the CLIP score. Accuracies are means over concepts; readings of side "base" belong
        to the base model.
        """
        methods = Readings.of(rows).by(self._owner)
        return self.table([_summary(name, part) for name, part in methods.items()])

    def _owner(self, row: Reading) -> str:
        """Readings of the base side are the base model's, whatever method they were drawn beside."""
        return self.base if row.side == "base" else row.method or row.side

    def table(self, summaries: Sequence[Summary]) -> list[Cell]:
        """Every composite of every method of one table."""
        names = [s.method for s in summaries]
        cells = [c for s in summaries for c in _own(s)]
        pool = f"pool: {', '.join(names)}"
        uq = _unlearning_quality(summaries)
        rank = self._mean_rank([s for s in summaries if s.method != self.base])
        for s in summaries:
            cells.append(_cell("UQ", s.method, uq.get(s.method), f"set-dependent; {pool}", "needs a pool that varies"))
            if s.method != self.base:
                why = "a column is NA for some method"
                cells.append(_cell("mean rank", s.method, rank.get(s.method), f"set-dependent; {pool}", why))
        return cells

    def _mean_rank(self, summaries: Sequence[Summary]) -> Mapping[str, float]:
        columns = [[getattr(s, c) for c, _ in self.ranks] for s in summaries]
        if not columns or any(v is None for row in columns for v in row):
            return {}
        ranks = composites.mean_rank(np.asarray(columns), np.asarray([up for _, up in self.ranks]))
        return dict(zip((s.method for s in summaries), ranks.tolist(), strict=True))


def _unlearning_quality(summaries: Sequence[Summary]) -> dict[str, float]:
    known = [s for s in summaries if s.erased is not None and s.clip_coco is not None]
    columns = np.asarray([(s.erased, s.clip_coco) for s in known], np.float64).reshape(-1, 2)
    found = composites.unlearning_quality(columns[:, 0], columns[:, 1]) if len(known) == len(summaries) else None
    return {} if found is None else dict(zip((s.method for s in known), found.tolist(), strict=True))


def _own(s: Summary) -> list[Cell]:
    """The composites that need no other method."""
    both = s.erased is not None and s.kept is not None
    three = both and s.synonyms is not None
    overall = float(composites.overall(s.erased, s.kept)) if s.erased is not None and s.kept is not None else None
    h_o, note = None, ""
    if s.classes:
        columns = np.asarray(s.classes, np.float64).T
        h_o, note = float(composites.h_o(*columns).mean()), f"mean over {len(s.classes)} classes"
    elif three:
        h_o, note = float(composites.h_o(s.erased or 0.0, s.kept or 0.0, s.synonyms or 0.0)), "of the means"
    gap = s.clip_erased is not None and s.clip_kept is not None
    h_a = composites.h_a(s.clip_erased or 0.0, s.clip_kept or 0.0) if gap else None
    return [
        _cell("Overall", s.method, overall, "", "needs accuracies on targets and on kept concepts"),
        _cell("H_c", s.method, overall, "the same formula as Overall", "needs accuracies on targets and kept concepts"),
        _cell("H_o", s.method, h_o, note, "needs accuracies on targets, kept concepts and synonyms"),
        _cell("H_a", s.method, h_a, "CLIP points", "needs CLIP scores on erased and kept prompts"),
    ]


def _cell(name: str, method: str, value: float | None, note: str, why: str) -> Cell:
    if value is None:
        return Cell(name, side=method, state="na", reason=why)
    return Cell(name, side=method, value=value, note=note)


def _summary(method: str, rows: Readings) -> Summary:
    names, codes = rows.codes(lambda r: (r.role, r.concept))
    ok = rows.states()[0]
    n = np.bincount(codes[ok], minlength=len(names))
    hits = np.bincount(codes[ok], weights=rows.hits()[ok], minlength=len(names))
    rates: dict[str, dict[str, float]] = {}
    for (role, concept), k, m in zip(names, hits, n, strict=True):
        if m:
            rates.setdefault(PART.get(role, role), {})[concept] = float(k / m)
    values = rows.values()
    quality = ok & rows.flags(lambda r: r.role == "quality") & np.isfinite(values)
    clip = float(values[quality].mean()) if quality.any() else None
    kept = _mean(rates.get("kept", {}))
    classes = _classes(rates.get("target", {}), kept, rates.get("synonym", {}))
    erased, synonyms = _mean(rates.get("target", {})), _mean(rates.get("synonym", {}))
    return Summary(method, erased, kept, synonyms, clip_coco=clip, classes=classes)


def _mean(rates: Mapping[str, float]) -> float | None:
    return float(np.mean(list(rates.values()))) if rates else None


def _classes(
    targets: Mapping[str, float], kept: float | None, synonyms: Mapping[str, float]
) -> tuple[tuple[float, float, float], ...]:
    """Of every erased class, where all of them have synonyms."""
    if kept is None or not targets or not targets.keys() <= synonyms.keys():
        return ()
    return tuple((targets[c], kept, synonyms[c]) for c in sorted(targets))


PLUGIN = Composites
