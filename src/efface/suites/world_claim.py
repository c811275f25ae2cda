"""`world-claim`: enough images to say "at most" about a joint edit of the bundled model.

60 images of every target object, 300 of kept objects in every erased style, 12 of every kept object on a prompt that
names no style. Kept objects are of the report half, so a keep list of tune-half names holds none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.errors import BadRequest
from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import PLAIN, Brief
from efface.request import Request
from efface.suites import Entry, Known, Plan
from efface.suites.world_smoke import FIRST_SEED, kept_objects, lacking

__all__ = ["WorldClaim"]


@dataclass(frozen=True)
class WorldClaim:
    """targets: images a target object. styles: images an erased style. kept: images a kept object."""

    targets: int = 60
    styles: int = 300
    kept: int = 12
    version: str = "1"
    judge: ClassVar[str] = "world"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = PLAIN
    not_measured: ClassVar[tuple[str, ...]] = (
        "attacks, synonyms, implicit wording, category words, two-object prompts, other styles",
    )

    def plan(self, request: Request, known: Known) -> Plan:
        """Items, absent roles, what is not measured. Raises BadRequest when the model has no concept list."""
        return Plan(self.items(request, known.concepts), lacking(request, known), self.not_measured)

    def items(self, request: Request, concepts: tuple[Entry, ...]) -> tuple[Item, ...]:
        """Every image, in a fixed order. Raises BadRequest when the model has no concept list."""
        near, far = kept_objects(request, concepts)
        if not near + far:
            raise BadRequest("suite world-claim needs a model with qualified objects of the report half (mini)")
        styles = [c.label for c in request.concepts if c.kind == "style"]
        made: list[Item] = []
        for concept in request.concepts:
            if concept.kind != "style":
                asks = (Ask("target", concept.label),)
                made += [Item(Shot(f"a {concept.label}", FIRST_SEED + k), asks) for k in range(self.targets)]
        for style in styles:
            made += [_styled(style, (near + far)[::-1], k) for k in range(self.styles)]
        unstyled = tuple(Ask("unstyled", s) for s in styles)
        for role, names in (("neighbour", near), ("other", far)):
            for name in names:
                asks = (Ask(role, name), *unstyled)
                made += [Item(Shot(f"a {name}", FIRST_SEED + k), asks) for k in range(self.kept)]
        return tuple(made)


def _styled(style: str, names: list[str], k: int) -> Item:
    name = names[k % len(names)]
    asks = (Ask("style", style), Ask("in-prompt", name))
    return Item(Shot(f"a {name} in {style} style", FIRST_SEED + 21 + k // len(names)), asks)


PLUGIN = WorldClaim
