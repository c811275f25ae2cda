"""What is asked of a panel, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from efface.files import key_of
from efface.judges import Boxes

__all__ = ["Brief", "Finding", "Question", "Seat", "Versions"]


class Question(NamedTuple):
    """What is asked of one picture."""

    prompt: str
    """The sentence that it was drawn for."""
    labels: tuple[str, ...]
    """What is looked for in it."""


@dataclass(frozen=True)
class Finding:
    """What a panel says of one picture."""

    garbage: bool = False
    """Whether it is broken."""
    hits: tuple[str, ...] = ()
    """Labels that it shows."""
    values: Mapping[str, float] = field(default_factory=dict)
    """How sure the judge is, by label that was asked for and that it knows."""
    boxes: Boxes | None = None
    """The regions of a detector."""
    cut: bool | None = None
    """Whether the sentence was longer than the judge reads, of a judge that reads it."""
    state: str = "ok"
    """ok, na or error."""
    reason: str = ""
    """Why there is no number, in state na or error."""


class Versions(NamedTuple):
    """Who looked: what has to be equal for two records to count together."""

    judge: str
    garbage: str

    def record(self, side: str, image: str) -> str:
        """Key of the record of one image of one side."""
        return key_of(side=side, image=image, judge=self.judge, garbage=self.garbage)


@dataclass(frozen=True)
class Seat:
    """A judge as reports list it."""

    name: str
    version: str
    role: str
    threshold: str
    note: str


@dataclass(frozen=True)
class Brief:
    """What a suite asks of its judge."""

    labels: Mapping[str, tuple[int, ...]] | tuple[str, ...] = ()
    """Names that are looked for, or names with their class indices; none: the judge's own."""
    template: str = ""
    """How a name is written for a judge that reads."""
    threshold: float = 0.6
    """Regions of a detector at this score or above count."""
    counts: tuple[str, ...] = ()
    """Patterns of a detector's labels that count (`*_EXPOSED`); none: all."""
    asked: tuple[str, ...] = ()
    """Every label that the suite's questions name, as they spell it."""
    home: Path | None = None
    """The base model's folder, where a garbage detector fitted on its own drawings may lie."""
