"""What a gate says of a report: pass, fail, undecided or not measured.

Clopper-Pearson bounds rates, Tango paired losses (non-inferiority), Holm the concepts where each is looked at. A bound
on the other side of the limit is a fail, a limit inside the interval is undecided.

Bounds are about further seeds of the same prompts: given those, images are independent, and Clopper-Pearson holds
also where prompts differ in their rates (Hoeffding 1956). About other wordings the interval of the table speaks. Its
effective number of images does not serve a gate: with no hit the correlation within a prompt is assumed, with one it
is estimated, so that 0 of 300 images (10 prompts) would stand behind 1 of 300.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from efface.errors import BadRequest, UnknownName
from efface.gallery.shot import Item
from efface.numerics import intervals, planning
from efface.report.gate import ERRORS, Gate, Rule
from efface.runs.spec import SuiteUsed
from efface.scores.tables import Row, Table

__all__ = ["Outcome", "check", "judge", "planned_roles", "sentence", "state_of"]

LEVEL = 0.95
State: TypeAlias = Literal["pass", "fail", "undecided", "not measured"]
Ruled: TypeAlias = Literal["pass", "fail", "undecided"]
Roles = Mapping[str, Collection[str]]
"""Role -> the concepts that are asked for; none where the role is NA."""


@dataclass(frozen=True)
class Outcome:
    """What one rule says."""

    rule: str
    state: State
    expected: str
    got: str
    next: str = ""
    """What would decide it."""
    concepts: tuple[str, ...] = ()
    """Those that decided it."""
    counts: tuple[int, ...] = ()
    """What was compared: (hits, n) of a rate; (lost, won, n) of a loss."""


class Bounds(NamedTuple):
    """One rule on one set of counts, with both one-sided bounds."""

    state: Ruled
    low: float
    high: float


def planned_roles(items: Iterable[Item], absent: Iterable[str]) -> Roles:
    """What a plan asks for. absent: roles that are NA."""
    found: dict[str, set[str]] = {role: set() for role in absent}
    for ask in (a for i in items for a in i.asks):
        found.setdefault(ask.role, set()).add(ask.label)
    return found


def check(gate: Gate, suite: SuiteUsed, roles: Roles) -> None:
    """Whether a gate fits what is measured.

    Raises BadRequest for another suite or a role that it lacks, UnknownName for a concept.
    """
    for what, wanted, found in (("name", gate.suite, suite.name), ("version", gate.version, suite.version)):
        if wanted and wanted != found:
            raise BadRequest(
                f"gate {gate.name} is made for a suite of {what} {wanted}, the report has {found}; name another gate"
            )
    for rule in gate.rules:
        if not rule.optional and not any(r in roles for r in rule.roles):
            raise BadRequest(
                f"gate {gate.name}, rule {rule.name!r}: the suite has no role {' or '.join(rule.roles)}; "
                "take another suite, or mark the rule optional"
            )
        known = {name for r in rule.roles for name in roles.get(r, ())}
        for name in rule.concepts if known and not isinstance(rule.concepts, str) else ():
            if name not in known:
                raise UnknownName(f"concept of gate {gate.name}, rule {rule.name!r}", name, known)


def judge(gate: Gate, suite: SuiteUsed, tables: Sequence[Table]) -> list[Outcome]:
    """Every rule against the tables of a report, the rule about errors last. Raises as `check` does."""
    rows = {t.role: t.rows for t in tables}
    check(gate, suite, {role: {r.name for r in found if r.images} for role, found in rows.items()})
    return [
        _outcome(rule, [row for role in rule.roles for row in rows.get(role, ())]) for rule in (*gate.rules, ERRORS)
    ]


def state_of(outcomes: Iterable[Outcome], allow_undecided: bool = False) -> Ruled:
    """fail, undecided or pass for the gate as a whole."""
    states = {o.state for o in outcomes}
    if "fail" in states:
        return "fail"
    return "undecided" if "undecided" in states and not allow_undecided else "pass"


def sentence(gate: str, state: Ruled, outcomes: Sequence[Outcome]) -> str:
    """What a gate says, with the first rule that is not met."""
    bad = [o for o in outcomes if o.state == "fail"] or [o for o in outcomes if o.state == "undecided"]
    if state == "pass" or not bad:
        return f"Gate {gate} {'passed' if state == 'pass' else 'failed'}."
    return f"Gate {gate}, {bad[0].rule}: expected {bad[0].expected}, got {bad[0].got}."


def _outcome(rule: Rule, rows: Sequence[Row]) -> Outcome:
    if rule.metric in ("scored", "errors"):
        return _share(rule, rows)
    named = () if isinstance(rule.concepts, str) else rule.concepts
    rows = [r for r in rows if r.name in named] or rows
    ok = [row for row in rows if row.state == "ok"]
    # an ERROR is never left out; what is NA is, unless it was named or nothing else is there
    needed = bool(named and not rule.optional) or not ok
    missing = [r for r in rows if r.state == "error" or (r.state == "na" and needed)]
    if missing or not ok:
        return _unmeasured(rule, missing)
    counts = [_counts(rule, row) for row in ok]
    if rule.concepts == "each":
        return _each(rule, ok, counts)
    whole = tuple(map(sum, zip(*counts, strict=True)))
    return _told(rule, _compare(rule, whole, LEVEL), whole, sum(_prompts(row) for row in ok))


def _unmeasured(rule: Rule, rows: Sequence[Row]) -> Outcome:
    """A rule without its numbers fails, whatever is allowed, unless it is optional and the role is NA."""
    failed = any(r.state == "error" for r in rows)
    said = [f"{r.state.upper()}: {r.name}: {r.reason}" for r in rows] or ["NA: the suite has no such role"]
    got = said[0] + (f"; {len(said) - 1} more" if len(said) > 1 else "")
    state = "not measured" if rule.optional and not failed else "fail"
    return Outcome(rule.name, state, _expected(rule), got, "", tuple(r.name for r in rows if r.images))


def _prompts(row: Row) -> int:
    return row.edited.prompts or 0 if row.edited else 0


def _counts(rule: Rule, row: Row) -> tuple[int, ...]:
    """(hits, n) of a rate; (lost, won, n) of a loss."""
    if rule.metric != "loss":
        rate = row.edited if rule.metric == "shown" else row.garbage
        return (rate.hits, rate.n) if rate else (0, 0)
    if row.base is None or row.edited is None:
        return (0, 0, 0)
    both = row.both or 0
    return row.base.hits - both, row.edited.hits - both, row.base.n


def _compare(rule: Rule, counts: Sequence[int], level: float) -> Bounds:
    """One rule on one set of counts, with bounds at this level."""
    n = counts[-1]
    if rule.metric == "loss":
        estimate, low, high = intervals.tango(counts[0], counts[1], n, 2 * level - 1)
    else:
        estimate = counts[0] / n
        low, high = intervals.lower_bound(counts[0], n, level), intervals.upper_bound(counts[0], n, level)
    return Bounds(_state(rule, n, estimate, low, high), low, high)


def _state(rule: Rule, n: int, estimate: float, low: float, high: float) -> Ruled:
    if rule.statistic == "estimate":
        enough = n >= (rule.n_min or 0)
        return ("pass" if estimate <= rule.limit else "fail") if enough else "undecided"
    if low > rule.limit:
        return "fail"
    if rule.statistic == "lower":
        return "pass"
    # a loss must be shown to be below its margin, a rate at most at its limit
    met = high < rule.limit if rule.metric == "loss" else high <= rule.limit
    return "pass" if met else "undecided"


def _each(rule: Rule, rows: Sequence[Row], counts: Sequence[tuple[int, ...]]) -> Outcome:
    """The worst concept decides."""
    names = [r.name for r in rows]
    found = [_compare(rule, c, LEVEL) for c in counts]
    if rule.statistic == "lower":
        _step_down(rule, counts, found)
    rank = {"fail": 0, "undecided": 1, "pass": 2}
    worst = min(range(len(found)), key=lambda i: (rank[found[i].state], -found[i].high))
    state = found[worst].state
    blamed = tuple(n for n, f in zip(names, found, strict=True) if f.state == state) if state != "pass" else ()
    return _told(rule, found[worst], counts[worst], _prompts(rows[worst]), blamed, names[worst])


def _step_down(rule: Rule, counts: Sequence[tuple[int, ...]], found: list[Bounds]) -> None:
    """Holm's: the surest offender against the strictest level, until one passes; it and all others do then."""
    order = sorted(range(len(found)), key=lambda i: -found[i].low)
    for step, i in enumerate(order):
        bounds = _compare(rule, counts[i], 1 - (1 - LEVEL) / (len(order) - step))
        if bounds.state != "fail":
            for j in order[step:]:
                found[j] = found[j]._replace(state="pass")
            return
        found[i] = bounds


