"""Readings: one image and one question each, as metrics count them; and many of them with columns as arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from efface.errors import BadRequest
from efface.gallery.shot import Shot
from efface.judges import Boxes

__all__ = ["Reading", "Readings", "coded"]

STATES = ("ok", "na", "error")
V = TypeVar("V", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One image and one question. Unknown is NA, failed is ERROR; neither is ever a number."""

    side: str
    """base, edited, gold, floor ..."""
    shot: Shot
    """What was drawn."""
    draw: int = 0
    """Number of the drawing, where one shot is drawn several times."""
    method: str = ""
    """Whose edit it is, in a table of several."""
    role: str = ""
    """What the question is about."""
    concept: str = ""
    """The label asked for."""
    state: str = "ok"
    """ok, na or error."""
    reason: str = ""
    """Why there is no number."""
    hit: bool | None = None
    """Whether the concept is shown."""
    value: float | None = None
    """A score of the image."""
    garbage: bool = False
    """Whether the image is broken."""
    features: np.ndarray | None = None
    """Of the image, (f,), for distances between sets."""
    boxes: Boxes | None = None
    """What a detector found."""
    judge_version: str = ""
    """Who looked, where rows of several runs come together."""
    told: Mapping[str, object] = field(default_factory=dict)
    """What a metric added, by name."""

    @property
    def prompt(self) -> str:
        """The sentence that was drawn."""
        return self.shot.prompt

    def word(self, name: str) -> str:
        """A text that a metric added; empty where there is none."""
        return str(self.told.get(name) or "")

    def number(self, name: str) -> float:
        """A number that a metric added; NaN where there is none."""
        value = self.told.get(name)
        return float(value) if isinstance(value, int | float) else np.nan

    @property
    def place(self) -> tuple[str, int, float, int, str, str, str]:
        """All but the side: partners of two sides have the same. Sorts as it should be read."""
        shot, guidance = self.shot, self.shot.guidance
        own = (shot.prompt, shot.seed, -1.0 if guidance is None else guidance, self.draw)
        return (*own, self.role, self.concept, self.method)

    @property
    def image(self) -> tuple[str, str, Shot, int]:
        """Which image it is, whatever is asked of it."""
        return self.side, self.method, self.shot, self.draw


class Readings:
    """Readings in a fixed order, with columns as arrays; made once, shared by all metrics of a table."""

    def __init__(self, rows: Iterable[Reading], *, ordered: bool = False) -> None:
        self.rows = list(rows) if ordered else sorted(rows, key=lambda r: (r.side, r.place))

    @classmethod
    def of(cls, rows: Iterable[Reading]) -> Readings:
        """Raises BadRequest for readings of several versions of a judge: their rates do not compare."""
        if isinstance(rows, Readings):
            return rows
        made = cls(rows)
        versions = sorted({r.judge_version for r in made.rows if r.judge_version})
        if len(versions) > 1:
            raise BadRequest(f"expected rows of one judge version, got {', '.join(versions[:3])}; choose one of them")
        return made

    def __iter__(self) -> Iterator[Reading]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, keep: Callable[[Reading], bool]) -> Readings:
        """The readings that satisfy a condition."""
        return Readings([r for r in self.rows if keep(r)], ordered=True)

    def side(self, name: str) -> Readings:
        """Those of one side."""
        return self.where(lambda r: r.side == name)

    def by(self, of: Callable[[Reading], str]) -> dict[str, Readings]:
        """Parts by what a reading says of itself, in alphabetical order."""
        return {name: self.where(lambda r, name=name: of(r) == name) for name in sorted({of(r) for r in self.rows})}

    def sides(self) -> dict[str, Readings]:
        """Parts by side, in alphabetical order."""
        return self.by(lambda r: r.side)

    def roles(self) -> dict[str, Readings]:
        """Parts by role, in alphabetical order."""
        return self.by(lambda r: r.role)

    def images(self) -> Readings:
        """One reading an image, for what does not depend on the question: the first that is ok, else the first."""
        found: dict[tuple[str, str, Shot, int], Reading] = {}
        for row in self.rows:
            if found.setdefault(row.image, row).state != "ok" and row.state == "ok":
                found[row.image] = row
        return Readings(found.values(), ordered=True)

    def codes(self, of: Callable[[Reading], V]) -> tuple[list[V], np.ndarray]:
        """Distinct values of what a reading says of itself, and each reading's number among them, (n,)."""
        return coded(map(of, self.rows))

    def concepts(self) -> tuple[list[str], np.ndarray]:
        """Distinct concepts, and each reading's number among them, (n,)."""
        return self.codes(lambda r: r.concept)

    def prompts(self) -> np.ndarray:
        """Each reading's prompt as a number, (n,)."""
        return self.codes(lambda r: r.shot.prompt)[1]

    def states(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bool (n,) each: ok, na, error."""
        names, found = self.codes(lambda r: r.state)
        unknown = {n or "missing" for n in names} - set(STATES)
        if unknown:
            raise BadRequest(f"expected rows in state ok, na or error, got {sorted(unknown)}; judge anew")
        ok, na, error = (np.isin(found, [i for i, n in enumerate(names) if n == s]) for s in STATES)
        return ok, na, error

    def hits(self) -> np.ndarray:
        """Which show the concept, bool (n,); unknown is no."""
        return self.flags(lambda r: bool(r.hit))

    def flags(self, of: Callable[[Reading], bool]) -> np.ndarray:
        """A yes or no of each, bool (n,)."""
        return np.fromiter(map(of, self.rows), bool, len(self.rows))

    def values(self) -> np.ndarray:
        """The scores, float64 (n,); NaN where there is none."""
        values = (np.nan if r.value is None else r.value for r in self.rows)
        return np.fromiter(values, np.float64, len(self.rows))

    def pairs(self, first: str = "base", second: str = "edited") -> tuple[Readings, Readings]:
        """Readings of two sides of the same shot, draw, role and concept, row by row.

        Raises BadRequest when a partner is missing or a place occurs twice: nothing is zipped by luck.
        """
        sides = [self.side(name) for name in (first, second)]
        places = [[r.place for r in side] for side in sides]
        if places[0] != places[1] or len(set(places[0])) != len(places[0]):
            odd = sorted({*places[0]} ^ {*places[1]})
            which = f"{len(odd)} without a partner, first {odd[0][:2]}" if odd else "a prompt and seed twice"
            raise BadRequest(f"expected {first} and {second} rows in pairs, got {which}; draw both sides in one run")
        return sides[0], sides[1]


def coded(values: Iterable[V]) -> tuple[list[V], np.ndarray]:
    """Distinct values in the order of first mention, and each one's number among them, (n,)."""
    known: dict[V, int] = {}
    found = np.asarray([known.setdefault(v, len(known)) for v in values], np.int64)
    return list(known), found
