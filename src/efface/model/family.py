"""What a family is: everything special to one architecture, behind one interface. One family, one file.

A family is a table and functions without state; a network calls it with itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from efface.model.card import Card, Stream
from efface.model.text import Context, Encoded

__all__ = ["Config", "Family", "Part", "Parts", "Seat"]

Config = Mapping[str, Any]
"""One configuration file."""


@dataclass(frozen=True)
class Part:
    """One part of a model folder: its name, and every (library, class) that a folder may name for it.

    Nothing else is ever imported for a folder. weighed: its weights are read, as against those of a tokenizer.
    needed: False for a part that a model may lack, which is None then.
    """

    name: str
    classes: tuple[tuple[str, str], ...]
    weighed: bool = True
    needed: bool = True


class Parts(Protocol):
    """The open parts of one model, as its family sees them."""

    card: Card
    device: torch.device
    dtype: torch.dtype

    def part(self, name: str) -> Any:
        """A part of the family by name, loaded at first use; None for one that this model lacks."""
        ...

    @property
    def denoiser(self) -> torch.nn.Module:
        """The first part."""
        ...

    def encode(self, texts: Sequence[str], whole: bool = True) -> list[Encoded]:
        """Texts by stream. Raises BadRequest for a text longer than the model reads."""
        ...


@dataclass(frozen=True)
class Seat:
    """A module at which rules of one place act, and the site or block that they are told."""

    module: str
    told: str


class Family(Protocol):
    """Everything special to one architecture."""

    name: str
    pipelines: tuple[str, ...]  # diffusers classes that it answers to; subclasses and the same parts are known by them
    parts: tuple[Part, ...]  # the denoiser first
    schedulers: tuple[str, ...]  # diffusers classes that a folder may name
    scopes: Mapping[str, tuple[str, ...]]  # what training methods call parts of the denoiser, as roles of sites

    def card(self, name: str, configs: Mapping[str, Config], extra: Config) -> Card:
        """From the configurations of its parts, `scheduler` and `index` (`model_index.json`); no weights are read.

        extra: what a model says of itself in `efface.json`. Raises Unavailable for a model that it cannot draw with,
        WrongFile for an `efface.json` that says nothing sensible.
        """
        ...

    def embedding(self, stream: Stream) -> tuple[str, tuple[str, ...]]:
        """Part and possible keys of the token embedding of a stream, for the base's fingerprint."""
        ...

    def sizes(self, net: Parts, text: str) -> tuple[int, int]:
        """Tokens of the text's own, and how many of them the model reads."""
        ...

    def encode(self, net: Parts, texts: Sequence[str], whole: bool) -> list[Encoded]:
        """Texts by stream. whole: every row, else causal streams end with the last content row."""
        ...

    def context(self, net: Parts, texts: Sequence[Encoded]) -> Context:
        """One row a text."""
        ...

    def sides(self, net: Parts, prompts: Sequence[str], guided: bool) -> tuple[Context, Context | None]:
        """A row a prompt, and the one row of the unconditional side: None without guidance, or where it is told."""
        ...

    def told(self, net: Parts, context: Context, guidance: float) -> Context:
        """The context with the guidance in it, where the network reads it; else the same context."""
        ...

    def start(self, net: Parts, noise: torch.Tensor, scheduler: Any) -> torch.Tensor:
        """The first latents of noise (n, c, h, w)."""
        ...

    def times(self, net: Parts, scheduler: Any, steps: int) -> torch.Tensor:
        """Set the scheduler's steps and return its timesteps (steps,)."""
        ...

    def predict(self, net: Parts, x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        """Scaled latents of every row, timestep, context -> prediction of the latents' shape."""
        ...

    def decode(self, net: Parts, x: torch.Tensor) -> torch.Tensor:
        """Latents -> pictures (n, 3, height, width) in [-1, 1], float32."""
        ...

    def seats(self, card: Card, place: str) -> tuple[Seat, ...]:
        """Where rules of a place that lies inside the denoiser act. Raises Unavailable for one that it has not."""
        ...

    def pipeline(self, parts: Mapping[str, Any], index: Config) -> Any:
        """A diffusers pipeline of these parts, the scheduler among them."""
        ...
