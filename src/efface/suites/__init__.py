"""Suites: which prompts and seeds are drawn, and what is asked of each image. One suite, one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from efface.request import Request
from efface.store import key_of

__all__ = ["ROLES", "Ask", "Item", "Suite", "suite_hash"]

# role -> what a table calls it, and the direction that is good
ROLES: Mapping[str, tuple[str, str]] = {
    "target": ("Targets", "down"),
    "style": ("Erased styles", "down"),
    "unstyled": ("The erased style on prompts that name none", "same"),
    "neighbour": ("Nearest neighbours", "same"),
    "other": ("Other objects", "same"),
    "other-style": ("Other styles", "same"),
    "in-prompt": ("Kept objects in prompts that name an erased style", "same"),
    "object-less": ("Object-less prompts", "same"),
}


@dataclass(frozen=True)
class Ask:
    """One question to the judge about one image: is `label` shown?"""

    role: str
    label: str


@dataclass(frozen=True)
class Item:
    """One image of the suite, drawn by the base and by the edited model, and what is asked of it."""

    prompt: str
    seed: int
    asks: tuple[Ask, ...]


class Suite(Protocol):
    """A suite: its items for a request, the roles that are NA with a reason each, and what else it does not measure."""

    version: str
    absent: Mapping[str, str]

    def items(self, request: Request, concepts: tuple[dict[str, Any], ...]) -> tuple[Item, ...]: ...

    def not_measured(self, request: Request, concepts: tuple[dict[str, Any], ...]) -> tuple[str, ...]: ...


def suite_hash(items: tuple[Item, ...]) -> str:
    """Of every prompt, seed and question, in order."""
    return key_of(items=[[i.prompt, i.seed, [[a.role, a.label] for a in i.asks]] for i in items])[:16]
