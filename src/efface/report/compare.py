"""Compare: many runs in one table. What stands in one column was measured on the same images by the same judge.

Runs are grouped into tables by base model, suite, sampler, judge and garbage detector; what differs is named. Within a
table every run has the same base images, so runs are compared in pairs of edited images (same shot): paired difference
to a baseline run, exact McNemar, Holm over the runs of a column, and the smallest difference that so many pairs detect.
A place is one more than the number of runs that are surely better: ties share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from efface.errors import BadRequest
from efface.gallery.shot import Item, Shot
from efface.judges.panel import NO_DETECTOR, Versions
from efface.metrics._run import composites
from efface.numerics import intervals, planning
from efface.report.comparison import Block, Comparison, Difference, Entry, HeatCell, HeatRow, RunCost, RunRow, Worst
from efface.report.report import Report, opened_report
from efface.runs.folder import environment, records_of, spec_of
from efface.runs.plan import read_plan
from efface.runs.spec import Spec
from efface.scores.scores import Pair, Scores, labels_of
from efface.scores.tables import NO_LABEL, Loss, Rate, change, loss, rate, scored_labels, tables

__all__ = ["COLUMNS", "Column", "column", "compare"]


class Column(NamedTuple):
    """One column of a table."""

    title: str
    roles: tuple[str, ...]
    what: str
    """What is counted: shares of edited images (a field of Pair), or the paired loss."""


ERASED = ("target", "style", "sensitive")
KEPT = ("neighbour", "other", "in-prompt", "beside", "other-style")
LEFT = ("neighbour", "other", "other-style")  # kept concepts of prompts that name nothing else
COLUMNS: Mapping[str, Column] = {
    "shown": Column("targets shown", ERASED, "edited"),
    "replaced": Column("replaced", ERASED, "replaced"),
    "garbage": Column("garbage", ERASED, "edited_garbage"),
    "synonyms": Column("synonyms shown", ("synonym", "implicit"), "edited"),
    "neighbours": Column("neighbours lost", ("neighbour",), "loss"),
    "others": Column("others lost", ("other",), "loss"),
    "styles": Column("other styles lost", ("other-style",), "loss"),
    "beside": Column("kept beside or in style, lost", ("in-prompt", "beside"), "loss"),
}
BETTER = {"edited": -1, "edited_garbage": -1, "replaced": 1, "loss": 1}  # sign of more edited hits
ENOUGH = 5  # images of a concept below which it is not called the worst and not shaded
CHANGES = 0.005  # share of pairs that change by chance at least
FIELDS = ("base", "suite", "suite_hash", "sampling", "judge", "garbage detector")  # what has to be equal in one column
Pairs = Mapping[str, Sequence[Pair]]
"""Run -> its pairs."""


@dataclass(frozen=True)
class Run:
    """One finished run as it lies on disk."""

    name: str
    spec: Spec
    scores: Scores
    """As its report counted them."""
    report: Report
    versions: Versions

    @classmethod
    def read(cls, folder: Path, name: str) -> Run:
        """Raises WrongFile for a folder that is no finished run."""
        report = opened_report(folder, f"{folder} is no finished run; efface status {folder} says how far it is")
        spec, plan = spec_of(folder), read_plan(folder)
        # without a judge nobody looked for garbage either
        seen = [seat.version for seat in report.judges]
        versions = Versions(seen[0], seen[1] if len(seen) > 1 else NO_DETECTOR)
        mine = (r for r in records_of(folder) if (r.side, r.image) in plan.images)
        scores = Scores.of(plan.items, (r for r in mine if r.key == versions.record(r.side, r.image)))
        return cls(name, spec, scores, report, versions)

    def field(self, name: str) -> str:
        """What has to be equal in one column."""
        own = {"judge": self.versions.judge, "garbage detector": self.versions.garbage}
        return own[name] if name in own else str(getattr(self.spec, name))

    @property
    def labels(self) -> frozenset[str]:
        """What the judge could name: an NA row of the report says what it could not."""
        rows = (r for t in self.report.tables for r in t.rows)
        return self.scores.asked - {r.name for r in rows if r.reason == NO_LABEL}


def compare(
    folders: Sequence[Path], baseline: Path | None = None, common: bool = False, metrics: Sequence[str] = ()
) -> Comparison:
    """Runs -> tables, one for each set of runs that may stand in one column.

    common: runs whose suites differ are put together on the images that all of them drew. metrics: cells of the runs'
    own reports, by name, as further columns. Raises BadRequest, WrongFile.
    """
    if not folders:
        raise BadRequest("name at least one run folder")
    short = len({f.name for f in folders}) == len(folders)
    runs = [Run.read(f, f.name if short else f.as_posix()) for f in folders]
    chosen = (r.name for r, f in zip(runs, folders, strict=True) if baseline and f.resolve() == baseline.resolve())
    first = next(chosen, "")
    if baseline and not first:
        raise BadRequest(f"the baseline {baseline} is not among the runs; name it as one of them too")
    fields = [f for f in FIELDS if not (common and f in ("suite", "suite_hash"))]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.field(f) for f in fields), []).append(run)
    blocks = tuple(_block(group, first, common, metrics) for group in groups.values())
    return Comparison(blocks, _apart(list(groups.values()), fields), environment())


def _apart(groups: Sequence[Sequence[Run]], fields: Sequence[str]) -> tuple[str, ...]:
    """Why there is more than one table: the fields that differ from those of the first."""
    said = []
    for number, group in enumerate(groups[1:], 2):
        differ = [f.replace("_", " ") for f in fields if group[0].field(f) != groups[0][0].field(f)]
        said.append(f"Table {number} shares no column with table 1: its {', '.join(differ)} is another.")
    return tuple(said)


def _block(runs: Sequence[Run], baseline: str, common: bool, metrics: Sequence[str]) -> Block:
    items = _shared(runs) if common else runs[0].scores.items
    scores = {run.name: replace(run.scores, items=items) for run in runs}
    _same_base(runs, items)
    first = baseline if baseline in scores else runs[0].name
    found = tables(scores[runs[0].name], runs[0].labels)
    scored = scored_labels(found, "ok", "error")  # the base decides, and the base is the same for all runs of a table
    kept = {n: [p for p in s.pairs if (p.role, p.label) in scored and p.state == "ok"] for n, s in scores.items()}
    columns = {key: column(key, kept, first) for key in COLUMNS}
    own = {name: _metric_column(name, runs) for name in metrics}
    head = runs[0].report
    return Block(
        suite=head.suite,
        base=head.asked.model,
        judge=head.judges[0],
        garbage_detector=runs[0].versions.garbage,
        concepts=tuple(c.name for c in head.asked.concepts),
        images=len(items),
        common=common,
        baseline=first,
        absent={t.label: t.rows[0].reason for t in head.tables if t.pooled is None},
        runs=tuple(_run_row(run, columns | own, kept[run.name]) for run in runs),
        columns={key: COLUMNS[key].title for key, cells in columns.items() if cells} | {name: name for name in own},
        heat=_heat(kept),
        scores=tuple(composites(kept)),
    )


def _shared(runs: Sequence[Run]) -> tuple[Item, ...]:
    """Images that every run drew, with the questions that every run asked. Raises BadRequest when there are none."""
    asked = [{i.shot: set(i.asks) for i in run.scores.items} for run in runs]
    found = []
    for item in runs[0].scores.items:
        asks = tuple(a for a in item.asks if all(a in known.get(item.shot, ()) for known in asked))
        if asks:
            found.append(Item(item.shot, asks))
    if not found:
        raise BadRequest("these runs share no image of the same role; compare them without --common")
    return tuple(found)


def _same_base(runs: Sequence[Run], items: Sequence[Item]) -> None:
    """Raise BadRequest for runs whose base images differ at these items."""
    wanted = {i.shot for i in items}

    def base(run: Run) -> dict[Shot, str]:
        return {shot: record.pixels for shot, record in run.scores.places["base"].items() if shot in wanted}

    first = base(runs[0])
    for run in runs[1:]:
        other = base(run)
        differ = sum(other.get(shot) != pixels for shot, pixels in first.items())
        if differ:
            raise BadRequest(
                f"{runs[0].name} and {run.name} have other base images at {differ} of {len(first)} prompts; "
                "measure both on one machine with one version"
            )


# --- one column ------------------------------------------------------------------------------------------------------


def column(key: str, pairs: Pairs, baseline: str) -> dict[str, Entry]:
    """Cells by run; {} where the suite lacks the roles. A run that failed at some image keeps the others' pairs."""
    _, roles, what = COLUMNS[key]
    chosen = {n: {(p.role, p.label, p.shot): p for p in ps if p.role in roles} for n, ps in pairs.items()}
    shared = set.intersection(*(set(c) for c in chosen.values()))
    if not shared:
        return {}
    order = [place for place in chosen[baseline] if place in shared]
    rows = {name: [c[place] for place in order] for name, c in chosen.items()}
    hits = {name: _hits(found, what) for name, found in rows.items()}
    differences = {n: _against(found, hits[n], hits[baseline], what) for n, found in rows.items() if n != baseline}
    adjusted = intervals.holm([d.p for d in differences.values()])
    differences = {n: replace(d, p_holm=float(p)) for (n, d), p in zip(differences.items(), adjusted, strict=True)}
    places = _places(rows, hits, what)
    return {n: Entry(_cell(found, what), differences.get(n), places[n]) for n, found in rows.items()}


