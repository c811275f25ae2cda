"""The autoencoder and the latents: scenes in, small tensors out, edges kept."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from efface.work import Work
from efface.worldmaking.artwork import Sprites
from efface.worldmaking.lessons import Labels
from efface.worldmaking.scenes import Scenes, Stage, to_uint8
from efface.worldmaking.sheet import grid
from efface.worldmaking.sittings import DONE, RESULT, Go, keep, learn, read, write_json
from efface.worldmaking.sizes import Size

__all__ = [
    "autoencoder", "encode_deck", "finished_vae", "load_deck", "load_vae", "measured", "outlines", "train_decoder",
    "train_vae",
]  # fmt: skip

SHARD = 1024  # scenes encoded and kept together
BLANK = 0.03  # share of scenes without an object
TWO = 0.15  # share of scenes with two


def autoencoder(size: Size) -> Any:
    """An AutoencoderKL of the size, with fresh weights."""
    from diffusers import AutoencoderKL

    blocks = len(size.vae)
    shape: dict[str, Any] = {
        "block_out_channels": size.vae, "layers_per_block": 1, "norm_num_groups": size.groups[0],
        "down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks,
    }  # fmt: skip
    return AutoencoderKL(latent_channels=size.latent, sample_size=size.pixels, **shape)


def _edges(x: torch.Tensor) -> torch.Tensor:
    """Laplacian: what outlines and shading leave of a picture."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=x.device, dtype=x.dtype)
    return F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])


