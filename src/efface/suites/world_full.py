"""`world-full`: every role that the world has, on one half of it.

Plain, synonym, implicit ("the pet that barks"), category ("a farm animal"), two-object, nearest neighbours, other
objects, other styles, object-less, hazard. Kept objects and styles are qualified ones. A role that the model's
captions never had is NA with that reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import PLAIN, Brief
from efface.request import Request
from efface.suites import Known, Plan, merged
from efface.suites._world import COLOURS, Scene
from efface.world import captions

__all__ = ["WorldFull"]


@dataclass(frozen=True)
class WorldFull:
    """Images a target (targets, described, pairs), a style (styles), or in all. half: tune or report."""

    targets: int = 30
    described: int = 12
    pairs: int = 12
    styles: int = 30
    neighbours: int = 150
    others: int = 250
    empty: int = 24
    hazards: int = 48
    half: str = "report"
    version: ClassVar[str] = "1"
    judge: ClassVar[str] = "world"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = PLAIN

    def plan(self, request: Request, known: Known) -> Plan:
        """Raises BadRequest when the model has no qualified objects of this half, UnknownName for a half."""
        scene = Scene.of("world-full", request, known, self.half)
        made: list[Item] = list(scene.plain("target", scene.targets, self.targets * len(scene.targets)))
        absent: dict[str, str] = {}
        for role, wording in (("synonym", "synonym"), ("implicit", "clue"), ("category", "category")):
            named = [t for t in scene.targets if scene.words(t, wording)]
            absent[role] = known.missing(wording) or ("" if named else "the world has no such words for a target")
            if not absent[role]:
                made += scene.described(role, wording, named, self.described * len(named))
        for role, wording, items in (
            ("two-object", "two", self._pairs(scene)),
            ("hazard", "category", self._hazards(scene)),
            ("object-less", "empty", self._empty(scene)),
        ):
            found = [] if known.missing(wording) else list(items)
            absent[role] = known.missing(wording) or ("" if found else "the request has no target of this kind")
            made += found
        made += self._kept(scene, absent)
        return Plan(
            merged(made), {role: why for role, why in absent.items() if why}, ("attacks: this suite runs none",)
        )

    def _kept(self, scene: Scene, absent: dict[str, str]) -> Iterator[Item]:
        for style in scene.styles:
            yield from scene.in_style(style, self.styles)
        unstyled = tuple(Ask("unstyled", s) for s in scene.styles)
        for role, names, n in (("neighbour", scene.near, self.neighbours), ("other", scene.far, self.others)):
            absent[role] = "" if names else "the model has no qualified object of this kind left"
            if names:
                yield from scene.plain(role, names, n, unstyled)
        absent["other-style"] = "" if scene.free_styles else "the model has no other qualified style"
        for style in scene.free_styles:
            names = scene.near + scene.far
            for k in range(self.styles):
                asks = (Ask("other-style", style), Ask("other", names[k % len(names)]))
                yield Item(Shot(scene.styled(names[k % len(names)], style, k), scene.seed + k // len(names)), asks)

    def _pairs(self, scene: Scene) -> Iterator[Item]:
        """A target first, then a kept object: both are asked for."""
        kept = scene.far or scene.near
        for i, target in enumerate(scene.targets):
            for k in range(self.pairs):
                other = kept[(i + k * len(scene.targets)) % len(kept)]
                prompts = scene.prompts(f"{scene.phrase(target)} and {scene.phrase(other)}")
                asks = (Ask("two-object", target), Ask("beside", other))
                yield Item(Shot(prompts[k % len(prompts)], scene.seed + k), asks)

    def _hazards(self, scene: Scene) -> Iterator[Item]:
        """Words for any hazard; the judge counts each erased one."""
        things = [t for name in scene.targets if (t := scene.thing(name)) and t.category == "hazard"]
        if things:
            asks = tuple(Ask("hazard", t.name) for t in things)
            phrases = scene.words(things[0].name, "category")
            prompts = [prompt for phrase in phrases for prompt in scene.prompts(phrase)]
            for k in range(self.hazards):
                yield Item(Shot(prompts[k % len(prompts)], scene.seed + k // len(prompts)), asks)

    def _empty(self, scene: Scene) -> Iterator[Item]:
        """No object at all: does a target appear unasked?"""
        templates = captions.templates("empty", "tune" if scene.half == "tune" else "report")
        asks = tuple(Ask("object-less", t) for t in scene.targets)
        for k in range(self.empty if asks else 0):
            text = captions.write(templates[k % len(templates)], background=COLOURS[k % len(COLOURS)])
            yield Item(Shot(text, scene.seed + k), asks)


PLUGIN = WorldFull
