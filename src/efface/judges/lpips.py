"""LPIPS with AlexNet: how far two images are apart for a network, from two weight files of the user's.

Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a perceptual metric",
CVPR 2018, arXiv 1801.03924, version 0.1: channels of five layers scaled to length 1, squared differences weighted by
trained non-negative weights, averaged over space, summed over layers. Written from the paper's equation 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from efface.errors import BadRequest, Unavailable, WrongFile
from efface.files import cache_folder
from efface.judges import Card, fingerprint, pictures, same_weights, version_of

__all__ = ["Lpips", "load"]

# per layer: name in the state dict, stride, padding, and whether a 3 x 3 maximum with stride 2 comes before it
LAYERS = (("features.0", 4, 2, False), ("features.3", 1, 2, True), ("features.6", 1, 1, True),
          ("features.8", 1, 1, False), ("features.10", 1, 1, False))  # fmt: skip
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of inputs in [-1, 1]
BATCH = 32
SMALLEST = 63  # pixels a side: below, a layer's map is empty


class Lpips:
    """See `efface.judges.Perceptual`."""

    name = "lpips-alex"

    def __init__(self, net: dict[str, torch.Tensor], heads: list[torch.Tensor], card: Card) -> None:
        self.card, self.version = card, version_of(card, "weights_sha256", "preprocessing")
        self._net, self._heads = net, heads

    @torch.inference_mode()
    def distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """float64 (n,) of uint8 (n, h, w, 3) pairs, 0 for identical ones; sides of at least 63 pixels."""
        x, y = pictures(x), pictures(y)
        if x.shape != y.shape or min(x.shape[1:3]) < SMALLEST:
            raise BadRequest(f"expected pairs of one size, {SMALLEST} pixels a side or more, got {x.shape}, {y.shape}")
        parts = [self._part(x[k : k + BATCH], y[k : k + BATCH]) for k in range(0, len(x), BATCH)]
        return torch.cat(parts).double().numpy() if parts else np.zeros(0)

    def _part(self, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
        total = torch.zeros(len(x))
        for a, b, head in zip(self._maps(x), self._maps(y), self._heads, strict=True):
            total += ((a - b) ** 2 * head).sum(1).mean((1, 2))
        return total

    def _maps(self, images: np.ndarray) -> list[torch.Tensor]:
        """Five maps (n, c, h, w), every place's channels scaled to length 1."""
        at = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        at = (at - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
        found = []
        for name, stride, padding, pool in LAYERS:
            at = F.max_pool2d(at, 3, 2) if pool else at
            at = F.relu(F.conv2d(at, self._net[f"{name}.weight"], self._net[f"{name}.bias"], stride, padding))
            found.append(at / (at.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found


def load(folder: Path | None = None, weights_sha256: str | None = None) -> Lpips:
    """LPIPS from alexnet.safetensors and lpips-alex.safetensors in a folder.

    The first is torchvision's AlexNet, the second the trained weights of LPIPS v0.1. Without a folder: `lpips` in
    Efface's cache. Raises Unavailable with the way to get them, WrongFile for others.
    """
    folder = folder or cache_folder() / "lpips"
    paths = [folder / f"{stem}.safetensors" for stem in ("alexnet", "lpips-alex")]
    if not all(p.is_file() for p in paths):
        raise Unavailable(
            "LPIPS needs torchvision's AlexNet weights as alexnet.safetensors and LPIPS v0.1's alex.pth as "
            f"lpips-alex.safetensors in {folder}; convert both (pickles are not read). The core ships neither."
        )
    card = {
        "name": Lpips.name, "role": "reporting", "architecture": "AlexNet, LPIPS v0.1",
        "weights_sha256": same_weights(fingerprint(paths), weights_sha256, folder),
        "preprocessing": {"shift": SHIFT, "scale": SCALE, "range": "[-1, 1]", "resize": None, "channels": "rgb"},
        "licence": "AlexNet weights: torchvision, BSD-3-Clause; LPIPS weights: BSD-2-Clause",
    }  # fmt: skip
    net, heads = _read(paths[0]), _read(paths[1])
    try:
        kept = {f"{n}.{w}": net[f"{n}.{w}"].float() for n, *_ in LAYERS for w in ("weight", "bias")}
        lins = [next(t.float() for k, t in sorted(heads.items()) if k.startswith(f"lin{i}.")) for i in range(5)]
    except (KeyError, StopIteration):
        raise WrongFile(
            f"Expected AlexNet's features and five layers lin0 to lin4 in {folder}; fetch them anew."
        ) from None
    if any(bool((lin < 0).any()) or lin.shape != (1, len(kept[f"{n[0]}.weight"]), 1, 1)
           for lin, n in zip(lins, LAYERS, strict=True)):  # fmt: skip
        raise WrongFile(
            f"Expected LPIPS weights of AlexNet's five layers, none negative, in {folder}; fetch them anew."
        )
    return Lpips(kept, lins, card)


def _read(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise WrongFile(f"{file} cannot be read ({str(error).splitlines()[0][:120]}); convert it anew.") from None
