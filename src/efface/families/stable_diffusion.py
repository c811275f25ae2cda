"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net with cross-attention, an AutoencoderKL.

Also the bundled models, which are the same classes in miniature. Facts about the family stand here and nowhere
else; the rest of the code asks for roles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from efface.errors import Unavailable
from efface.model.card import Card, Site, Stream, freeze

__all__ = ["StableDiffusion"]

# Role by the end of a module's name. Order matters: the first match wins.
ROLES: tuple[tuple[str, str], ...] = (
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


class StableDiffusion:
    """What is special about SD 1.x and 2.x. All methods are static: a family is a table, not a state."""

    pipelines = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    )
    denoiser = "unet"
    # Every class that a folder may name for a part, with its library: nothing else is ever imported for a folder.
    parts = (
        ("unet", (("diffusers", "UNet2DConditionModel"),)),
        ("vae", (("diffusers", "AutoencoderKL"),)),
        ("text_encoder", (("transformers", "CLIPTextModel"),)),
        ("tokenizer", (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))),
    )
    schedulers = (
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
    steps = 50
    guidance = 7.5

    @staticmethod
    def card(name: str, configs: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any]) -> Card:
        """From the configurations of `unet`, `text_encoder`, `vae`, `scheduler`; weights are never read.

        extra: `steps`, `guidance`, `preset` where a model states its own. Raises Unavailable for a U-Net that takes
        more than latents, as those for inpainting do.
        """
        unet, text, vae = configs["unet"], configs["text_encoder"], configs["vae"]
        takes, gives = unet["in_channels"], unet.get("out_channels", 4)
        if takes != gives:
            raise Unavailable(
                f"the U-Net of {name} takes {takes} channels and gives {gives}: it needs a picture beside the prompt; "
                "use a text-to-image model"
            )
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        side = unet["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        scheduler = configs["scheduler"]
        if (named := scheduler.get("_class_name")) not in StableDiffusion.schedulers:
            raise Unavailable(
                f"{name} names a scheduler {str(named)[:60]!r}; known: {', '.join(StableDiffusion.schedulers)}"
            )
        return Card(
            name=name,
            family="stable-diffusion",
            streams=(Stream("text", unet["cross_attention_dim"], text["max_position_embeddings"], causal=True),),
            sites=tuple(_sites(unet)),
            prediction=scheduler.get("prediction_type", "epsilon"),
            schedule=freeze(scheduler.items()),
            size=(height * factor, width * factor),
            latent=(unet["in_channels"], height, width),
            steps=int(extra.get("steps", StableDiffusion.steps)),
            guidance=float(extra.get("guidance", StableDiffusion.guidance)),
            preset=str(extra.get("preset", "efface")),
            captions=None if extra.get("captions") is None else tuple(map(str, extra["captions"])),
        )


def _sites(unet: Mapping[str, Any]) -> list[Site]:
    """Every linear and convolution weight of the U-Net, from a network without memory (meta device)."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network: Any = UNet2DConditionModel.from_config(dict(unet))
    found = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            role = next(role for pattern, role in ROLES if re.search(pattern, name))
            stream = "text" if role in ("cross.k", "cross.v") else None
            found.append(Site(name, role, tuple(module.weight.shape), stream, module.bias is not None))
    return sorted(found, key=lambda s: s.name)


PLUGIN = StableDiffusion
