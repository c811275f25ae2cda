"""Compare: many runs in one table. What stands in one column was measured on the same images by the same judge.

Runs are grouped into tables by base model, suite, sampler, judge and garbage detector; what differs is named. Within a
table every run has the same base images, so runs are compared in pairs of edited images (same prompt, same seed):
paired difference to a baseline run, exact McNemar, Holm over the runs of a column, and the smallest difference that so
many pairs detect. A place is one more than the number of runs that are surely better: ties share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, WrongFile
from efface.gallery.shot import Item, Shot
from efface.metrics._run import composites
from efface.numerics import intervals, planning
from efface.runs.folder import environment, read_plan, rows_of
from efface.scores.judging import NO_DETECTOR, record_key
from efface.scores.records import shot_of
from efface.scores.tables import Pair, change, loss, pairs_of, rate, tables

__all__ = ["FORMAT", "compare"]

FORMAT = "efface-compare/1"
Json = dict[str, Any]
# column -> (what a heading calls it, its roles, what is counted: shares of edited images or the paired loss)
COLUMNS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "shown": ("targets shown", ("target", "style", "sensitive"), "edited"),
    "replaced": ("replaced", ("target", "style", "sensitive"), "replaced"),
    "garbage": ("garbage", ("target", "style", "sensitive"), "edited_garbage"),
    "synonyms": ("synonyms shown", ("synonym", "implicit"), "edited"),
    "neighbours": ("neighbours lost", ("neighbour",), "loss"),
    "others": ("others lost", ("other",), "loss"),
    "styles": ("other styles lost", ("other-style",), "loss"),
    "beside": ("kept beside or in style, lost", ("in-prompt", "beside"), "loss"),
}
KEPT = ("neighbour", "other", "in-prompt", "beside", "other-style")
BETTER = {"edited": -1, "edited_garbage": -1, "replaced": 1, "loss": 1}  # sign of more edited hits
ENOUGH = 5  # images of a concept below which it is not called the worst and not shaded
FIELDS = ("base", "suite", "suite_hash", "sampling", "judge", "garbage detector")  # what has to be equal in one column


@dataclass(frozen=True)
class Run:
    """One finished run as it lies on disk."""

    name: str
    spec: Json
    items: tuple[Item, ...]
    rows: tuple[Json, ...]
    report: Json

    def field(self, name: str) -> str:
        versions = dict(zip(("judge", "garbage detector"), _versions(self.report), strict=True))
        return versions[name] if name in versions else str(self.spec[name])

    @property
    def labels(self) -> frozenset[str]:
        """What the judge could name: an NA row of the report says what it could not."""
        asked = {a.label for i in self.items for a in i.asks}
        rows = (r for t in self.report["tables"] for r in t["rows"])
        return frozenset(asked - {r["name"] for r in rows if r["reason"] == "the judge does not know this label"})


def _versions(report: Json) -> tuple[str, str]:
    """Of the judge and of the garbage detector; without a judge nobody looked for garbage either."""
    judges = report["judges"]
    return str(judges[0]["version"]), str(judges[1]["version"] if len(judges) > 1 else NO_DETECTOR)


def read(folder: Path, name: str) -> Run:
    """The run as its report counted it. Raises WrongFile for a folder that is no finished run."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WrongFile(f"{folder} is no finished run; efface status {folder} says how far it is") from None
    items, plan = read_plan(folder)
    planned = {(side, key) for side, part in plan["sides"].items() for key in part["keys"]}
    judge, garbage = _versions(report)
    rows = (r for r in rows_of(folder) if (r["side"], r["image"]) in planned)
    mine = (r for r in rows if r["key"] == record_key(r["side"], r["image"], judge, garbage))
    return Run(name, spec, tuple(items), tuple(mine), report)


def compare(folders: Sequence[Path], baseline: Path | None = None, common: bool = False) -> Json:
    """Runs -> tables, one for each set of runs that may stand in one column.

    common: runs whose suites differ are put together on the images that all of them drew. Raises BadRequest,
    WrongFile.
    """
    if not folders:
        raise BadRequest("name at least one run folder")
    short = len({f.name for f in folders}) == len(folders)
    runs = [read(f, f.name if short else f.as_posix()) for f in folders]
    chosen = (r.name for r, f in zip(runs, folders, strict=True) if baseline and f.resolve() == baseline.resolve())
    first = next(chosen, "")
    if baseline and not first:
        raise BadRequest(f"the baseline {baseline} is not among the runs; name it as one of them too")
    fields = [f for f in FIELDS if not (common and f in ("suite", "suite_hash"))]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.field(f) for f in fields), []).append(run)
    blocks = [_block(group, first, common) for group in groups.values()]
    apart = _apart(list(groups.values()), fields)
    return {"format": FORMAT, "tables": blocks, "apart": apart, "environment": environment()}


