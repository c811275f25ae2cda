"""Rules that act while the sampler runs, at one of its five places.

place          | the value a rule gets and returns                                        | shape
---------------|--------------------------------------------------------------------------|------------------
prompt         | `Rows`: text rows that enter the denoiser; a rule may append rows        | (r, L, d)
key-value      | output of a `cross.k` or `cross.v` site                                  | (r, L, o)
attention      | output of a cross-attention block                                        | (r, positions, c)
prediction     | `Prediction`: one output a row, and what guidance made of them           | (r, ...), (n, ...)
latent         | latents after the scheduler's step                                       | (n, c, h, w)

A rule is a frozen object: `start(call)` makes its state for one call of the sampler, `at(step, state, value, site)`
returns the new value. Rules live in the file of the method that uses them and are registered by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch

from efface.errors import UnknownName

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Guard

__all__ = ["PLACES", "Call", "Prediction", "Rows", "Rule", "Step", "make", "rule"]

PLACES = ("prompt", "key-value", "attention", "prediction", "latent")


@dataclass(frozen=True)
class Call:
    """One call of the sampler: the model, the prompts of its images, steps and guidance."""

    model: Model
    prompts: tuple[str, ...]
    steps: int
    guidance: float


@dataclass(frozen=True)
class Step:
    """Where the sampler is. roles and images have one entry a row: guidance role, index of the image's prompt."""

    index: int
    timestep: int
    roles: tuple[str, ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """Text rows of a batch. roles: "uncond", "cond", or a rule's own word for rows that it adds."""

    values: torch.Tensor  # (r, L, d)
    roles: tuple[str, ...]
    images: tuple[int, ...]

    def where(self, role: str) -> list[int]:
        return [i for i, r in enumerate(self.roles) if r == role]


@dataclass(frozen=True)
class Prediction:
    """What the denoiser said for each row, and the guided prediction of each image."""

    rows: torch.Tensor  # (r, c, h, w)
    guided: torch.Tensor  # (n, c, h, w)


class Rule(Protocol):
    """One rule; `place` is one of `PLACES`."""

    @property
    def place(self) -> str: ...

    def start(self, call: Call) -> Any: ...

    def at(self, step: Step, state: Any, value: Any, site: str) -> Any: ...


_RULES: dict[str, Callable[[Guard, float], Rule]] = {}


def rule(name: str) -> Callable[[Callable[[Guard, float], Rule]], Callable[[Guard, float], Rule]]:
    """Register a factory `(guard, strength) -> Rule` under a name."""

    def register(factory: Callable[[Guard, float], Rule]) -> Callable[[Guard, float], Rule]:
        _RULES[name] = factory
        return factory

    return register


def make(guard: Guard, strength: float) -> Rule:
    """The rule behind a guard. Raises UnknownName."""
    if guard.rule not in _RULES:
        from efface.registry import find, names

        for method in names("methods"):  # a method's file registers its rules when imported
            find("methods", method)
    if guard.rule not in _RULES:
        raise UnknownName("guard rule", guard.rule, _RULES)
    return _RULES[guard.rule](guard, strength)


@dataclass(frozen=True)
class NegativePrompt:
    """Unconditional rows moved towards the rows of a text (Ho and Salimans 2022, section 3.2, with a text instead of
    nothing): at strength 1 they are replaced."""

    text: str
    strength: float
    place: str = "prompt"

    def start(self, call: Call) -> torch.Tensor:
        return call.model.encode([self.text])[0].rows  # (L, d)

    def at(self, step: Step, state: torch.Tensor, value: Rows, site: str) -> Rows:
        new, where = value.values.clone(), value.where("uncond")
        new[where] = torch.lerp(new[where], state.to(new).expand_as(new[where]), self.strength)
        return replace(value, values=new)


@rule("negative-prompt")
def _negative_prompt(guard: Guard, strength: float) -> NegativePrompt:
    return NegativePrompt(str(guard.settings["text"]), strength)
