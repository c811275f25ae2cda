"""`world-smoke`: a small joint test of an edit of the bundled models, sized for two CPU cores.

24 images of every target object, 24 of kept objects in every erased style, and 36 of other concepts: nearest
neighbours (same category), other objects, other styles. With one erased style that makes 60 base/edited pairs of
kept concepts, 24 of them in the erased style. Report-half seeds only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.errors import BadRequest
from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import PLAIN, Brief
from efface.request import Concept, Request
from efface.suites import Entry, Known, Plan
from efface.work import seed_of

__all__ = ["WorldSmoke", "kept_objects", "lacking"]

FIRST_SEED = 500  # seeds 500 to 999 belong to the report half


@dataclass(frozen=True)
class WorldSmoke:
    """Numbers of images a role; the defaults are the shipped suite."""

    targets: int = 24
    styles: int = 24
    neighbours: int = 12
    others: int = 14
    other_styles: int = 10
    version: str = "2"
    judge: ClassVar[str] = "world"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = PLAIN
    not_measured: ClassVar[tuple[str, ...]] = (
        "attacks: this suite runs none",
        "synonyms, implicit wording, category words and two-object prompts: not part of this suite",
    )

    def plan(self, request: Request, known: Known) -> Plan:
        """Items, absent roles, what is not measured. Raises BadRequest when the model has no concept list."""
        items = self.items(request, known.concepts)
        absent = lacking(request, known)
        if self.other_styles and not any(a.role == "other-style" for i in items for a in i.asks):
            absent["other-style"] = "the model has no other style"
        return Plan(items, absent, self.not_measured)

    def items(self, request: Request, concepts: tuple[Entry, ...]) -> tuple[Item, ...]:
        """Every image, in a fixed order. Raises BadRequest when the model has no concept list."""
        if not concepts:
            raise BadRequest("suite world-smoke needs a model with a concept list (mini); this one has none")
        styles = [c for c in request.concepts if c.kind == "style"]
        objects = [c for c in request.concepts if c.kind != "style"]
        near, far = kept_objects(request, concepts)
        if styles and not near + far:
            raise BadRequest("suite world-smoke needs qualified objects that are kept; this model's list has none")
        free = [r["name"] for r in concepts if r["kind"] == "style" and r["name"] not in {s.label for s in styles}]
        made: list[Item] = []
        for concept in objects:
            prompt = f"a {concept.label}"
            made += [Item(Shot(prompt, FIRST_SEED + k), (Ask("target", concept.label),)) for k in range(self.targets)]
        for style in styles:
            made += [self._styled(style.label, (near + far)[::-1], k) for k in range(self.styles)]
        unstyled = tuple(Ask("unstyled", s.label) for s in styles)
        made += [_plain(near, k, "neighbour", unstyled) for k in range(self.neighbours if near else 0)]
        made += [_plain(far, k, "other", unstyled) for k in range(self.others if far else 0)]
        made += [_in_style(free[k % len(free)], far, k) for k in range(self.other_styles if free and far else 0)]
        return tuple(made)

    def _styled(self, style: str, kept: list[str], k: int) -> Item:
        name = kept[k % len(kept)]
        asks = (Ask("style", style), Ask("in-prompt", name))
        return Item(Shot(f"a {name} in {style} style", FIRST_SEED + k), asks)


def kept_objects(request: Request, concepts: tuple[Entry, ...], half: str = "report") -> tuple[list[str], list[str]]:
    """Qualified objects of a half that are no target: (of a target's category, the others), shuffled once."""
    erased = {c.label for c in request.concepts}
    known = {r["name"]: r for r in concepts}
    categories = {known[c.label]["category"] for c in request.concepts if _is_object(c, known)}
    kept = [r for r in concepts if r["kind"] == "object" and r["half"] == half and r["qualified"]]
    kept = [r for r in kept if r["name"] not in erased]
    kept.sort(key=lambda r: seed_of("kept", r["name"]))
    near = [r["name"] for r in kept if r["category"] in categories]
    return near, [r["name"] for r in kept if r["category"] not in categories]


def lacking(request: Request, known: Known) -> dict[str, str]:
    """Roles that neither `world-smoke` nor `world-claim` can draw of this model and request, with the reason."""
    kept = dict(zip(("neighbour", "other"), kept_objects(request, known.concepts), strict=True))
    missing = {role: "the model has no qualified object of this kind left" for role, names in kept.items() if not names}
    return {"object-less": known.missing("empty") or "not part of this suite; world-full draws it", **missing}


def _is_object(concept: Concept, known: dict[str, Entry]) -> bool:
    return concept.kind != "style" and concept.label in known


def _plain(names: list[str], k: int, role: str, more: tuple[Ask, ...]) -> Item:
    name = names[k % len(names)]
    return Item(Shot(f"a {name}", FIRST_SEED + k // len(names)), (Ask(role, name), *more))


def _in_style(style: str, names: list[str], k: int) -> Item:
    name = names[-1 - k % len(names)]
    asks = (Ask("other-style", style), Ask("other", name))
    return Item(Shot(f"a {name} in {style} style", FIRST_SEED + 16 + k), asks)


PLUGIN = WorldSmoke