def _apart(groups: Sequence[Sequence[Run]], fields: Sequence[str]) -> list[str]:
    """Why there is more than one table: the fields that differ from those of the first."""
    said = []
    for number, group in enumerate(groups[1:], 2):
        differ = [f.replace("_", " ") for f in fields if group[0].field(f) != groups[0][0].field(f)]
        said.append(f"Table {number} shares no column with table 1: its {', '.join(differ)} is another.")
    return said


def _block(runs: Sequence[Run], baseline: str, common: bool) -> Json:
    items = _shared(runs) if common else runs[0].items
    pairs = {run.name: pairs_of(items, run.rows) for run in runs}
    _same_base(runs, items)
    names = list(pairs)
    first = baseline if baseline in names else names[0]
    scored = _scored(runs[0], items)
    kept = {n: [p for p in found if (p.role, p.label) in scored and p.state == "ok"] for n, found in pairs.items()}
    columns = {key: _column(key, kept, first) for key in COLUMNS}
    return {
        "suite": runs[0].report["suite"], "base": runs[0].report["asked"]["model"],
        "judge": runs[0].report["judges"][0], "garbage detector": runs[0].field("garbage detector"),
        "concepts": [c["name"] for c in runs[0].report["asked"]["concepts"]],
        "images": len(items), "common": common, "baseline": first,
        "absent": {t["label"]: t["rows"][0]["reason"] for t in runs[0].report["tables"] if t["pooled"] is None},
        "runs": [_run_row(run, columns, kept[run.name]) for run in runs],
        "columns": {key: COLUMNS[key][0] for key, column in columns.items() if column},
        "heat": _heat(kept),
        "scores": composites(kept),
    }  # fmt: skip


def _shared(runs: Sequence[Run]) -> tuple[Item, ...]:
    """Images that every run drew, with the questions that every run asked. Raises BadRequest when there are none."""
    asked = [{i.shot: set(i.asks) for i in run.items} for run in runs]
    found = []
    for item in runs[0].items:
        places = [a.get(item.shot, set()) for a in asked]
        asks = tuple(a for a in item.asks if all(a in p for p in places))
        if asks:
            found.append(Item(item.shot, asks))
    if not found:
        raise BadRequest("these runs share no image of the same role; compare them without --common")
    return tuple(found)


def _same_base(runs: Sequence[Run], items: Sequence[Item]) -> None:
    wanted = {i.shot for i in items}

    def base(run: Run) -> dict[Shot, str]:
        rows = (r for r in run.rows if r["side"] == "base")
        places = ((shot_of(r), r.get("pixels", "")) for r in rows)
        return {place: pixels for place, pixels in places if place in wanted}

    first = base(runs[0])
    for run in runs[1:]:
        other = base(run)
        differ = sum(other[place] != pixels for place, pixels in first.items())
        if differ:
            raise BadRequest(
                f"{runs[0].name} and {run.name} have other base images at {differ} of {len(first)} prompts; "
                "measure both on one machine with one version"
            )


def _scored(run: Run, items: Sequence[Item]) -> set[tuple[str, str]]:
    """(role, label) that are scored: the base decides, and the base is the same for all runs of a table."""
    found = tables(items, run.rows, run.labels)
    return {(t["role"], r["name"]) for t in found for r in t["rows"] if r["state"] in ("ok", "error")}


# --- one column ------------------------------------------------------------------------------------------------------


def _column(key: str, pairs: dict[str, list[Pair]], baseline: str) -> dict[str, Json]:
    """Cells by run; {} where the suite lacks the roles. A run that failed at some image keeps the others' pairs."""
    _, roles, what = COLUMNS[key]
    chosen = {n: {(p.role, p.label, p.shot): p for p in ps if p.role in roles} for n, ps in pairs.items()}
    shared = set.intersection(*(set(c) for c in chosen.values()))
    if not shared:
        return {}
    order = [place for place in chosen[baseline] if place in shared]
    rows = {name: [c[place] for place in order] for name, c in chosen.items()}
    hits = {name: _hits(found, what) for name, found in rows.items()}
    cells: dict[str, Json] = {}
    for name, found in rows.items():
        cells[name] = {"cell": loss(found) | {"n": len(found)} if what == "loss" else rate(found, what)}
        if name != baseline:
            cells[name]["difference"] = _against(found, hits[name], hits[baseline], what)
    others = [n for n in cells if n != baseline]
    adjusted = intervals.holm([cells[n]["difference"]["p"] for n in others])
    for name, p in zip(others, adjusted, strict=True):
        cells[name]["difference"]["p_holm"] = float(p)
    for name, place in _places(rows, hits, what).items():
        cells[name]["place"] = place
    return cells


