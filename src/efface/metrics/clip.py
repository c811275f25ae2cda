"""CLIP score and what is made of it: CLIP_coco, CLIP_a, CLIP_art, CLIP_e, CLIP_s, CLIP_u, CLIP_x, accuracy, FSR.

Hessel et al., "CLIPScore", EMNLP 2021, arXiv 2104.08718, here 100 cos without clipping at 0. Dialects: FIA scores the
artist's name alone (CLIP_a, FSR), ScaPre the whole prompt (CLIP_art, CLIP_x), MACE erased and kept artists (CLIP_e,
CLIP_s; arXiv 2403.06135). Values of two towers do not compare: the tower belongs to the number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from scipy.special import softmax

from efface.errors import Unavailable
from efface.gallery.shot import KEPT, TARGETS
from efface.judges import TextImage
from efface.metrics import Metric, Scored, Specimen
from efface.numerics.distances import clip_scores
from efface.numerics.intervals import sign_test
from efface.scores.cells import Cell, Left, by_prompt, mean_cell, noted, rate_cell
from efface.scores.readings import Reading, Readings

__all__ = ["Clip"]

Pooled = Literal["images", "batches"]


@dataclass(frozen=True)
class Clip(Metric):
    """Scores of image and text, and what papers make of them."""

    tower: TextImage | None = None
    """The CLIP or SigLIP judge."""
    model: str = ""
    """Else the folder or hub id of the one to load."""
    text: Literal["prompt", "concept"] = "prompt"
    """What an image is compared with: its prompt, or its concept alone."""
    labels: tuple[str, ...] = ()
    """Concepts of a closed set; with them the score's hit says whether the concept is the likeliest of them, and its
    detail holds the probability."""
    template: str = "a photo of the {}"
    """How a label is written."""
    mean: Pooled = "images"
    """Over images, or over batches, in which a short last one weighs as much as a full one (SPEED's script)."""
    batch: int = 16
    """Images a batch of that mean."""
    direction: ClassVar[str] = "same"

    def features(self, specimen: Specimen) -> np.ndarray | None:
        """The tower's image vector (f,), not scaled."""
        tower = self._tower()
        return None if isinstance(tower, str) else tower.images(specimen.image[None])[0]

    def score(self, specimen: Specimen) -> Scored:
        """value: 100 cos of image and text; NA without a tower, with the way to get it."""
        tower = self._tower()
        if isinstance(tower, str):
            return Scored("na", reason=tower)
        vector = tower.images(specimen.image[None])[0]
        own = specimen.prompt if self.text == "prompt" else specimen.concept
        against, cut = tower.texts([own, *map(self.template.format, self.labels)])
        similar = clip_scores(vector[None], against)[0]  # (1 + labels,)
        detail: dict[str, object] = {"cut": bool(cut[0])}
        if specimen.concept not in self.labels:
            return Scored(value=float(similar[0]), detail=detail)
        chance, place = softmax(similar[1:]), self.labels.index(specimen.concept)
        detail["probability"] = float(chance[place])
        return Scored(hit=bool(chance.argmax() == place), value=float(similar[0]), detail=detail)

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """Means by role and side with the paired difference, the papers' names for them, and FSR where in pairs.

        Readings with `probability` and `hit` also give both readings of CLIP accuracy.
        """
        rows = Readings.of(rows)
        cells = [c for role, part in rows.roles().items() for c in self._role(role, part)]
        cells += self._named(rows)
        cells += _accuracy(rows)
        erased = rows.where(lambda r: r.role in TARGETS)
        return [*cells, *_fsr(erased)] if _has_pairs(erased) else cells

    def _tower(self) -> TextImage | str:
        """The tower, or why there is none."""
        if self.tower is not None or not self.model:
            return self.tower or "no CLIP judge was loaded; name one: model=FOLDER or a hub id"
        return _loaded(self.model)

    def _role(self, role: str, rows: Readings) -> list[Cell]:
        cells = [self._mean(f"CLIP.{role}", side, part) for side, part in rows.sides().items()]
        return [*cells, _paired(f"CLIP.{role}.difference", rows)] if _has_pairs(rows) else cells

    def _mean(self, name: str, side: str, rows: Readings) -> Cell:
        ok, na, error = rows.states()
        values = rows.values()[ok]
        cell = mean_cell(name, values, rows.prompts()[ok], Left.of(na, error), side=side)
        cut = sum(bool(r.told.get("cut")) for r in rows)
        if self.mean == "batches" and cell.state == "ok":
            # another estimator: the interval of the mean over images does not belong to it
            return replace(cell, value=mean_of_batches(values, self.batch), low=None, high=None,
                           note=f"mean of batches of {self.batch}")  # fmt: skip
        return replace(cell, note=noted(cell.note, f"{cut} texts cut" if cut else ""))

    def _named(self, rows: Readings) -> list[Cell]:
        """The names papers use, of the edited side; macro over concepts for erased and kept ones."""
        found: dict[str, Cell] = {}
        edited = rows.side("edited")
        for name, roles in (("CLIP_coco", ("quality",)), (self._art, TARGETS), ("CLIP_e", TARGETS), ("CLIP_s", KEPT),
                            ("CLIP_u", ("other",))):  # fmt: skip
            part = edited.where(lambda r, roles=roles: r.role in roles)
            if len(part):
                found[name] = self._mean(name, "edited", part) if name == "CLIP_coco" else _macro(name, part)
        art, coco = found.get("CLIP_art"), found.get("CLIP_coco")
        if art is not None and coco is not None and art.value is not None and coco.value is not None:
            found["CLIP_x"] = Cell("CLIP_x", side="edited", value=coco.value - art.value, note="CLIP_coco - CLIP_art")
        return list(found.values())

    @property
    def _art(self) -> str:
        return "CLIP_a" if self.text == "concept" else "CLIP_art"


@cache
def _loaded(model: str) -> TextImage | str:
    from efface.judges.clip import load

    try:
        return load(model)
    except Unavailable as error:
        return str(error)


def mean_of_batches(values: np.ndarray, batch: int) -> float:
    """Mean over batches of `batch` consecutive values of their means; a short last batch weighs as much as a full."""
    return float(np.mean([values[k : k + batch].mean() for k in range(0, len(values), batch)]))


def _has_pairs(rows: Readings) -> bool:
    return {"base", "edited"} <= {r.side for r in rows}


class _Gaps(NamedTuple):
    """Edited minus base at equal shots."""

    values: np.ndarray
    prompts: np.ndarray
    left: Left

    @classmethod
    def of(cls, rows: Readings) -> _Gaps:
        base, edited = rows.pairs()
        fine = base.states()[0] & edited.states()[0]
        failed = base.states()[2] | edited.states()[2]
        gap = (edited.values() - base.values())[fine]
        return cls(gap, base.prompts()[fine], Left.of(~fine & ~failed, failed))


def _paired(name: str, rows: Readings) -> Cell:
    """Mean of edited minus base at equal shots."""
    gaps = _Gaps.of(rows)
    return mean_cell(name, gaps.values, gaps.prompts, gaps.left, side="edited - base")


def _macro(name: str, rows: Readings) -> Cell:
    """The mean over concepts of their mean scores, its interval from resampled concepts."""
    ok, na, error = rows.states()
    names, concepts = rows.concepts()
    sizes, sums = (np.bincount(concepts[ok], weights=w, minlength=len(names)) for w in (None, rows.values()[ok]))
    some = sizes > 0
    cell = mean_cell(name, sums[some] / sizes[some], np.flatnonzero(some), Left.of(na, error), side="edited")
    return replace(cell, n=int(ok.sum()), note=f"mean of {int(some.sum())} concepts") if cell.state == "ok" else cell


def _accuracy(rows: Readings) -> list[Cell]:
    asked = rows.where(lambda r: r.told.get("probability") is not None and r.state == "ok")
    cells = []
    for side, part in asked.sides().items():
        prompts, chances = part.prompts(), np.asarray([r.number("probability") for r in part])
        cells.append(mean_cell("clip_acc_prob", chances, prompts, side=side))
        sizes, hits = by_prompt(np.zeros(len(part), np.int64), prompts, 1, part.hits())[0]
        cells.append(rate_cell("clip_acc_top1", hits, sizes, side=side))
    return cells


def _fsr(rows: Readings) -> list[Cell]:
    """FIA's forgetting success rate: share of pairs in which the edited image scores strictly lower."""
    gap, prompts, left = _Gaps.of(rows)
    sizes, wins = by_prompt(np.zeros(len(gap), np.int64), prompts, 1, gap < 0)[0] if len(gap) else (gap, gap)
    cell = rate_cell("FSR", wins, sizes, left, side="edited")
    better, worse = int((gap < 0).sum()), int((gap > 0).sum())
    said = f"{len(gap) - better - worse} ties count as failures; sign test p = {sign_test(better, worse):.2g}"
    return [replace(cell, note=noted(cell.note, said))] if cell.state == "ok" else [cell]


PLUGIN = Clip
