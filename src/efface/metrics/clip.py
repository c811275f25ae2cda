"""CLIP score and what is made of it: CLIP_coco, CLIP_a, CLIP_art, CLIP_e, CLIP_s, CLIP_u, CLIP_x, accuracy, FSR.

Hessel et al., "CLIPScore", EMNLP 2021, arXiv 2104.08718, here 100 cos without clipping at 0. Dialects: FIA scores the
artist's name alone (CLIP_a, FSR), ScaPre the whole prompt (CLIP_art, CLIP_x), MACE erased and kept artists (CLIP_e,
CLIP_s; arXiv 2403.06135). Values of two towers do not compare: the tower belongs to the number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from scipy.special import softmax

from efface.errors import Unavailable
from efface.judges import TextImage
from efface.metrics import Cell, Item, Row, Scored, Table, by_prompt, mean_cell, rate_cell
from efface.numerics.distances import clip_scores
from efface.numerics.intervals import sign_test

__all__ = ["Clip"]

ERASED, KEPT = ("target", "style"), ("neighbour", "other")
Pooled = Literal["images", "batches"]


@dataclass(frozen=True)
class Clip:
    """tower: the CLIP or SigLIP judge; else model: folder or hub id of the one to load.

    text: what an image is compared with, its "prompt" or its "concept" alone. labels: concepts of a closed set; with
    them the score's hit says whether the concept is the likeliest of them, and its detail holds the probability.
    template: how a label is written. mean: over "images", or over "batches" of `batch` in which a short last batch
    weighs as much as a full one (SPEED's script).
    """

    tower: TextImage | None = None
    model: str = ""
    text: Literal["prompt", "concept"] = "prompt"
    labels: tuple[str, ...] = ()
    template: str = "a photo of the {}"
    mean: Pooled = "images"
    batch: int = 16
    direction: ClassVar[str] = "same"
    of_pairs: ClassVar[bool] = False
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The tower's image vector (f,), not scaled."""
        tower = self._tower()
        return None if isinstance(tower, str) else tower.images(item.image[None])[0]

    def score(self, item: Item) -> Scored:
        """value: 100 cos of image and text; NA without a tower, with the way to get it."""
        tower = self._tower()
        if isinstance(tower, str):
            return Scored("na", reason=tower)
        vector = tower.images(item.image[None])[0]
        texts = [item.prompt if self.text == "prompt" else item.concept, *map(self.template.format, self.labels)]
        against, cut = tower.texts(texts)
        similar = clip_scores(vector[None], against)[0]  # (1 + labels,)
        detail: dict[str, float | bool] = {"cut": bool(cut[0])}
        if item.concept not in self.labels:
            return Scored(value=float(similar[0]), detail=detail)
        chance, own = softmax(similar[1:]), self.labels.index(item.concept)
        detail["probability"] = float(chance[own])
        return Scored(hit=bool(chance.argmax() == own), value=float(similar[0]), detail=detail)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """Means by role and side with the paired difference, the papers' names for them, and FSR where in pairs.

        Rows with `probability` and `hit` also give both readings of CLIP accuracy.
        """
        table = Table.of(rows)
        roles = sorted({str(r.get("role", "")) for r in table})
        parts = {role: table.where(lambda r, role=role: r.get("role", "") == role) for role in roles}
        cells = [c for role in roles for c in self._role(role, parts[role])]
        cells += self._named(table)
        cells += _accuracy(table)
        erased = table.where(lambda r: r.get("role") in ERASED)
        return [*cells, *_fsr(erased)] if _has_pairs(erased) else cells

    def _tower(self) -> TextImage | str:
        """The tower, or why there is none."""
        if self.tower is not None or not self.model:
            return self.tower or "no CLIP judge was loaded; name one: model=FOLDER or a hub id"
        return _loaded(self.model)

    def _role(self, role: str, table: Table) -> list[Cell]:
        sides = sorted({str(r.get("side", "")) for r in table})
        cells = [self._mean(f"CLIP.{role}", side, table.where(lambda r, s=side: r.get("side") == s)) for side in sides]
        return [*cells, _paired(f"CLIP.{role}.difference", table)] if _has_pairs(table) else cells

    def _mean(self, name: str, side: str, table: Table) -> Cell:
        ok, na, error = table.states()
        values = table.numbers()[ok]
        counts: dict[str, Any] = {"n_na": int(na.sum()), "n_error": int(error.sum())}
        cell = mean_cell(name, values, table.codes("prompt")[1][ok], side=side, **counts)
        cut = sum(bool(r.get("cut")) for r in table)
        note = "; ".join(t for t in (cell.note, f"{cut} texts cut" if cut else "") if t)
        if self.mean == "batches" and cell.state == "ok":
            # another estimator: the interval of the mean over images does not belong to it
            return replace(cell, value=mean_of_batches(values, self.batch), low=None, high=None,
                           note=f"mean of batches of {self.batch}")  # fmt: skip
        return replace(cell, note=note)

    def _named(self, table: Table) -> list[Cell]:
        """The names papers use, of the edited side; macro over concepts for erased and kept ones."""
        found: dict[str, Cell] = {}
        for name, roles in (("CLIP_coco", ("quality",)), (self._art, ERASED), ("CLIP_e", ERASED), ("CLIP_s", KEPT),
                            ("CLIP_u", ("other",))):  # fmt: skip
            part = table.where(lambda r, roles=roles: r.get("role") in roles and r.get("side") == "edited")
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


def _has_pairs(table: Table) -> bool:
    return {"base", "edited"} <= {r.get("side") for r in table}


def _paired(name: str, table: Table) -> Cell:
    """Mean of edited minus base at equal prompts and seeds."""
    base, edited = table.pairs()
    fine = base.states()[0] & edited.states()[0]
    failed = base.states()[2] | edited.states()[2]
    gap = (edited.numbers() - base.numbers())[fine]
    counts: dict[str, Any] = {"n_na": int((~fine & ~failed).sum()), "n_error": int(failed.sum())}
    return mean_cell(name, gap, base.codes("prompt")[1][fine], side="edited - base", **counts)


def _macro(name: str, table: Table) -> Cell:
    """The mean over concepts of their mean scores, its interval from resampled concepts."""
    ok, na, error = table.states()
    names, concepts = table.codes("concept")
    sizes, sums = (np.bincount(concepts[ok], weights=w, minlength=len(names))
                   for w in (None, table.numbers()[ok]))  # fmt: skip
    some = sizes > 0
    means = sums[some] / sizes[some]
    counts: dict[str, Any] = {"n_na": int(na.sum()), "n_error": int(error.sum())}
    cell = mean_cell(name, means, np.flatnonzero(some), side="edited", **counts)
    return replace(cell, n=int(ok.sum()), note=f"mean of {int(some.sum())} concepts") if cell.state == "ok" else cell


def _accuracy(table: Table) -> list[Cell]:
    asked = table.where(lambda r: r.get("probability") is not None and r.get("state") == "ok")
    cells = []
    for side in sorted({str(r.get("side", "")) for r in asked}):
        part = asked.where(lambda r, s=side: r.get("side", "") == s)
        prompts = part.codes("prompt")[1]
        cells.append(mean_cell("clip_acc_prob", part.numbers("probability"), prompts, side=side))
        sizes, hits = by_prompt(np.zeros(len(part), np.int64), prompts, 1, part.flags("hit"))[0]
        cells.append(rate_cell("clip_acc_top1", hits, sizes, side=side))
    return cells


def _fsr(table: Table) -> list[Cell]:
    """FIA's forgetting success rate: share of pairs in which the edited image scores strictly lower."""
    base, edited = table.pairs()
    fine = base.states()[0] & edited.states()[0]
    failed = base.states()[2] | edited.states()[2]
    gap = (edited.numbers() - base.numbers())[fine]
    prompts = base.codes("prompt")[1][fine]
    sizes, wins = by_prompt(np.zeros(len(gap), np.int64), prompts, 1, gap < 0)[0] if len(gap) else (gap, gap)
    counts: dict[str, Any] = {"n_na": int((~fine & ~failed).sum()), "n_error": int(failed.sum())}
    cell = rate_cell("FSR", wins, sizes, side="edited", **counts)
    better, worse = int((gap < 0).sum()), int((gap > 0).sum())
    said = f"{len(gap) - better - worse} ties count as failures; sign test p = {sign_test(better, worse):.2g}"
    return [replace(cell, note="; ".join(t for t in (cell.note, said) if t))] if cell.state == "ok" else [cell]


PLUGIN = Clip
