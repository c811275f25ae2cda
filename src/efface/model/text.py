"""Text as the denoiser sees it: rows by stream with the spans of each text, and the context that a family makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from efface.model.card import Door
from efface.numerics.rows import Spans

__all__ = ["Context", "Encoded", "Encoding"]


@dataclass(frozen=True)
class Encoding:
    """One text in one stream: `rows` (length, width) float32 and where what lies in them."""

    rows: torch.Tensor
    spans: Spans

    @property
    def last(self) -> torch.Tensor:
        """(width,): the last content row."""
        return self.rows[min(self.spans.last, len(self.rows) - 1)]

    @property
    def meaning(self) -> torch.Tensor:
        """(width,): the last content row, less the row before the text where there is one.

        That row is common to all texts of a causal encoder and would make everything alike.
        """
        return self.last - self.rows[0] if self.spans.start[1] else self.last


@dataclass(frozen=True)
class Encoded:
    """A text by stream, in the family's order: the stream that says most comes first."""

    text: str
    streams: Mapping[str, Encoding]

    @property
    def main(self) -> Encoding:
        """The text in the first stream."""
        return next(iter(self.streams.values()))

    def times(self, factor: float) -> Encoded:
        """The same text with all its rows multiplied."""
        return Encoded(self.text, {n: replace(e, rows=e.rows * factor) for n, e in self.streams.items()})

    def at(self, door: Door) -> tuple[Encoding, ...]:
        """The text as it goes through a door: one encoding a stream, its rows padded to the door's width."""
        return tuple(_widened(self.streams[name], door.width) for name in door.streams)


def _widened(encoding: Encoding, width: int) -> Encoding:
    lacking = width - encoding.rows.shape[1]
    return encoding if not lacking else replace(encoding, rows=torch.nn.functional.pad(encoding.rows, (0, lacking)))


@dataclass(frozen=True)
class Context:
    """What the denoiser reads beside latents and time. Every tensor has one entry a row first; only the family that
    made it knows the names."""

    tensors: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @staticmethod
    def cat(parts: Sequence[Context]) -> Context:
        """The rows of all parts, one after the other."""
        return Context({name: torch.cat([p.tensors[name] for p in parts]) for name in parts[0].tensors})

    def take(self, rows: Sequence[int]) -> Context:
        """Some rows, in this order; a row may be taken several times."""
        return Context({name: tensor[list(rows)] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device, dtype: torch.dtype) -> Context:
        return Context({name: tensor.to(device, dtype) for name, tensor in self.tensors.items()})

    def noisy(self, scale: float, generator: torch.Generator) -> Context:
        """With a little Gaussian noise, drawn on the CPU."""
        noise = {n: torch.randn(t.shape, generator=generator).to(t) for n, t in self.tensors.items()}
        return Context({n: t + scale * noise[n] for n, t in self.tensors.items()})

    def clone(self) -> Context:
        """With tensors that a backward pass may keep."""
        return Context({n: t.clone() if t.is_inference() else t for n, t in self.tensors.items()})

    def moved(self, where: Sequence[int], other: Context, share: float) -> Context:
        """Rows `where` moved by a share of the way to the one row of `other`; 1 replaces them."""
        found = {}
        for name, tensor in self.tensors.items():
            new = tensor.clone()
            new[list(where)] = torch.lerp(
                new[list(where)], other.tensors[name].to(new).expand_as(new[list(where)]), share
            )
            found[name] = new
        return Context(found)