def _metric_column(name: str, runs: Sequence[Run]) -> dict[str, Entry]:
    """Cells by run of what the runs' own reports measured over all concepts; absent where it is NA."""
    found = {
        run.name: [c for c in run.report.metrics if c.name == name and not c.concept and c.side != "base"]
        for run in runs
    }
    if not any(found.values()):
        known = sorted({c.name for run in runs for c in run.report.metrics if not c.concept and c.side != "base"})
        raise BadRequest(f"no run measured {name!r}; known: {', '.join(known) or 'none: audit with --metric'}")
    return {n: Entry(cells[0]) for n, cells in found.items() if cells and cells[0].state == "ok"}


def _cell(pairs: Sequence[Pair], what: str) -> Loss | Rate:
    if what == "loss":
        return replace(loss(pairs), n=len(pairs))
    found = rate(pairs, what)
    assert found is not None
    return found


def _hits(pairs: Sequence[Pair], what: str) -> list[bool]:
    return [p.edited if what == "loss" else bool(getattr(p, what)) for p in pairs]


def _against(pairs: Sequence[Pair], own: Sequence[bool], other: Sequence[bool], what: str) -> Difference:
    """This run minus the baseline, in the unit of the column."""
    first, second = (other, own) if what == "loss" else (own, other)
    found, n = change(pairs, first, second), len(pairs)
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    flips = max(min(lost, found.changed - lost) / n, CHANGES)
    return Difference(**vars(replace(found, n=n)), detectable=_detectable(n, round(flips, 3)))


