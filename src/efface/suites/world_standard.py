"""`world-standard`: the suite that the gate `default` is made for.

For ten targets 30 images each, 100 of synonyms, 150 of nearest neighbours, 250 of other objects. With fewer targets
each has more, so that the targets together stay at 300. Erased styles have 30 images each. The nearest ten kept objects
have at least 20 images each, so that the loss of a single one is found: up to 950 images a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.gallery.shot import Ask, Item
from efface.judges.panel import PLAIN, Brief
from efface.request import Request
from efface.suites import Known, Plan, merged
from efface.suites._world import Scene

__all__ = ["WorldStandard"]


@dataclass(frozen=True)
class WorldStandard:
    """targets: images a target at least; all_targets: images of all together at least. half: tune or report."""

    targets: int = 30
    all_targets: int = 300
    synonyms: int = 100
    neighbours: int = 150
    others: int = 250
    nearest: int = 10
    """Kept objects that are looked at one by one."""
    pairs: int = 20
    """Images of each of them at least."""
    half: str = "report"
    version: ClassVar[str] = "2"
    judge: ClassVar[str] = "world"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = PLAIN

    def plan(self, request: Request, known: Known) -> Plan:
        """Raises BadRequest when the model has no qualified objects of this half, UnknownName for a half."""
        scene, absent = Scene.of("world-standard", request, known, self.half), {}
        made: list[Item] = []
        if scene.targets:
            each = max(self.targets, self.all_targets // len(scene.targets))
            made += scene.plain("target", scene.targets, each * len(scene.targets))
            absent["synonym"] = known.missing("synonym")
            named = [t for t in scene.targets if scene.words(t, "synonym")]
            if not absent["synonym"] and named:
                made += scene.described("synonym", "synonym", named, self.synonyms)
            elif not absent["synonym"]:
                absent["synonym"] = "the world lists no synonym of a target"
        for style in scene.styles:
            made += scene.in_style(style, self.targets)
        unstyled = tuple(Ask("unstyled", s) for s in scene.styles)
        for role, names, n in (("neighbour", scene.near, self.neighbours), ("other", scene.far, self.others)):
            if names:
                made += scene.plain(role, names, n, unstyled)
                watched = [name for name in scene.closest(self.nearest) if name in names]
                made += scene.plain(role, watched, self.pairs * len(watched), unstyled)
            else:
                absent[role] = "the model has no qualified object of this kind left"
        return Plan(
            merged(made),
            {role: why for role, why in absent.items() if why},
            ("attacks: this suite runs none", "implicit wording, category words, two-object prompts: world-full"),
        )


PLUGIN = WorldStandard
