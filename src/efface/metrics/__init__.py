"""Metrics: features and a score of each image, an aggregate of all rows. One idea, one file (docs/metrics/).

A row is one image and one question, as a mapping: `side` ("base", "edited", ...), `prompt`, `seed`, `draw`, `role`,
`concept`, `state` ("ok", "na", "error"), `hit`, `value`, `garbage`, `reason`, and what a metric adds. Unknown is NA,
failed is ERROR; neither is ever a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from scipy.stats import t as student

from efface.errors import BadRequest
from efface.numerics import clusters, intervals
from efface.scores.records import shot_of
from efface.scores.tables import ERRORS_AT_MOST

__all__ = [
    "Cell",
    "Item",
    "Metric",
    "Scored",
    "Table",
    "by_prompt",
    "loss_cell",
    "mean_cell",
    "presence",
    "questions",
    "rate_cell",
    "set_interval",
]

DRAWS = 2_000  # resamples behind an interval over prompts
ONE_PROMPT = "one prompt: says nothing about other wording"
FEW_PROMPTS = "few prompts: take the interval with care"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One image with what is known of it; a metric that needs an absent part scores it NA.

    image, base: uint8 (h, w, 3); base is the base model's at the same prompt and seed. probabilities, hits:
    the judge's, by label; heads: by head of the judge ("style", "object") what the prompt names and what that head
    finds likeliest, either "" where there is none; features, base_features: (f,); latent, base_latent: the final
    latents; boxes: (label, score) of what a detector found.
    """

    image: np.ndarray
    prompt: str = ""
    concept: str = ""
    base: np.ndarray | None = None
    probabilities: Mapping[str, float] | None = None
    hits: frozenset[str] | None = None
    heads: Mapping[str, tuple[str, str]] | None = None
    features: np.ndarray | None = None
    base_features: np.ndarray | None = None
    latent: np.ndarray | None = None
    base_latent: np.ndarray | None = None
    boxes: tuple[tuple[str, float], ...] | None = None
    garbage: bool = False


