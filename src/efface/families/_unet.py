"""What families share whose denoiser is a U-Net with cross-attention and predicts noise or velocity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from efface.errors import Unavailable
from efface.families._roles import Roles, sites_of
from efface.families._vae import decoded, factor_of, pixels_of, unscaled
from efface.model.card import Card, Site
from efface.model.config import Config
from efface.model.family import Part, Parts, Scheduler, Seat
from efface.model.text import Context

__all__ = ["SCHEDULERS", "UNET", "UNetFamily", "latent_of", "sites", "waves"]

UNET = Part("unet", (("diffusers", "UNet2DConditionModel"),))
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
    (r"^add_embedding\.linear_1$", "pooled.in"),
    (r"^add_embedding\.linear_2$", "pooled.out"),
    (r"time_emb.*|time_embedding\..*", "time"),
    (r".*", "conv"),
)
CROSS = ("cross.k", "cross.v", "cross.q", "cross.out")
SELF = ("self.k", "self.v", "self.q", "self.out")


def sites(unet: Config) -> tuple[Site, ...]:
    """Every linear and convolution weight of the U-Net; text enters at the keys and values of `attn2`."""
    from diffusers import UNet2DConditionModel

    doors = {"cross.k": "text", "cross.v": "text"}
    return sites_of(UNet2DConditionModel, unet, ROLES, doors, (torch.nn.Linear, torch.nn.Conv2d))


def latent_of(name: str, unet: Config, vae: Config, extra: Config) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Latents (channels, height, width) and the picture's (height, width).

    Raises WrongFile, Unavailable for a U-Net that takes more than latents, as those for inpainting do.
    """
    takes, gives = unet.whole("in_channels"), unet.whole("out_channels", 4)
    if takes != gives:
        raise Unavailable(
            f"the U-Net of {name} takes {takes} channels and gives {gives}: it needs a picture beside the prompt; "
            "use a text-to-image model"
        )
    factor, (height, width) = factor_of(vae), unet.pair("sample_size")
    size = pixels_of(extra, (height * factor, width * factor), factor)
    return (takes, size[0] // factor, size[1] // factor), size


def waves(number: float, width: int) -> torch.Tensor:
    """(1, width): a number as sines and cosines of falling frequency, as latent consistency models are told theirs."""
    half = width // 2
    angles = 1000 * number * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))[None]


class UNetFamily:
    """Steps of a diffusion sampler, the U-Net's call, the VAE, and where rules sit."""

    schedulers = SCHEDULERS
    scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "xattn": CROSS,
        "xattn-strict": ("cross.k", "cross.v"),
        "selfattn": SELF,
        "noxattn": (*SELF, "ff.in", "ff.out", "time", "pooled.in", "pooled.out", "conv"),
        "ff-out": ("ff.out",),
    }

    def told(self, net: Parts, context: Context, guidance: float) -> Context:
        """The context as it is, guidance compares two rows; with the guidance in it where the U-Net reads that."""
        config: Any = net.denoiser.config
        if not (width := config.time_cond_proj_dim):
            return context
        rows = waves(guidance - 1, int(width)).to(net.device, net.dtype).repeat(len(context), 1)
        return Context({**context.tensors, "guidance": rows})

    def times(self, net: Parts, scheduler: Scheduler, steps: int) -> torch.Tensor:
        """The scheduler's timesteps."""
        scheduler.set_timesteps(steps, device=net.device)
        return scheduler.timesteps

    def start(self, net: Parts, noise: torch.Tensor, scheduler: Scheduler) -> torch.Tensor:
        """Noise at the scheduler's first level."""
        return noise * scheduler.init_noise_sigma

    def predict(self, net: Parts, x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        """(r, c, h, w) -> (r, c, h, w)."""
        told = context.tensors.get("guidance")
        return net.denoiser(x, time, timestep_cond=told, **self.arguments(context)).sample

    def arguments(self, context: Context) -> dict[str, object]:
        """How the U-Net is told its text."""
        return {"encoder_hidden_states": context.tensors["rows"]}

    def decode(self, net: Parts, x: torch.Tensor) -> torch.Tensor:
        """Through the VAE."""
        return decoded(net, unscaled(net, x))

    def seats(self, card: Card, place: str) -> tuple[Seat, ...]:
        """Keys and values of cross-attention, or its whole block."""
        if place == "key-value":
            return tuple(Seat(s.name, s.name) for s in card.select("cross.k", "cross.v"))
        blocks = [s.name.rpartition(".")[0] for s in card.select("cross.k")]
        return tuple(Seat(block, block) for block in blocks)
