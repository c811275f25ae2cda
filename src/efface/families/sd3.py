"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, a transformer in which pictures and text attend jointly.

Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024, arXiv 2403.03206.
Text enters at `context_embedder`: the rows of both CLIP encoders side by side, padded with zeros, then those of T5; and
at `time_text_embed.text_embedder`: the vectors of both CLIP encoders. T5 may be missing; zeros stand in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from efface.families._flow import FlowFamily, shift, sites
from efface.families._roles import schedule_of
from efface.families._text import (
    CLIP_TOKENIZERS,
    T5_TOKENIZERS,
    beside,
    clip,
    clip_keys,
    clip_sizes,
    pooled,
    t5,
    t5_sizes,
)
from efface.families._vae import VAE, factor_of, pixels_of
from efface.model.card import Card, Door, Stream
from efface.model.family import Config, Part, Parts, Seat
from efface.model.text import Context, Encoded

__all__ = ["StableDiffusion3"]

CLIP = (("transformers", "CLIPTextModelWithProjection"),)
T5_LENGTH = 256  # the pipeline's default


class StableDiffusion3(FlowFamily):
    """What is special about SD 3 and 3.5."""

    name = "sd3"
    pipelines = (
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
    )
    parts = (
        Part("transformer", (("diffusers", "SD3Transformer2DModel"),)),
        Part("text_encoder", CLIP),
        Part("text_encoder_2", CLIP),
        Part("text_encoder_3", (("transformers", "T5EncoderModel"),), needed=False),
        VAE,
        Part("tokenizer", CLIP_TOKENIZERS, weighed=False),
        Part("tokenizer_2", CLIP_TOKENIZERS, weighed=False),
        Part("tokenizer_3", T5_TOKENIZERS, weighed=False, needed=False),
    )

    def card(self, name: str, configs: Mapping[str, Config], extra: Config) -> Card:
        """From the configurations of its parts; without `text_encoder_3` there is no stream of T5."""
        from diffusers import SD3Transformer2DModel

        transformer, first, second = (configs[n] for n in ("transformer", "text_encoder", "text_encoder_2"))
        factor, side = factor_of(configs["vae"]), transformer["sample_size"]
        size = pixels_of(name, extra, (side * factor, side * factor), transformer["patch_size"] * factor)
        width = transformer["joint_attention_dim"]
        clips = Stream("clip", first["hidden_size"] + second["hidden_size"], first["max_position_embeddings"], True)
        rows = (clips, Stream("t5", width, T5_LENGTH, False)) if "text_encoder_3" in configs else (clips,)
        vector = Stream("pooled", transformer["pooled_projection_dim"], 1, causal=False)
        return Card(
            name=name,
            family=self.name,
            streams=(*rows, vector),
            doors=(Door("text", tuple(s.name for s in rows), width), Door("pooled", ("pooled",), vector.width)),
            sites=sites(SD3Transformer2DModel, transformer),
            prediction="flow",
            schedule=schedule_of(name, configs["scheduler"], self.schedulers),
            size=size,
            latent=(transformer["in_channels"], size[0] // factor, size[1] // factor),
            steps=int(extra.get("steps", 28)),
            guidance=float(extra.get("guidance", 7.0)),
            preset=str(extra.get("preset", "efface")),
            captions=None if extra.get("captions") is None else tuple(map(str, extra["captions"])),
        )

    def embedding(self, stream: Stream) -> tuple[str, tuple[str, ...]]:
        """Of the first CLIP for the rows, of the second for the vector: each encoder is fingerprinted once."""
        if stream.name == "t5":
            return "text_encoder_3", ("shared.weight", "encoder.embed_tokens.weight")
        return "text_encoder" if stream.name == "clip" else "text_encoder_2", clip_keys(wrapped=True)

    def sizes(self, net: Parts, text: str) -> tuple[int, int]:
        """By T5, which reads on where CLIP's window ends; without it by CLIP."""
        if _reads_t5(net.card):
            return t5_sizes(net, "tokenizer_3", text, T5_LENGTH)
        length = net.card.stream("clip").length
        return max(clip_sizes(net, tokenizer, text, length) for tokenizer in ("tokenizer", "tokenizer_2"))

    def encode(self, net: Parts, texts: Sequence[str], whole: bool) -> list[Encoded]:
        """The layers before the last of both CLIP encoders side by side, T5's last, and both vectors in a row."""
        length = net.card.stream("clip").length
        pairs = list(zip(clip(net, "", texts, length), clip(net, "_2", texts, length), strict=True))
        streams = [{"clip": beside(pair, whole)} for pair in pairs]
        if _reads_t5(net.card):
            for found, rows in zip(streams, t5(net, "_3", texts, T5_LENGTH), strict=True):
                found["t5"] = rows
        for found, pair in zip(streams, pairs, strict=True):
            found["pooled"] = pooled(torch.cat([said.vector for said in pair]))
        return [Encoded(text, found) for text, found in zip(texts, streams, strict=True)]

    def context(self, net: Parts, texts: Sequence[Encoded]) -> Context:
        """`rows` (n, L, d) as they go through the door, zeros where T5 is missing; `pooled` (n, p)."""
        door = net.card.doors[0]
        rows = torch.stack([torch.cat([e.rows for e in t.at(door)]) for t in texts])
        if not _reads_t5(net.card):
            rows = torch.nn.functional.pad(rows, (0, 0, 0, T5_LENGTH))
        return Context({"rows": rows, "pooled": torch.stack([t.streams["pooled"].rows[0] for t in texts])})

    def sides(self, net: Parts, prompts: Sequence[str], guided: bool) -> tuple[Context, Context | None]:
        """The unconditional side is the empty text."""
        blank, *texts = net.encode(["", *prompts])
        return self.context(net, texts), self.context(net, [blank]) if guided else None

    def times(self, net: Parts, scheduler: Any, steps: int) -> torch.Tensor:
        """The scheduler's timesteps, moved by the picture's size where the scheduler asks for it."""
        _, height, width = net.card.latent
        patch = net.part("transformer").config.patch_size
        moved = {"mu": shift(scheduler, (height // patch) * (width // patch))}
        scheduler.set_timesteps(steps, device=net.device, **(moved if scheduler.config.use_dynamic_shifting else {}))
        return scheduler.timesteps

    def predict(self, net: Parts, x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        """(r, c, h, w) -> (r, c, h, w)."""
        return net.denoiser(
            hidden_states=x,
            timestep=time.expand(len(x)),
            encoder_hidden_states=context.tensors["rows"],
            pooled_projections=context.tensors["pooled"],
        ).sample

    def seats(self, card: Card, place: str) -> tuple[Seat, ...]:
        """Keys and values that are made of text, or the picture's output of each joint attention."""
        if place == "key-value":
            return tuple(Seat(s.name, s.name) for s in card.select("text.k", "text.v"))
        return tuple(Seat(s.name, s.name.removesuffix(".to_out.0")) for s in card.select("joint.out"))

    def pipeline(self, parts: Mapping[str, Any], index: Config) -> Any:
        """A StableDiffusion3Pipeline."""
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline(**parts)


def _reads_t5(card: Card) -> bool:
    return any(s.name == "t5" for s in card.streams)


PLUGIN = StableDiffusion3
