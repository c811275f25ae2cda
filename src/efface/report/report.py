"""The report of one run as data. Its fields, under their names, are the keys of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from efface.errors import WrongFile
from efface.judges.panel import Seat
from efface.metrics._run import MetricCell, Surroundings
from efface.runs.spec import Asked, SuiteUsed
from efface.scores.forms import SPACED, Plain, read, row_of
from efface.scores.tables import Rate, Table
from efface.untrusted import short
from efface.untrusted.documents import read_json

__all__ = [
    "FORMAT", "Cost", "Counted", "Detectable", "GateResult", "Hashes", "Report", "RuleResult", "Score", "Sheet",
    "ShownPair", "Verdict", "opened_report", "read_report",
]  # fmt: skip

FORMAT = "efface-report/1"


@dataclass(frozen=True)
class Verdict:
    """What stands on top of the page."""

    line: str
    state: Literal["pass", "fail", "undecided", "none"]


@dataclass(frozen=True)
class ShownPair:
    """One shot as both models drew it."""

    prompt: str
    seed: int
    base: str | None
    """Key of the image; None where it is not stored."""
    base_shown: bool | None
    """Whether the judge sees the concept in it; None where it was not judged."""
    edited: str | None
    edited_shown: bool | None


@dataclass(frozen=True)
class Sheet:
    """Pairs of pictures side by side."""

    title: str
    role: str
    note: str
    """How they were chosen."""
    pairs: tuple[ShownPair, ...]


@dataclass(frozen=True)
class Detectable:
    """What loss so many pairs could have shown."""

    role: str
    pairs: int
    smallest_detectable_loss: str
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class Score:
    """A one-number score of a paper."""

    score: str
    side: str
    value: float
    note: str


@dataclass(frozen=True)
class RuleResult:
    """What one rule of a gate says."""

    rule: str
    state: Literal["pass", "fail", "undecided", "not measured"]
    expected: str
    got: str
    next: str
    """What would decide it."""
    concepts: tuple[str, ...]
    """Those that decided it."""
    pairs: tuple[ShownPair, ...] = ()
    """The worst of them, where it is not met."""


@dataclass(frozen=True)
class GateResult:
    """What a gate says of a report."""

    name: str
    state: Literal["pass", "fail", "undecided"]
    undecided_allowed: bool
    rules: tuple[RuleResult, ...]
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class Counted:
    """How many records the numbers rest on."""

    rows: int
    rows_of_other_judges_or_versions: int
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class Hashes:
    """What exactly was compared."""

    base_model: str
    patch: str
    edited_model: str
    run: str
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class Cost:
    """What the last call spent: a run that went on states its last part."""

    base_images_drawn: int = 0
    edited_images_drawn: int = 0
    images_taken_from_the_cache: int = 0
    bytes_of_the_patch: int = 0
    images_repaired: int = 0
    damaged_records_dropped: int = 0
    seconds_drawing: float = 0.0
    seconds_judging: float = 0.0
    seconds_counting: float = 0.0
    seconds_beside_drawing: float = 0.0
    seconds: float | None = 0.0
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class Report:
    """Everything that the page says."""

    title: str
    verdict: Verdict
    flags: tuple[str, ...]
    """What makes every rate worthless."""
    asked: Asked
    tables: tuple[Table, ...]
    sheets: tuple[Sheet, ...]
    garbage: Mapping[str, Rate | None]
    """Share of broken images, by side."""
    sweeps: tuple[Mapping[str, str | int], ...]
    """Images at and above each threshold of a detector, a row a label and side."""
    detectable: tuple[Detectable, ...]
    scores: tuple[Score, ...]
    neighbourhood: Surroundings
    metrics: tuple[MetricCell, ...]
    not_measured: tuple[str, ...]
    limits: tuple[str, ...]
    recipe: Mapping[str, object]
    """Of the patch, without the request."""
    judges: tuple[Seat, ...]
    suite: SuiteUsed
    records: Counted
    hashes: Hashes
    environment: Mapping[str, object]
    """Versions and machine; and others, where the run went on elsewhere."""
    images: str
    """Where they are."""
    cost: Cost = field(default_factory=Cost)
    gate: GateResult | None = None
    format: Literal["efface-report/1"] = FORMAT

    def content(self) -> dict[str, Plain]:
        """As report.json holds it."""
        return row_of(self) | ({"gate": {}} if self.gate is None else {})

    def __getitem__(self, key: str) -> Plain:
        """One entry as report.json holds it, for scripts."""
        return self.content()[key]

    def judged(self, gate: GateResult, line: str) -> Report:
        """With what a gate says, in the verdict, too."""
        head = " ".join(self.flags)
        words = (head, line, self.verdict.line.removeprefix(head).strip())
        return replace(self, gate=gate, verdict=Verdict(" ".join(w for w in words if w), gate.state))


def read_report(content: object) -> Report:
    """A report from what report.json holds. Raises WrongFile for what is none."""
    found = dict(content) if isinstance(content, Mapping) else {}
    if found.get("format") != FORMAT:
        raise WrongFile(f"expected a report of format {FORMAT}, got {short(found.get('format'))}; measure again")
    found["gate"] = found.get("gate") or None
    try:
        return read(Report, found)
    except ValueError as error:
        raise WrongFile(f"expected a report, but {error}; measure again") from None


def opened_report(run: Path, nothing: str) -> Report:
    """The report in a run's folder. Raises WrongFile: `nothing` says that it is missing or torn, and the cure."""
    try:
        content = read_json(run / "report.json")
    except WrongFile:
        raise WrongFile(nothing) from None
    return read_report(content)