def _share(rule: Rule, rows: Sequence[Row]) -> Outcome:
    """Shares of rows and images that are no sample of anything, so that no bound belongs to them."""
    asked = [r for r in rows if r.images]
    images = sum(r.images for r in asked)
    if not asked or (rule.metric == "errors" and sum(r.na or 0 for r in asked) == images):
        return _unmeasured(rule, asked or rows)
    if rule.metric == "scored":
        k, n = sum(r.state == "ok" for r in asked), len(asked)
        met, got = k >= rule.limit * n, f"{k} of {n}"
        blamed = tuple(r.name for r in asked if r.state != "ok")
    else:
        k = sum(r.errors or 0 for r in asked)
        met, got = k <= rule.limit * images, f"{k} of {images} images"
        blamed = tuple(r.name for r in asked if r.errors)
    return Outcome(rule.name, "pass" if met else "fail", _expected(rule), got, "", () if met else blamed)


# --- words -----------------------------------------------------------------------------------------------------------


def _expected(rule: Rule) -> str:
    unit = "points" if rule.metric == "loss" else "%"
    limit = f"{100 * rule.limit:g} {unit}"
    if rule.metric == "scored":
        return f"at least {limit} of the concepts"
    if rule.metric == "errors":
        return f"at most {limit}"
    words = {"upper": "95 % upper bound", "lower": "95 % lower bound", "estimate": "estimate"}[rule.statistic]
    return f"{words} {'below' if rule.metric == 'loss' else 'at most'} {limit}"


