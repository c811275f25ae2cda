"""Distances between two sets of images: FID, FID at infinity, KID, CMMD over any judge's features.

Heusel et al. 2017, arXiv 1706.08500 (FID); Chong and Forsyth 2020, arXiv 1911.07023; Binkowski et al. 2018, arXiv
1801.01401 (KID); Jayasumana et al. 2024, arXiv 2401.09603 (CMMD). Only Inception features make an "FID": the name says
which features and which reference set were used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from efface.metrics import Metric, Scored, Specimen
from efface.numerics import distances
from efface.numerics.shares import ERRORS_AT_MOST
from efface.scores.cells import Cell, noted, set_interval
from efface.scores.readings import Reading, Readings

__all__ = ["Distribution"]

INCEPTION = "inception"  # the features that the name FID means


@dataclass(frozen=True)
class Distribution(Metric):
    """Distances between the edited images and others, over features that readings carry.

    Several questions of one image are one reading. A side named "floor", base images of other seeds, gives the distance
    that is no change.
    """

    of: str = ""
    """The judge whose features are wanted: those of another are NA. Only those of "inception" are called FID."""
    reference: str = "base"
    """What the edited images are compared with ("base" or "real"): the side of those readings."""
    points: int = 15
    """Sizes of samples from which the distance at infinity is extrapolated."""
    direction: ClassVar[str] = "down"

    def score(self, specimen: Specimen) -> Scored:
        """One image has no distribution; NA unless it has features."""
        if specimen.features is None:
            return Scored("na", reason="the judge gives no features")
        return Scored(detail={"length": float(np.linalg.norm(specimen.features)), "features": specimen.features_of})

    @property
    def of_real(self) -> bool:
        return self.reference == "real"

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """Four distances of edited to reference, and of "floor" to reference where such readings are."""
        images = Readings.of(rows).images()
        sides = ["edited", *(["floor"] if len(images.side("floor")) else [])]
        return [cell for side in sides for cell in self._against(side, images)]

    def _against(self, side: str, images: Readings) -> list[Cell]:
        ours, theirs = images.side(side), images.side(self.reference)
        x, y = _matrix(ours), _matrix(theirs)
        failed = sum(int(t.states()[2].sum()) for t in (ours, theirs))
        told = {r.word("features") for t in (ours, theirs) for r in t if r.word("features")}
        of = min(told, default="") or self.of or "judge"
        fid = "FID" if of == INCEPTION else f"FD-{of}"
        names = (f"{fid}.{self.reference}", f"{fid}-infinity.{self.reference}", f"KID-{of}.{self.reference}",
                 f"CMMD-{of}.{self.reference}")  # fmt: skip
        if len(told) > 1 or (told and self.of and self.of not in told):
            why = f"wanted features of {self.of or 'one judge'}, got {', '.join(sorted(told))}"
            return [Cell(n, side=side, state="na", reason=why) for n in names]
        if failed > ERRORS_AT_MOST * max(len(ours) + len(theirs), 1):
            return [Cell(n, side=side, state="error", n_error=failed, reason=f"{failed} images failed") for n in names]
        if min(len(x), len(y)) < 2:
            reason = f"needs two images a side with features, got {len(x)} and {len(y)}"
            return [Cell(n, side=side, state="na", reason=reason) for n in names]
        few = f"n < dimension ({x.shape[1]}): mostly bias" if min(len(x), len(y)) < x.shape[1] else ""
        at = _prompts(ours, theirs)
        plain = [_cell(names[k], side, f, x, y, at, note) for k, f, note in
                 ((0, distances.frechet, few), (2, distances.kid, ""), (3, distances.cmmd, ""))]  # fmt: skip
        return [plain[0], self._infinity(names[1], side, x, y, few), *plain[1:]]

    def _infinity(self, name: str, side: str, x: np.ndarray, y: np.ndarray, few: str) -> Cell:
        n = min(len(x), len(y))
        counts = np.unique(np.linspace(max(n / 10, 5), n, self.points).astype(np.int64))
        if n < 20 or len(counts) < 3:
            return Cell(name, side=side, state="na", n=n, reason=f"needs at least 20 images a side, got {n}")
        generator = np.random.default_rng(0)
        found = [
            distances.frechet(x[generator.permutation(len(x))[:k]], y[generator.permutation(len(y))[:k]])
            for k in counts
        ]
        value, error = distances.at_infinity(counts, np.asarray(found))
        return Cell(name, side=side, value=value, low=value - 2 * error, high=value + 2 * error, n=n,
                    note=noted(few, "two standard errors of the line"))  # fmt: skip


def _matrix(rows: Readings) -> np.ndarray:
    """Features of the readings that have them, (n, f)."""
    found = [np.asarray(r.features, np.float64) for r in rows if _usable(r)]
    return np.stack(found) if found else np.zeros((0, 0))


def _usable(row: Reading) -> bool:
    return row.state == "ok" and row.features is not None


def _prompts(ours: Readings, theirs: Readings) -> tuple[np.ndarray, np.ndarray]:
    """Number of each usable reading's prompt, the same on both sides."""
    texts = [[r.shot.prompt for r in rows if _usable(r)] for rows in (ours, theirs)]
    names = {p: k for k, p in enumerate(sorted({*texts[0], *texts[1]}))}
    return np.asarray([names[p] for p in texts[0]]), np.asarray([names[p] for p in texts[1]])


def _cell(
    name: str, side: str, measure: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray,
    at: tuple[np.ndarray, np.ndarray], note: str,
) -> Cell:  # fmt: skip
    both = np.concatenate(at)

    def of_rows(rows: np.ndarray) -> float:
        first, second = rows[rows < len(x)], rows[rows >= len(x)] - len(x)
        return measure(x[first], y[second]) if min(len(first), len(second)) > 1 else float("nan")

    ends = set_interval(of_rows, both)
    fine = ends is not None and np.isfinite(ends).all()
    low, high = ends if fine and ends is not None else (None, None)
    why = "one prompt" if ends is None else "too few images"
    said = note if fine else noted(note, f"{why}: no interval")
    return Cell(name, side=side, value=measure(x, y), low=low, high=high, n=min(len(x), len(y)),
                clusters=len(np.unique(both)), note=said)  # fmt: skip


PLUGIN = Distribution
