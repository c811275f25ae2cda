"""Changes of a picture that must not change a judge's answer: one set for each judge; and pictures that are broken."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from efface.worldmaking.corruptions import SEEN, blur
from efface.worldmaking.scenes import to_uint8

__all__ = ["augment", "augment_other", "corrupt"]


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to 3 pixels, a third blurred, colour gains, a little noise; (n, 3, 64, 64) in [0, 1]."""
    n = len(x)
    move = torch.randint(0, 7, (n, 2), generator=generator).tolist()
    padded = F.pad(x, (3, 3, 3, 3), mode="replicate")
    x = torch.stack([padded[k, :, dy : dy + 64, dx : dx + 64] for k, (dy, dx) in enumerate(move)])
    luck = torch.rand(n, 4, generator=generator)
    soft = torch.where(luck[:, 0] < 0.35, 0.3 + 0.8 * luck[:, 1], torch.zeros(()))
    rows = soft > 0
    if bool(rows.any()):
        x[rows] = blur(x[rows], soft[rows])
    gain = 1 + 0.16 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    shake = torch.where(luck[:, 2] < 0.3, 0.03 * luck[:, 3], torch.zeros(()))[:, None, None, None]
    noise = torch.randn(x.shape, generator=generator) * shake
    return _rounded(x * gain + noise)


def augment_other(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale and shift a little, contrast, a small patch hidden, a few lowered to half size and back."""
    n = len(x)
    luck = torch.rand(n, 8, generator=generator) * 2 - 1
    angle, scale = luck[:, 0] * math.radians(5), 1 + 0.06 * luck[:, 1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    move = torch.stack(
        [torch.stack([cos, -sin, 0.06 * luck[:, 2]], 1), torch.stack([sin, cos, 0.06 * luck[:, 3]], 1)], 1
    )
    grid = F.affine_grid(move, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    small = luck[:, 4] > 0.6
    if bool(small.any()):
        half = F.avg_pool2d(x[small], 2)
        x[small] = F.interpolate(half, x.shape[-2:], mode="bilinear", align_corners=False)
    middle = x.mean((1, 2, 3), keepdim=True)
    x = (x - middle) * (1 + 0.15 * luck[:, 5])[:, None, None, None] + middle + 0.04 * luck[:, 6, None, None, None]
    hidden = (luck[:, 7] > 0.4).nonzero().flatten().tolist()
    corner = torch.randint(0, 52, (n, 2), generator=generator).tolist()
    for k in hidden:
        top, left = corner[k]
        x[k, :, top : top + 10, left : left + 10] = middle[k]
    return _rounded(x)


def corrupt(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture broken in one of the ways that may be seen in training; (n, 3, 64, 64) in [0, 1]."""
    kinds = list(SEEN.values())
    chosen = torch.randint(len(kinds), (len(x),), generator=generator).tolist()
    broken = torch.cat([kinds[kind](x[k : k + 1], generator) for k, kind in enumerate(chosen)])
    return _rounded(broken)


def _rounded(x: torch.Tensor) -> torch.Tensor:
    return to_uint8(x).permute(0, 3, 1, 2).float() / 255
