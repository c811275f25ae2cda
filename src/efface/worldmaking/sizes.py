"""What each model of the world is made of and how long each of its parts learns."""

from __future__ import annotations

from dataclasses import dataclass

from efface import world
from efface.errors import UnknownName
from efface.worldmaking.sittings import Phase

__all__ = ["MICRO", "MINI", "SIZES", "Size", "size"]


@dataclass(frozen=True)
class Size:
    """One model: what it draws, the shape of its networks, the phases of its parts.

    `vae` and `unet` are block widths: the VAE halves the picture once less often than it has blocks; the first
    `attends` blocks of the U-Net read the text. `groups`: of the group norms of VAE and U-Net. `decoder_phase`: the
    VAE's decoder alone, once its latents stand. `copies`: scenes of every sprite whose latents are stored.
    `seconds`: of a step of text, VAE, decoder and U-Net on two free cores.
    """

    name: str
    pixels: int
    objects: tuple[str, ...]
    styles: tuple[str, ...]
    vocabulary: int
    window: int
    text_width: int
    text_layers: int
    latent: int  # channels
    vae: tuple[int, ...]
    unet: tuple[int, ...]
    attends: int
    groups: tuple[int, int]
    copies: int
    text_phase: Phase
    vae_phase: Phase
    decoder_phase: Phase
    unet_phases: tuple[Phase, ...]
    seconds: tuple[float, float, float, float]
    seed: int = 7

    @property
    def side(self) -> int:
        """Side of a latent."""
        return self.pixels // 2 ** (len(self.vae) - 1)


MICRO_OBJECTS = (
    *("dog", "cat", "lion", "elephant", "penguin", "owl", "octopus", "butterfly"),
    *("banana", "cactus", "sunflower", "pizza", "doughnut", "airplane", "bicycle", "sailboat"),
    *("rocket", "bomb", "dagger", "guitar", "violin", "key", "umbrella", "crown"),
)

MICRO = Size(
    name="micro",
    pixels=32,
    objects=MICRO_OBJECTS,
    styles=("noto", "blob", "fluent", "monochrome"),  # the four that differ most at 32 pixels
    vocabulary=1200,
    window=24,
    text_width=96,
    text_layers=2,
    latent=8,
    vae=(16, 32, 48),
    unet=(32, 56),
    attends=2,
    groups=(8, 8),
    copies=64,
    text_phase=Phase(1000, 128, 2e-3),
    vae_phase=Phase(3400, 16, 1.5e-3),
    decoder_phase=Phase(1500, 16, 1.5e-3),
    unet_phases=(Phase(6500, 32, 2e-3, ema=0.998),),
    seconds=(0.17, 0.11, 0.09, 0.14),
)

MINI = Size(
    name="mini",
    pixels=64,
    objects=tuple(o.name for o in world.judged()),
    styles=world.styles(),
    vocabulary=2200,
    window=24,
    text_width=192,
    text_layers=4,
    latent=4,
    vae=(32, 64, 96),
    unet=(96, 160, 256),
    attends=2,
    groups=(16, 32),
    copies=32,
    text_phase=Phase(2500, 128, 1.5e-3),
    vae_phase=Phase(3000, 16, 1e-3),
    decoder_phase=Phase(3000, 8, 1e-3, coarse=True),
    unet_phases=(
        Phase(11000, 32, 7e-4, ema=0.999, coarse=True),
        Phase(3200, 32, 6e-4, ema=0.999, coarse=True),
        Phase(4500, 32, 6e-4, ema=0.999, coarse=True),
        Phase(4000, 32, 6e-4, ema=0.999, coarse=True),
    ),
    seconds=(0.45, 0.55, 0.3, 0.7),
)

SIZES = {size.name: size for size in (MICRO, MINI)}


def size(name: str) -> Size:
    """The size of that name; `UnknownName` for another."""
    if name not in SIZES:
        raise UnknownName("model of the world", name, SIZES)
    return SIZES[name]