@cache
def _detectable(n: int, flips: float) -> float | None:
    return planning.detectable_loss(n, flips)


def _places(rows: Pairs, hits: Mapping[str, list[bool]], what: str) -> dict[str, int]:
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


# --- one run, one concept --------------------------------------------------------------------------------------------


def _run_row(run: Run, columns: Mapping[str, Mapping[str, Entry]], pairs: Sequence[Pair]) -> RunRow:
    report, kept = run.report, [p for p in pairs if p.role in LEFT]
    cost = report.cost
    return RunRow(
        run=run.name,
        method=report.asked.method,
        preset=report.asked.preset,
        patch=run.spec.patch or run.spec.edited,
        control=bool(report.asked.control),
        gate=report.gate.state if report.gate else "",
        flags=report.flags,
        cells={key: cells[run.name] for key, cells in columns.items() if run.name in cells},
        worst_target=_worst(pairs, ERASED, _shown),
        worst_kept=_worst(pairs, KEPT, _lost),
        kept=loss(kept) if kept else None,
        cost=RunCost(cost.seconds, cost.base_images_drawn, cost.edited_images_drawn, cost.bytes_of_the_patch),
    )


def _shown(pairs: Sequence[Pair]) -> float:
    return sum(p.edited for p in pairs) / len(pairs)


def _lost(pairs: Sequence[Pair]) -> float:
    return sum(p.base - p.edited for p in pairs) / len(pairs)


def _worst(pairs: Sequence[Pair], roles: Sequence[str], of: Callable[[Sequence[Pair]], float]) -> Worst | None:
    by_label = labels_of([p for p in pairs if p.role in roles])
    values = [(of(found), label) for label, found in by_label.items() if len(found) >= ENOUGH]
    if not values:
        return None
    value, label = max(values)
    return Worst(label, value, len(by_label[label]))


def _heat(pairs: Pairs) -> tuple[HeatRow, ...]:
    """One row a concept: the share of edited images that show a target, the loss of a kept concept, for each run."""
    found: dict[tuple[bool, str], dict[str, list[Pair]]] = {}
    for name, rows in pairs.items():
        for p in rows:
            if p.role in ("target", "style", *KEPT):
                found.setdefault((p.role in KEPT, p.label), {}).setdefault(name, []).append(p)
    return tuple(
        HeatRow(label, "kept" if kept else "target", {name: _heat_cell(rows, kept) for name, rows in by_run.items()})
        for (kept, label), by_run in sorted(found.items())
    )


def _heat_cell(rows: Sequence[Pair], kept: bool) -> HeatCell:
    edited, base = sum(p.edited for p in rows) / len(rows), sum(p.base for p in rows) / len(rows)
    return HeatCell(base - edited if kept else edited, len(rows), len(rows) < ENOUGH)
