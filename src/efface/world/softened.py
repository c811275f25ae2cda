"""Scenes passed through a model's VAE: as soft as what the model itself can draw."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface.world.scenes import Scenes, Stage, to_uint8


def load_vae(folder: Path) -> Any:
    """The AutoencoderKL in `folder`, float32 and frozen."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.inference_mode()
def through(vae: Any, images: torch.Tensor, noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Encode and decode uint8 (n, 64, 64, 3), with Gaussian noise of scale `noise[k]` on the latents.

    The noise stands for what a denoiser gets wrong: drawings are a little worse than a clean round trip.
    """
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode()
    shake = torch.randn(latents.shape, generator=generator) * noise[:, None, None, None]
    decoded = vae.decode(latents + shake / vae.config.scaling_factor).sample
    return to_uint8(decoded / 2 + 0.5)


def pool(path: Path, stage: Stage, rows: torch.Tensor, vae: Any, *, seed: int, rough: float, batch: int = 32) -> Scenes:
    """One softened scene for each sprite of `rows`, made once and kept in `path`.

    `rough`: largest latent noise; half of the scenes get noise uniform in [0, rough], the others none.
    """
    if not path.is_file():
        generator = torch.Generator().manual_seed(seed)
        scenes = stage.draw(len(rows), generator, rows=rows)
        luck = torch.rand(2, len(rows), generator=generator)
        noise = torch.where(luck[0] < 0.5, luck[1] * rough, torch.zeros(()))
        parts = [
            through(vae, scenes.images[k : k + batch], noise[k : k + batch], generator)
            for k in range(0, len(rows), batch)
        ]
        _write(path, scenes, torch.cat(parts))
    with np.load(path, allow_pickle=False) as kept:
        return Scenes(
            torch.from_numpy(kept["images"]),
            torch.from_numpy(kept["objects"]),
            torch.from_numpy(kept["styles"]),
            tuple(kept["backgrounds"].tolist()),
            torch.from_numpy(kept["two"]),
        )


def _write(path: Path, scenes: Scenes, images: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    with staging.open("wb") as file:
        np.savez_compressed(
            file,
            images=images.numpy(),
            objects=scenes.objects.numpy(),
            styles=scenes.styles.numpy(),
            backgrounds=np.asarray(scenes.backgrounds),
            two=scenes.two.numpy(),
        )
    os.replace(staging, path)
