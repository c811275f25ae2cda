"""`unlearncanvas`: the grid of styles and objects of UnlearnCanvas (Zhang et al., arXiv 2402.11846).

The names come from the user: two text files, or a folder of answer images `STYLE_OBJECT_seedN.jpg`, which is read
whole, so that a broken picture is found before anything is drawn. Prompts: "A {object} image in {style} style."
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from efface.errors import BadRequest, WrongFile
from efface.gallery.images import read_images
from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import PLAIN, Brief
from efface.request import Request, read_lines
from efface.suites import Known, Plan

__all__ = ["UnlearnCanvas"]

SEEDS = "188,288,588,688,888"


@dataclass(frozen=True)
class UnlearnCanvas:
    """styles, objects: files with one name a line; or folder: answer images, whose names say both.

    seeds: numbers with commas. What the request names is the target, in either list.
    """

    styles: Path | None = None
    objects: Path | None = None
    folder: Path | None = None
    seeds: str = SEEDS
    version: ClassVar[str] = "1"
    judge: ClassVar[str] = "transformers-classifier"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = PLAIN

    def plan(self, request: Request, known: Known) -> Plan:
        """Raises BadRequest, WrongFile."""
        styles, objects = self._names()
        asked = {t.casefold().replace("_", " ") for c in request.concepts for t in (c.name, c.label)}
        if not asked & {n.casefold() for n in (*styles, *objects)}:
            raise BadRequest("the request names no style or object of these lists; name one with -c")
        made = []
        for style in styles:
            for thing in objects:
                asks = (Ask(_role(style, asked, "style", "other-style"), style),
                        Ask(_role(thing, asked, "target", "other"), thing))  # fmt: skip
                text = f"A {thing} image in {style} style."
                made += [Item(Shot(text, seed), asks) for seed in self._seeds()]
        said = (f"{len(styles)} styles x {len(objects)} objects", "attacks: this suite runs none")
        erased = {a.role for item in made for a in item.asks} & {"style", "target"}
        kinds = [kind for kind, role in (("style", "style"), ("object", "target")) if role in erased]
        return Plan(tuple(made), {}, said, tuple(f"unlearning:kind={kind}" for kind in kinds))

    def _names(self) -> tuple[list[str], list[str]]:
        if self.folder is not None:
            return _of_folder(self.folder)
        if self.styles is None or self.objects is None:
            raise BadRequest("name the lists with --set styles=FILE --set objects=FILE, or --set folder=DIR")
        return [[n.replace("_", " ") for n in read_lines(f)] for f in (self.styles, self.objects)]  # pyright: ignore

    def _seeds(self) -> list[int]:
        try:
            return [int(s) for s in self.seeds.split(",")]
        except ValueError:
            raise BadRequest(f"seeds are numbers with commas, got {self.seeds!r}") from None


def _of_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Styles and objects of the answer images; the object is the last word before the seed."""
    styles, objects = set(), set()
    for name in read_images(folder):
        parts = Path(name).stem.rsplit("_", 2)
        if len(parts) != 3 or not parts[2].startswith("seed"):
            raise WrongFile(f"{folder}/{name} is not named STYLE_OBJECT_seedN; rename it or take it out")
        styles.add(parts[0].replace("_", " "))
        objects.add(parts[1])
    return sorted(styles), sorted(objects)


def _role(name: str, asked: set[str], target: str, kept: str) -> str:
    return target if name.casefold() in asked else kept


PLUGIN = UnlearnCanvas
