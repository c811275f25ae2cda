"""Sheets of pictures: the whole world, one object a row and one style a column; and what a model draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.files import write_bytes
from efface.worldmaking.artwork import Sprites
from efface.worldmaking.sizes import Size


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
    _write(sheet, path)


def grid(images: Sequence[np.ndarray], across: int, path: Path) -> None:
    """Pictures uint8 (h, w, 3) of one shape in rows of `across`, as a PNG."""
    from PIL import Image

    high, wide = images[0].shape[:2]
    sheet = Image.new("RGB", (across * wide, -(-len(images) // across) * high), "white")
    for k, picture in enumerate(images):
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (k % across * wide, k // across * high))
    _write(sheet, path)


def samples(folder: Path, size: Size, path: Path) -> None:
    """What a model draws: objects in every style, two objects, a background alone. Fixed seeds."""
    from efface.model import load

    step = max(1, len(size.objects) // 6)
    prompts = [f"a {name} in {style} style" for name in size.objects[::step][:6] for style in size.styles]
    pairs = zip(size.objects[::step], size.objects[1::step], strict=False)
    prompts += [f"a {one} and a {other}" for one, other in pairs][: len(size.styles) - 1]
    prompts.append("a blue background")
    drawn = load(str(folder), "cpu", "float32", offline=True).sample(prompts, list(range(len(prompts))))
    grid(list(drawn), len(size.styles), path)


def _write(sheet: Any, path: Path) -> None:
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    write_bytes(path, stream.getvalue())
