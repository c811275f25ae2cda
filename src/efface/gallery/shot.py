"""An image of a suite and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from efface.errors import BadRequest
from efface.files import key_of

# role -> what a table calls it, and the direction that is good
ROLES: Mapping[str, tuple[str, str]] = {
    "target": ("Targets", "down"),
    "synonym": ("Synonyms of the targets", "down"),
    "implicit": ("Targets, not named but described", "down"),
    "category": ("Targets in prompts that name their category", "down"),
    "two-object": ("Targets in prompts with a second object", "down"),
    "hazard": ("Hazards in abstract wording", "down"),
    "sensitive": ("Sensitive content", "down"),
    "style": ("Erased styles", "down"),
    "unstyled": ("The erased style on prompts that name none", "same"),
    "neighbour": ("Nearest neighbours", "same"),
    "other": ("Other objects", "same"),
    "other-style": ("Other styles", "same"),
    "in-prompt": ("Kept objects in prompts that name an erased style", "same"),
    "beside": ("Kept objects beside a target", "same"),
    "object-less": ("Object-less prompts", "same"),
    "quality": ("Prompts without a target", "same"),
}


@dataclass(frozen=True)
class Ask:
    """One question to the judge about one image: is `label` shown?"""

    role: str
    label: str


@dataclass(frozen=True)
class Item:
    """One image of the suite, drawn by the base and by the edited model, and what is asked of it.

    guidance: of this prompt alone, where a prompt file states one; None is the run's.
    """

    prompt: str
    seed: int
    asks: tuple[Ask, ...]
    guidance: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise BadRequest(f"a seed lies between 0 and 2^64 - 1, got {self.seed} for {self.prompt[:60]!r}")


def veiled(text: str) -> str:
    """What stands for a sensitive prompt in records and reports."""
    return f"prompt {key_of(text=text)[:12]}"
