"""Ways in which a picture can be broken: to train and to test garbage detection (docs/judges.md)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# every function: float (n, 3, 64, 64) in [0, 1] and a generator -> the same shape
Corruption = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def uniform_noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(x.shape, generator=generator)


def smooth_noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    coarse = torch.rand(len(x), 3, 8, 8, generator=generator)
    return F.interpolate(coarse, x.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def mixed_noise(share: float) -> Corruption:
    def mix(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (1 - share) * x + share * torch.rand(x.shape, generator=generator)

    return mix


def shuffled(side: int) -> Corruption:
    """Square patches of `side` pixels in another order, one order a picture."""

    def shuffle(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        n, c, h, w = x.shape
        rows, columns = h // side, w // side
        tiles = x.reshape(n, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, -1)
        order = torch.rand(n, rows * columns, generator=generator).argsort(1)
        tiles = tiles.gather(1, order[:, :, None].expand_as(tiles))
        return tiles.reshape(n, rows, columns, c, side, side).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)

    return shuffle


def constant(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(len(x), 3, 1, 1, generator=generator).expand_as(x).contiguous()


def black(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros_like(x)


def blurred(sigma: float) -> Corruption:
    def soften(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return blur(x, torch.full((len(x),), sigma))

    return soften


def blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a width of its own for each picture, in pixels (n,)."""
    reach = max(1, int(3 * float(sigma.max()) + 0.5))
    steps = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-0.5 * (steps / sigma.clamp_min(1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)  # (n * 3, taps)
    flat = F.pad(x.reshape(1, -1, *x.shape[-2:]), (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    return F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel)).reshape(x.shape)


SEEN: dict[str, Corruption] = {
    "uniform noise": uniform_noise,
    "smooth coloured noise": smooth_noise,
    "patches of 8 px shuffled": shuffled(8),
    "patches of 16 px shuffled": shuffled(16),
}
# Seen in training too, but what is shown stays visible: such a picture is broken and still has to be named.
NOISY: dict[str, Corruption] = {"image + 30 % noise": mixed_noise(0.3)}
HELD_OUT: dict[str, Corruption] = {
    "image + 50 % noise": mixed_noise(0.5),
    "patches of 4 px shuffled": shuffled(4),
    "constant colour": constant,
    "black": black,
    "heavy blur": blurred(4.0),
}
