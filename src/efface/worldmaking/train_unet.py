"""The U-Net: epsilon of scaled-linear noise on stored latents, min-SNR weights (Hang et al. 2023, gamma 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from efface.work import Work
from efface.worldmaking.lessons import Labels, Withheld, Writer, pairs
from efface.worldmaking.sittings import DONE, RESULT, Go, knows_bfloat16, learn, read, write_json
from efface.worldmaking.sizes import Size

__all__ = ["SCHEDULE", "Source", "train_unet", "unet"]

SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "clip_sample": False,
}  # fmt: skip
GAMMA = 5.0
SILENT = 0.1  # share of captions dropped, for guidance


def unet(size: Size) -> Any:
    """A UNet2DConditionModel of the size, with fresh weights."""
    from diffusers import UNet2DConditionModel

    deep = len(size.unet) - size.attends
    return UNet2DConditionModel(
        sample_size=size.side, in_channels=size.latent, out_channels=size.latent, block_out_channels=size.unet,
        layers_per_block=1, cross_attention_dim=size.text_width, attention_head_dim=4, norm_num_groups=size.groups[1],
        down_block_types=("CrossAttnDownBlock2D",) * size.attends + ("DownBlock2D",) * deep,
        up_block_types=("UpBlock2D",) * deep + ("CrossAttnUpBlock2D",) * size.attends,
    )  # fmt: skip


class Source:
    """Batches of latents with captions; step k is the same in every run. What is withheld never comes up."""

    def __init__(self, size: Size, deck: tuple[torch.Tensor, Labels], tokenizer: Path, withheld: Withheld) -> None:
        self.size, self.work = size, Work(size.seed)
        self.latents, self.labels = deck
        self.writer = Writer(size, tokenizer, withheld)
        fine = self.labels.allowed(withheld, size)
        self.blank = torch.nonzero(fine & (self.labels.first < 0)).flatten()
        self.rows, self.count = self._table(fine)
        alphas = torch.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000, dtype=torch.float64)
        self.signal = torch.cumprod(1 - alphas**2, 0).float()  # (1000,)

    def _table(self, fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of every object in every style (objects, styles, copies), and how many of them there are."""
        objects, styles = len(self.size.objects), len(self.size.styles)
        cell = torch.where(fine & (self.labels.first >= 0), self.labels.first * styles + self.labels.style, -1)
        count = torch.bincount(cell[cell >= 0], minlength=objects * styles)
        order = torch.argsort(cell, stable=True)[int((cell < 0).sum()) :]
        table = torch.zeros(objects * styles, max(1, int(count.max())), dtype=torch.long)
        place = torch.arange(len(order)) - torch.repeat_interleave(count.cumsum(0) - count, count)
        table[cell[order], place] = order
        return table.view(objects, styles, -1), count.view(objects, styles)

    def batch(self, step: int, part: str, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy-to-be latents (n, c, h, w), noise, timesteps (n,) and token ids (n, window)."""
        generator = self.work.rng(f"{part} {step}")
        things, styles = pairs(count, self.count > 0, generator)
        luck = torch.rand(count, generator=generator)
        rows = self.rows[things, styles, (luck * self.count[things, styles]).long()]
        empty = torch.rand(count, generator=generator) < 0.03
        rows[empty] = self.blank[torch.randint(len(self.blank), (int(empty.sum()),), generator=generator)]
        _, ids = self.writer.write(self.labels.at(rows), generator)
        ids[torch.rand(count, generator=generator) < SILENT] = self.writer.ids([""])[0]
        clean = self.latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        # one timestep from each of `count` equal ranges: every batch sees the whole schedule
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        steps = (spread[torch.randperm(count, generator=generator)] * 1000).long().clamp(max=999)
        return clean, noise, steps, ids


def loss(net: nn.Module, text: Any, signal: torch.Tensor, device: str, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Squared error of epsilon, weighted by min(SNR, gamma) / SNR."""
    clean, noise, steps, ids = (t.to(device) for t in batch)
    kept = signal.to(device)[steps]
    mixed = kept.sqrt()[:, None, None, None] * clean + (1 - kept).sqrt()[:, None, None, None] * noise
    if device == "cpu":
        mixed = mixed.contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(device.partition(":")[0], enabled=False):  # as it will be when it draws
        rows = text(input_ids=ids).last_hidden_state
    said = net(mixed, steps, encoder_hidden_states=rows).sample
    ratio = kept / (1 - kept)
    weight = ratio.clamp(max=GAMMA) / ratio
    return (weight * (said.float() - noise).square().mean((1, 2, 3))).mean()


def train_unet(size: Size, phase: int, source: Source, text: Any, before: Path | None, home: Path, go: Go) -> bool:
    """One phase of the U-Net in `home/result.safetensors`; `before` is the phase it goes on from. Resumable.

    A phase starts from the float16 weights alone, so that it is the same here and on another machine.
    """
    from diffusers.models.attention_processor import AttnProcessor

    torch.manual_seed(size.seed + 2)
    net, plan = unet(size), size.unet_phases[phase].on(go.device)
    if before is not None and (before / RESULT).is_file():  # not needed, and left out of pieces, once begun
        weights, _ = read(before / RESULT)
        net.load_state_dict({k: v.float() for k, v in weights.items()})
    text = text.to(go.device)
    if plan.coarse and go.device == "cpu" and knows_bfloat16():
        net.set_attn_processor(AttnProcessor())  # products of matrices: a fifth of the step less than the fused kernel
    part = f"unet-{phase + 1}"
    finished = learn(
        net, plan, lambda step: source.batch(step, part, plan.batch),
        lambda b: loss(net, text, source.signal, go.device, b), home, go, label=f"{size.name} {part}",
    )  # fmt: skip
    if finished:
        write_json(home / DONE, {"steps": plan.steps, "batch": plan.batch, "rate": plan.rate})
    return finished
