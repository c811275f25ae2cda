"""Rules that act while the sampler runs, at one of its five places.

place          | the value a rule gets and returns                                        | shape
---------------|--------------------------------------------------------------------------|------------------
prompt         | `Rows`: what enters the denoiser for each row; a rule may append rows    | (r, ...)
key-value      | output of a site that makes keys or values of text                       | (r, L, o)
attention      | output of a block in which pictures attend to text                       | (r, positions, c)
prediction     | `Prediction`: one output a row, and what guidance made of them           | (r, ...), (n, ...)
latent         | latents after the scheduler's step                                       | (n, c, h, w)

A rule is a frozen object: `start(call)` makes its state for one call of the sampler, `at(step, state, value, site)`
returns the new value. It stands as `Rule` in the file of the method that uses it, whose name is the rule's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from efface.model.network import Network
from efface.model.text import Context

__all__ = ["PLACES", "Call", "Prediction", "Rows", "Rule", "Step"]

PLACES = ("prompt", "key-value", "attention", "prediction", "latent")


@dataclass(frozen=True)
class Call:
    """One call of the sampler: the network, the prompts of its images, steps and guidance."""

    network: Network
    prompts: tuple[str, ...]
    steps: int
    guidance: float


@dataclass(frozen=True)
class Step:
    """Where the sampler is. roles and images have one entry a row: guidance role, index of the image's prompt."""

    index: int
    timestep: float
    roles: tuple[str, ...]
    images: tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """The rows of a batch. roles: "uncond", "cond", or a rule's own word for rows that it adds."""

    context: Context
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
