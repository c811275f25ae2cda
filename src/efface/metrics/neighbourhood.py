"""Neighbourhood harm: what happens to concepts near the erased ones, in text space and in image space.

The nearest concepts are found (cosine), their loss is tested in pairs, and those that lost or were never tested are
proposed for the keep list. Harm shows there first; a mean over everything kept hides it. An audit takes text space
from the model's own encoder and image space from the judge's features of base images (`efface.scores`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from efface.errors import BadRequest
from efface.gallery.shot import KEPT
from efface.metrics import Metric
from efface.numerics.intervals import holm, mcnemar_exact, tango
from efface.scores.cells import Cell, Left, by_prompt, loss_cell, noted
from efface.scores.readings import Reading, Readings

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["Neighbourhood", "image_space", "text_space"]

TOO_FEW = 6  # changed pairs below which no exact test can reach 5 %
FLIP = 1.5  # images of a concept: one that is lost may be chance


Nearest = dict[str, dict[str, list[tuple[str, float]]]]
"""Space -> target -> the nearest concepts with their cosine, nearest first."""


class Harm(NamedTuple):
    """What one kept concept lost."""

    cell: Cell
    lost: int
    won: int


@dataclass(frozen=True)
class Neighbourhood(Metric):
    """Harm of kept concepts, and who is near to whom."""

    targets: tuple[str, ...] = ()
    """The erased concepts."""
    text: Mapping[str, np.ndarray] = field(default_factory=dict)
    """A vector (f,) a concept in text space, targets included; may be empty."""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The same in image space."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Of concepts; neighbours are sought among those of the target's kind."""
    k: int = 5
    """Neighbours a target and space."""
    limit: float = 0.05
    """Loss of one concept that counts as harm."""
    most: int = 10
    """Proposals for the keep list, so that others are left to judge on."""
    direction: ClassVar[str] = "down"

    def nearest(self) -> Nearest:
        """The k nearest concepts that are no target.

        A target that a space lacks has no neighbours there. Raises BadRequest for a space that lacks all of them.
        """
        found: Nearest = {}
        for name, space in (("text", self.text), ("image", self.images)):
            if not space:
                continue
            targets, names, similar = self._similar(name, space)
            kinds = np.asarray([self.kinds.get(n, "") for n in names])
            found[name] = {}
            for target, row in zip(targets, similar, strict=True):
                order = np.argsort(-row, kind="stable")
                best = order[(kinds == self.kinds.get(target, ""))[order]][: self.k]
                found[name][target] = [(names[j], float(row[j])) for j in best]
        return found

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """Harm of every kept concept in pairs with Holm's p; mean and pooled loss by role; the worst; the slope."""
        kept = Readings.of(rows).where(lambda r: r.role in KEPT)
        if not len(kept):
            return [Cell("harm", state="na", reason="the suite has no kept concept")]
        harms = _harms(*kept.pairs())
        cells = [h.cell for h in harms]
        for role in KEPT:
            cells += _together(role, [h for h in harms if h.cell.side == role])
        return [*cells, _worst(harms), self._slope(cells)]

    def proposals(self, cells: Iterable[Cell], keep: Collection[str] = ()) -> list[tuple[str, str]]:
        """Concepts for the keep list with the reason: those that lost most, then the nearest ones that no row tested.

        keep: concepts that stand in the list already. At most `most` of them, so that others are left to judge on.
        """
        harm = {c.concept: c for c in cells if c.name == "harm" and c.concept}
        lost = {c: c.value or 0.0 for c in harm.values()}
        hurt = sorted((c for c, v in lost.items() if v > self.limit and v * c.n > FLIP), key=lambda c: -lost[c])
        said = [(c.concept, _lost(c)) for c in hurt]
        near = [
            (-cosine, name, f"near {target} in {space} space (cosine {cosine:.2f}), not tested")
            for space, targets in self.nearest().items()
            for target, found in targets.items()
            for name, cosine in found
            if name not in harm or harm[name].state != "ok"
        ]
        first: dict[str, str] = {}
        for name, why in [*said, *((n, w) for _, n, w in sorted(near))]:
            if name not in keep:
                first.setdefault(name, why)
        return list(first.items())[: self.most]

    def _similar(self, name: str, space: Mapping[str, np.ndarray]) -> tuple[list[str], list[str], np.ndarray]:
        """Targets and kept concepts of a space, and the cosine of each target (rows) with each of the kept."""
        targets = [t for t in self.targets if t in space]
        if self.targets and not targets:
            raise BadRequest(f"the {name} space has no vector of {self.targets[0]!r}; give one for every target")
        names = sorted(n for n in space if n not in self.targets)
        ours, theirs = (_rows([space[n] for n in some]) for some in (targets, names))
        return targets, names, ours @ theirs.T if len(names) and targets else np.zeros((len(targets), len(names)))

    def _slope(self, cells: list[Cell]) -> Cell:
        """Harm against text cosine to the nearest target, points per unit of cosine, least squares over concepts."""
        space, name = (self.text, "text") if self.text else (self.images, "image")
        if not space or not self.targets:
            return Cell("slope", state="na", reason="no vectors of the concepts were given")
        _, names, similar = self._similar(name, space)
        near = dict(zip(names, similar.max(0), strict=True))
        known = [c for c in cells if c.name == "harm" and c.state == "ok" and c.concept in near]
        x, y = (np.asarray(v, np.float64) for v in ([near[c.concept] for c in known], [c.value for c in known]))
        if len(known) < 3 or np.ptp(x) < 1e-9:
            return Cell("slope", state="na", n=len(known), reason="needs three concepts at different distances")
        slope, error = _line(x, y)
        return Cell("slope", value=slope, low=slope - 2 * error, high=slope + 2 * error, n=len(known),
                    note=f"loss per unit of cosine in {name} space, two standard errors")  # fmt: skip


