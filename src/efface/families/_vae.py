"""What families share that draw in the latents of an AutoencoderKL: sizes and decoding."""

from __future__ import annotations

import torch

from efface.errors import WrongFile
from efface.model.family import Config, Part, Parts

__all__ = ["VAE", "decoded", "factor_of", "pixels_of", "unscaled"]

VAE = Part("vae", (("diffusers", "AutoencoderKL"),))


def factor_of(vae: Config) -> int:
    """Pixels a latent, along one side."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def pixels_of(name: str, extra: Config, default: tuple[int, int], step: int) -> tuple[int, int]:
    """Height and width of a picture: what the model says of itself (`size` in `efface.json`), else the default.

    Rounded down to multiples of `step`, as pipelines do. Raises WrongFile.
    """
    said = extra.get("size", default)
    if not isinstance(said, list | tuple) or len(said) != 2 or not all(isinstance(n, int) and n >= step for n in said):
        raise WrongFile(f"efface.json of {name}: size must be [height, width], each at least {step} pixels")
    height, width = said
    return height // step * step, width // step * step


def unscaled(net: Parts, x: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE knows them."""
    config = net.part("vae").config
    return x / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def decoded(net: Parts, x: torch.Tensor) -> torch.Tensor:
    """The VAE's latents -> pictures (n, 3, height, width) in [-1, 1], float32."""
    return net.part("vae").decode(x).sample.float()
