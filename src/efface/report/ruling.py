"""What a gate says of a report: pass, fail, undecided or not measured.

Every number has two bounds (`scores/reach.py`). One is for further seeds of the same prompts: Clopper-Pearson of a
rate, Tango of a paired loss. The other is for other concepts and wordings, from 8 concepts on. A list of concepts fails
where the first is surely on the bad side, and passes where the second is on the good one.

Where each concept is looked at, Holm's correction takes those of which so many pairs can tell anything at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, NamedTuple, TypeAlias

from efface.errors import BadRequest, UnknownName
from efface.gallery.shot import Item
from efface.numerics import planning
from efface.report.gate import ERRORS, Gate, Rule
from efface.runs.spec import SuiteUsed
from efface.scores.reach import LEVEL, Counts, Reach, alone, counts_of, tellable
from efface.scores.tables import Row, Table

__all__ = ["Outcome", "check", "judge", "planned_roles", "sentence", "state_of"]

AT_MOST = 1_000  # pairs of one concept that an advice goes up to
TOO_FEW = "cannot be told at this n"
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
    counts: Counts | None = None
    """What was compared."""


class Found(NamedTuple):
    """One rule on one set of counts."""

    state: Ruled
    counts: Counts
    reach: Reach


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


def state_of(outcomes: Iterable[Outcome]) -> Ruled:
    """fail, undecided or pass for the gate as a whole."""
    states = {o.state for o in outcomes}
    return "fail" if "fail" in states else "undecided" if "undecided" in states else "pass"


def sentence(gate: str, state: Ruled, outcomes: Sequence[Outcome], allow_undecided: bool = False) -> str:
    """What a gate says, with the first rule that is not met; what is left open is never called passed alone."""
    open_ = [o for o in outcomes if o.state == "undecided"]
    bad = [o for o in outcomes if o.state == "fail"] or open_
    if state == "undecided" and allow_undecided:
        return f"Gate {gate} passed with {len(open_)} rule{'s' if len(open_) != 1 else ''} undecided{_counted(open_)}."
    if state == "pass" or not bad:
        return f"Gate {gate} {'passed' if state == 'pass' else 'failed'}."
    return f"Gate {gate}, {bad[0].rule}: expected {bad[0].expected}, got {bad[0].got}."


def _counted(outcomes: Iterable[Outcome]) -> str:
    """On how many images they rest."""
    found = sorted({o.counts.n for o in outcomes if o.counts})
    return f" (n = {found[0]}{f' to {found[-1]}' if len(found) > 1 else ''})" if found else ""


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
    if rule.concepts == "each":
        return _each(rule, ok)
    by_concept: dict[str, Counts] = {}
    for row in ok:
        one = counts_of(row, rule.metric)
        by_concept[row.name] = _added(by_concept[row.name], one) if row.name in by_concept else one
    found = _compare(rule, Reach.of(by_concept), reduce(_added, by_concept.values()))
    return _told(rule, found, sum(_prompts(row) for row in ok))


def _unmeasured(rule: Rule, rows: Sequence[Row]) -> Outcome:
    """A rule without its numbers fails, whatever is allowed, unless it is optional and the role is NA."""
    failed = any(r.state == "error" for r in rows)
    said = [f"{r.state.upper()}: {r.name}: {r.reason}" for r in rows] or ["NA: the suite has no such role"]
    got = said[0] + (f"; {len(said) - 1} more" if len(said) > 1 else "")
    state = "not measured" if rule.optional and not failed else "fail"
    return Outcome(rule.name, state, _expected(rule), got, "", tuple(r.name for r in rows if r.images))


def _prompts(row: Row) -> int:
    return row.edited.prompts or 0 if row.edited else 0


def _added(one: Counts, two: Counts) -> Counts:
    won = None if one.won is None else one.won + (two.won or 0)
    return Counts(one.n + two.n, one.hits + two.hits, won)


def _compare(rule: Rule, reach: Reach, counts: Counts) -> Found:
    """A rule fails where these concepts surely break it, and passes where other concepts surely meet it, too."""
    return Found(_state(rule, counts, reach.these.low, reach.high), counts, reach)


def _state(rule: Rule, counts: Counts, low: float, high: float) -> Ruled:
    if rule.statistic == "estimate":
        enough = counts.n >= (rule.n_min or 0)
        return ("pass" if counts.estimate <= rule.limit else "fail") if enough else "undecided"
    if low > rule.limit:
        return "fail"
    if rule.statistic == "lower":
        return "pass"
    # a loss must be shown to be below its margin, a rate at most at its limit
    met = high < rule.limit if rule.metric == "loss" else high <= rule.limit
    return "pass" if met else "undecided"


def _each(rule: Rule, rows: Sequence[Row]) -> Outcome:
    """The worst concept decides. Of a lower bound those alone are looked at of which so many pairs can tell."""
    told, untold = list(rows), 0
    if rule.statistic == "lower":
        places = tellable([counts_of(row, rule.metric) for row in rows], rule.limit)
        told, untold = [rows[i] for i in places], len(rows) - len(places)
        if not told:
            return _untold(rule, rows)
    found = [_single(rule, counts_of(row, rule.metric), LEVEL) for row in told]
    if rule.statistic == "lower":
        _step_down(rule, found)
    rank = {"fail": 0, "undecided": 1, "pass": 2}
    worst = min(range(len(found)), key=lambda i: (rank[found[i].state], -found[i].reach.these.high))
    state = found[worst].state
    blamed = tuple(row.name for row, f in zip(told, found, strict=True) if f.state == state) if state != "pass" else ()
    outcome = _told(rule, found[worst], _prompts(told[worst]), blamed, told[worst].name)
    if not untold:
        return outcome
    words = f"{outcome.got}; of {untold} of {len(rows)} concepts it {TOO_FEW}"
    return replace(outcome, got=words)


def _single(rule: Rule, counts: Counts, level: float) -> Found:
    """One concept, which says nothing of others."""
    reach = Reach(alone(counts, level), None, 1)
    return _compare(rule, reach, counts)


def _step_down(rule: Rule, found: list[Found]) -> None:
    """Holm's: the surest offender against the strictest level, until one passes; it and all others do then."""
    order = sorted(range(len(found)), key=lambda i: -found[i].reach.these.low)
    for step, i in enumerate(order):
        bounds = _single(rule, found[i].counts, 1 - (1 - LEVEL) / (len(order) - step))
        if bounds.state != "fail":
            for j in order[step:]:
                found[j] = found[j]._replace(state="pass")
            return
        found[i] = bounds