def _harms(base: Readings, edited: Readings) -> list[Harm]:
    fine = base.states()[0] & edited.states()[0]
    failed = base.states()[2] | edited.states()[2]
    b, e = base.hits(), edited.hits()
    names, codes = base.codes(lambda r: (r.role, r.concept))
    parts = by_prompt(codes[fine], base.prompts()[fine], len(names), (b & ~e)[fine], (e & ~b)[fine])
    columns = [np.bincount(codes[m], minlength=len(names)) for m in (~fine & ~failed, failed)]
    left = [Left(int(a), int(b)) for a, b in zip(*columns, strict=True)]
    found = [
        Harm(loss_cell("harm", lost, won, sizes, left[k], concept, role), int(lost.sum()), int(won.sum()))
        for k, ((role, concept), (sizes, lost, won)) in enumerate(zip(names, parts, strict=True))
    ]
    adjusted = iter(holm([mcnemar_exact(h.lost, h.won) for h in found if h.cell.state == "ok"]))
    return [_told(h, next(adjusted)) if h.cell.state == "ok" else h for h in found]


def _lost(cell: Cell) -> str:
    value, low, high = (f"{100 * (v or 0.0):.1f}" for v in (cell.value, cell.low, cell.high))
    return f"lost {value} points [{low}, {high}], {cell.n} pairs; {cell.note}"


def text_space(model: Model, texts: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Concept -> (d,): the last content row of its text in the model's own encoder, less the row that starts a text.

    texts: the text of each concept; those that are longer than the model reads are left out.
    """
    fits = {c: t for c, t in texts.items() if model.reads(t)}
    encoded = {e.text: e for e in model.encode(tuple(dict.fromkeys(fits.values())), whole=False)} if fits else {}
    rows = {t: e.main.meaning.double().cpu().numpy() for t, e in encoded.items()}
    return {c: rows[t] for c, t in fits.items()}


def image_space(features: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Concept -> (f,): the mean of a judge's features over images of it, less the mean over all concepts.

    Features behind a rectifier have a large common part; without it cosines tell neighbours from others.
    """
    means = {c: np.mean(np.asarray(rows, np.float64), axis=0) for c, rows in features.items() if len(rows)}
    middle = np.mean(list(means.values()), axis=0) if means else 0.0
    return {c: m - middle for c, m in means.items()}


def _rows(vectors: Iterable[np.ndarray]) -> np.ndarray:
    """Unit rows."""
    table = np.asarray([np.asarray(v, np.float64).ravel() for v in vectors], np.float64)
    return table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-12) if len(table) else table


def _told(harm: Harm, p: float) -> Harm:
    said = "too few changes to test" if harm.lost + harm.won < TOO_FEW else f"Holm p = {p:.2g}"
    return harm._replace(cell=replace(harm.cell, note=noted(harm.cell.note, said)))


def _together(role: str, harms: list[Harm]) -> list[Cell]:
    """Mean over scored concepts and the pooled loss, one cluster a concept."""
    scored = [h for h in harms if h.cell.state == "ok"]
    if not scored:
        return [Cell("harm.pooled", side=role, state="na", reason=f"0 of {len(harms)} scored")] if harms else []
    columns = zip(*((h.cell.n, h.lost, h.won) for h in scored), strict=True)
    sizes, lost, won = (np.asarray(v, np.float64) for v in columns)
    pooled = loss_cell("harm.pooled", lost, won, sizes, side=role)
    note = noted(pooled.note.replace("prompt", "concept"), f"{len(scored)} of {len(harms)} scored")
    mean = float(np.mean([h.cell.value or 0.0 for h in scored]))
    return [replace(pooled, note=note), Cell("harm.mean", side=role, value=mean, n=int(sizes.sum()), note=note)]


def _worst(harms: list[Harm]) -> Cell:
    """The concept that lost most; its interval is widened for having been picked among all of them."""
    scored = [h for h in harms if h.cell.state == "ok"]
    if not scored:
        return Cell("harm.worst", state="na", reason="no kept concept was scored")
    cell, lost, won = max(scored, key=lambda h: (h.cell.value or 0.0, h.cell.concept))
    _, low, high = tango(lost, won, cell.n, 1 - 0.05 / len(scored))
    note = f"{cell.note}; interval for the worst of {len(scored)}"
    return replace(cell, name="harm.worst", low=low, high=high, note=note)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error."""
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    left = y - y.mean() - slope * away
    return slope, float(np.sqrt(left @ left / max(len(x) - 2, 1) / (away @ away)))


PLUGIN = Neighbourhood
