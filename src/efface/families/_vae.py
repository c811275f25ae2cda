"""What families share that draw in the latents of an AutoencoderKL: sizes and decoding."""

from __future__ import annotations

import torch

from efface.errors import WrongFile
from efface.model.config import Config
from efface.model.family import Part, Parts

__all__ = ["VAE", "decoded", "factor_of", "pixels_of", "unscaled"]

VAE = Part("vae", (("diffusers", "AutoencoderKL"),))


def factor_of(vae: Config) -> int:
    """Pixels a latent, along one side."""
    return 2 ** (vae.size("block_out_channels") - 1)


def pixels_of(extra: Config, default: tuple[int, int], step: int) -> tuple[int, int]:
    """Height and width of a picture: what the model says of itself (`size` in `efface.json`), else the default.

    Rounded down to multiples of `step`, as pipelines do. Raises WrongFile.
    """
    height, width = extra.pair("size", default)
    if min(height, width) < step:
        raise WrongFile(f"{extra.where}: 'size' must be at least {step} by {step} pixels; write a larger one")
    return height // step * step, width // step * step


def unscaled(net: Parts, x: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE knows them."""
    config = net.part("vae").config
    return x / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def decoded(net: Parts, x: torch.Tensor) -> torch.Tensor:
    """The VAE's latents -> pictures (n, 3, height, width) in [-1, 1], float32."""
    return net.part("vae").decode(x).sample.float()
