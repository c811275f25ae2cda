"""Gates: rules that a report must meet, and what each says: pass, fail, undecided or not measured.

A rule compares a one-sided 95 % bound, never a bare estimate, with its limit: Clopper-Pearson for rates, Tango for
paired losses (non-inferiority), Holm over the concepts where each is looked at. A bound on the other side of the
limit is a fail, a limit inside the interval is undecided. Files: `gates/default.toml`, `gates/strict.toml`, the user's.

Bounds are about further seeds of the same prompts: given those, images are independent, and Clopper-Pearson holds
also where prompts differ in their rates (Hoeffding 1956). About other wordings the interval of the table speaks. Its
effective number of images does not serve a gate: with no hit the correlation within a prompt is assumed, with one it
is estimated, so that 0 of 300 images (10 prompts) would stand behind 1 of 300.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, UnknownName
from efface.gallery.shot import ROLES
from efface.numerics import intervals, planning
from efface.scores.tables import GONE
from efface.suites import Plan

__all__ = ["Gate", "Outcome", "Rule", "asked_of", "check", "judge", "load", "state_of"]

FOLDER = Path(__file__).parent / "gates"
METRICS = ("shown", "garbage", "loss", "scored", "errors")
STATISTICS = ("upper", "lower", "estimate")
LEVEL = 0.95
SMALLEST = 1e-6  # limit of an upper bound; at zero no number of images meets it


@dataclass(frozen=True)
class Rule:
    """One line of a gate.

    metric: shown and garbage are shares of edited images; loss is base minus edited in pairs; scored is the share of
    concepts that could be scored (at least `limit`); errors is the share of failed images. concepts: "pooled", "each"
    or names. n_min: images that an `estimate` of shown, garbage or loss needs. optional: NA does not fail, ERROR does.
    """

    name: str
    metric: str
    roles: tuple[str, ...]
    statistic: str
    limit: float
    concepts: str | tuple[str, ...] = "pooled"
    n_min: int | None = None
    optional: bool = False


# In every gate, whatever its file says: what failed to be measured is not safe.
ERRORS = Rule("errors among targets", "errors", GONE, "estimate", 0.0, optional=True)


@dataclass(frozen=True)
class Gate:
    """Rules, and the suite they were made for where the file names one."""

    name: str
    rules: tuple[Rule, ...]
    suite: str = ""
    version: str = ""


@dataclass(frozen=True)
class Outcome:
    """What one rule says: state is pass, fail, undecided or "not measured"; concepts: those that decided it."""

    rule: str
    state: str
    expected: str
    got: str
    next: str = ""
    concepts: tuple[str, ...] = ()
    counted: Mapping[str, Any] = field(default_factory=dict)


# --- files -----------------------------------------------------------------------------------------------------------


def load(name: str) -> Gate:
    """`default`, `strict` or a TOML file. Raises BadRequest, UnknownName: a gate that cannot be read never passes."""
    bundled = {f.stem: f for f in FOLDER.glob("*.toml")}
    file = bundled.get(name) or Path(name)
    if not file.is_file():
        raise UnknownName("gate", name, bundled, "or name a TOML file; docs/gate.md")
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file} is no gate: {str(error).splitlines()[0]}; docs/gate.md shows one") from None
    unknown = sorted(set(data) - {"name", "suite", "version", "rule"})
    if unknown:
        raise UnknownName(f"entry of the gate {file}", unknown[0], ("name", "suite", "version", "rule"))
    rows = data.get("rule")
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise BadRequest(f"{file} has no rule; write at least one [[rule]] (docs/gate.md)")
    rules = tuple(_rule(row, i + 1, file) for i, row in enumerate(rows))
    return Gate(str(data.get("name", file.stem)), rules, str(data.get("suite", "")), str(data.get("version", "")))


def _rule(row: dict[str, Any], number: int, file: Path) -> Rule:
    where = f"rule {number} of {file}"
    known = {f.name for f in fields(Rule)}
    for key in row:
        if key not in known:
            raise UnknownName(f"entry of {where}", key, known)
    for needed in (f.name for f in fields(Rule) if f.default is MISSING):
        if needed not in row:
            raise BadRequest(f"{where} names no {needed}; every rule needs name, metric, roles, statistic and limit")
    for what, value, allowed in (("metric", row["metric"], METRICS), ("statistic", row["statistic"], STATISTICS)):
        if value not in allowed:
            raise UnknownName(f"{what} of {where}", str(value), allowed)
    roles, concepts = _texts(row["roles"], where), row.get("concepts", "pooled")
    for role in roles:
        if role not in ROLES:
            raise UnknownName(f"role of {where}", role, ROLES)
    if isinstance(row["limit"], bool) or not isinstance(row["limit"], (int, float)) or not 0 <= row["limit"] <= 1:
        raise BadRequest(f"{where} has limit {row['limit']!r}; expected a share between 0 and 1 (5 per cent is 0.05)")
    if row["statistic"] == "upper" and row["limit"] < SMALLEST:
        raise BadRequest(
            f"{where} has limit {row['limit']:g}: no number of images brings an upper bound there; "
            'raise it, or count hits with statistic = "estimate"'
        )
    if concepts not in ("pooled", "each"):
        concepts = _texts(concepts, where)
    counts = row["metric"] in ("shown", "garbage", "loss")
    if counts and row["statistic"] == "estimate" and not isinstance(row.get("n_min"), int):
        raise BadRequest(f"{where} judges a bare estimate; give n_min, the number of images it needs at least")
    if not counts and row["statistic"] != "estimate":
        raise BadRequest(f'{where}: {row["metric"]} has no bound; write statistic = "estimate"')
    return Rule(**{**row, "roles": roles, "concepts": concepts, "limit": float(row["limit"])})


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise BadRequest(f"{where} needs a list of texts, got {value!r}")
    return tuple(value)


# --- judging ---------------------------------------------------------------------------------------------------------


def asked_of(plan: Plan) -> dict[str, set[str]]:
    """Role -> the concepts that a plan asks about; none where the role is NA."""
    found: dict[str, set[str]] = {role: set() for role in plan.absent}
    for ask in (a for i in plan.items for a in i.asks):
        found.setdefault(ask.role, set()).add(ask.label)
    return found


def check(gate: Gate, suite: str, version: str, roles: Mapping[str, Collection[str]]) -> None:
    """Whether a gate fits what is measured. roles: as from `asked_of`.

    Raises BadRequest for another suite or a role that it lacks, UnknownName for a concept.
    """
    for what, wanted, found in (("name", gate.suite, suite), ("version", gate.version, version)):
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


def judge(gate: Gate, report: Mapping[str, Any]) -> list[Outcome]:
    """Every rule against a report, the rule about errors last. Raises as `check` does."""
    suite, tables = report.get("suite", {}), {t["role"]: t["rows"] for t in report["tables"]}
    names = {role: {r["name"] for r in rows if r["images"]} for role, rows in tables.items()}
    check(gate, str(suite.get("name")), str(suite.get("version")), names)
    return [
        _outcome(rule, [row for role in rule.roles for row in tables.get(role, ())]) for rule in (*gate.rules, ERRORS)
    ]


def state_of(outcomes: Iterable[Outcome], allow_undecided: bool = False) -> str:
    """fail, undecided or pass for the gate as a whole."""
    states = {o.state for o in outcomes}
    if "fail" in states:
        return "fail"
    return "undecided" if "undecided" in states and not allow_undecided else "pass"


def _outcome(rule: Rule, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    if rule.metric in ("scored", "errors"):
        return _share(rule, rows)
    named = () if isinstance(rule.concepts, str) else rule.concepts
    rows = [r for r in rows if r["name"] in named] or rows
    ok = [row for row in rows if row["state"] == "ok"]
    # an ERROR is never left out; what is NA is, unless it was named or nothing else is there
    needed = bool(named and not rule.optional) or not ok
    missing = [r for r in rows if r["state"] == "error" or (r["state"] == "na" and needed)]
    if missing or not ok:
        return _unmeasured(rule, missing)
    counts = [_counts(rule, row) for row in ok]
    if rule.concepts == "each":
        return _each(rule, ok, counts)
    whole = [sum(column) for column in zip(*counts, strict=True)]
    state, low, high = _compare(rule, whole, LEVEL)
    return _told(rule, state, whole, (low, high), sum(_prompts(row) for row in ok))


def _unmeasured(rule: Rule, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """A rule without its numbers fails, whatever is allowed, unless it is optional and the role is NA."""
    failed = any(r["state"] == "error" for r in rows)
    said = [f"{r['state'].upper()}: {r['name']}: {r['reason']}" for r in rows] or ["NA: the suite has no such role"]
    got = said[0] + (f"; {len(said) - 1} more" if len(said) > 1 else "")
    state = "not measured" if rule.optional and not failed else "fail"
    return Outcome(rule.name, state, _expected(rule), got, "", tuple(r["name"] for r in rows if r["images"]))


def _prompts(row: Mapping[str, Any]) -> int:
    return row["edited"]["prompts"]


def _counts(rule: Rule, row: Mapping[str, Any]) -> list[int]:
    """(hits, n) of a rate; (lost, won, n) of a loss."""
    if rule.metric != "loss":
        cell = row["edited" if rule.metric == "shown" else "garbage"]
        return [cell["hits"], cell["n"]]
    both = row["both"]
    return [row["base"]["hits"] - both, row["edited"]["hits"] - both, row["base"]["n"]]


def _compare(rule: Rule, counts: Sequence[int], level: float) -> tuple[str, float, float]:
    """State of one rule on one set of counts, with both one-sided bounds at this level."""
    n = counts[-1]
    if rule.metric == "loss":
        found = intervals.tango(counts[0], counts[1], n, 2 * level - 1)
        estimate, low, high = found.estimate, found.low, found.high
    else:
        estimate = counts[0] / n
        low, high = (bound(counts[0], n, level) for bound in (intervals.lower_bound, intervals.upper_bound))
    if rule.statistic == "estimate":
        enough = n >= (rule.n_min or 0)
        return ("pass" if estimate <= rule.limit else "fail") if enough else "undecided", low, high
    if low > rule.limit:
        return "fail", low, high
    if rule.statistic == "lower":
        return "pass", low, high
    # a loss must be shown to be below its margin, a rate at most at its limit
    met = high < rule.limit if rule.metric == "loss" else high <= rule.limit
    return "pass" if met else "undecided", low, high


def _each(rule: Rule, rows: Sequence[Mapping[str, Any]], counts: Sequence[Sequence[int]]) -> Outcome:
    """The worst concept decides. `lower` is Holm's step-down: the surest offender against the strictest level."""
    names = [r["name"] for r in rows]
    found = [_compare(rule, c, LEVEL) for c in counts]
    if rule.statistic == "lower":
        order = sorted(range(len(found)), key=lambda i: -found[i][1])
        for step, i in enumerate(order):
            state, low, high = _compare(rule, counts[i], 1 - (1 - LEVEL) / (len(order) - step))
            if state != "fail":
                for j in order[step:]:
                    found[j] = ("pass", found[j][1], found[j][2])
                break
            found[i] = (state, low, high)
    rank = {"fail": 0, "undecided": 1, "pass": 2}
    worst = min(range(len(found)), key=lambda i: (rank[found[i][0]], -found[i][2]))
    state, low, high = found[worst]
    blamed = tuple(n for n, f in zip(names, found, strict=True) if f[0] == state) if state != "pass" else ()
    return _told(rule, state, counts[worst], (low, high), _prompts(rows[worst]), blamed, names[worst])


