"""Stand-ins for judges whose weights are not here: small random networks that load like the real ones."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from efface.judges import _pretrained

__all__ = ["Eye", "images", "save_clip", "save_resnet", "seeded", "stand_in_detector"]

TOKENIZER = Path(__file__).parent / "reference" / "tiny-sd" / "tokenizer"
NAMES = ("tench, Tinca tinca", "cassette", "cassette player", "sea lion", "lion, king of beasts", "tiger cat")


def seeded(make: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def images(n: int, size: int = 40, seed: int = 0) -> np.ndarray:
    """Coarse coloured pictures."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 5, 5, 3), dtype=np.uint8)
    return coarse.repeat(size // 5, 1).repeat(size // 5, 2)


def save_resnet(folder: Path) -> Path:
    """A random ResNet of 1,000 classes; the first six have names of ImageNet."""
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    names = {k: NAMES[k] if k < len(NAMES) else f"thing {k}" for k in range(1000)}
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names)
    net = seeded(lambda: ResNetForImageClassification(config))
    made = ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875, resample=2)
    net.classifier[-1].weight.data.mul_(30)
    with torch.inference_mode():  # so that answers differ from image to image
        middle = net(_pretrained.prepare(made, images(40, seed=3))).logits.mean(0)
    net.classifier[-1].bias.data.sub_(middle.clone())
    net.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A random CLIP that reads twelve tokens."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = len(json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"])
    text = {
        **small,
        "vocab_size": vocabulary,
        "max_position_embeddings": 12,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
    }
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=10)
    seeded(lambda: CLIPModel(config)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    return folder


class Eye:
    """Finds a region A as strong as its first channel and B as strong as its last."""

    def __init__(self, model_path: str | None = None) -> None:
        self.model_path = model_path

    def detect(self, image: np.ndarray) -> list[dict[str, Any]]:
        scores = {"A": image[..., 0].mean() / 255, "B": image[..., -1].mean() / 255}
        return [{"class": k, "score": s, "box": [0, 0, 1, 1]} for k, s in scores.items() if s >= 0.2]


def stand_in_detector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in of the detector's package with a weight file."""
    folder.mkdir()
    (folder / "small.onnx").write_bytes(b"weights")
    made = ModuleType("nudenet")
    made.__file__ = str(folder / "__init__.py")
    made.NudeDetector = Eye  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "nudenet", made)
    return folder
