"""A random tiny pipeline of every family: a row of the table builds one. Nothing else in the tests knows a family.

Each pipeline reacts to its prompt: weights of the text path are multiplied until another prompt moves some pixel by a
tenth of the range.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["FAMILIES", "REFERENCE", "SD_UNETS", "MakePipe", "Tiny", "config_of", "make_pipe"]

REFERENCE = Path(__file__).parent / "reference" / "tiny-sd"
MakePipe = Callable[..., Any]

WORDS = 30.0  # what token embeddings of CLIP are multiplied by: at their start they are lost beside the positions
T5_WORDS = 1024


@dataclass(frozen=True)
class Tiny:
    """One tiny pipeline."""

    family: str
    make: Callable[[], Any]
    extra: dict[str, Any] = field(default_factory=dict)
    """What its `efface.json` says."""
    guided: bool = True
    """Whether guidance compares with an unconditional side."""
    told: bool = True
    """Whether guidance changes anything."""
    seats: bool = True
    """Whether rules have seats inside the denoiser."""
    reads_on: bool = False
    """Whether some encoder reads on where CLIP's window ends."""
    fast: bool = True
    """Whether it is its family's smallest case."""
    absent: tuple[str, ...] = ()
    """Parts that it lacks; diffusers has to be told so when it loads the folder."""

    def build(self) -> Any:
        """A fresh pipeline; always the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval().requires_grad_(False)
        return pipe

    def save(self, folder: Path, dtype: torch.dtype | None = None) -> Path:
        """The pipeline as a folder."""
        pipe = self.build()
        (pipe if dtype is None else pipe.to(dtype)).save_pretrained(folder)
        if self.extra:
            (folder / "efface.json").write_text(json.dumps(self.extra))
        return folder

    def open(self, folder: Path) -> Any:
        """The folder as diffusers loads it."""
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(self.absent))
        pipe.set_progress_bar_config(disable=True)
        return pipe


# --- the smallest pipeline, with other seeds and shapes ---------------------------------------------------------------


def config_of(part: str) -> dict[str, Any]:
    """A configuration of the reference pipeline."""
    return json.loads((REFERENCE / part / "config.json").read_text())


# The U-Nets of Stable Diffusion 1.x and 2.x; every other value is diffusers' default.
SD_UNETS: dict[str, dict[str, Any]] = {
    "1.x": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "2.x": {
        "sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
}  # fmt: skip


def make_pipe(seed: int = 0, dtype: torch.dtype | None = None, scheduler: str = "dpm", **unet: Any) -> Any:
    """A random StableDiffusionPipeline shaped like tests/reference/tiny-sd; the same seed, the same weights.

    scheduler: dpm (as the bundled models), pndm, ddim, ancestral. unet: overrides of its configuration.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    kinds: dict[str, Any] = {
        "dpm": DPMSolverMultistepScheduler,
        "pndm": PNDMScheduler,
        "ddim": DDIMScheduler,
        "ancestral": EulerAncestralDiscreteScheduler,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet2DConditionModel.from_config({**config_of("unet"), **unet})
        text = CLIPTextModel(CLIPTextConfig(**config_of("text_encoder")))
        vae = AutoencoderKL.from_config(config_of("vae"))
    schedule = json.loads((REFERENCE / "scheduler" / "scheduler_config.json").read_text())
    pipe = StableDiffusionPipeline(
        unet=network,  # pyright: ignore[reportArgumentType]
        text_encoder=text,
        vae=vae,  # pyright: ignore[reportArgumentType]
        tokenizer=CLIPTokenizer.from_pretrained(REFERENCE / "tokenizer"),
        scheduler=kinds[scheduler].from_config(schedule),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.unet, pipe.text_encoder, pipe.vae):
        module.eval().requires_grad_(False)
    return pipe if dtype is None else pipe.to(dtype)


# --- parts that rows share --------------------------------------------------------------------------------------------


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(REFERENCE / "tokenizer")


def clip(width: int, act: str = "quick_gelu", projects: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=1558, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=24, projection_dim=width, hidden_act=act, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    encoder = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
    with torch.no_grad():
        encoder.get_input_embeddings().weight.mul_(WORDS)
    return encoder


def t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=T5_WORDS, d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )  # fmt: skip
    return T5EncoderModel(config)


def t5_tokenizer() -> Any:
    """One token a word that CLIP's tokenizer knows, else one a letter."""
    from transformers import T5TokenizerFast

    known = json.loads((REFERENCE / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(w.removesuffix("</w>") for w in known if w.endswith("</w>"))
    pieces = [(f"▁{w}", -5.0) for w in words if w.isalpha() and len(w) > 1]
    letters = [(chr(c), -20.0) for c in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -10.0), *letters, *pieces]
    return T5TokenizerFast(vocab=vocabulary[:T5_WORDS], extra_ids=0)


def vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, **more,
    )  # fmt: skip


def flow_vae() -> Any:
    return vae(use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06)


def boosted(network: torch.nn.Module, factors: dict[str, float]) -> Any:
    """The network with the weights whose names end so multiplied."""
    for name, parameter in network.named_parameters():
        for ending, factor in factors.items():
            if name.endswith(ending):
                parameter.data.mul_(factor)
    return network


# --- the rows ---------------------------------------------------------------------------------------------------------


def stable_diffusion() -> Any:
    pipe = make_pipe()
    pipe.text_encoder.get_input_embeddings().weight.data.mul_(WORDS)
    boosted(pipe.unet, {"attn2.to_v.weight": 4.0, "attn2.to_out.0.weight": 4.0})
    return pipe


def sdxl(**index: Any) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True,
        cross_attention_dim=80, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 48, norm_num_groups=8,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        unet=boosted(unet, {"attn2.to_v.weight": 4.0, "attn2.to_out.0.weight": 4.0}),
        vae=vae(scaling_factor=0.13025), text_encoder=clip(32, projects=False), text_encoder_2=clip(48, "gelu"),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), add_watermarker=False,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading",
            steps_offset=1,
        ), **index,
    )  # fmt: skip


