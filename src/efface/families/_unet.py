"""What families share whose denoiser is a U-Net with cross-attention and predicts noise or velocity."""

from __future__ import annotations

from typing import Any

import torch

from efface.errors import Unavailable
from efface.families._roles import Roles, sites_of
from efface.model.card import Card, Site
from efface.model.family import Config, Part, Parts, Seat
from efface.model.text import Context

__all__ = ["PARTS", "SCHEDULERS", "UNetFamily", "latent_of", "sites"]

PARTS = (
    Part("unet", (("diffusers", "UNet2DConditionModel"),)),
    Part("vae", (("diffusers", "AutoencoderKL"),)),
)
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
ROLES: Roles = (
    (r"attn2\.to_k$", "cross.k"),
    (r"attn2\.to_v$", "cross.v"),
    (r"attn2\.to_q$", "cross.q"),
    (r"attn2\.to_out\.0$", "cross.out"),
    (r"attn1\.to_k$", "self.k"),
    (r"attn1\.to_v$", "self.v"),
    (r"attn1\.to_q$", "self.q"),
    (r"attn1\.to_out\.0$", "self.out"),
    (r"ff\.net\.0\.proj$", "ff.in"),
    (r"ff\.net\.2$", "ff.out"),
    (r"time_emb.*|time_embedding\..*", "time"),
    (r".*", "conv"),
)


def sites(unet: Config) -> tuple[Site, ...]:
    """Every linear and convolution weight of the U-Net; text enters at the keys and values of `attn2`."""
    from diffusers import UNet2DConditionModel

    doors = {"cross.k": "text", "cross.v": "text"}
    return sites_of(UNet2DConditionModel, unet, ROLES, doors, (torch.nn.Linear, torch.nn.Conv2d))


def latent_of(name: str, unet: Config, vae: Config) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Latents (channels, height, width) and the picture's (height, width).

    Raises Unavailable for a U-Net that takes more than latents, as those for inpainting do.
    """
    takes, gives = unet["in_channels"], unet.get("out_channels", 4)
    if takes != gives:
        raise Unavailable(
            f"the U-Net of {name} takes {takes} channels and gives {gives}: it needs a picture beside the prompt; "
            "use a text-to-image model"
        )
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    side = unet["sample_size"]
    height, width = (side, side) if isinstance(side, int) else side
    return (takes, height, width), (height * factor, width * factor)


class UNetFamily:
    """Steps of a diffusion sampler, the U-Net's call, the VAE, and where rules sit."""

    schedulers = SCHEDULERS

    def told(self, net: Parts, context: Context, guidance: float) -> Context:
        """The context as it is: guidance compares two rows."""
        return context

    def times(self, net: Parts, scheduler: Any, steps: int) -> torch.Tensor:
        """The scheduler's timesteps."""
        scheduler.set_timesteps(steps, device=net.device)
        return scheduler.timesteps

    def start(self, net: Parts, noise: torch.Tensor, scheduler: Any) -> torch.Tensor:
        """Noise at the scheduler's first level."""
        return noise * scheduler.init_noise_sigma

    def predict(self, net: Parts, x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        """(r, c, h, w) -> (r, c, h, w)."""
        return net.denoiser(x, time, **self.arguments(context)).sample

    def arguments(self, context: Context) -> dict[str, Any]:
        """How the U-Net is told its text."""
        return {"encoder_hidden_states": context.tensors["rows"]}

    def decode(self, net: Parts, x: torch.Tensor) -> torch.Tensor:
        """Through the VAE."""
        vae = net.part("vae")
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return vae.decode(x / vae.config.scaling_factor + shift).sample.float()

    def seats(self, card: Card, place: str) -> tuple[Seat, ...]:
        """Keys and values of cross-attention, or its whole block."""
        if place == "key-value":
            return tuple(Seat(s.name, s.name) for s in card.select("cross.k", "cross.v"))
        blocks = [s.name.rpartition(".")[0] for s in card.select("cross.k")]
        return tuple(Seat(block, block) for block in blocks)