def loss(vae: Any, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Squared error, absolute error of the Laplacian (one-pixel outlines weigh nothing in a squared error), KL."""
    pixels, noise = pixels.to(vae.device), noise.to(vae.device)
    found = vae.encode(pixels).latent_dist
    spread = found.logvar.float()
    kl = 0.5 * (found.mean.float() ** 2 + spread.exp() - 1 - spread).mean()
    return _missed(vae, found.mean + found.std * noise, pixels) + 3e-4 * kl


def decoder_loss(vae: Any, pixels: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The same without KL, for latents that no longer change."""
    pixels, noise = pixels.to(vae.device), noise.to(vae.device)
    with torch.no_grad(), torch.autocast(vae.device.type, enabled=False):
        found = vae.encode(pixels).latent_dist
        latents = found.mean + found.std * noise
    return _missed(vae, latents, pixels)


def _missed(vae: Any, latents: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    drawn = vae.decode(latents).sample.float()
    return F.mse_loss(drawn, pixels) + 0.1 * F.l1_loss(_edges(drawn), _edges(pixels))


def train_vae(size: Size, sprites: Sprites, home: Path, go: Go) -> bool:
    """The VAE in `home/result.safetensors`, its scale and how well it draws in `done.json`; resumable."""
    torch.manual_seed(size.seed + 1)
    vae, stage = autoencoder(size), Stage(sprites, size.pixels)
    torch.nn.init.constant_(vae.quant_conv.bias.data[size.latent :], -6.0)  # little noise on latents from the start
    batch = partial(_batch, size, stage, "vae", size.vae_phase.batch)
    if not learn(vae, size.vae_phase, batch, lambda b: loss(vae, *b), home, go, label=f"{size.name} VAE"):
        return False
    write_json(home / DONE, measured(size, vae.to("cpu"), stage, home))
    return True


def train_decoder(size: Size, sprites: Sprites, vae_home: Path, home: Path, go: Go) -> bool:
    """The VAE of `vae_home` with a decoder that has learnt on: its latents, and what was made of them, stay good."""
    vae, stage = load_vae(size, vae_home), Stage(sprites, size.pixels)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    batch = partial(_batch, size, stage, "decoder", size.decoder_phase.batch)
    if not learn(
        vae, size.decoder_phase, batch, lambda b: decoder_loss(vae, *b), home, go, label=f"{size.name} decoder"
    ):
        return False
    scale = {"scaling_factor": vae.config.scaling_factor}
    write_json(home / DONE, measured(size, vae.to("cpu"), stage, home) | scale)
    return True


def _batch(size: Size, stage: Stage, part: str, count: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (n, 3, h, w) in [-1, 1] and noise for their latents (n, c, h, w)."""
    generator = Work(size.seed).rng(f"{part} {step}")
    images = stage.draw(count, generator, two=TWO).images
    return unit(images), torch.randn((count, size.latent, size.side, size.side), generator=generator)


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def measured(size: Size, vae: Any, stage: Stage, home: Path) -> dict[str, Any]:
    """Error, outlines and latent scale on scenes of other seeds; a sheet of originals over what the VAE draws."""
    scenes = unit(stage.draw(256, Work(size.seed).rng("vae held out"), two=TWO).images)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in scenes.split(32)])
    drawn = torch.cat([vae.decode(part).sample for part in latents.split(32)])
    rows = torch.cat([part[k : k + 16] for k in (0, 16) for part in (scenes, drawn)])
    grid(list(to_uint8(rows / 2 + 0.5).numpy()), 16, home / "sheet.png")
    return {
        "mse": round(float(F.mse_loss(drawn, scenes)), 5),
        "outlines": round(outlines(scenes, drawn), 4),
        "scaling_factor": round(1 / float(latents.std()), 6),
    }


def outlines(scenes: torch.Tensor, drawn: torch.Tensor) -> float:
    """How much of the outlines is drawn: slope of the drawn Laplacian on the true one; 1 is all, 0 is a blur."""
    true, found = _edges(scenes), _edges(drawn)
    return float((true * found).sum() / (true * true).sum())


def load_vae(size: Size, home: Path) -> Any:
    """The trained VAE with its scale, float32 and frozen."""
    vae = autoencoder(size)
    weights, _ = read(home / RESULT)
    vae.load_state_dict({k: v.float() for k, v in weights.items()})
    scale = json.loads((home / DONE).read_text(encoding="utf-8"))["scaling_factor"]
    vae.register_to_config(scaling_factor=scale)
    return vae.eval().requires_grad_(False)


def finished_vae(home: Path) -> Path | None:
    """The part under `home` whose VAE is the best so far: that of its decoder, else the first one."""
    return next((home / part for part in ("decoder", "vae") if (home / part / DONE).is_file()), None)


# --- latents ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def encode_deck(size: Size, sprites: Sprites, vae: Any, home: Path, go: Go) -> bool:
    """Latents of `copies` scenes of every sprite and of empty backgrounds, in shards that are made once each.

    Row r shows sprite r // copies; the empty ones are last. False when the sitting ends first.
    """
    stage, work = Stage(sprites, size.pixels), Work(size.seed)
    rows = torch.arange(len(stage.objects)).repeat_interleave(size.copies)
    starts = [*range(0, len(rows), SHARD), len(rows)]
    vae.to(go.device)
    for number, start in enumerate(go.work.progress(starts, f"{size.name} latents (x{SHARD})")):
        path = home / f"shard-{number:03d}.safetensors"
        if path.is_file():
            continue
        if go.over:
            return False
        generator = work.rng(f"deck {number}")
        part = rows[start : start + SHARD]
        blank = max(size.copies, int(BLANK * len(rows)))
        scenes = stage.draw(len(part), generator, rows=part, two=TWO) if len(part) else stage.empty(blank, generator)
        labels = Labels.of(scenes, stage.objects[part] if len(part) else None)
        keep(path, {"latents": _encoded(vae, scenes, go.device), **vars(labels)})
    write_json(home / DONE, {"scenes": len(rows), "shards": len(starts)})
    return True


def _encoded(vae: Any, scenes: Scenes, device: str) -> torch.Tensor:
    parts = [vae.encode(unit(part).to(device)).latent_dist.mean.cpu() for part in scenes.images.split(64)]
    return (torch.cat(parts) * vae.config.scaling_factor).half()


def load_deck(home: Path) -> tuple[torch.Tensor, Labels]:
    """Scaled latents float16 (n, c, h, w) and what each shows. Raises WrongFile."""
    shards = [read(path)[0] for path in sorted(home.glob("shard-*.safetensors"))]
    joined = {k: torch.cat([s[k] for s in shards]) for k in shards[0]}
    return joined.pop("latents"), Labels(**joined)