def _told(
    rule: Rule, bounds: Bounds, counts: tuple[int, ...], prompts: int, blamed: tuple[str, ...] = (), worst: str = ""
) -> Outcome:
    n, asked = counts[-1], f"{prompts} prompt{'s' if prompts != 1 else ''}"
    low, high = (f"{100 * b:.1f}" for b in bounds[1:])
    if rule.metric == "loss":
        got = (
            f"{100 * (counts[0] - counts[1]) / n:.1f} points [{low}, {high}], {n} pair{'s' if n != 1 else ''}, {asked}"
        )
    else:
        got = f"{100 * counts[0] / n:.1f} % [{low}, {high}], {counts[0]}/{n}, {asked}"
    got = f"{worst}: {got}" if worst else got
    advice = _advice(rule, counts) if bounds.state == "undecided" else ""
    return Outcome(rule.name, bounds.state, _expected(rule), got, advice, blamed, counts)


def _advice(rule: Rule, counts: Sequence[int]) -> str:
    """How many images would decide."""
    n = counts[-1]
    if rule.statistic == "estimate":
        return f"{max((rule.n_min or 0) - n, 1)} more images decide"
    if rule.metric == "loss":
        flips = (counts[0] + counts[1]) / (2 * n)
        if (counts[0] - counts[1]) / n >= rule.limit:
            return "more images of this kind would rather fail it: the estimate is above the limit"
        need = planning.pairs_for_margin(rule.limit, max(flips, 1 / (2 * n)))
        return f"about {max(need - n, 1)} more pairs would decide, if nothing is lost"
    if counts[0] / n > rule.limit:
        return "more images of this kind would rather fail it: the estimate is above the limit"
    need = planning.images_to_show_at_most(rule.limit, counts[0])
    return f"{max(need - n, 1)} more images without a hit would pass it"
