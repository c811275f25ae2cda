"""Stable Diffusion XL: two CLIP text encoders side by side, a U-Net that is also told a pooled vector and sizes.

Podell et al., "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", 2023, arXiv 2307.01952.
Text enters at the keys and values of cross-attention. The pooled vector of the second encoder enters `add_embedding`
together with the size numbers; no published edit touches it, so it is a stream and no door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from efface.errors import Unavailable
from efface.families._roles import schedule_of
from efface.families._text import CLIP_TOKENIZERS, beside, clip, clip_keys, clip_sizes, pooled
from efface.families._unet import UNET, UNetFamily, latent_of, sites
from efface.families._vae import VAE, decoded, unscaled
from efface.model.card import Card, Door, Stream
from efface.model.family import Config, Part, Parts
from efface.model.text import Context, Encoded

__all__ = ["StableDiffusionXL"]


class StableDiffusionXL(UNetFamily):
    """What is special about SDXL."""

    name = "sdxl"
    pipelines = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    parts = (
        UNET,
        Part("text_encoder", (("transformers", "CLIPTextModel"),)),
        Part("text_encoder_2", (("transformers", "CLIPTextModelWithProjection"),)),
        VAE,
        Part("tokenizer", CLIP_TOKENIZERS, weighed=False),
        Part("tokenizer_2", CLIP_TOKENIZERS, weighed=False),
    )

    def card(self, name: str, configs: Mapping[str, Config], extra: Config) -> Card:
        """From the configurations of its parts. Raises Unavailable for a U-Net that is told something else."""
        unet, first, second = configs["unet"], configs["text_encoder"], configs["text_encoder_2"]
        scheduler = configs["scheduler"]
        told = unet.get("addition_embed_type")
        if told != "text_time" or unet.get("time_cond_proj_dim"):
            what = "the guidance" if told == "text_time" else f"{told!r} in place of 'text_time'"
            raise Unavailable(f"the U-Net of {name} is told {what}, which is not supported yet; use the base model")
        latent, size = latent_of(name, unet, configs["vae"], extra)
        width = unet["cross_attention_dim"]
        zeros = configs["index"].get("force_zeros_for_empty_prompt", True)
        return Card(
            name=name,
            family=self.name,
            streams=(
                Stream("text", width, first["max_position_embeddings"], causal=True),
                Stream("pooled", second["projection_dim"], 1, causal=False),
            ),
            doors=(Door("text", ("text",), width),),
            sites=sites(unet),
            prediction=scheduler.get("prediction_type", "epsilon"),
            schedule=schedule_of(name, scheduler, self.schedulers),
            size=size,
            latent=latent,
            steps=int(extra.get("steps", 50)),
            guidance=float(extra.get("guidance", 5.0)),
            preset=str(extra.get("preset", "efface")),
            captions=None if extra.get("captions") is None else tuple(map(str, extra["captions"])),
            blank="zeros" if zeros else "text",
        )

    def embedding(self, stream: Stream) -> tuple[str, tuple[str, ...]]:
        """Of the first encoder for the rows, of the second for the vector: each is fingerprinted once."""
        if stream.name == "pooled":
            return "text_encoder_2", clip_keys(wrapped=True)
        return "text_encoder", clip_keys()

    def sizes(self, net: Parts, text: str) -> tuple[int, int]:
        """Without both ends, by the tokenizer that makes more of it."""
        length = net.card.stream("text").length
        return max(clip_sizes(net, tokenizer, text, length) for tokenizer in ("tokenizer", "tokenizer_2"))

    def encode(self, net: Parts, texts: Sequence[str], whole: bool) -> list[Encoded]:
        """The layers before the last side by side; the vector of the second encoder."""
        length = net.card.stream("text").length
        pairs = zip(clip(net, "", texts, length), clip(net, "_2", texts, length), strict=True)
        made = ({"text": beside(pair, whole), "pooled": pooled(pair[1].vector)} for pair in pairs)
        return [Encoded(text, streams) for text, streams in zip(texts, made, strict=True)]

    def context(self, net: Parts, texts: Sequence[Encoded]) -> Context:
        """`rows` (n, L, d), `pooled` (n, p), `sizes` (n, 6): original size, corner of the crop, size that is drawn."""
        size = torch.tensor([*net.card.size, 0, 0, *net.card.size], dtype=torch.float32)
        return Context(
            {
                "rows": torch.stack([t.streams["text"].rows for t in texts]),
                "pooled": torch.stack([t.streams["pooled"].rows[0] for t in texts]),
                "sizes": size.repeat(len(texts), 1),
            }
        )

    def sides(self, net: Parts, prompts: Sequence[str], guided: bool) -> tuple[Context, Context | None]:
        """The unconditional side is zeros or the empty text, as the index says; the sizes are the same."""
        blank, *texts = net.encode(["", *prompts])
        if not guided:
            return self.context(net, texts), None
        empty = self.context(net, [blank])
        if net.card.blank == "zeros":
            silent = {n: t if n == "sizes" else torch.zeros_like(t) for n, t in empty.tensors.items()}
            empty = Context(silent)
        return self.context(net, texts), empty

    def arguments(self, context: Context) -> dict[str, Any]:
        """How the U-Net is told its text, and sizes beside the pooled vector."""
        tensors = context.tensors
        added = {"text_embeds": tensors["pooled"], "time_ids": tensors["sizes"]}
        return {"encoder_hidden_states": tensors["rows"], "added_cond_kwargs": added}

    def decode(self, net: Parts, x: torch.Tensor) -> torch.Tensor:
        """Through the VAE, which overflows in half precision where it says so and is widened for that long."""
        vae = net.part("vae")
        mean, spread = (getattr(vae.config, f"latents_{n}", None) for n in ("mean", "std"))
        wide = vae.dtype == torch.float16 and vae.config.force_upcast
        x = x.float() if wide else x
        if mean is None or spread is None:
            x = unscaled(net, x)
        else:
            mean, spread = (torch.tensor(n, device=x.device, dtype=x.dtype).view(1, -1, 1, 1) for n in (mean, spread))
            x = x * spread / vae.config.scaling_factor + mean
        if not wide:
            return decoded(net, x)
        try:
            vae.to(torch.float32)
            return decoded(net, x)
        finally:
            vae.to(torch.float16)

    def pipeline(self, parts: Mapping[str, Any], index: Config) -> Any:
        """A StableDiffusionXLPipeline without watermark."""
        from diffusers import StableDiffusionXLPipeline

        zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)


PLUGIN = StableDiffusionXL
