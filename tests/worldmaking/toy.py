"""A world small enough to train in a second: four objects, two styles, 32 pixels."""

from __future__ import annotations

import numpy as np

from efface.worldmaking.artwork import Sprites
from efface.worldmaking.sittings import Phase
from efface.worldmaking.sizes import Size

OBJECTS = ("dog", "cat", "key", "pizza")
STYLES = ("noto", "blob")

TOY = Size(
    name="toy",
    pixels=32,
    objects=OBJECTS,
    styles=STYLES,
    vocabulary=560,
    window=24,
    text_width=16,
    text_layers=1,
    latent=4,
    vae=(16, 16, 16),
    unet=(16, 16),
    attends=1,
    groups=(8, 8),
    copies=4,
    text_phase=Phase(4, 8, 1e-3),
    vae_phase=Phase(4, 4, 1e-3),
    decoder_phase=Phase(3, 4, 1e-3, coarse=True),
    unet_phases=(Phase(6, 4, 1e-3, ema=0.9), Phase(3, 4, 1e-3, ema=0.9)),
    seconds=(0.1, 0.1, 0.1, 0.1),
)


def sprites() -> Sprites:
    """Every object a shape of its own size, every style a colour of its own."""
    yy, xx = np.mgrid[:96, :96] - 47.5
    pixels, rows = [], []
    for thing in range(len(OBJECTS)):
        for style in range(len(STYLES)):
            sprite = np.zeros((96, 96, 4), np.uint8)
            sprite[..., :3] = (40 + 50 * thing, 200 - 150 * style, 90)
            sprite[..., 3] = 255 * (np.hypot(yy, xx * (1 + thing / 4)) < 44)
            pixels.append(sprite)
            rows.append((thing, style))
    table = np.asarray(rows)
    return Sprites(np.stack(pixels), table[:, 0], table[:, 1], OBJECTS, STYLES)
