"""Latents for training: where on the way from noise to a picture an update is made.

A trajectory starts fresh, from noise that is denoised up to a step, or walks on from the update before; latents of
pictures are noised to a step. Steps are deterministic ones of DDIM, guided by a text against the empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efface.errors import BadRequest
from efface.model.text import Context

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["Ask", "Trajectories", "predictions"]

Ask = Callable[[Tensor, Tensor, Context], Tensor]
"""Latents (r, c, h, w), timestep, context of r rows -> prediction: `Net.predict` or `Net.reference`."""


def predictions(ask: Ask, z: Tensor, t: Tensor, *rows: Context) -> Sequence[Tensor]:
    """One call for several texts, one row each, at the same latents (b, c, h, w): a prediction a text."""
    stacked = Context.cat([r.take([0] * len(z)) for r in rows])  # of k b rows
    return ask(z.repeat(len(rows), 1, 1, 1), t, stacked).chunk(len(rows))


class Trajectories:
    """Ways through the latents of one model, in `steps` steps under one guidance.

    Raises BadRequest for more steps than the model has noise levels.
    """

    def __init__(self, model: Model, steps: int, guidance: float) -> None:
        self.guidance = guidance
        self.scheduler = model.network.scheduler("DDIMScheduler")
        self.levels = int(self.scheduler.config.num_train_timesteps)
        if steps > self.levels:
            raise BadRequest(f"setting 'steps': the model has {self.levels} noise levels, got {steps}")
        self.scheduler.set_timesteps(steps, device=model.device)
        self.times: Tensor = self.scheduler.timesteps  # (E,)

    @torch.no_grad()
    def fresh(self, ask: Ask, noise: Tensor, step: int, text: Context, empty: Context) -> Tensor:
        """Noise (b, c, h, w) denoised up to a step."""
        z = noise
        for before in range(step):
            z = self.walk(ask, z, before, text, empty)
        return z

    def walk(self, ask: Ask, z: Tensor, step: int, text: Context, empty: Context) -> Tensor:
        """From one step to the next, with predictions made here."""
        return self.next(z, step, *predictions(ask, z, self.times[step], text, empty))

    def next(self, z: Tensor, step: int, text: Tensor, empty: Tensor) -> Tensor:
        """From one step to the next, with given predictions (b, c, h, w)."""
        guided = empty + self.guidance * (text - empty)
        return self.scheduler.step(guided, self.times[step], z, eta=0.0).prev_sample

    def noised(self, latents: Tensor, noise: Tensor, step: int) -> Tensor:
        """Latents of pictures (b, c, h, w) as they are at a step with this noise."""
        return self.scheduler.add_noise(latents, noise, self.times[step].expand(len(latents)))
