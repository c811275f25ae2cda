"""Kept sentences: ScaPre's presets `efface` and `world`, which use none of the paper's parts. It waits for its name.

Names go to their anchors in short sentences; an object without an anchor goes to the closest kept thing, a style is
taken away from things that stay; kept texts and the empty text are constraints of their own. For every weight W0,
with rows X_k of a text, the rows X*_k that they shall become, and kept rows Y of weight b:

    W (lam I + eta sum_k X_k^T X_k + b Y^T Y)  =  lam W0 + eta sum_k W0 X*_k^T X_k + b W0 Y^T Y

Nothing depends on the weight, so one operator serves every site of a door.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from efface.evidence.needs import Needs
from efface.methods import require
from efface.methods._constraints import Kept, Projections, Texts, by_door, chosen, erased, kept, nearest_anchors
from efface.methods._systems import Edited, RowSystem, TextRows, one_operator
from efface.model.card import Door
from efface.numerics import spectral
from efface.patch import Answer, Edit
from efface.prompts import wordings

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.request import Request
    from efface.work import Work

__all__ = ["KeptSentences"]


@dataclass(frozen=True)
class KeptSentences:
    """A ridge edit of keys and values that is told what must stay."""

    texts: Texts = field(default=Texts(rows="content-to-end", expand="sentence"))
    """What is said of a concept."""
    companions: int = 32
    """How many kept things an erased style is taken away from; 0: the style alone."""
    anchor: Literal["guide", "nearest"] = "nearest"
    """Where objects without an anchor go: to the guide, or to the closest kept thing."""
    balance: bool = True
    """Every concept weighs the same, however many texts it has."""
    projections: Projections = "both"
    """Which projections of cross-attention are edited."""
    erase_scale: float = 20.0
    """eta, the weight of what is erased."""
    keep_scale: float = 1.0
    """Weight of a kept text."""
    empty_scale: float = 1.0
    """Weight of the empty text."""
    lam: float = 0.05
    """The ridge: how strongly a weight is pulled to its old value."""
    relative: bool = True
    """`lam` is in units of the rows' mean square norm, so that it carries over to other text encoders."""

    def __post_init__(self) -> None:
        require(self, "erase_scale", "lam", above=0)
        require(self, "companions", "keep_scale", "empty_scale", least=0)

    def ask(self, request: Request, card: Card) -> Needs:
        """The texts of concepts, anchors and kept texts, and the empty text; no pictures, no denoiser."""
        self.texts.check(request)
        pairs = [t for c in request.concepts for pair in self.texts.pairs(c, request, self.companions) for t in pair]
        asked = ["", *pairs, *self.kept_texts(request)]
        if self.anchor == "nearest" and self.texts.expand == "code":  # every kept thing may become an anchor
            asked += [w.filled(t) for t in Kept.of(request).things for w in wordings("released", "object")]
        return Needs(texts=tuple(dict.fromkeys(asked)))

    def kept_texts(self, request: Request) -> dict[str, float]:
        """Texts that keep their outputs, the empty one first, and their weights."""
        weights = {text: self.keep_scale * share for text, share in self.texts.kept(request).items()}
        return {"": self.empty_scale} | weights

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """One operator a door. Raises BadRequest for an anchor that means the same as its concept."""
        if self.anchor == "nearest":
            request = nearest_anchors(request, evidence)
        edits: list[Edit] = []
        numbers = {}
        for door in model.card.doors:
            rows, system, unit = self._solved(door, evidence, request, work)
            edit, sites = one_operator(door, unit, rows, model, chosen(model.card, door, self.projections))
            edits.append(edit)
            numbers[door.name] = {"shared": system.numbers, "sites": sites}
        return Answer(tuple(edits), by_door(numbers))

    def _solved(
        self, door: Door, evidence: Evidence, request: Request, work: Work
    ) -> tuple[TextRows, RowSystem, Edited]:
        """The equation of a door, solved for the identity matrix in place of a weight."""
        blocks = erased(evidence, request, self.texts, door, self.companions)
        rows = TextRows.of(blocks, evidence, door, self.balance)
        weights = self.kept_texts(request)
        texts = kept(evidence, weights, "content-to-end", door)
        weighed = [(r, w) for streams, w in zip(texts, weights.values(), strict=True) for r in streams if w]
        gram = spectral.gram_of(weighed) if weighed else None  # (d, d)
        lam = self.lam * float(rows.concepts.square().sum(1).mean().sqrt()) ** 2 if self.relative else self.lam
        everything = spectral.weighted([(rows.pairs.stacked(), self.erase_scale)])
        shared = spectral.shared_factor(*everything, lam, rows.concepts, kept=gram)
        system = RowSystem(shared, rows, sum(len(r) for r, _ in weighed), work)
        unit = torch.eye(door.width, dtype=torch.float64)
        all_channels = torch.ones(len(unit), len(rows.concepts), dtype=torch.float64)
        V = spectral.target(unit, rows.pairs, all_channels, self.erase_scale)
        new, exactness = system.solve(spectral.right_side(unit, V, lam, gram), 0.0, None, "")
        none_of_the_paper = {"mu": 0.0, "saturation": 0.0, "information_values": 0}
        numbers = rows.effects(new, unit) | none_of_the_paper | exactness | system.about(0.0)
        return rows, system, Edited(new, numbers)
