"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a U-Net with cross-attention, an AutoencoderKL.

Also the bundled models, which are the same classes in miniature. Facts about the family stand here and nowhere
else; the rest of the code asks for roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from efface.families._roles import schedule_of
from efface.families._text import CLIP_TOKENIZERS, clip_keys, clip_sizes, clip_spans, ids_of, read
from efface.families._unet import UNET, UNetFamily, latent_of, sites
from efface.families._vae import VAE
from efface.model.card import Card, Door, Stream
from efface.model.config import Config
from efface.model.family import Part, Parts
from efface.model.text import Context, Encoded, Encoding

__all__ = ["StableDiffusion"]


class StableDiffusion(UNetFamily):
    """What is special about SD 1.x and 2.x."""

    name = "stable-diffusion"
    pipelines = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    )
    parts = (
        UNET,
        Part("text_encoder", (("transformers", "CLIPTextModel"),)),
        VAE,
        Part("tokenizer", CLIP_TOKENIZERS, weighed=False),
    )

    def card(self, name: str, configs: Mapping[str, Config], extra: Config) -> Card:
        """From the configurations of `unet`, `text_encoder`, `vae`, `scheduler`; weights are never read."""
        unet, text, scheduler = configs["unet"], configs["text_encoder"], configs["scheduler"]
        latent, size = latent_of(name, unet, configs["vae"], extra)
        width = unet.whole("cross_attention_dim")
        return Card(
            name=name,
            family=self.name,
            streams=(Stream("text", width, text.whole("max_position_embeddings"), causal=True),),
            doors=(Door("text", ("text",), width),),
            sites=sites(unet),
            prediction=scheduler.text("prediction_type", "epsilon"),
            schedule=schedule_of(name, scheduler, self.schedulers),
            size=size,
            latent=latent,
            steps=extra.whole("steps", 50),
            guidance=extra.number("guidance", 7.5),
            preset=extra.text("preset", "efface"),
            captions=extra.texts("captions"),
            blank="nothing" if unet.values.get("time_cond_proj_dim") else "text",
        )

    def embedding(self, stream: Stream) -> tuple[str, tuple[str, ...]]:
        """Of the one text encoder."""
        return "text_encoder", clip_keys()

    def sizes(self, net: Parts, text: str) -> tuple[int, int]:
        """Without both ends."""
        return clip_sizes(net, "tokenizer", text, net.card.stream("text").length)

    def encode(self, net: Parts, texts: Sequence[str], whole: bool) -> list[Encoded]:
        """The last hidden state. The encoder is causal, so nothing after the last content token can change its row."""
        ids = {text: tuple(ids_of(net, "tokenizer", text)) for text in texts}
        window, pad = net.card.stream("text").length, net.part("tokenizer").pad_token_id
        length = {i: window if whole else max(1, len(i) - 1) for i in ids.values()}
        padded = {i: (i + (pad,) * length[i])[: length[i]] for i in length}
        rows: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}
        for size in sorted(set(length.values())):
            group = [padded[i] for i in length if length[i] == size]
            rows |= read(net, "text_encoder", list(dict.fromkeys(group)), lambda said: (said[0],))
        spans = {i: clip_spans(len(i), length[i]) for i in length}
        made = {i: Encoding(rows[padded[i]][0], spans[i]) for i in length}
        return [Encoded(text, {"text": made[ids[text]]}) for text in texts]

    def context(self, net: Parts, texts: Sequence[Encoded]) -> Context:
        """`rows` (n, L, d)."""
        return Context({"rows": torch.stack([t.streams["text"].rows for t in texts])})

    def sides(self, net: Parts, prompts: Sequence[str], guided: bool) -> tuple[Context, Context | None]:
        """The unconditional side is the empty text; there is none where the U-Net reads the guidance itself."""
        guided = guided and net.card.blank != "nothing"
        blank, *texts = net.encode(["", *prompts])
        return self.context(net, texts), self.context(net, [blank]) if guided else None

    def pipeline(self, parts: Mapping[str, object], index: Config) -> object:
        """A StableDiffusionPipeline without safety checker."""
        from diffusers import StableDiffusionPipeline

        made: Any = StableDiffusionPipeline
        return made(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


PLUGIN = StableDiffusion