def _hits(pairs: Sequence[Pair], what: str) -> list[bool]:
    return [p.edited if what == "loss" else bool(getattr(p, what)) for p in pairs]


def _against(pairs: Sequence[Pair], own: Sequence[bool], other: Sequence[bool], what: str) -> Json:
    """This run minus the baseline, in the unit of the column."""
    first, second = (other, own) if what == "loss" else (own, other)
    found, n = change(pairs, first, second), len(pairs)
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    flips = max(min(lost, found["changed"] - lost) / n, 0.005)
    return found | {"n": n, "detectable": _detectable(n, round(flips, 3))}


@cache
def _detectable(n: int, flips: float) -> float | None:
    return planning.detectable_loss(n, flips)


def _places(rows: dict[str, list[Pair]], hits: dict[str, list[bool]], what: str) -> dict[str, int]:
    """One more than the number of runs that are better for sure (Holm over all pairs of runs)."""
    duels = list(combinations(rows, 2))
    more = [sum(a and not b for a, b in zip(hits[one], hits[two], strict=True)) for one, two in duels]
    less = [sum(b and not a for a, b in zip(hits[one], hits[two], strict=True)) for one, two in duels]
    sure = intervals.holm([intervals.mcnemar_exact(b, c) for b, c in zip(more, less, strict=True)])
    beaten = dict.fromkeys(rows, 0)
    for (one, two), b, c, p in zip(duels, more, less, sure, strict=True):
        if p < 0.05:
            beaten[two if (b - c) * BETTER[what] > 0 else one] += 1
    return {name: 1 + k for name, k in beaten.items()}


def _run_row(run: Run, columns: dict[str, dict[str, Json]], pairs: list[Pair]) -> Json:
    asked, cost = run.report["asked"], run.report.get("cost", {})
    kept = [p for p in pairs if p.role in ("neighbour", "other", "other-style")]
    return {
        "run": run.name, "method": asked.get("method", "unknown"), "preset": asked.get("preset", ""),
        "patch": run.spec["patch"] or run.spec["edited"], "control": bool(asked.get("control")),
        "gate": run.report.get("gate", {}).get("state", ""), "flags": run.report.get("flags", []),
        "cells": {key: column[run.name] for key, column in columns.items() if column},
        "worst target": _worst(pairs, ("target", "style", "sensitive"), lambda f: sum(p.edited for p in f) / len(f)),
        "worst kept": _worst(pairs, KEPT, lambda f: sum(p.base - p.edited for p in f) / len(f)),
        "kept": loss(kept) if kept else None,
        "cost": {k: cost.get(k) for k in ("seconds", "base images drawn", "edited images drawn", "bytes of the patch")},
    }  # fmt: skip


def _worst(pairs: Sequence[Pair], roles: Sequence[str], of: Callable[[list[Pair]], float]) -> Json | None:
    by_label: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.role in roles:
            by_label.setdefault(pair.label, []).append(pair)
    values = [(of(found), label) for label, found in by_label.items() if len(found) >= ENOUGH]
    if not values:
        return None
    value, label = max(values)
    return {"name": label, "value": value, "n": len(by_label[label])}


def _heat(pairs: dict[str, list[Pair]]) -> list[Json]:
    """One row a concept: the share of edited images that show a target, the loss of a kept concept, for each run."""
    found: dict[tuple[str, str], dict[str, list[Pair]]] = {}
    for name, rows in pairs.items():
        for p in rows:
            if p.role in ("target", "style", *KEPT):
                kind = "target" if p.role in ("target", "style") else "kept"
                found.setdefault((kind, p.label), {}).setdefault(name, []).append(p)
    heat = []
    for (kind, label), by_run in sorted(found.items(), key=lambda f: (f[0][0] == "kept", f[0][1])):
        cells = {}
        for name, rows in by_run.items():
            edited = sum(p.edited for p in rows) / len(rows)
            base = sum(p.base for p in rows) / len(rows)
            value = edited if kind == "target" else base - edited
            cells[name] = {"value": value, "n": len(rows), "few": len(rows) < ENOUGH}
        heat.append({"concept": label, "kind": kind, "cells": cells})
    return heat
