"""Forgetting against retention: where the runs of a table stand, and which of them no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from efface.report.comparison import Block
from efface.scores.tables import Loss, Rate

__all__ = ["Plot", "Point", "plot"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 330, 52, 16, 24, 40
NARROW = 0.35  # of the whole scale; ticks stand closer below


@dataclass(frozen=True)
class Mark:
    """One run by its numbers."""

    number: int
    run: str
    broken: float
    """Share of garbage."""
    lost: Loss
    replaced: Rate

    @property
    def ends(self) -> tuple[float, float, float, float]:
        """Of both intervals: lost, then replaced."""
        x, y = self.lost, self.replaced
        ends = ((x.low, x.estimate), (x.high, x.estimate), (y.low, y.rate), (y.high, y.rate))
        first, second, third, fourth = (middle if end is None else end for end, middle in ends)
        return first, second, third, fourth


@dataclass(frozen=True)
class Point:
    """One run on the paper, in pixels, with the ends of its bars."""

    number: int
    run: str
    broken: float
    x: float
    y: float
    x1: float
    x2: float
    y1: float
    y2: float
    front: bool
    """Whether no other run is at least as good in both and better in one."""


@dataclass(frozen=True)
class Plot:
    """The whole picture."""

    points: tuple[Point, ...]
    front: str
    """The line that joins undominated runs."""
    xs: tuple[tuple[float, str], ...]
    """Ticks with their texts."""
    ys: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    bottom: int = HEIGHT - BOTTOM
    left: int = LEFT


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels."""

    low: float
    high: float

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> Scale:
        lows, highs = ([m.ends[k] for m in marks] for k in (0, 1))
        return cls(min(0.0, *lows), max(0.1, *highs))

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - BOTTOM - TOP) * (1 - value)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        step = 10 if self.high - self.low > NARROW else 5
        values = (t / 100 for t in range(-100, 101, step))
        return tuple((self.x(v), f"{100 * v:.0f}") for v in values if self.low <= v <= self.high)


def plot(block: Block) -> Plot | None:
    """Loss of kept concepts to the right, targets replaced upwards; the front of the undominated.

    Replaced is 1 - shown - garbage: a concept that vanished into garbage is no success.
    """
    marks = _marks(block)
    if not marks:
        return None
    scale = Scale.of(marks)
    points = tuple(_point(m, scale, _undominated(m, marks)) for m in marks)
    front = sorted((p.x, p.y) for p in points if p.front)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
    return Plot(points, line, scale.ticks(), tuple((scale.y(t / 4), f"{25 * t}") for t in range(5)))


def _marks(block: Block) -> list[Mark]:
    marks = []
    for number, run in enumerate(block.runs, 1):
        up, broken = (run.cells[key].cell if key in run.cells else None for key in ("replaced", "garbage"))
        if isinstance(up, Rate) and isinstance(broken, Rate) and run.kept:
            marks.append(Mark(number, run.run, broken.rate, run.kept, up))
    return marks


def _point(m: Mark, scale: Scale, front: bool) -> Point:
    left, right, down, up = m.ends
    bars = (scale.x(left), scale.x(right), scale.y(down), scale.y(up))
    return Point(m.number, m.run, m.broken, scale.x(m.lost.estimate), scale.y(m.replaced.rate), *bars, front)


def _undominated(mark: Mark, marks: Sequence[Mark]) -> bool:
    """No other run is at least as good in both and better in one."""
    x, y = mark.lost.estimate, mark.replaced.rate
    others = ((m.lost.estimate, m.replaced.rate) for m in marks)
    return not any(a <= x and b >= y and (a < x or b > y) for a, b in others)
