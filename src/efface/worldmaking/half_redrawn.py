"""Scenes noised part of the way and denoised by the model: close to its drawings, and what they show is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface import world
from efface.files import cache_folder, key_of
from efface.judges import sized
from efface.world import captions
from efface.worldmaking import through_vae as softened
from efface.worldmaking.artwork import Sprites
from efface.worldmaking.scenes import Scenes, Stage, to_uint8

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["Drawer", "Redrawn", "denoised", "drawer", "model_folder", "unfinished"]

BATCH = 16
STOPS = (0.0, 0.1, 0.2, 0.3, 0.4)  # of the steps
SHARES = tuple(k / 20 for k in range(4, 15))  # of the steps, one a batch in turn
# Up to here outlines and shading are still those of the scene; beyond, the model's own idea of the style shows.
STYLE_UNTIL = 0.5


def model_folder(name: str) -> Path:
    """The freshly trained model of that name, else the bundled one. Raises Unavailable."""
    trained = cache_folder() / "train" / name / "model"
    return trained if (trained / "model_index.json").is_file() else world.folder(name)


@dataclass(frozen=True)
class Redrawn:
    """Redrawn scenes of one object each; `styled`: whether the style is certain enough to be a label."""

    scenes: Scenes
    styled: torch.Tensor  # bool (n,)

    def at(self, rows: torch.Tensor) -> Redrawn:
        return Redrawn(self.scenes.at(rows), self.styled[rows])

    @staticmethod
    def joined(parts: Sequence[Redrawn]) -> Redrawn:
        return Redrawn(Scenes.joined([p.scenes for p in parts]), torch.cat([p.styled for p in parts]))


@dataclass(frozen=True)
class Drawer:
    """A model that draws scenes anew, with the sprites of what it knows. `rows`: of the stage's sprites."""

    model: Model
    stage: Stage
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: torch.Tensor

    def pool(self, home: Path, seed: int, share: float, copies: int = 1) -> Redrawn:
        """Redrawn scenes of a random `share` of the sprites, made once and kept in `home`; doubled where small."""
        generator = torch.Generator().manual_seed(seed)
        rows = self.rows.repeat(copies)
        rows = rows[torch.randperm(len(rows), generator=generator)[: int(share * len(rows))]]
        shares = torch.tensor([SHARES[k // BATCH % len(SHARES)] for k in range(len(rows))])

        def make() -> Scenes:
            scenes = self.stage.draw(len(rows), generator, rows=rows, two=0.0)
            parts = [self._redraw(scenes.at(part), float(shares[part[0]]), generator) for part in _batches(len(rows))]
            return scenes.showing(torch.from_numpy(sized(torch.cat(parts).numpy())))

        about = key_of(seed=seed, share=share, copies=copies, shares=SHARES, batch=BATCH)
        return Redrawn(softened.kept(self._file(home, "redrawn", about), make), shares <= STYLE_UNTIL)

    def _file(self, home: Path, what: str, about: str) -> Path:
        """Named by everything that decides the pictures."""
        return home / f"{what}-{self.model.identity[:12]}-{about[:8]}.npz"

    def stopped(self, home: Path, seed: int, each: int) -> Scenes:
        """Drawings stopped after no to 40 % of the steps, `each` of every share, once and kept; doubled where small.

        The sprites whose captions they had are their labels, but cannot be seen.
        """
        generator = torch.Generator().manual_seed(seed)
        rows = self.rows[torch.randint(len(self.rows), (each * len(STOPS),), generator=generator)]

        def make() -> Scenes:
            scenes = self.stage.draw(len(rows), generator, rows=rows, two=0.0)
            prompts = self._prompts(scenes)
            parts = [
                unfinished(self.model, prompts[k * each : (k + 1) * each], range(seed * each, (seed + 1) * each), share)
                for k, share in enumerate(STOPS)
            ]
            return scenes.showing(torch.from_numpy(sized(np.concatenate(parts))))

        return softened.kept(self._file(home, "stopped", key_of(seed=seed, each=each, stops=STOPS)), make)

    @torch.inference_mode()
    def _redraw(self, scenes: Scenes, share: float, generator: torch.Generator) -> torch.Tensor:
        """uint8 (n, h, w, 3): the last `share` of the model's steps, from the noised scenes and their captions."""
        vae, scheduler = self.model.part("vae"), self.model.network.scheduler()
        clean = vae.encode(scenes.images.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mode()
        scheduler.set_timesteps(self.model.card.steps)
        first = len(scheduler.timesteps) - round(share * len(scheduler.timesteps))
        scheduler.set_begin_index(first)
        steps = scheduler.timesteps[first:]
        noise = torch.randn(clean.shape, generator=generator)
        x = scheduler.add_noise(clean * vae.config.scaling_factor, noise, steps[:1].repeat(len(clean)))
        x = denoised(self.model, x, self._prompts(scenes), scheduler, steps)
        return to_uint8(vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5)

    def _prompts(self, scenes: Scenes) -> list[str]:
        shown = zip(scenes.objects.int().argmax(1).tolist(), scenes.styles.int().argmax(1).tolist(), strict=True)
        return [f"{captions.with_article(self.names[thing])} in {self.kinds[style]} style" for thing, style in shown]


def drawer(name: str, stage: Stage, sprites: Sprites) -> Drawer:
    """The newest model of that name, with the sprites of the objects and styles on its list. Raises Unavailable."""
    from efface.model import load

    model = load(str(model_folder(name)), "cpu", "float32", offline=True)
    known = {c["name"] for c in model.concepts}
    things = torch.tensor([n in known for n in sprites.object_names])[stage.objects]
    kinds = torch.tensor([n in known for n in sprites.style_names])[stage.styles]
    rows = torch.nonzero(things & kinds).flatten()
    return Drawer(model, stage, tuple(sprites.object_names), tuple(sprites.style_names), rows)


@torch.inference_mode()
def unfinished(model: Model, prompts: Sequence[str], seeds: Sequence[int], share: float = 0.4) -> np.ndarray:
    """Pictures of latents that were denoised for `share` of the steps only: uint8 (n, h, w, 3)."""
    made = []
    for start in range(0, len(prompts), BATCH):
        words, these = list(prompts[start : start + BATCH]), list(seeds[start : start + BATCH])
        scheduler = model.network.scheduler()
        scheduler.set_timesteps(model.card.steps)
        x = model.network.noise(these)[0] * scheduler.init_noise_sigma
        x = denoised(model, x, words, scheduler, scheduler.timesteps[: round(share * model.card.steps)])
        vae = model.part("vae")
        made.append(to_uint8(vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).numpy())
    return np.concatenate(made)


@torch.inference_mode()
def denoised(
    model: Model, x: torch.Tensor, prompts: Sequence[str], scheduler: Any, steps: torch.Tensor
) -> torch.Tensor:
    """Latents (n, c, h, w) after these steps of the scheduler, at the model's own guidance."""
    context = model.network.context([*[""] * len(x), *prompts])  # of 2n rows
    for step in steps:
        scaled = scheduler.scale_model_input(torch.cat([x, x]), step)
        blank, told = model.network.predict(scaled, step, context).chunk(2)
        x = scheduler.step(blank + model.card.guidance * (told - blank), step, x).prev_sample
    return x


def _batches(count: int) -> list[torch.Tensor]:
    return list(torch.arange(count).split(BATCH))
