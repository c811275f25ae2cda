"""Card: what is known of a model without its weights: text streams, doors, sites, sampler's defaults.

A **site** is one weight matrix (or kernel) of the denoiser, named as in the state dict without ``.weight``; its
role is ours (``cross.k``, ``self.q``, ``ff.out`` ...). Its bias, where it has one, is the site ``NAME.bias``. A
**stream** is one sequence of text rows. A **door** is where text enters the denoiser: all sites whose input rows are
the same. A card is made from configuration files alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from efface.errors import Unavailable, UnknownName

__all__ = ["Card", "Door", "Site", "Stream", "freeze"]


@dataclass(frozen=True)
class Stream:
    """One text stream: rows of `width` numbers, `length` rows a text; causal rows do not see later tokens."""

    name: str
    width: int
    length: int
    causal: bool


@dataclass(frozen=True)
class Door:
    """Where text enters: the rows of `streams`, one after the other, each padded with zeros to `width` numbers."""

    name: str
    streams: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class Site:
    """One weight of the denoiser. `shape` as stored: (out, in) or (out, in, h, w); `door` if text rows enter it."""

    name: str
    role: str
    shape: tuple[int, ...]
    door: str | None = None
    bias: bool = False

    @property
    def key(self) -> str:
        """The name in the denoiser's state dict."""
        return self.name if self.name.endswith(".bias") else f"{self.name}.weight"


@dataclass(frozen=True)
class Card:
    """A model by its configuration.

    size: image height and width in pixels. latent: (channels, height, width). schedule: the scheduler's class and
    configuration. preset: the methods' preset that is used when the request names none. captions: wordings that the
    training captions had, None where the model does not say; of no weight for what it draws, so not in the hash.
    blank: what a guided prompt is compared with: the empty "text", "zeros", or "nothing" where the network reads the
    number itself.
    """

    name: str
    family: str
    streams: tuple[Stream, ...]
    doors: tuple[Door, ...]
    sites: tuple[Site, ...]
    prediction: str
    schedule: tuple[tuple[str, Any], ...]
    size: tuple[int, int]
    latent: tuple[int, int, int]
    steps: int
    guidance: float
    preset: str = "efface"
    captions: tuple[str, ...] | None = None
    blank: str = "text"

    def site(self, name: str) -> Site:
        """A site by name; "NAME.bias" is the bias of the site NAME. Raises UnknownName."""
        for site in self.sites:
            if site.name == name:
                return site
            if site.bias and name == f"{site.name}.bias":
                return Site(name, site.role, site.shape[:1])
        raise UnknownName("site", name, (s.name for s in self.sites), "efface inspect MODEL")

    def walked_by(self, scheduler: str) -> None:
        """Raises Unavailable where the network predicts a flow, which a scheduler of noise cannot walk."""
        if self.prediction == "flow":
            raise Unavailable(f"{self.name} predicts a flow, which {scheduler} cannot walk; use uce or scapre")

    def select(self, *roles: str) -> tuple[Site, ...]:
        """All sites of these roles, in name order. Raises UnknownName for a role that no site has."""
        known = {s.role for s in self.sites}
        for role in roles:
            if role not in known:
                raise UnknownName("role of a site", role, known)
        return tuple(sorted((s for s in self.sites if s.role in roles), key=lambda s: s.name))

    def through(self, door: Door, without: Iterable[str] = ()) -> tuple[Site, ...]:
        """All sites of a door, less those of the roles `without`, in name order."""
        left = set(without)
        return tuple(
            sorted((s for s in self.sites if s.door == door.name and s.role not in left), key=lambda s: s.name)
        )

    def stream(self, name: str) -> Stream:
        for stream in self.streams:
            if stream.name == name:
                return stream
        raise UnknownName("text stream", name, (s.name for s in self.streams))

    def schedule_dict(self) -> dict[str, Any]:
        return {k: json.loads(v) if isinstance(v, str) and v[:1] in "[{" else v for k, v in self.schedule}

    @property
    def hash(self) -> str:
        """Of what can change a picture: all but the name and the captions; doors follow from the family."""
        silent = ("name", "captions", "doors", *(("blank",) if self.blank == "text" else ()))
        body = {k: v for k, v in asdict(self).items() if k not in silent}
        body["sites"] = [{("stream" if k == "door" else k): v for k, v in site.items()} for site in body["sites"]]
        return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()[:16]


def freeze(config: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """A configuration as sorted, hashable pairs; private entries (with a leading _) stay out except the class."""
    kept = ((k, v) for k, v in config if not k.startswith("_") or k == "_class_name")
    return tuple(sorted((k, v if isinstance(v, str | int | float | bool | None) else json.dumps(v)) for k, v in kept))