@dataclass(frozen=True)
class Scored:
    """What a metric says of one image; exactly one state, a reason for NA and ERROR.

    detail: what else belongs into the row of this image, by the row's field.
    """

    state: str = "ok"
    hit: bool | None = None
    value: float | None = None
    detail: Mapping[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Cell:
    """One number of a table. `ok`: value, usually with ends and counts; `na`, `error`: the reason and no number.

    Rates are fractions. clusters: distinct prompts behind it; n counts images (or pairs) that were scored.
    """

    name: str
    concept: str = ""
    side: str = ""
    state: str = "ok"
    value: float | None = None
    low: float | None = None
    high: float | None = None
    hits: int | None = None
    n: int = 0
    clusters: int = 0
    n_na: int = 0
    n_error: int = 0
    note: str = ""
    reason: str = ""

    def as_row(self) -> dict[str, Any]:
        """For JSON: no NaN, no infinity."""
        return asdict(self)


class Metric(Protocol):
    """What every metric is: a frozen dataclass whose fields are settings."""

    direction: str  # "up", "down" or "same" is good
    of_pairs: bool  # True: it scores an edited image against the base's, and has nothing to say of the base alone
    set_dependent: bool  # True: the value changes with what else stands in the table
    # of_records: bool, True where the rows of `questions` are enough; absent means False

    def features(self, item: Item) -> np.ndarray | None:
        """What a set metric keeps of one image, (f,); None where it keeps nothing."""
        ...

    def score(self, item: Item) -> Scored:
        """The metric's word on one image."""
        ...

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """All cells of a table; a pure function of the set of rows, whatever their order."""
        ...


class Table:
    """Rows in a fixed order, with columns as arrays; made once, shared by all metrics of a table."""

    def __init__(self, rows: Iterable[Row], *, ordered: bool = False) -> None:
        self.rows: list[Row] = list(rows) if ordered else sorted(rows, key=_place)
        self._codes: dict[tuple[str, ...], tuple[list[Any], np.ndarray]] = {}

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Table:
        """Raises BadRequest for rows of several versions of a judge: their rates do not compare."""
        if isinstance(rows, Table):
            return rows
        made = cls(rows)
        versions = sorted({str(r["judge_version"]) for r in made.rows if r.get("judge_version")})
        if len(versions) > 1:
            raise BadRequest(f"expected rows of one judge version, got {', '.join(versions[:3])}; choose one of them")
        return made

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, keep: Callable[[Row], bool]) -> Table:
        """The rows that satisfy a condition."""
        return Table([r for r in self.rows if keep(r)], ordered=True)

    def images(self) -> Table:
        """One row an image, for what does not depend on the question: the first that is ok, else the first."""
        found: dict[tuple[Any, ...], Row] = {}
        for row in self.rows:
            place = tuple(row.get(k) for k in ("side", "method", "prompt", "seed", "draw", "guidance"))
            if found.setdefault(place, row).get("state") != "ok" and row.get("state") == "ok":
                found[place] = row
        return Table(found.values(), ordered=True)

    def codes(self, *names: str) -> tuple[list[Any], np.ndarray]:
        """Distinct values of one column (or tuples of several) and each row's number among them, (n,)."""
        if names not in self._codes:
            known: dict[Any, int] = {}
            single = names[0] if len(names) == 1 else ""
            values = ([r.get(single, "") for r in self.rows] if single
                      else [tuple(r.get(n, "") for n in names) for r in self.rows])  # fmt: skip
            found = np.fromiter((known.setdefault(v, len(known)) for v in values), np.int64, len(values))
            self._codes[names] = list(known), found
        return self._codes[names]

    def states(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bool (n,) each: ok, na, error."""
        names, found = self.codes("state")
        unknown = {n or "missing" for n in names} - {"ok", "na", "error"}
        if unknown:
            raise BadRequest(f"expected rows in state ok, na or error, got {sorted(map(str, unknown))}; judge anew")
        ok, na, error = (np.isin(found, [i for i, n in enumerate(names) if n == s]) for s in ("ok", "na", "error"))
        return ok, na, error

    def flags(self, name: str) -> np.ndarray:
        """A yes-or-no column, bool (n,); absent is no."""
        return np.fromiter((bool(r.get(name)) for r in self.rows), bool, len(self.rows))

    def numbers(self, name: str = "value") -> np.ndarray:
        """A column of numbers, float64 (n,); NaN where there is none."""
        values = (r.get(name) for r in self.rows)
        return np.fromiter((np.nan if v is None else v for v in values), np.float64, len(self.rows))

    def pairs(self, first: str = "base", second: str = "edited") -> tuple[Table, Table]:
        """Rows of two sides of the same prompt, seed, guidance, draw, role and concept, row by row.

        Raises BadRequest when a partner is missing or a place occurs twice: nothing is zipped by luck.
        """
        sides = [self.where(lambda r, s=s: r.get("side") == s) for s in (first, second)]
        places = [[_place(r)[1:] for r in side] for side in sides]
        if places[0] != places[1] or len(set(places[0])) != len(places[0]):
            odd = sorted({*places[0]} ^ {*places[1]})
            which = f"{len(odd)} without a partner, first {odd[0][:2]}" if odd else "a prompt and seed twice"
            raise BadRequest(f"expected {first} and {second} rows in pairs, got {which}; draw both sides in one run")
        return sides[0], sides[1]


def _place(row: Row) -> tuple[str, str, int, float, int, str, str, str]:
    guidance = row.get("guidance")
    return (
        str(row.get("side", "")), str(row.get("prompt", "")), int(row.get("seed", 0)),
        -1.0 if guidance is None else float(guidance), int(row.get("draw", 0)),
        str(row.get("role", "")), str(row.get("concept", "")), str(row.get("method", "")),
    )  # fmt: skip


def questions(items: Iterable[Any], records: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows from a suite's items and a run's records, one a question and side.

    items: with prompt, seed and asks (role, label). records: one an image, with side, prompt, seed, hits, values,
    garbage; where they have them, state and reason, guidance, and a detector's boxes. A label without a value is NA.
    """
    asked = {i.shot: i.asks for i in items}
    return [_row(r, ask) for r in records for ask in asked.get(shot_of(r), ())]


def _row(record: Row, ask: Any) -> dict[str, Any]:
    state, reason = record.get("state", "ok"), record.get("reason", "")
    if state == "ok" and ask.label not in record["values"]:
        state, reason = "na", "the judge has no such label"
    fine = state == "ok"
    own = {k: record[k] for k in ("boxes", "guidance") if k in record}
    return {
        "side": record["side"], "prompt": record["prompt"], "seed": record["seed"], "role": ask.role,
        "concept": ask.label, "state": state, "hit": ask.label in record["hits"] if fine else None,
        "value": record["values"][ask.label] if fine else None, "garbage": bool(record["garbage"]), "reason": reason,
        **own,
    }  # fmt: skip


def by_prompt(groups: np.ndarray, prompts: np.ndarray, count: int, *columns: np.ndarray) -> list[list[np.ndarray]]:
    """For each of `count` groups: images a prompt, then the sums of each column a prompt, all (g,).

    groups, prompts: int (n,); a group without a row has empty arrays.
    """
    width = int(prompts.max(initial=0)) + 1
    places, at = np.unique(groups * width + prompts, return_inverse=True)
    ones = np.ones(len(groups))
    sums = [np.bincount(at, weights=c.astype(np.float64), minlength=len(places)) for c in (ones, *columns)]
    cuts = np.searchsorted(places // width, np.arange(count + 1))
    return [[s[a:b] for s in sums] for a, b in pairwise(cuts)]


def rate_cell(
    name: str, hits: np.ndarray, sizes: np.ndarray, *, n_na: int = 0, n_error: int = 0, **labels: Any
) -> Cell:
    """A rate from hits and images a prompt (g,): Wilson for one prompt or one image each, else over prompts."""
    blank = _blank(name, int(np.sum(sizes)), len(sizes), n_na, n_error, labels)
    if blank is not None:
        return blank
    n, k = int(sizes.sum()), int(hits.sum())
    if not clusters.grouped(sizes):
        low, high = intervals.wilson(k, n)
        note = ONE_PROMPT if len(sizes) == 1 and n > 1 else ""
    else:
        found = clusters.cluster_rate(hits, sizes, np.random.default_rng(0), DRAWS)
        low, high, note = found.low, found.high, FEW_PROMPTS if found.few else ""
    return Cell(name, value=k / n, low=low, high=high, hits=k, n=n, clusters=len(sizes), n_na=n_na, n_error=n_error,
                note=note, **labels)  # fmt: skip


def loss_cell(
    name: str, base_only: np.ndarray, edited_only: np.ndarray, sizes: np.ndarray, *, n_na: int = 0, n_error: int = 0,
    **labels: Any,
) -> Cell:  # fmt: skip
    """Base rate minus edited rate of pairs (g,) a prompt: Tango for one prompt or one pair each, else over prompts."""
    blank = _blank(name, int(np.sum(sizes)), len(sizes), n_na, n_error, labels)
    if blank is not None:
        return blank
    n, b, c = int(sizes.sum()), int(base_only.sum()), int(edited_only.sum())
    if not clusters.grouped(sizes):
        _, low, high = intervals.tango(b, c, n)
        note = ONE_PROMPT if len(sizes) == 1 and n > 1 else ""
    else:
        found = clusters.cluster_paired_difference(base_only, edited_only, sizes, np.random.default_rng(0), DRAWS)
        low, high, note = found.low, found.high, FEW_PROMPTS if found.few else ""
    return Cell(name, value=(b - c) / n, low=low, high=high, hits=b - c, n=n, clusters=len(sizes), n_na=n_na,
                n_error=n_error, note=note, **labels)  # fmt: skip


def mean_cell(
    name: str, values: np.ndarray, prompts: np.ndarray, *, n_na: int = 0, n_error: int = 0, **labels: Any
) -> Cell:
    """The mean of values (n,) with its interval over prompts (n,); one prompt: over its images."""
    if len(np.unique(prompts)) < 2:
        prompts = np.arange(len(values))
    codes = np.unique(prompts, return_inverse=True)[1]
    sizes, sums, squares = by_prompt(np.zeros(len(values), np.int64), codes, 1, values, values**2)[0]
    blank = _blank(name, len(values), len(sizes), n_na, n_error, labels)
    if blank is not None:
        return blank
    found = clusters.cluster_mean(sums, squares, sizes, np.random.default_rng(0), DRAWS)
    return Cell(name, value=found.estimate, low=found.low, high=found.high, n=len(values), clusters=len(sizes),
                n_na=n_na, n_error=n_error, note=FEW_PROMPTS if found.few else "", **labels)  # fmt: skip


def set_interval(
    measure: Callable[[np.ndarray], float], prompts: np.ndarray, level: float = 0.95, parts: int = 20
) -> tuple[float, float] | None:
    """Interval of a set metric over prompts by the jackknife that leaves out one of at most 20 parts of the prompts.

    measure: from the numbers of the rows that are in to the metric; prompts: int (n,). None with fewer than two
    prompts. Drawing with replacement would repeat images, which all distances between sets mistake for likeness.
    """
    names, place = np.unique(prompts, return_inverse=True)
    count = min(parts, len(names))
    if count < 2:
        return None
    part = place % count
    left = np.asarray([measure(np.flatnonzero(part != k)) for k in range(count)])
    error = float(np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum()))
    value, reach = measure(np.arange(len(prompts))), float(student.ppf(0.5 + level / 2, count - 1)) * error
    return value - reach, value + reach


def presence(item: Item) -> Scored:
    """Does the judge find the concept? NA when it has no such label."""
    if item.hits is None or item.probabilities is None or item.concept not in item.probabilities:
        return Scored("na", reason=f"the judge has no label {item.concept!r}")
    return Scored(hit=item.concept in item.hits, value=float(item.probabilities[item.concept]))


def _blank(
    name: str, n: int, clusters: int, n_na: int, n_error: int, labels: Mapping[str, str]
) -> Cell | None:  # fmt: skip
    """NA without a scored row, ERROR with too many failed ones, None where there is something to say."""
    counts: dict[str, Any] = {"n": n, "clusters": clusters, "n_na": n_na, "n_error": n_error, **labels}
    if n_error > ERRORS_AT_MOST * (n + n_na + n_error):
        return Cell(name, state="error", reason=f"{n_error} of {n + n_na + n_error} rows failed", **counts)
    if not n:
        return Cell(name, state="na", reason=f"nothing was scored ({n_na} NA)", **counts)
    return None
