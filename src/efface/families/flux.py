"""FLUX.1 dev and schnell, and their finetunes: T5, one CLIP vector, a transformer of double and single blocks.

Black Forest Labs, 2024. Text enters at `context_embedder` (T5) and at `time_text_embed.text_embedder` (CLIP's vector).
There is no unconditional side: dev was distilled to read the guidance as a number, schnell knows none. Latents are
packed two by two for the network alone; everything else sees (c, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from efface.errors import Unavailable
from efface.families._flow import FlowFamily, shift, sites
from efface.families._roles import schedule_of
from efface.families._text import CLIP_TOKENIZERS, T5_TOKENIZERS, clip, clip_keys, pooled, t5, t5_sizes
from efface.families._vae import VAE, factor_of, pixels_of
from efface.model.card import Card, Door, Stream
from efface.model.family import Config, Part, Parts, Seat
from efface.model.text import Context, Encoded

__all__ = ["Flux"]

T5_LENGTH = 512  # the pipeline's default
SIDE = 128  # latents along one side, the pipeline's default
LEVELS = 1000  # what a timestep is divided by


class Flux(FlowFamily):
    """What is special about FLUX.1."""

    name = "flux"
    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    parts = (
        Part("transformer", (("diffusers", "FluxTransformer2DModel"),)),
        Part("text_encoder", (("transformers", "CLIPTextModel"),)),
        Part("text_encoder_2", (("transformers", "T5EncoderModel"),)),
        VAE,
        Part("tokenizer", CLIP_TOKENIZERS, weighed=False),
        Part("tokenizer_2", T5_TOKENIZERS, weighed=False),
    )

    def card(self, name: str, configs: Mapping[str, Config], extra: Config) -> Card:
        """From the configurations of its parts. Raises Unavailable for one that needs a picture beside the prompt."""
        from diffusers import FluxTransformer2DModel

        transformer = configs["transformer"]
        takes = transformer["in_channels"]
        gives = transformer.get("out_channels") or takes
        if takes != gives:
            raise Unavailable(
                f"the transformer of {name} takes {takes} channels and gives {gives}: it needs a picture beside the "
                "prompt; use a text-to-image model"
            )
        factor = factor_of(configs["vae"])
        size = pixels_of(name, extra, (SIDE * factor, SIDE * factor), 2 * factor)
        dev = bool(transformer.get("guidance_embeds"))
        rows = Stream("t5", transformer["joint_attention_dim"], T5_LENGTH, causal=False)
        vector = Stream("pooled", transformer["pooled_projection_dim"], 1, causal=False)
        return Card(
            name=name,
            family=self.name,
            streams=(rows, vector),
            doors=(Door("text", ("t5",), rows.width), Door("pooled", ("pooled",), vector.width)),
            sites=sites(FluxTransformer2DModel, transformer),
            prediction="flow",
            schedule=schedule_of(name, configs["scheduler"], self.schedulers),
            size=size,
            latent=(takes // 4, size[0] // factor, size[1] // factor),
            steps=int(extra.get("steps", 28 if dev else 4)),
            guidance=float(extra.get("guidance", 3.5 if dev else 0.0)),
            preset=str(extra.get("preset", "efface")),
            captions=None if extra.get("captions") is None else tuple(map(str, extra["captions"])),
            blank="nothing",
        )

    def embedding(self, stream: Stream) -> tuple[str, tuple[str, ...]]:
        """Of T5 for the rows, of CLIP for the vector."""
        if stream.name == "t5":
            return "text_encoder_2", ("shared.weight", "encoder.embed_tokens.weight")
        return "text_encoder", clip_keys()

    def sizes(self, net: Parts, text: str) -> tuple[int, int]:
        """By T5, which reads on where CLIP's window ends."""
        return t5_sizes(net, "tokenizer_2", text, T5_LENGTH)

    def encode(self, net: Parts, texts: Sequence[str], whole: bool) -> list[Encoded]:
        """T5's last layer, which has to be whole, and CLIP's vector."""
        window = net.part("text_encoder").config.max_position_embeddings
        vectors = (pooled(said.vector) for said in clip(net, "", texts, window))
        rows = t5(net, "_2", texts, T5_LENGTH)
        return [Encoded(n, {"t5": r, "pooled": v}) for n, r, v in zip(texts, rows, vectors, strict=True)]

    def context(self, net: Parts, texts: Sequence[Encoded]) -> Context:
        """`rows` (n, L, d), `pooled` (n, p) and, where it is read, the card's `guidance` (n,)."""
        rows, vectors = (torch.stack([t.streams[n].rows for t in texts]) for n in ("t5", "pooled"))
        return self.told(net, Context({"rows": rows, "pooled": vectors[:, 0]}), net.card.guidance)

    def told(self, net: Parts, context: Context, guidance: float) -> Context:
        """The context with the guidance as a number a row, where the network reads it."""
        if not net.part("transformer").config.guidance_embeds:
            return context
        number = torch.full_like(context.tensors["pooled"][:, 0], guidance)
        return Context({**context.tensors, "guidance": number})

    def sides(self, net: Parts, prompts: Sequence[str], guided: bool) -> tuple[Context, Context | None]:
        """There is no unconditional side."""
        return self.context(net, net.encode(prompts)), None

    def times(self, net: Parts, scheduler: Any, steps: int) -> torch.Tensor:
        """Even noise levels, moved by the picture's size where the scheduler asks for it."""
        _, height, width = net.card.latent
        levels = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=levels, mu=shift(scheduler, (height // 2) * (width // 2)), device=net.device)
        return scheduler.timesteps

    def predict(self, net: Parts, x: torch.Tensor, time: torch.Tensor, context: Context) -> torch.Tensor:
        """(r, c, h, w) -> (r, c, h, w); the network sees (r, h w / 4, 4 c)."""
        height, width = x.shape[-2:]
        tensors = context.tensors
        said = net.denoiser(
            hidden_states=_packed(x),
            timestep=time.expand(len(x)).to(x.dtype) / LEVELS,
            guidance=tensors.get("guidance"),
            encoder_hidden_states=tensors["rows"],
            pooled_projections=tensors["pooled"],
            txt_ids=x.new_zeros(tensors["rows"].shape[1], 3),
            img_ids=_places(height // 2, width // 2).to(x),
        ).sample
        return _unpacked(said, height, width)

    def seats(self, card: Card, place: str) -> tuple[Seat, ...]:
        """None yet. Raises Unavailable."""
        raise Unavailable(
            f"a rule acts at the place {place!r}, which has no seat in FLUX.1 yet: its single blocks make keys and "
            "values of text and picture together; erase with a method that changes weights"
        )

    def pipeline(self, parts: Mapping[str, Any], index: Config) -> Any:
        """A FluxPipeline."""
        from diffusers import FluxPipeline

        return FluxPipeline(**parts)


def _packed(x: torch.Tensor) -> torch.Tensor:
    """(n, c, h, w) -> (n, h w / 4, 4 c): each two by two latents in one row."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), 4 * c)


def _unpacked(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The way back from `_packed`."""
    n, c = len(x), x.shape[-1] // 4
    pairs = x.reshape(n, height // 2, width // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return pairs.reshape(n, c, height, width)


def _places(height: int, width: int) -> torch.Tensor:
    """(h w, 3): nought, line and column of each packed row."""
    lines, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(lines), lines, columns], dim=-1).reshape(-1, 3)


PLUGIN = Flux