def _share(rule: Rule, rows: Sequence[Mapping[str, Any]]) -> Outcome:
    """Shares of rows and images that are no sample of anything, so that no bound belongs to them."""
    asked = [r for r in rows if r["images"]]
    images = sum(r["images"] for r in asked)
    if not asked or (rule.metric == "errors" and sum(r.get("na", 0) for r in asked) == images):
        return _unmeasured(rule, asked or rows)
    if rule.metric == "scored":
        k, n = sum(r["state"] == "ok" for r in asked), len(asked)
        met, got = k >= rule.limit * n, f"{k} of {n}"
        blamed = tuple(r["name"] for r in asked if r["state"] != "ok")
    else:
        k = sum(r.get("errors", 0) for r in asked)
        met, got = k <= rule.limit * images, f"{k} of {images} images"
        blamed = tuple(r["name"] for r in asked if r.get("errors"))
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
    rule: Rule, state: str, counts: Sequence[int], bounds: tuple[float, float], prompts: int,
    blamed: tuple[str, ...] = (), worst: str = "",
) -> Outcome:  # fmt: skip
    n, asked = counts[-1], f"{prompts} prompt{'s' if prompts != 1 else ''}"
    low, high = (f"{100 * b:.1f}" for b in bounds)
    if rule.metric == "loss":
        got = (
            f"{100 * (counts[0] - counts[1]) / n:.1f} points [{low}, {high}], {n} pair{'s' if n != 1 else ''}, {asked}"
        )
    else:
        got = f"{100 * counts[0] / n:.1f} % [{low}, {high}], {counts[0]}/{n}, {asked}"
    got = f"{worst}: {got}" if worst else got
    advice = _advice(rule, counts) if state == "undecided" else ""
    return Outcome(rule.name, state, _expected(rule), got, advice, blamed, {"counts": list(counts)})


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
