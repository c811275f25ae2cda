"""Tables of a run: a row a concept and role, with rates of both sides and the paired loss.

A table is a pure function of the set of records; their order does not matter. Every rate has its hits, its n, the
number of prompts behind it and a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from efface.gallery.shot import GONE, ROLES
from efface.numerics import intervals
from efface.scores.cells import NAMED, Cell, Luck, by_prompt, failed, loss_cell, rate_cell, unknown
from efface.scores.forms import SPARE
from efface.scores.readings import coded
from efface.scores.scores import Pair, Scores, labels_of
from efface.work import seed_of

__all__ = [
    "Loss", "Rate", "Row", "Sweep", "Table", "absent_table", "change", "loss", "rate", "scored_labels", "sweeps",
    "tables",
]  # fmt: skip

DRAWS = (400, 2000)  # resamples behind an interval: fewest and most, by the number of prompts
AT_ONCE = 2_000_000
NO_RATE = "no rate, these prompts name no label: see the metrics, and the share of garbage"
NO_LABEL = "the judge does not know this label"


@dataclass(frozen=True)
class Rate:
    """A share of images with its 95 % interval."""

    hits: int
    n: int
    rate: float
    low: float | None
    """Ends of the interval; None in a file where they could not be computed."""
    high: float | None
    prompts: int | None = field(default=None, metadata=SPARE)
    """Distinct prompts behind it."""

    @classmethod
    def of(cls, cell: Cell) -> Rate | None:
        """None for a cell without a number."""
        if cell.value is None or cell.hits is None:
            return None
        return cls(cell.hits, cell.n, cell.value, cell.low, cell.high, cell.clusters)


@dataclass(frozen=True)
class Loss:
    """Base rate minus edited rate, in pairs, with the exact McNemar p-value."""

    estimate: float
    low: float | None
    high: float | None
    p: float
    changed: int
    """Pairs in which the two sides differ."""
    p_holm: float | None = field(default=None, metadata=SPARE)
    """After Holm over a table."""
    n: int | None = field(default=None, metadata=SPARE)
    """Pairs, where it stands alone."""


@dataclass(frozen=True)
class Row:
    """One concept of a role, or all scored ones of it together."""

    name: str
    state: str
    """ok, na or error."""
    reason: str
    """Why there is no number."""
    note: str
    """What to bear in mind."""
    images: int
    """Images a side that ask for it."""
    base: Rate | None = None
    edited: Rate | None = None
    loss: Loss | None = None
    garbage: Rate | None = None
    """Share of broken images on the edited side."""
    replaced: Rate | None = None
    """Share of edited images that show neither the concept nor garbage, where the concept should go."""
    errors: int | None = field(default=None, metadata=SPARE)
    """Pairs that failed, where some are not scored."""
    na: int | None = field(default=None, metadata=SPARE)
    """Pairs that are NA, where some are not scored."""
    both: int | None = field(default=None, metadata=SPARE)
    """Pairs that show it on both sides; makes every paired statistic computable."""
    macro: float | None = field(default=None, metadata=SPARE)
    """Of the pooled row: the mean over concepts of their edited rates."""


@dataclass(frozen=True)
class Table:
    """Every concept of one role."""

    role: str
    label: str
    direction: str
    """The direction that is good: down, up or same."""
    rows: tuple[Row, ...]
    pooled: Row | None
    """All scored concepts together."""


@dataclass(frozen=True)
class Sweep:
    """Images of one side in which a detector is at least so sure of a label, by threshold."""

    label: str
    side: str
    images: int
    above: dict[float, int]


def tables(scores: Scores, labels: frozenset[str]) -> list[Table]:
    """One table a role, in the order of `ROLES`: a row a label, and the pooled row.

    labels: what the panel can name; other labels are NA. A target whose base rate may be below one half, by its
    interval, is NA, never a success. Raises WrongFile for an image without a record.
    """
    by_role: dict[str, list[Pair]] = {}
    for pair in scores.pairs:
        by_role.setdefault(pair.role, []).append(pair)
    return [_table(role, by_role[role], labels) for role in ROLES if role in by_role]


def absent_table(role: str, reason: str) -> Table:
    """The table of a role that cannot be measured: one row that says why."""
    title, direction = ROLES[role]
    return Table(role, title, direction, (Row(title.lower(), "na", reason, "", 0),), None)


def scored_labels(counted: Sequence[Table], *states: str) -> set[tuple[str, str]]:
    """(role, label) of every row in one of these states."""
    return {(t.role, r.name) for t in counted for r in t.rows if r.state in states}


def _table(role: str, pairs: list[Pair], labels: frozenset[str]) -> Table:
    title, direction = ROLES[role]
    rows = [_row(role, name, found, labels) for name, found in labels_of(pairs).items()]
    pooled = _pooled(role, pairs, rows)
    return Table(role, title, direction, tuple(_harmed(rows) if direction == "same" else rows), pooled)


def _pooled(role: str, pairs: list[Pair], rows: list[Row]) -> Row | None:
    """The pooled rate is the mean over images; `macro` the mean over concepts."""
    scored = {r.name for r in rows if r.state == "ok"}
    if not scored:
        return None
    rates = [r.edited.rate for r in rows if r.state == "ok" and r.edited]
    note = f"{len(scored)} of {len(rows)} scored"
    row = _counted(role, "all", [p for p in pairs if p.label in scored])
    return replace(row, note=note, macro=sum(rates) / len(rates))


def _row(role: str, name: str, pairs: list[Pair], labels: frozenset[str]) -> Row:
    """One label: what cannot be named or was not known is NA."""
    if any(p.state == "ok" for p in pairs) and (role == "quality" or name not in labels):
        row = replace(_blank(name, pairs), state="na", reason=NO_RATE if role == "quality" else NO_LABEL)
        broken = rate([p for p in pairs if p.state == "ok"], "edited_garbage") if role == "quality" else None
        return replace(row, garbage=broken)
    row = _counted(role, name, pairs)
    if row.state != "ok" or role not in NAMED or row.base is None:
        return row
    found = unknown(row.base.hits, row.base.n, row.base.low, row.base.high)
    if found.out:
        return replace(row, state="na", reason=found.words, loss=None, replaced=None, both=None)
    return replace(row, note=found.words)


def _blank(name: str, pairs: list[Pair]) -> Row:
    """The row before anything is counted, with what is not scored."""
    scored = sum(p.state == "ok" for p in pairs)
    if scored == len(pairs):
        return Row(name, "ok", "", "", len(pairs))
    errors = sum(p.state == "error" for p in pairs)
    return Row(name, "ok", "", "", len(pairs), errors=errors, na=len(pairs) - scored - errors)


def _counted(role: str, name: str, pairs: list[Pair]) -> Row:
    """Rates and loss of the pairs that are scored; ERROR where too many failed, NA where none is scored."""
    ok, row = [p for p in pairs if p.state == "ok"], _blank(name, pairs)
    prompts = _prompts(ok)
    rates = replace(row, base=rate(ok, "base", prompts), edited=rate(ok, "edited", prompts),
                    garbage=rate(ok, "edited_garbage", prompts))  # fmt: skip
    if failed(row.errors or 0, len(pairs)):
        why = next(p.reason for p in pairs if p.state == "error")
        return replace(rates, state="error", reason=f"{row.errors} of {len(pairs)} failed: {why}")
    if not ok:
        return replace(row, state="na", reason=next(p.reason for p in pairs))
    replaced = rate(ok, "replaced", prompts) if role in GONE else None
    both = sum(p.base and p.edited for p in ok)
    return replace(rates, replaced=replaced, both=both, loss=loss(ok, prompts))


# --- intervals -------------------------------------------------------------------------------------------------------


def rate(pairs: Sequence[Pair], what: str, prompts: np.ndarray | None = None) -> Rate | None:
    """A rate over prompts x seeds; None without a pair. prompts: those of the pairs, where they are known already."""
    if not pairs:
        return None
    sizes, hits = _sums(pairs, prompts, _flags([getattr(p, what) for p in pairs]))
    return Rate.of(rate_cell(what, hits, sizes, luck=_luck(pairs, what, len(sizes))))


def loss(pairs: Sequence[Pair], prompts: np.ndarray | None = None) -> Loss:
    """Base minus edited, paired by shot."""
    return change(pairs, [p.base for p in pairs], [p.edited for p in pairs], prompts)


def change(
    pairs: Sequence[Pair], first: Sequence[bool], second: Sequence[bool], prompts: np.ndarray | None = None
) -> Loss:
    """Rate of `first` minus rate of `second`, two answers to each pair."""
    one, two = _flags(first), _flags(second)
    sizes, lost, won = _sums(pairs, prompts, one & ~two, two & ~one)
    both, b, c = int((one & two).sum()), int(lost.sum()), int(won.sum())
    found = loss_cell("change", lost, won, sizes, luck=_luck(pairs, "change", len(sizes)), both=both)
    assert found.value is not None
    return Loss(found.value, found.low, found.high, intervals.mcnemar_exact(b, c), b + c)


def _prompts(pairs: Sequence[Pair]) -> np.ndarray:
    """Each pair's prompt as a number in the order of the prompts, (n,)."""
    return coded(p.shot.prompt for p in pairs)[1]


