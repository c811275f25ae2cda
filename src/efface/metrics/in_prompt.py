"""In-prompt retention: of "a dog and a cat" with the dog erased, is the cat still there?

Prompts that name a target and something else (a style, a background, a second object). HUB, arXiv 2410.05664, calls
the same idea selective alignment. Needs a judge that may say several things of one image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from efface.gallery.shot import Shot
from efface.metrics import Metric, Scored, Specimen, presence
from efface.numerics.clusters import resamples
from efface.scores.cells import Cell, Left, by_prompt, loss_cell, rate_cell
from efface.scores.readings import Reading, Readings

__all__ = ["InPrompt"]


_SOFTMAX = "needs a judge that may find several things in one image; this one names a single label"
NAMES = ("rest.base", "rest.edited", "rest.loss", "rest.target absent", "retention")
Image = tuple[str, str, Shot, int]


@dataclass(frozen=True)
class InPrompt(Metric):
    """Readings of both sides in pairs: `concept` is the rest of the prompt, `hit` whether it is there.

    Whether the erased concept still is, `target_hit` says, or the readings of the same image in roles `target`; where
    neither does, the reading is NA.
    """

    multi_label: bool = True
    """Whether the judge may find several things; a softmax judge names one, so its answer here is NA."""
    rest: tuple[str, ...] = ("in-prompt", "beside")
    """Roles that ask for the rest of a prompt."""
    target: tuple[str, ...] = ("target", "style", "two-object")
    """Roles that ask for what was erased."""
    draws: int = 2_000
    """Resamples behind the interval of the ratio."""
    direction: ClassVar[str] = "up"

    def score(self, specimen: Specimen) -> Scored:
        """Is the rest of the prompt there? NA for a judge of one label."""
        return presence(specimen) if self.multi_label else Scored("na", reason=_SOFTMAX)

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """The rest on both sides, the loss in pairs, and P(rest | edited, target absent) / P(rest | base)."""
        rows = self._with_targets(Readings.of(rows))
        if not self.multi_label or not len(rows):
            reason = _SOFTMAX if len(rows) else "no such prompt in this suite"
            return [Cell(n, state="na", reason=reason) for n in NAMES]
        base, edited = rows.pairs()
        fine = base.states()[0] & edited.states()[0]
        failed = int((base.states()[2] | edited.states()[2]).sum())
        left = Left(int((~fine).sum()) - failed, failed)
        b, e = base.hits()[fine], edited.hits()[fine]
        gone = ~edited.flags(lambda r: bool(r.told.get("target_hit")))[fine]
        one = np.zeros(int(fine.sum()), np.int64)
        sums = by_prompt(one, base.prompts()[fine], 1, b, e, b & ~e, e & ~b, gone, e & gone)[0]
        sizes, at_base, at_edited, lost, won, absent, stayed = sums
        some = absent > 0
        return [
            rate_cell(NAMES[0], at_base, sizes, left, side="base"),
            rate_cell(NAMES[1], at_edited, sizes, left, side="edited"),
            loss_cell(NAMES[2], lost, won, sizes, left),
            rate_cell(NAMES[3], stayed[some], absent[some], left, side="edited"),
            self._retention(sizes, at_base, absent, stayed, left),
        ]

    def _with_targets(self, rows: Readings) -> Readings:
        """The readings of the rest, each with `target_hit`."""
        there: dict[Image, bool] = {}
        for r in rows:
            if r.role in self.target and r.state == "ok":
                there[r.image] = there.get(r.image, False) or bool(r.hit)
        return Readings([_told(r, there.get(r.image)) for r in rows if r.role in self.rest], ordered=True)

    def _retention(
        self, sizes: np.ndarray, at_base: np.ndarray, absent: np.ndarray, stayed: np.ndarray, left: Left
    ) -> Cell:
        """The ratio of two rates over the same prompts, its interval from resampled prompts."""
        blank = Cell(NAMES[4], n_na=left.na, n_error=left.error)
        if not sizes.size or not at_base.sum() or not absent.sum():
            why = "the base never shows the rest" if sizes.size and not at_base.sum() else "the target never left"
            return replace(blank, state="na", reason=why if sizes.size else "nothing was scored")
        value = float((stayed.sum() / absent.sum()) / (at_base.sum() / sizes.sum()))
        low, high = self._ends(sizes, at_base, absent, stayed) if len(sizes) > 1 else (None, None)
        counts = {"hits": int(stayed.sum()), "n": int(absent.sum()), "clusters": len(sizes)}
        note = "one prompt: no interval" if low is None else ""
        return replace(blank, side="edited", value=value, low=low, high=high, note=note, **counts)

    def _ends(self, *sums: np.ndarray) -> tuple[float, float]:
        weights = resamples(len(sums[0]), np.random.default_rng(0), self.draws)
        n, k, m, j = (weights @ s for s in sums)
        good = (k > 0) & (m > 0)
        low, high = np.quantile((j[good] / m[good]) / (k[good] / n[good]), [0.025, 0.975])
        return float(low), float(high)


def _told(row: Reading, known: bool | None) -> Reading:
    """With what is known of the target; NA where nobody knows."""
    if row.told.get("target_hit") is not None or row.state != "ok":
        return row
    return replace(row, state="na") if known is None else replace(row, told={**row.told, "target_hit": known})


PLUGIN = InPrompt
