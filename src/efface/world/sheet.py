"""A picture of the whole world: one object a row, one style a column."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from efface.world.artwork import Sprites


def draw(sprites: Sprites, path: Path, *, side: int = 48, blocks: int = 4) -> None:
    """Write a PNG; rows are split over `blocks` columns of all styles, a missing drawing stays blank."""
    from PIL import Image

    rows = -(-len(sprites.object_names) // blocks)
    width = len(sprites.style_names) * side
    sheet = Image.new("RGB", (blocks * (width + side // 2), rows * side), "white")
    for pixels, thing, style in zip(sprites.pixels, sprites.objects, sprites.styles, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side))
        column, row = divmod(int(thing), rows)
        sheet.paste(picture, (column * (width + side // 2) + int(style) * side, row * side), picture)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    sheet.save(staging, "PNG")
    os.replace(staging, path)
