"""What families share whose denoiser is a transformer in which pictures and text attend to each other, moved by a flow.

Roles: text.* are weights that see text rows and, deeper in, what they have become; joint.* those of picture rows in the
same attention, or of both together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from efface.families._roles import Roles, sites_of
from efface.families._vae import decoded, unscaled
from efface.model.card import Site
from efface.model.family import Config, Parts
from efface.model.text import Context

__all__ = ["FlowFamily", "shift", "sites"]

ROLES: Roles = (
    (r"^context_embedder$", "text.in"),
    (r"text_embedder\.linear_1$", "pooled.in"),
    (r"text_embedder\.linear_2$", "pooled.out"),
    (r"^time_text_embed\.", "time"),
    (r"attn\.add_k_proj$", "text.k"),
    (r"attn\.add_v_proj$", "text.v"),
    (r"attn\.add_q_proj$", "text.q"),
    (r"attn\.to_add_out$", "text.out"),
    (r"ff_context\.net\.0\.proj$", "text.ff.in"),
    (r"ff_context\.net\.2$", "text.ff.out"),
    (r"attn\.to_k$", "joint.k"),
    (r"attn\.to_v$", "joint.v"),
    (r"attn\.to_q$", "joint.q"),
    (r"attn\.to_out\.0$", "joint.out"),
    (r"attn2\.to_k$", "self.k"),
    (r"attn2\.to_v$", "self.v"),
    (r"attn2\.to_q$", "self.q"),
    (r"attn2\.to_out\.0$", "self.out"),
    (r"ff\.net\.0\.proj$|\.proj_mlp$", "ff.in"),
    (r"ff\.net\.2$|blocks\.\d+\.proj_out$", "ff.out"),
    (r"norm.*\.linear$", "norm"),
    (r"^(pos_embed\.proj|x_embedder)$", "picture.in"),
    (r"^proj_out$", "picture.out"),
)
DOORS = {"text.in": "text", "pooled.in": "pooled"}
TEXT = ("text.k", "text.v", "text.q", "text.out")
JOINT = ("joint.k", "joint.v", "joint.q", "joint.out")
SELF = ("self.k", "self.v", "self.q", "self.out")


def sites(cls: Any, transformer: Config) -> tuple[Site, ...]:
    """Every linear and convolution weight; text enters at `context_embedder`, its pooled vector beside the time."""
    return sites_of(cls, transformer, ROLES, DOORS, (torch.nn.Linear, torch.nn.Conv2d))


def shift(scheduler: Any, positions: int) -> float:
    """`mu`, how far noise levels move for a picture of so many positions: linear between two sizes."""
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return positions * slope + (config.base_shift - slope * config.base_image_seq_len)


class FlowFamily:
    """The start at pure noise, a context that guidance compares, and the VAE."""

    schedulers = ("FlowMatchEulerDiscreteScheduler",)
    scopes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "xattn": TEXT,
        "xattn-strict": ("text.k", "text.v"),
        "attn": (*TEXT, *JOINT, *SELF),
        "noxattn": (*JOINT, *SELF, "ff.in", "ff.out", "text.ff.in", "text.ff.out"),
        "ff-out": ("ff.out", "text.ff.out"),
    }

    def told(self, net: Parts, context: Context, guidance: float) -> Context:
        """The context as it is: guidance compares two rows."""
        return context

    def start(self, net: Parts, noise: torch.Tensor, scheduler: Any) -> torch.Tensor:
        """The noise itself."""
        return noise

    def decode(self, net: Parts, x: torch.Tensor) -> torch.Tensor:
        """Through the VAE."""
        return decoded(net, unscaled(net, x))
