"""What judges from transformers share: where the files are, the PIL image processor, the traps of preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Literal, Protocol, TypedDict, cast

import numpy as np
import torch
from PIL import Image

from efface.errors import Unavailable, WrongFile
from efface.judges import Calibration, fingerprint, pictures, probes, same_weights
from efface.untrusted import refuse_code

__all__ = ["BATCH", "batched", "locate", "module", "prepare", "preprocessing", "processor", "read_card", "self_test"]


class PretrainedCard(TypedDict):
    """What the cards of these judges have in common."""

    name: str
    role: str
    architecture: str
    weights_sha256: str
    licence: str
    multi_label: bool
    thresholds: str
    preprocessing: dict[str, object]
    calibration: Calibration | None
    self_test: list[list[float]]


class KnownCard(TypedDict, total=False):
    """A card made earlier, as it is read; empty where the user names none."""

    name: str
    licence: str
    weights_sha256: str
    preprocessing: dict[str, object]
    classes: dict[str, list[int]]
    match: Literal["index", "substring"]
    temperature: float
    calibration: Calibration | None
    self_test: list[list[float]]


class Processor(Protocol):
    """An image processor of transformers."""

    def __call__(self, images: list[Image.Image], return_tensors: str) -> Mapping[str, list[np.ndarray]]: ...

    def to_dict(self) -> dict[str, object]: ...


Told = Mapping[str, Iterable[object]]
"""What transformers says of loading: keys that were missing, of another shape, and more."""


class Auto(Protocol):
    """A class of transformers that finds the network of a folder."""

    def from_pretrained(self, folder: Path, **how: object) -> tuple[torch.nn.Module, Told]: ...


class Resizing(TypedDict, total=False):
    """How a processor brings a picture to the network's size."""

    size: dict[str, int]
    do_resize: bool
    crop_pct: float
    resample: int


class TextConfig(Protocol):
    """Of a text tower."""

    max_position_embeddings: int


class Config(Protocol):
    """What is read of a network's configuration."""

    id2label: Mapping[int, str]
    text_config: TextConfig


BATCH = 32
CLOSE = 1e-5  # an image alone and in a batch, relative to the largest answer
STORED = 2e-3  # answers to the probes against those in the card
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # never pickles, never code


def locate(name: str | Path, offline: bool = False) -> Path:
    """The folder of a model: a path, or a hub id that is fetched once. Raises Unavailable with the way to get it."""
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or str(name).count("/") > 1 or str(name).startswith((".", "~")):
        raise Unavailable(f"Expected a transformers folder with config.json at {name}; save_pretrained makes one.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(FILES), local_files_only=offline))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError):
        raise Unavailable(
            f"Judge {name} is not on this machine and could not be fetched; run `hf download {name}` where there is "
            "a network, and name the folder here."
        ) from None


def module(cls: object, folder: Path, wanted: str | None) -> tuple[torch.nn.Module, str]:
    """The network in float32 and evaluation mode, and the hash of its weights.

    Raises WrongFile for pickled, damaged or other weights than `wanted`, and for a folder that asks for its own code.
    """
    refuse_code(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WrongFile(f"Expected .safetensors weights in {folder}, found none; convert or fetch them anew.")
    weights = same_weights(fingerprint(files), wanted, folder)
    try:
        net, told = cast("Auto", cls).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:
        # damaged files surface as many kinds of exception; all have the same cure
        raise WrongFile(f"{folder} cannot be loaded ({str(error).splitlines()[0][:160]}); fetch it anew.") from None
    absent = sorted(map(str, {*told.get("missing_keys", ()), *told.get("mismatched_keys", ())}))
    if absent:
        # the library fills these with random numbers and goes on: a head of noise would judge
        raise WrongFile(f"Expected weights of the whole network in {folder}, {absent[0]} is missing; fetch it anew.")
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WrongFile(f"{folder} holds NaN or infinity at {key}; fetch it anew.")
    return net.eval().requires_grad_(False), weights


def config_of(net: torch.nn.Module) -> Config:
    """Every network of transformers carries one."""
    return cast("Config", net.config)


def processor(folder: Path) -> Processor:
    """The folder's image processor on PIL, whatever else is installed: filters of other backends differ."""
    from transformers import AutoImageProcessor

    how = {"backend": "pil"} if int(version("transformers").split(".")[0]) >= 5 else {"use_fast": False}
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **how)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).splitlines()[0][:160]
        raise WrongFile(f"Expected preprocessor_config.json in {folder} ({said}); fetch it anew.") from None


