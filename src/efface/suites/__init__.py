"""Suites: which prompts and seeds are drawn, and what is asked of each image. One suite, one file.

A suite is data with a version: its settings are the fields of a frozen dataclass, `plan` turns a request and what is
known of the base model into items. docs/suites.md has a card for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from efface.files import key_of
from efface.gallery.shot import Item, Shot
from efface.request import Request

__all__ = ["Known", "Plan", "Suite", "merged", "suite_hash"]


@dataclass(frozen=True)
class Known:
    """What a suite may know of the base model: its concept list and which wordings its captions had.

    captions: None where the model does not say. The words: name, style, background, templates, synonym, clue,
    category, two, empty.
    """

    concepts: tuple[dict[str, Any], ...] = ()
    captions: frozenset[str] | None = None

    def missing(self, wording: str) -> str:
        """Why a wording cannot be asked for, or "" if it can."""
        if self.captions is None:
            return f"the model does not say whether its captions had this ({wording})"
        return "" if wording in self.captions else f"the model's captions had none ({wording})"


@dataclass(frozen=True)
class Plan:
    """What a suite draws for one request; roles that are NA with the reason; what else is not measured."""

    items: tuple[Item, ...]
    absent: Mapping[str, str] = field(default_factory=dict)
    not_measured: tuple[str, ...] = ()


class Suite(Protocol):
    """judge: who reports unless the user names another. private: images are blurred, and not stored unless asked."""

    version: str
    judge: str
    private: bool

    def plan(self, request: Request, known: Known) -> Plan: ...


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


def _row(item: Item) -> list[Any]:
    shot, asks = item.shot, [[a.role, a.label] for a in item.asks]
    return [shot.prompt, shot.seed, asks, *([] if shot.guidance is None else [shot.guidance])]
