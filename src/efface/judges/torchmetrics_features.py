"""Features for FID and KID from torchmetrics' Inception network, or from any network of the user's.

Needs the extra `eval` and torch-fidelity with its weights; the core ships neither. torchmetrics resizes without
averaging where clean-fid averages, so their numbers differ: the card says which network made the features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from efface.errors import BadRequest, Unavailable, WrongFile
from efface.judges import Card, pictures, probes, version_of
from efface.judges.panel import PLAIN, Brief, FeaturesPanel, Panel

__all__ = ["Features", "load", "panel"]

BATCH = 32
INCEPTION = "inception"


class Features:
    """A network from uint8 (n, 3, h, w) to features (n, f), with its card."""

    def __init__(self, net: Callable[[torch.Tensor], torch.Tensor], card: Card) -> None:
        self.card, self.name = card, str(card["name"])
        self.version = version_of(card, "weights_sha256", "preprocessing")
        self._net = net

    @torch.inference_mode()
    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 (n, f) of uint8 (n, h, w, 3). Raises BadRequest for another type or shape, or no picture."""
        images = pictures(images)
        if not len(images):
            raise BadRequest("Expected at least one picture, got none; there are no features.")
        turned = torch.from_numpy(images).permute(0, 3, 1, 2)
        parts = [self._net(turned[k : k + BATCH]) for k in range(0, len(turned), BATCH)]
        return torch.cat(parts).float().flatten(1).numpy()


def load(net: torch.nn.Module | None = None, name: str = "", weights_sha256: str | None = None) -> Features:
    """torchmetrics' Inception features (2,048), or those of `net`, which takes uint8 (n, 3, h, w).

    name: of a network of yours; "inception" is that of the one network whose distances are called FID.
    weights_sha256: refuse other weights. Raises Unavailable with the way to get the network, WrongFile.
    """
    given = net is not None
    if given and name == INCEPTION:
        raise BadRequest("the name inception is that of torchmetrics' own network; give yours another name")
    found = net if net is not None else _inception()
    found = found.eval().requires_grad_(False)
    digest = hashlib.sha256()
    for key, tensor in sorted(found.state_dict().items()):
        digest.update(f"{key}\0{tuple(tensor.shape)}\0{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    weights = digest.hexdigest()
    if weights_sha256 is not None and weights != weights_sha256:
        raise WrongFile(
            f"Expected a network with sha256 {weights_sha256[:12]}..., got {weights[:12]}...; fetch those weights."
        )
    card = {
        "name": name or (type(found).__name__ if given else INCEPTION), "role": "reporting",
        "architecture": type(found).__name__, "weights_sha256": weights,
        "preprocessing": "the network's own" if given else "torchmetrics: bilinear to 299, no averaging",
        "licence": "see the network's page",
    }  # fmt: skip
    judge = Features(found, card)
    _self_test(judge)
    return judge


def _inception() -> torch.nn.Module:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3  # pyright: ignore[reportMissingImports]

        return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except Exception as error:
        # absent package, absent torch-fidelity and absent weights raise three kinds; one sentence cures all
        raise Unavailable(
            f"Inception features are not available here ({str(error).splitlines()[0][:100]}); "
            "`pip install 'efface[eval]' torch-fidelity` and let it fetch its weights once."
        ) from None


def _self_test(judge: Features) -> None:
    """Refuse a network that mixes the images of a batch, or says nothing finite."""
    together = judge.features(probes())
    alone = np.concatenate([judge.features(p[None]) for p in probes()])
    scale = max(1.0, float(np.abs(together).max()))
    if not np.abs(together - alone).max() <= 1e-4 * scale:
        raise WrongFile("Expected one image alone and in a batch to have the same features; the network mixes images.")


def panel(where: Path | str = "", brief: Brief = PLAIN) -> Panel:
    """torchmetrics' own network; it has one place. Raises BadRequest for another, Unavailable."""
    if where:
        raise BadRequest(f"torchmetrics-features has no folder, got {where}; write the name alone")
    return FeaturesPanel.of(load())


PLUGIN = panel
