"""Sprites to scenes: one or two objects of one style on a named background, 64 x 64 pixels or another size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from efface.world.captions import BACKGROUNDS
from efface.worldmaking.artwork import Sprites

SIZE = 64


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes with what they show; `two` marks scenes with two objects."""

    images: torch.Tensor  # uint8 (n, size, size, 3)
    objects: torch.Tensor  # bool (n, objects)
    styles: torch.Tensor  # bool (n, styles)
    backgrounds: tuple[str, ...]  # (n,)
    two: torch.Tensor  # bool (n,)

    def at(self, rows: torch.Tensor) -> Scenes:
        """Some of them, without the names of their backgrounds."""
        return Scenes(self.images[rows], self.objects[rows], self.styles[rows], (), self.two[rows])

    def showing(self, images: torch.Tensor) -> Scenes:
        """The same labels over other pictures of them."""
        return replace(self, images=images)

    @staticmethod
    def joined(parts: Sequence[Scenes]) -> Scenes:
        """One after the other, without the names of their backgrounds."""
        images, objects, styles, two = (
            torch.cat([getattr(p, word) for p in parts]) for word in ("images", "objects", "styles", "two")
        )
        return Scenes(images, objects, styles, (), two)


class Stage:
    """Draws scenes from a sprite bundle; keeps premultiplied sprites in memory (350 MB for all of them).

    Every random draw comes from the generator given to `draw`: the same state gives the same scenes. `size` is the
    side of a scene in pixels; sprites are first averaged to at least 1.5 times that, so that no outline is skipped.
    """

    def __init__(self, sprites: Sprites, size: int = SIZE) -> None:
        self.size = size
        pixels = torch.from_numpy(sprites.pixels).permute(0, 3, 1, 2).float() / 255  # (n, 4, 96, 96)
        pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)  # premultiplied: no dark fringe
        shrink = max(1, int(pixels.shape[-1] / (1.5 * size)))
        self.pixels = F.avg_pool2d(pixels, shrink) if shrink > 1 else pixels
        self.objects = torch.from_numpy(sprites.objects)
        self.styles = torch.from_numpy(sprites.styles)
        self.counts = (len(sprites.object_names), len(sprites.style_names))
        self.of_style = [torch.nonzero(self.styles == s).flatten() for s in range(self.counts[1])]
        self.drawn = [s for s, rows in enumerate(self.of_style) if len(rows)]

    def draw(
        self,
        count: int,
        generator: torch.Generator,
        *,
        rows: torch.Tensor | None = None,
        two: float = 0.12,
        white: float = 0.4,
    ) -> Scenes:
        """`count` scenes; `rows` fixes the first sprite of each, else styles are balanced.

        `two`: share of scenes with a second object of the same style; `white`: share on white.
        """
        first = self._choose(count, generator) if rows is None else rows
        second = self._partner(first, generator)
        pair = (torch.rand(count, generator=generator) < two) & (self.objects[first] != self.objects[second])
        flip = torch.rand(count, generator=generator) < 0.5
        names, colours = self._backgrounds(count, generator, white)
        canvas = colours[:, :, None, None].expand(-1, -1, self.size, self.size)  # (n, 3, h, w)
        side = torch.where(flip, 1.0, -1.0)
        canvas = self._paint(canvas, first, self._placement(pair, side, generator))
        grid = self._placement(torch.ones_like(pair), -side, generator)
        canvas[pair] = self._paint(canvas[pair], second[pair], grid[pair])
        shown = F.one_hot(self.objects[first], self.counts[0]).bool()
        shown |= F.one_hot(self.objects[second], self.counts[0]).bool() & pair[:, None]
        styled = F.one_hot(self.styles[first], self.counts[1]).bool()
        return Scenes(to_uint8(canvas), shown, styled, names, pair)

    def empty(self, count: int, generator: torch.Generator) -> Scenes:
        """Backgrounds without any object and without a style."""
        names, colours = self._backgrounds(count, generator, 1 / len(BACKGROUNDS))
        images = to_uint8(colours[:, :, None, None].expand(-1, -1, self.size, self.size))
        blank = torch.zeros(count, sum(self.counts), dtype=torch.bool)
        return Scenes(images, blank[:, : self.counts[0]], blank[:, self.counts[0] :], names, blank[:, 0])

    def _choose(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Balanced over styles first: one family draws fewer objects than the others."""
        chosen = torch.randint(len(self.drawn), (count,), generator=generator)
        luck = torch.rand(count, generator=generator)
        pools = [self.of_style[self.drawn[c]] for c in chosen.tolist()]
        return torch.stack([pool[int(u * len(pool))] for pool, u in zip(pools, luck.tolist(), strict=True)])

    def _partner(self, first: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        luck = torch.rand(len(first), generator=generator).tolist()
        pools = [self.of_style[s] for s in self.styles[first].tolist()]
        return torch.stack([pool[int(u * len(pool))] for pool, u in zip(pools, luck, strict=True)])

    def _backgrounds(
        self, count: int, generator: torch.Generator, white: float
    ) -> tuple[tuple[str, ...], torch.Tensor]:
        """Names and colours in [0, 1], each a shade off the named colour: no pixel value is a label."""
        names = list(BACKGROUNDS)
        luck = torch.rand(count, generator=generator)
        coloured = torch.randint(1, len(names), (count,), generator=generator)
        index = torch.where(luck < white, torch.zeros_like(coloured), coloured)
        table = torch.tensor([BACKGROUNDS[n] for n in names]).float() / 255
        shade = (torch.rand(count, 3, generator=generator) - 0.5) * 0.08 * (index > 0)[:, None]
        return tuple(names[i] for i in index.tolist()), (table[index] + shade).clamp(0, 1)

    def _placement(self, pair: torch.Tensor, side: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sampling grids (n, size, size, 2): scale 0.72-0.98, in a pair 0.42-0.50; tilt within 6 degrees."""
        luck = torch.rand(len(pair), 4, generator=generator)
        scale = torch.where(pair, 0.42 + 0.08 * luck[:, 0], 0.72 + 0.26 * luck[:, 0])
        angle = (luck[:, 1] - 0.5) * math.radians(12)
        room = torch.where(pair, 0.5 - scale, 1 - scale)
        x = torch.where(pair, 0.5 * side, torch.zeros_like(side)) + (2 * luck[:, 2] - 1) * room
        y = (2 * luck[:, 3] - 1) * (1 - scale)
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        turn = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)  # (n, 2, 2)
        move = -(turn @ torch.stack([x, y], -1)[:, :, None])
        return F.affine_grid(torch.cat([turn, move], 2), [len(pair), 4, self.size, self.size], align_corners=False)

    def _paint(self, canvas: torch.Tensor, rows: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        layer = F.grid_sample(self.pixels[rows], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return layer[:, :3] + canvas * (1 - layer[:, 3:])


def to_uint8(canvas: torch.Tensor) -> torch.Tensor:
    """(n, 3, h, w) in [0, 1] to uint8 (n, h, w, 3)."""
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