def _untold(rule: Rule, rows: Sequence[Row]) -> Outcome:
    """No concept has so many pairs that its loss could be found: that is no pass."""
    most = max((counts_of(row, rule.metric) for row in rows), key=lambda c: c.n)
    need = next((n for n in range(most.n, AT_MOST) if tellable([most._replace(n=n)], rule.limit)), AT_MOST)
    what = "pairs" if rule.metric == "loss" else "images"
    got = f"{TOO_FEW}: no concept has more than {most.n} {what}"
    return Outcome(rule.name, "undecided", _expected(rule), got, f"one concept needs at least {need}", (), most)


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


def _told(rule: Rule, found: Found, prompts: int, blamed: tuple[str, ...] = (), worst: str = "") -> Outcome:
    counts, reach = found.counts, found.reach
    low, high = (f"{100 * b:.1f}" for b in reach.these)
    unit = "points" if rule.metric == "loss" else "%"
    got = f"{100 * counts.estimate:.1f} {unit} [{low}, {high}]"
    if reach.others:
        got += f", for other concepts and wordings at most {100 * reach.high:.1f} ({reach.concepts} concepts)"
    images = f"{counts.n} pair{'s' if counts.n != 1 else ''}" if rule.metric == "loss" else f"{counts.hits}/{counts.n}"
    got = f"{worst + ': ' if worst else ''}{got}, {images}, {prompts} prompt{'s' if prompts != 1 else ''}"
    advice = _advice(rule, counts, reach) if found.state == "undecided" else ""
    return Outcome(rule.name, found.state, _expected(rule), got, advice, blamed, counts)


def _advice(rule: Rule, counts: Counts, reach: Reach) -> str:
    """How many images would decide."""
    n = counts.n
    if rule.statistic == "estimate":
        return f"{max((rule.n_min or 0) - n, 1)} more images decide"
    if counts.estimate >= rule.limit and (rule.metric == "loss" or counts.estimate > rule.limit):
        return "more images of this kind would rather fail it: the estimate is above the limit"
    if reach.others and reach.these.high < rule.limit:
        return f"it holds for these {reach.concepts} concepts; more concepts, not more images, would tell of others"
    if counts.won is not None:
        need = planning.pairs_for_margin(rule.limit, max((counts.hits + counts.won) / (2 * n), 1 / (2 * n)))
        return f"about {max(need - n, 1)} more pairs would decide, if nothing is lost"
    need = planning.images_to_show_at_most(rule.limit, counts.hits)
    return f"{max(need - n, 1)} more images without a hit would pass it"