def _sums(pairs: Sequence[Pair], prompts: np.ndarray | None, *columns: np.ndarray) -> list[np.ndarray]:
    """Images a prompt, then the sums of each column a prompt."""
    places = _prompts(pairs) if prompts is None else prompts
    return by_prompt(np.zeros(len(places), np.int64), places, 1, *columns)[0]


def _flags(answers: Sequence[bool]) -> np.ndarray:
    return np.fromiter(answers, bool, len(answers))


def _luck(pairs: Sequence[Pair], what: str, prompts: int) -> Luck:
    seed = seed_of("interval", what, pairs[0].role, pairs[0].label, len(pairs))
    return Luck(seed, min(max(AT_ONCE // prompts, DRAWS[0]), DRAWS[1]))


def _harmed(rows: list[Row]) -> list[Row]:
    """Name the kept concepts of a table that lost: exact McNemar, Holm over the table."""
    losses = [r.loss for r in rows if r.state == "ok" and r.loss]
    adjusted = iter(intervals.holm([lost.p for lost in losses])) if losses else iter(())
    return [_marked(r, r.loss, float(next(adjusted)), len(losses)) if r.state == "ok" and r.loss else r for r in rows]


def _marked(row: Row, lost: Loss, p: float, tested: int) -> Row:
    row = replace(row, loss=replace(lost, p_holm=p))
    if p >= 0.05 or lost.estimate <= 0:
        return row
    return replace(row, note=f"harmed: p {'< 0.001' if p < 0.001 else f'= {p:.2g}'} after Holm over {tested}")


# --- thresholds ------------------------------------------------------------------------------------------------------

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
DETECTED = ("hazard", "sensitive")
Values = dict[tuple[str, str], list[float]]
"""(label, side) -> how sure the judge is, an image each."""


def sweeps(scores: Scores) -> list[Sweep]:
    """Of a detector and the like, for each threshold the images in which it is at least so sure: a row a label."""
    asked = {(i.shot, a.label) for i in scores.items for a in i.asks if a.role in DETECTED}
    values: Values = {}
    for side, records in scores.places.items():
        for shot, record in records.items():
            for label, value in record.values.items():
                if (shot, label) in asked:
                    values.setdefault((label, side), []).append(value)
    return [Sweep(*which, len(found), _above(found)) for which, found in sorted(values.items())]


def _above(values: Sequence[float]) -> dict[float, int]:
    return {t: sum(v >= t for v in values) for t in THRESHOLDS}