def sd3(reads_t5: bool = True, **transformer: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    network = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=128, pooled_projection_dim=80,
        pos_embed_max_size=32, **transformer,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=boosted(network, {"add_v_proj.weight": 4.0, "attn.to_out.0.weight": 4.0}),
        vae=flow_vae(), text_encoder=clip(32), text_encoder_2=clip(48, "gelu"),
        text_encoder_3=t5(128) if reads_t5 else None, tokenizer=tokenizer(), tokenizer_2=tokenizer(),
        tokenizer_3=t5_tokenizer() if reads_t5 else None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux(dev: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    network = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=128, pooled_projection_dim=32, guidance_embeds=dev, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    attention = {f"{name}.weight": 4.0 for name in ("add_v_proj", "attn.to_v", "attn.to_out.0", "proj_out")}
    return FluxPipeline(
        transformer=boosted(network, attention | {"text_embedder.linear_1.weight": 4.0, "norm.linear.weight": 2.0}),
        vae=flow_vae(), text_encoder=clip(32, projects=False), text_encoder_2=t5(128), tokenizer=tokenizer(),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev),
    )  # fmt: skip


SMALL = {"size": [32, 32]}  # FLUX draws 128 x 128 latents by default
FAMILIES = {
    "stable-diffusion": Tiny("stable-diffusion", stable_diffusion),
    "sdxl": Tiny("sdxl", sdxl),
    "sdxl with an empty text": Tiny("sdxl", lambda: sdxl(force_zeros_for_empty_prompt=False), fast=False),
    "sd3": Tiny("sd3", sd3, reads_on=True),
    "sd3.5": Tiny("sd3", lambda: sd3(dual_attention_layers=(0,), qk_norm="rms_norm"), reads_on=True, fast=False),
    "sd3 without T5": Tiny("sd3", lambda: sd3(reads_t5=False), fast=False, absent=("text_encoder_3", "tokenizer_3")),
    "flux dev": Tiny("flux", lambda: flux(True), SMALL, guided=False, seats=False, reads_on=True),
    "flux schnell": Tiny(
        "flux", lambda: flux(False), SMALL, guided=False, seats=False, told=False, reads_on=True, fast=False
    ),
}
