"""Many runs in one table, as data. Its fields, under their names, are the keys of compare.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from efface.errors import WrongFile
from efface.judges.panel import Seat
from efface.runs.spec import SuiteUsed
from efface.scores.cells import Cell
from efface.scores.forms import SPACED, SPARE, Plain, read, row_of
from efface.scores.tables import Loss, Rate

__all__ = [
    "FORMAT", "Block", "Comparison", "Difference", "Entry", "HeatCell", "HeatRow", "RunCost", "RunRow", "Worst",
    "read_comparison",
]  # fmt: skip

FORMAT = "efface-compare/1"


@dataclass(frozen=True)
class Difference(Loss):
    """A run minus the baseline in pairs, in the unit of its column."""

    detectable: float | None = None
    """The smallest difference that so many pairs detect in 8 of 10 runs; None: none."""


@dataclass(frozen=True)
class Entry:
    """One run in one column."""

    cell: Rate | Loss | Cell
    difference: Difference | None = field(default=None, metadata=SPARE)
    """To the baseline; the baseline itself has none, and neither has a metric."""
    place: int | None = field(default=None, metadata=SPARE)
    """One more than the number of runs that are surely better; a metric has none."""


@dataclass(frozen=True)
class Worst:
    """The concept with the worst number."""

    name: str
    value: float
    n: int


@dataclass(frozen=True)
class RunCost:
    """What a run spent; what is unknown is None."""

    seconds: float | None
    base_images_drawn: int | None
    edited_images_drawn: int | None
    bytes_of_the_patch: int | None
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class RunRow:
    """One run of a table."""

    run: str
    method: str
    preset: str
    patch: str
    control: bool
    gate: str
    """What its gate says; empty where it had none."""
    flags: tuple[str, ...]
    cells: Mapping[str, Entry]
    """By column."""
    worst_target: Worst | None
    worst_kept: Worst | None
    kept: Loss | None
    """Of all kept concepts together."""
    cost: RunCost
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class HeatCell:
    """One concept of one run."""

    value: float
    n: int
    few: bool
    """Too few images to be shaded."""


@dataclass(frozen=True)
class HeatRow:
    """One concept over all runs of a table."""

    concept: str
    kind: Literal["target", "kept"]
    cells: Mapping[str, HeatCell]
    """By run."""


@dataclass(frozen=True)
class Block:
    """Runs that may stand in one column: one table."""

    suite: SuiteUsed
    base: str
    judge: Seat
    garbage_detector: str
    concepts: tuple[str, ...]
    images: int
    common: bool
    """Whether the images are those that all runs share."""
    baseline: str
    """The run that differences are taken to."""
    absent: Mapping[str, str]
    """Roles that are NA, with the reason."""
    runs: tuple[RunRow, ...]
    columns: Mapping[str, str]
    """Column -> its heading."""
    heat: tuple[HeatRow, ...]
    scores: tuple[Cell, ...]
    __pydantic_config__: ClassVar = SPACED


@dataclass(frozen=True)
class Comparison:
    """Tables of runs, one for each set of runs that may stand in one column."""

    tables: tuple[Block, ...]
    apart: tuple[str, ...]
    """Why there is more than one table."""
    environment: Mapping[str, str]
    format: Literal["efface-compare/1"] = FORMAT

    def content(self) -> dict[str, Plain]:
        """As compare.json holds it."""
        return row_of(self)

    def __getitem__(self, key: str) -> Plain:
        """One entry as compare.json holds it, for scripts."""
        return self.content()[key]


def read_comparison(content: object) -> Comparison:
    """A comparison from what compare.json holds. Raises WrongFile for what is none."""
    try:
        return read(Comparison, content)
    except ValueError as error:
        raise WrongFile(f"expected a comparison of format {FORMAT}, but {error}; compare again") from None
