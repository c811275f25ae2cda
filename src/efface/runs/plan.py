"""The frozen plan of a run: every item, the keys of its images, the batches in which missing ones are drawn.

It is written before the first image, so a killed run goes on with the same batches, and with them the same pixels.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from efface.errors import EffaceError, WrongFile
from efface.files import write_bytes
from efface.gallery.drawing import Shard
from efface.gallery.gallery import Gallery
from efface.gallery.shot import Ask, Item, Shot
from efface.scores.forms import SPARE, plain, read
from efface.untrusted.documents import read_json

__all__ = ["FrozenPlan", "SidePlan", "freeze", "plan_of", "read_plan"]

FILE = "plan.json"


@dataclass(frozen=True)
class SidePlan:
    """What is drawn of one side."""

    keys: tuple[str, ...]
    """Of each item's image, in the order of the items."""
    shards: tuple[tuple[int, ...], ...]
    """Numbers of the items that are drawn together."""

    def batches(self, gallery: Gallery, shots: Sequence[Shot]) -> list[Shard]:
        """The frozen batches, then batches of what got lost since. shots: of the items, in their order."""
        known = [[gallery.row(shots[k]) for k in shard] for shard in self.shards]
        planned = {shots[k] for shard in self.shards for k in shard}
        return known + gallery.shards(s for s in gallery.missing(shots) if s not in planned)


@dataclass(frozen=True)
class PlanItem:
    """One item as the file holds it."""

    prompt: str
    seed: int
    asks: tuple[tuple[str, str], ...]
    guidance: float | None = field(default=None, metadata=SPARE)

    @classmethod
    def of(cls, item: Item) -> PlanItem:
        asks = tuple((a.role, a.label) for a in item.asks)
        return cls(item.shot.prompt, item.shot.seed, asks, item.shot.guidance)

    def item(self) -> Item:
        """The item of this line."""
        return Item(Shot(self.prompt, self.seed, self.guidance), tuple(Ask(*a) for a in self.asks))


@dataclass(frozen=True)
class PlanForm:
    """The plan as the file holds it."""

    format: Literal["efface-plan/1"]
    items: tuple[PlanItem, ...]
    sides: dict[str, SidePlan]


@dataclass(frozen=True)
class FrozenPlan:
    """A plan."""

    items: tuple[Item, ...]
    """Prompts are veiled where the suite is private."""
    sides: Mapping[str, SidePlan]

    @cached_property
    def images(self) -> frozenset[tuple[str, str]]:
        """Side and image of everything that is drawn."""
        return frozenset((name, key) for name, part in self.sides.items() for key in part.keys)


def freeze(run: Path, galleries: Sequence[Gallery], items: Sequence[Item], told: Sequence[Item]) -> FrozenPlan:
    """The plan: as it stands in the folder, else made from what is missing now and written.

    told: the items as the file names them. A plan whose images another version of Efface named otherwise is made anew;
    records of the old images are left out.
    """
    shots = [i.shot for i in items]
    keys = {g.side.name: tuple(g.keys(shots)) for g in galleries}
    found = plan_of(run)
    if found is not None and {name: part.keys for name, part in found.sides.items()} == keys:
        return found
    sides = {g.side.name: SidePlan(keys[g.side.name], _shards(g, shots)) for g in galleries}
    _write(run / FILE, told, sides)
    return FrozenPlan(tuple(told), sides)


def _shards(gallery: Gallery, shots: Sequence[Shot]) -> tuple[tuple[int, ...], ...]:
    place = {gallery.key(shot): k for k, shot in enumerate(shots)}
    return tuple(tuple(place[row.key] for row in shard) for shard in gallery.shards(gallery.missing(shots)))


def _write(file: Path, items: Sequence[Item], sides: Mapping[str, SidePlan]) -> None:
    form = plain(PlanForm("efface-plan/1", tuple(map(PlanItem.of, items)), dict(sides)))
    body = json.dumps(form, sort_keys=True)
    write_bytes(file, json.dumps({"sum": zlib.crc32(body.encode()), "plan": form}, sort_keys=True).encode())


def plan_of(run: Path) -> FrozenPlan | None:
    """The plan of a folder; None where there is none or its checksum fails: it is made again from what is missing."""
    try:
        found = read_json(run / FILE)
        if not isinstance(found, dict):
            return None
        body = json.dumps(found["plan"], sort_keys=True)
        form = read(PlanForm, found["plan"]) if zlib.crc32(body.encode()) == found["sum"] else None
        return form and FrozenPlan(tuple(i.item() for i in form.items), form.sides)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, EffaceError):
        return None


def read_plan(run: Path) -> FrozenPlan:
    """The plan of a folder. Raises WrongFile where there is none."""
    found = plan_of(run)
    if found is None:
        raise WrongFile(f"{run} has no plan.json that is whole; run its audit command again: nothing is drawn twice")
    return found
