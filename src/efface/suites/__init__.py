"""Suites: which prompts and seeds are drawn, and what is asked of each image. One suite, one file.

A suite is data with a version: its settings are the fields of a frozen dataclass, `plan` turns a request and what is
known of the base model into items. docs/suites.md has a card for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypedDict

from efface.files import key_of
from efface.gallery.shot import Item, Shot
from efface.judges.panel import Brief
from efface.request import Request

__all__ = ["Entry", "Known", "Plan", "Suite", "merged", "suite_hash"]


class Entry(TypedDict):
    """One concept of a model's own list."""

    name: str
    kind: str
    category: str
    half: str
    base_rate: float | None
    n: int
    qualified: bool


@dataclass(frozen=True)
class Known:
    """What a suite may know of the base model."""

    concepts: tuple[Entry, ...] = ()
    """Its concept list."""
    captions: frozenset[str] | None = None
    """Wordings that its captions had: name, style, background, templates, synonym, clue, category, two, empty; None
    where the model does not say."""

    def missing(self, wording: str) -> str:
        """Why a wording cannot be asked for, or "" if it can."""
        if self.captions is None:
            return f"the model does not say whether its captions had this ({wording})"
        return "" if wording in self.captions else f"the model's captions had none ({wording})"


@dataclass(frozen=True)
class Plan:
    """What a suite draws for one request."""

    items: tuple[Item, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    """Roles that are NA, with the reason."""
    not_measured: tuple[str, ...] = ()
    """What else is not measured."""
    metrics: tuple[str, ...] = ()
    """Metrics that the suite is made for, as `--metric` takes them."""


class Suite(Protocol):
    """What every suite is: a frozen dataclass whose fields are settings."""

    @property
    def version(self) -> str:
        """Another one draws or asks otherwise."""
        ...

    @property
    def judge(self) -> str:
        """Who reports unless the user names another."""
        ...

    @property
    def private(self) -> bool:
        """Whether images are blurred, and not stored unless asked."""
        ...

    @property
    def brief(self) -> Brief:
        """What the judge is asked for, and which regions of a detector count."""
        ...

    def plan(self, request: Request, known: Known) -> Plan:
        """What is drawn for a request. Raises BadRequest, UnknownName, WrongFile."""
        ...


def merged(items: Iterable[Item]) -> tuple[Item, ...]:
    """The same shot is one image: its questions are put together, in the order of first mention."""
    found: dict[Shot, Item] = {}
    for item in items:
        known = found.get(item.shot)
        asks = item.asks if known is None else tuple(dict.fromkeys((*known.asks, *item.asks)))
        found[item.shot] = item if known is None else replace(known, asks=asks)
    return tuple(found.values())


def suite_hash(items: tuple[Item, ...]) -> str:
    """Of every prompt, seed and question, in order."""
    return key_of(items=[_row(i) for i in items])[:16]


def _row(item: Item) -> list[object]:
    shot, asks = item.shot, [[a.role, a.label] for a in item.asks]
    return [shot.prompt, shot.seed, asks, *([] if shot.guidance is None else [shot.guidance])]
