"""Scenes passed through a model's VAE: as soft as what the model itself can draw."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from efface.errors import WrongFile
from efface.files import write_bytes
from efface.worldmaking.scenes import Scenes, Stage, to_uint8


def load_vae(folder: Path) -> Any:
    """The AutoencoderKL in `folder`, float32 and frozen."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval().requires_grad_(False)


@torch.inference_mode()
def through(vae: Any, images: torch.Tensor, noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Encode and decode uint8 (n, h, w, 3), with Gaussian noise of scale `noise[k]` on the latents.

    The noise stands for what a denoiser gets wrong: drawings are a little worse than a clean round trip.
    """
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode()
    shake = torch.randn(latents.shape, generator=generator) * noise[:, None, None, None]
    decoded = vae.decode(latents + shake / vae.config.scaling_factor).sample
    return to_uint8(decoded / 2 + 0.5)


def pool(
    path: Path,
    stage: Stage,
    rows: torch.Tensor,
    vae: Any,
    *,
    seed: int,
    rough: float,
    two: float = 0.12,
    batch: int = 32,
) -> Scenes:
    """One softened scene for each sprite of `rows`, made once and kept in `path`. Raises WrongFile for a damaged one.

    `rough`: largest latent noise; half of the scenes get noise uniform in [0, rough], the others none.
    """

    def make() -> Scenes:
        generator = torch.Generator().manual_seed(seed)
        scenes = stage.draw(len(rows), generator, rows=rows, two=two)
        luck = torch.rand(2, len(rows), generator=generator)
        noise = torch.where(luck[0] < 0.5, luck[1] * rough, torch.zeros(()))
        parts = [
            through(vae, scenes.images[k : k + batch], noise[k : k + batch], generator)
            for k in range(0, len(rows), batch)
        ]
        return scenes.showing(torch.cat(parts))

    return kept(path, make)


def kept(path: Path, make: Callable[[], Scenes]) -> Scenes:
    """The scenes in `path`, made once. Raises WrongFile for a damaged file."""
    if not path.is_file():
        _write(path, make())
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Scenes(
                torch.from_numpy(stored["images"]),
                torch.from_numpy(stored["objects"]),
                torch.from_numpy(stored["styles"]),
                tuple(stored["backgrounds"].tolist()),
                torch.from_numpy(stored["two"]),
            )
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise WrongFile(f"{path} cannot be read ({error}); delete it and run the same command again") from None


def doubled(scenes: Scenes) -> Scenes:
    """The same scenes with every pixel twice in both directions: small pictures for judges of larger ones."""
    images = scenes.images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return scenes.showing(images)


def _write(path: Path, scenes: Scenes) -> None:
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        images=scenes.images.numpy(),
        objects=scenes.objects.numpy(),
        styles=scenes.styles.numpy(),
        backgrounds=np.asarray(scenes.backgrounds),
        two=scenes.two.numpy(),
    )
    write_bytes(path, stream.getvalue())
