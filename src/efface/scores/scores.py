"""Scores: the records of one panel over the shots of a run, found by shot; everything that is counted starts here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from efface.errors import WrongFile
from efface.gallery.shot import Ask, Item, Shot
from efface.scores.readings import Reading
from efface.scores.records import Record

__all__ = ["SIDES", "Pair", "Scores"]

SIDES = ("base", "edited")
STATES = ("ok", "na", "error")  # from good to bad
NO_LABEL = "the judge has no such label"


class Pair(NamedTuple):
    """One question asked of one pair of images; state "ok", "na" or "error" of the worse side."""

    role: str
    label: str
    shot: Shot
    base: bool
    edited: bool
    base_garbage: bool
    edited_garbage: bool
    state: str = "ok"
    reason: str = ""

    @property
    def replaced(self) -> bool:
        return not self.edited and not self.edited_garbage


@dataclass(frozen=True)
class Scores:
    """What is asked, and what one panel said of each picture."""

    items: tuple[Item, ...]
    """As records name them: prompts are veiled where the suite is private."""
    places: Mapping[str, Mapping[Shot, Record]]
    """Side -> shot -> its record."""

    @classmethod
    def of(cls, items: Iterable[Item], records: Iterable[Record]) -> Scores:
        """records: of one panel; their order does not matter."""
        places: dict[str, dict[Shot, Record]] = {side: {} for side in SIDES}
        for record in records:
            places.setdefault(record.side, {})[record.shot] = record
        return cls(tuple(items), places)

    @cached_property
    def asked(self) -> frozenset[str]:
        """Every label that is asked for."""
        return frozenset(a.label for i in self.items for a in i.asks)

    def side(self, name: str) -> list[Record]:
        """The records of one side."""
        return list(self.places[name].values())

    def both(self, item: Item) -> tuple[Record, Record]:
        """Base and edited. Raises WrongFile for an image without a record."""
        base, edited = (self.places[side].get(item.shot) for side in SIDES)
        if base is None or edited is None:
            shot = item.shot
            raise WrongFile(f"no record of {shot.prompt!r}, seed {shot.seed}; run the same command again")
        return base, edited

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every question of every item with both sides' answers. Raises WrongFile for an image without a record."""
        return tuple(pair for item in self.items for pair in _pairs(item, *self.both(item)))

    def readings(self) -> list[Reading]:
        """Every question of every record as metrics count it, whatever its partner."""
        asks = {item.shot: item.asks for item in self.items}
        found = (record for side in self.places.values() for record in side.values())
        return [_reading(record, ask) for record in found for ask in asks.get(record.shot, ())]


def _pairs(item: Item, base: Record, edited: Record) -> list[Pair]:
    worse = edited if STATES.index(edited.state) > STATES.index(base.state) else base
    return [
        Pair(a.role, a.label, item.shot, a.label in base.hits, a.label in edited.hits,
             base.garbage, edited.garbage, worse.state, worse.reason)
        for a in item.asks
    ]  # fmt: skip


def _reading(record: Record, ask: Ask) -> Reading:
    """A label without a value is NA."""
    state, reason = record.state, record.reason
    if state == "ok" and ask.label not in record.values:
        state, reason = "na", NO_LABEL
    fine = state == "ok"
    return Reading(
        side=record.side, shot=record.shot, role=ask.role, concept=ask.label, state=state, reason=reason,
        hit=ask.label in record.hits if fine else None, value=record.values[ask.label] if fine else None,
        garbage=record.garbage, boxes=record.boxes,
    )  # fmt: skip


def labels_of(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by label, in the order of first mention."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.label, []).append(pair)
    return found
