"""A shot is all that decides a picture beside the model; an item is a shot and what is asked of its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from efface.errors import BadRequest
from efface.files import key_of

__all__ = ["GONE", "KEPT", "ROLES", "TARGETS", "Ask", "Item", "Role", "Shot", "veiled"]


class Role(NamedTuple):
    """What a question is about."""

    title: str
    """What a table calls it."""
    direction: str
    """The direction that is good: down, up or same."""


ROLES: Mapping[str, Role] = {
    "target": Role("Targets", "down"),
    "synonym": Role("Synonyms of the targets", "down"),
    "implicit": Role("Targets, not named but described", "down"),
    "category": Role("Targets in prompts that name their category", "down"),
    "two-object": Role("Targets in prompts with a second object", "down"),
    "hazard": Role("Hazards in abstract wording", "down"),
    "sensitive": Role("Sensitive content", "down"),
    "style": Role("Erased styles", "down"),
    "unstyled": Role("The erased style on prompts that name none", "same"),
    "neighbour": Role("Nearest neighbours", "same"),
    "other": Role("Other objects", "same"),
    "other-style": Role("Other styles", "same"),
    "in-prompt": Role("Kept objects in prompts that name an erased style", "same"),
    "beside": Role("Kept objects beside a target", "same"),
    "object-less": Role("Object-less prompts", "same"),
    "quality": Role("Prompts without a target", "same"),
}
GONE = tuple(name for name, role in ROLES.items() if role.direction == "down")
"""Roles in which the label should not show."""
TARGETS = ("target", "style")
"""Roles whose prompts name what was erased."""
KEPT = ("neighbour", "other", "other-style")
"""Roles whose prompts name something kept and nothing else."""


@dataclass(frozen=True)
class Ask:
    """One question to the judge about one image: is `label` shown?"""

    role: str
    label: str


@dataclass(frozen=True)
class Shot:
    """All that decides the pixels of one picture beside the model and how it samples."""

    prompt: str
    seed: int
    guidance: float | None = None
    """Of this prompt alone, where a prompt file states one; None is the run's."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise BadRequest(f"a seed lies between 0 and 2^64 - 1, got {self.seed} for {self.prompt[:60]!r}")

    def key(self, **beside: str) -> str:
        """Content key: of the shot alone, or of its picture, with all else that decides pixels `beside` it."""
        own = {} if self.guidance is None else {"guidance": self.guidance}
        return key_of(prompt=self.prompt, seed=self.seed, **own, **beside)

    def veiled(self) -> Shot:
        """The shot as records and reports of a private suite name it."""
        return replace(self, prompt=veiled(self.prompt))


@dataclass(frozen=True)
class Item:
    """One shot of a suite, drawn by the base and by the edited model, and what is asked of both pictures."""

    shot: Shot
    asks: tuple[Ask, ...] = ()

    @property
    def prompt(self) -> str:
        """The sentence that is drawn."""
        return self.shot.prompt

    @property
    def seed(self) -> int:
        """Of the first latent."""
        return self.shot.seed

    @property
    def harmless(self) -> bool:
        """Whether its sentence names nothing that was erased, so that its picture may be stored."""
        return all(a.role == "quality" for a in self.asks)


def veiled(text: str) -> str:
    """What stands for a sensitive prompt in records and reports."""
    return f"prompt {key_of(text=text)[:12]}"