def preprocessing(made: Processor) -> dict[str, object]:
    """Everything about preprocessing that can change a decision, for the card."""
    words = ("size", "resample", "crop_size", "crop_pct", "do_resize", "do_center_crop", "do_rescale",
             "rescale_factor", "do_normalize", "image_mean", "image_std")  # fmt: skip
    facts = made.to_dict()
    plain = {w: facts[w] for w in words if facts.get(w) is not None}
    return json.loads(json.dumps({**plain, "backend": "pil", "dtype": "float32", "channels": "rgb"}, default=_plain))


def _plain(value: object) -> dict[str, object] | int:
    """Sizes and filters of newer versions are objects."""
    if hasattr(value, "__dict__"):
        return {k: v for k, v in vars(value).items() if v is not None}
    return int(cast("int", value))


def prepare(made: Processor, images: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to the network's float32 (n, 3, H, W)."""
    ready = [Image.fromarray(image) for image in pictures(images)]
    return torch.as_tensor(np.stack(made(images=ready, return_tensors="np")["pixel_values"]), dtype=torch.float32)


@torch.inference_mode()
def batched(look: Callable[[np.ndarray], tuple[torch.Tensor, ...]], images: np.ndarray) -> list[np.ndarray]:
    """Apply `look` to batches; each of its answers in one float32 array. At least one image."""
    parts = [look(images[k : k + BATCH]) for k in range(0, len(images), BATCH)]
    return [torch.cat(column).float().numpy() for column in zip(*parts, strict=True)]


def read_card(file: Path | None) -> KnownCard:
    """A card made earlier, or nothing. Raises WrongFile."""
    if file is None:
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WrongFile(f"Expected a judge's card (JSON) at {file}, found none; make it with `save_card`.") from None
    if not isinstance(card, dict) or "weights_sha256" not in card:
        raise WrongFile(f"Expected a judge's card with weights_sha256 in {file}; make it with `save_card`.")
    return cast("KnownCard", card)


def self_test(
    net: torch.nn.Module, made: Processor, answers: Callable[[np.ndarray], np.ndarray], card: KnownCard
) -> np.ndarray:
    """Refuse (`WrongFile`) a judge in a trap: colour order, resize backend, training mode, precision, other answers.

    answers: pictures to the network's raw output (n, k). Returns that of the probes, to be stored in the card.
    """
    squares = probes()
    pixels = prepare(made, squares).numpy()
    middle = pixels[:3, :, pixels.shape[2] // 2, pixels.shape[3] // 2]  # (3, channels)
    mean, std = (np.asarray(getattr(made, w, None) or d, np.float32) for w, d in (("image_mean", 0), ("image_std", 1)))
    if not (np.argmax(middle * std + mean, 1) == np.arange(3)).all():
        raise WrongFile("Expected red, green and blue in this order after preprocessing; the channels were swapped.")
    _check_resize(made, squares[3], pixels[3] * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1)))
    if net.training or any(p.dtype != torch.float32 for p in net.parameters()):
        raise WrongFile("Expected a judge in float32 and evaluation mode; load it with this package's loader.")
    together = answers(squares)
    alone = np.concatenate([answers(probe[None]) for probe in squares])
    scale = max(1.0, float(np.abs(together).max()))
    if not np.abs(together - alone).max() <= CLOSE * scale:
        raise WrongFile("Expected one image alone and in a batch to be judged alike; the network mixes images.")
    stored = card.get("self_test")
    if stored is not None and not np.abs(together - np.asarray(stored)).max() <= STORED * scale:
        raise WrongFile("Expected the answers to the probes as stored in the judge's card, got others; fetch it anew.")
    return together


def _check_resize(made: Processor, image: np.ndarray, found: np.ndarray) -> None:
    """Compare with PIL's own filter, which averages when it shrinks: cv2's and torch's defaults do not."""
    facts = cast("Resizing", preprocessing(made))
    size: dict[str, int] = facts.get("size", {}) if facts.get("do_resize", True) else {}
    height, width = int(found.shape[1]), int(found.shape[2])
    edge = size.get("shortest_edge")
    if edge is None:
        resized = (size.get("width", width), size.get("height", height))
    else:
        side = int(edge / facts["crop_pct"]) if "crop_pct" in facts and edge < 384 else edge
        resized = (side, side)  # the probe is square
    wanted = np.asarray(Image.fromarray(image).resize(resized, Image.Resampling(facts.get("resample", 2)))) / 255.0
    top, left = (resized[1] - height) // 2, (resized[0] - width) // 2
    if top < 0 or left < 0:
        return  # padded: nothing to compare
    wanted = wanted[top : top + height, left : left + width]
    if not np.abs(found.transpose(1, 2, 0) - wanted).max() <= 2.5 / 255:
        raise WrongFile("Expected PIL's resize filter named in the judge's processor, got another one's pixels.")
