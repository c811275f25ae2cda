"""The bundled reporting judge of the emoji world: a multi-label conv net (made by world/train_judge.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from torch import nn

from efface.errors import Unavailable, WrongFile
from efface.judges import Card, Verdict, sized
from efface.judges.panel import PLAIN, Brief, LabelPanel, Panel

__all__ = ["Net", "WorldJudge", "load", "panel", "version"]

PREPROCESSING = {"size": 64, "resize": "none", "colours": "RGB", "scale": "x / 127.5 - 1", "dtype": "float32"}
BATCH = 64


class WorldCard(TypedDict):
    """What decides a judge of the world; its card.json holds more."""

    weights_sha256: str
    objects: list[str]
    styles: list[str]
    thresholds: list[float]
    temperature: dict[str, float]
    self_test: list[list[float]]


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    """Object head on the last map; style head also on earlier maps, where outlines and shading still show.

    Outputs: object logits (n, objects), style logits (n, styles), extra logits (n, 2: empty, broken),
    features (n, 258: mean of the 16 x 16 map, mean of the last map, the extra logits).
    """

    def __init__(self, objects: int, styles: int) -> None:
        super().__init__()
        self.edges = nn.Sequential(_conv(3, 24, 6, 2), _conv(24, 64, 3, 2), Residual(64))
        self.parts = nn.Sequential(_conv(64, 128, 3, 2), Residual(128))
        self.things = _conv(128, 192, 3, 2)
        self.object_head = nn.Linear(384, objects)
        self.style_head = nn.Sequential(nn.Linear(64 + 128 + 384, 96), nn.ReLU(), nn.Linear(96, styles))
        self.extra_head = nn.Linear(64 + 128 + 384, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        edges = self.edges(x)  # (n, 64, 16, 16)
        parts = self.parts(edges)  # (n, 128, 8, 8)
        things = self.things(parts)  # (n, 192, 4, 4)
        mean = things.mean((2, 3))
        last = torch.cat([mean, things.amax((2, 3))], 1)
        every = torch.cat([edges.mean((2, 3)), parts.mean((2, 3)), last], 1)
        extra = self.extra_head(every)
        features = torch.cat([edges.mean((2, 3)), mean, extra], 1)
        return self.object_head(last), self.style_head(every), extra, features


def prepare(images: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 64, 64, 3) to float32 (n, 3, 64, 64) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


class WorldJudge:
    """Weights and card of the reporting judge; see `efface.judges.Judge`."""

    name = "world"
    role = "reporting"

    def __init__(self, net: nn.Module, card: WorldCard, version: str) -> None:
        self.version, self.card = version, cast("Card", card)
        self.objects: tuple[str, ...] = tuple(card["objects"])
        self.styles: tuple[str, ...] = tuple(card["styles"])
        self._net = net.float().eval().requires_grad_(False)
        self._thresholds = np.asarray(card["thresholds"], np.float32)  # (labels,)
        heat = card["temperature"]
        self._heat = torch.tensor([heat["objects"]] * len(self.objects) + [heat["styles"]] * len(self.styles))

    @torch.inference_mode()
    def logits(self, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits before temperature (n, labels) and features (n, 258) of uint8 (n, 64 or 32, the same, 3)."""
        images = sized(images)
        parts = [self._net(prepare(torch.from_numpy(images[k : k + BATCH]))) for k in range(0, len(images), BATCH)]
        if not parts:
            return torch.zeros(0, len(self._thresholds)), torch.zeros(0, 258)
        return torch.cat([torch.cat(p[:2], 1) for p in parts]), torch.cat([p[3] for p in parts])

    def look(self, images: np.ndarray) -> Verdict:
        """Judge uint8 (n, 64, 64, 3), or (n, 32, 32, 3) as `micro` draws; `BadRequest` for anything else."""
        logits, features = self.logits(images)
        chance = torch.sigmoid(logits / self._heat).numpy()
        return Verdict(chance, chance >= self._thresholds, features.numpy())


def load(folder: Path | None = None) -> WorldJudge:
    """The bundled reporting judge, or the one in `folder` (model.safetensors and card.json).

    Raises `Unavailable` when there is none and `WrongFile` when weights and card do not belong together.
    """
    from efface import world

    folder = folder or world.folder("judge")
    weights, card_file = folder / "model.safetensors", folder / "card.json"
    if not (weights.is_file() and card_file.is_file()):
        raise Unavailable(
            f"Expected model.safetensors and card.json in {folder}, found no judge; train one with "
            "`efface world train judge`."
        )
    data, card = weights.read_bytes(), json.loads(card_file.read_text(encoding="utf-8"))
    if hashlib.sha256(data).hexdigest() != card["weights_sha256"]:
        raise WrongFile(f"Expected the weights that {card_file} was measured on, got others; train the judge again.")
    judge = WorldJudge(rebuilt(data, card), card, version(card))
    self_test(judge)
    return judge


def panel(where: Path | str = "", brief: Brief = PLAIN) -> Panel:
    """The judge in a folder, or the bundled one, which names whatever a suite asks for or nothing."""
    return LabelPanel.of(load(Path(where)) if where else load(), brief)


def probes() -> np.ndarray:
    """A red, a green and a blue square and a picture with an upside and a direction: uint8 (4, 64, 64, 3)."""
    squares = np.full((4, 64, 64, 3), 255, np.uint8)
    for k in range(3):
        squares[k, 16:48, 16:48] = 220 * np.eye(3, dtype=np.uint8)[k]
    down, right = np.mgrid[:64, :64]
    squares[3] = np.stack([4 * down, 4 * right, (down * right) % 256], -1)
    return squares


def self_test(judge: WorldJudge) -> None:
    """Refuse (`WrongFile`) a judge that answers the probes otherwise than when it was measured.

    Catches swapped colours, another scale, batch norm in training mode and reduced precision.
    """
    styles = len(judge.styles)
    together = judge.logits(probes())[0][:, -styles:].numpy()
    alone = np.concatenate([judge.logits(probe[None])[0][:, -styles:].numpy() for probe in probes()])
    stored = np.asarray(cast("WorldCard", judge.card)["self_test"], np.float32)  # (4, styles), logits
    away = max(np.abs(together - stored).max(), np.abs(alone - stored).max())
    if not away <= 2e-3:
        raise WrongFile(
            f"Expected the judge's answers to its probe pictures as stored in its card, got others "
            f"({away:.3g} away); reinstall it or train it again."
        )


def rebuilt(data: bytes, card: WorldCard) -> Net:
    """The net of float16 safetensors bytes, in float32."""
    from safetensors.torch import load as read

    net = Net(len(card["objects"]), len(card["styles"]))
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in read(data).items()})
    return net


def version(card: Mapping[str, object]) -> str:
    """Twelve hex digits over everything that can change a decision."""
    words = ["weights_sha256", "objects", "styles", "thresholds", "temperature", "preprocessing"]
    text = json.dumps({word: card[word] for word in words}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


PLUGIN = panel
