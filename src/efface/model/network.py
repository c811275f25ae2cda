"""Network: the open parts of one model. It encodes, predicts and decodes, and knows no patch and no guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from efface.errors import BadRequest
from efface.model.card import Card
from efface.model.config import sentences
from efface.model.devices import exact
from efface.model.family import Family
from efface.model.reach import values
from efface.model.sources import Folder, Pipeline
from efface.model.text import Context, Encoded

__all__ = ["Network"]


class Network:
    """One model's parts, each loaded at first use."""

    def __init__(
        self, card: Card, family: Family, source: Folder | Pipeline, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.card, self.family, self.source = card, family, source
        self.device, self.dtype = device, dtype
        self._parts: dict[str, Any] = {}

    # --- parts -----------------------------------------------------------------------------------------------------

    def part(self, name: str) -> Any:
        """A part of the family by name, loaded at first use; None for one that this model lacks."""
        if name not in self._parts:
            with torch.inference_mode(False):  # weights made inside inference mode could not be edited in place
                self._parts[name] = self.source.part(name, self.device, self.dtype)
        return self._parts[name]

    @property
    def denoiser(self) -> torch.nn.Module:
        return self.part(self.family.parts[0].name)

    @property
    def opened(self) -> bool:
        """Whether the denoiser is in memory."""
        return self.family.parts[0].name in self._parts or isinstance(self.source, Pipeline)

    @property
    def weighed(self) -> tuple[str, ...]:
        """The parts whose weights are read."""
        return tuple(p.name for p in self.family.parts if p.weighed and self.source.has(p.name))

    def module(self, site: str) -> torch.nn.Module:
        """The module that holds a site's weight."""
        return self.denoiser.get_submodule(site)

    def stored(self, site: str) -> torch.Tensor:
        """The weight of a site as the source holds it, without opening the denoiser where it is a folder."""
        key = self.card.site(site).key
        if isinstance(self.source, Pipeline):
            return values(self.denoiser, key).detach()
        return self.source.tensor(self.family.parts[0].name, (key,))

    def embeddings(self, stream: str) -> torch.Tensor:
        """The token embedding of a stream as the source holds it."""
        part, keys = self.family.embedding(self.card.stream(stream))
        if isinstance(self.source, Pipeline):
            return values(self.part(part).get_input_embeddings(), "weight").detach()
        return self.source.tensor(part, keys)

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler of the card; `name`: of this diffusers class, over the same noise levels.

        Raises Unavailable where a network that predicts a flow would be walked by another class.
        """
        import diffusers

        config = self.card.schedule_dict()
        own = config.pop("_class_name")
        if name:  # what the other class would set differently where the configuration is silent
            self.card.walked_by(name)
            config = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1} | config
        with sentences(f"the scheduler {name or own} of {self.card.name}"):
            return getattr(diffusers, name or own).from_config(config)

    # --- text -------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str], whole: bool = True) -> list[Encoded]:
        """Texts by stream, each distinct text once. Raises BadRequest for a text longer than the model reads."""
        for text in dict.fromkeys(texts):
            size, most = self.family.sizes(self, text)
            if size > most:
                raise BadRequest(f"the text {text[:60]!r} has {size} tokens, the model reads {most}; shorten it")
        with exact():
            return self.family.encode(self, texts, whole)

    def context(self, texts: Sequence[str]) -> Context:
        """One row a text, on the network's device and in its dtype."""
        return self.family.context(self, self.encode(texts)).to(self.device, self.dtype)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def noise(self, seeds: Sequence[int]) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Initial noise (n, c, h, w) in the model's dtype, one CPU generator an image, and the generators."""
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        shape = (1, *self.card.latent)
        noise = torch.cat([torch.randn(shape, generator=g, dtype=self.dtype) for g in generators])
        return noise.to(self.device), generators

    def predict(self, x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        """Scaled latents of every row, timestep, context -> prediction of the latents' shape."""
        return self.family.predict(self, x, time, context)

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Latents -> pictures (n, 3, height, width) in [-1, 1], float32."""
        with exact():
            return self.family.decode(self, x)
