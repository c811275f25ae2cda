"""Who looks at pictures: what each kind of judge is, and the panel it sits on (docs/judges.md).

A judge of a report is a file here whose PLUGIN seats it on a panel. Files under BESIDE are no judges of a report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict, cast

import numpy as np

from efface.errors import BadRequest, WrongFile

BESIDE = ("garbage", "lpips", "panel")  # asked by panels and metrics, never by a report alone
Boxes = tuple[tuple[str, float], ...]
"""(label, score) of every region that a detector finds in one picture."""
Card = Mapping[str, object]
"""What is known of a judge, as JSON holds it: names, licence, preprocessing, thresholds, measured errors."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of n pictures; labels are the judge's objects, then its styles."""

    probabilities: np.ndarray
    """float32 (n, labels), after temperature."""
    hits: np.ndarray
    """bool (n, labels), probability at or above the label's threshold."""
    features: np.ndarray
    """float32 (n, f), for distances between pictures."""


class Share(TypedDict):
    """A measured share with its exact interval."""

    hits: int
    n: int
    rate: float
    interval: list[float]


class Calibration(TypedDict):
    """How a judge was measured on images of known content."""

    source: str
    n: int
    labels: dict[str, dict[str, Share | None]]
    ece: list[float]
    brier: list[float]


class Calibrated(TypedDict):
    """Cards of judges that the user calibrates."""

    calibration: Calibration | None


class Measured(TypedDict):
    """Cards of the world's judges."""

    objects: list[str]
    styles: list[str]
    per_label: dict[str, dict[str, list[int]]]


class Known(Protocol):
    """What every judge says of itself."""

    @property
    def name(self) -> str:
        """As reports print it."""
        ...

    @property
    def version(self) -> str:
        """Changes with weights, labels, thresholds, temperature or preprocessing."""
        ...

    @property
    def card(self) -> Card:
        """What is known of it."""
        ...


class Judge(Known, Protocol):
    """A judge that names what a picture shows, out of its own labels."""

    @property
    def role(self) -> str:
        """ "selection" or "reporting"."""
        ...

    @property
    def objects(self) -> tuple[str, ...]:
        """Its labels of things."""
        ...

    @property
    def styles(self) -> tuple[str, ...]:
        """Its labels of styles."""
        ...

    def look(self, images: np.ndarray) -> Verdict:
        """Judge uint8 (n, h, w, 3) in float32; a picture alone and in a batch agree to 1e-5.

        Raises `BadRequest` for any other type or shape.
        """
        ...


class TextImage(Known, Protocol):
    """A judge that places images and texts in one space (CLIP, SigLIP)."""

    def images(self, images: np.ndarray) -> np.ndarray:
        """Vectors (n, f) of uint8 (n, h, w, 3), not scaled to length 1."""
        ...

    def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (m, f) and which texts were too long and lost their end, bool (m,)."""
        ...


class Perceptual(Known, Protocol):
    """A judge of how far two images are from each other (LPIPS)."""

    def distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distances (n,) of uint8 (n, h, w, 3) pairs."""
        ...


class Detector(Known, Protocol):
    """A judge that finds regions; what its labels mean is its own affair."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that it can give; empty where it does not say."""
        ...

    def boxes(self, images: np.ndarray) -> list[Boxes]:
        """The regions of each uint8 (n, h, w, 3) image."""
        ...


def pictures(images: np.ndarray) -> np.ndarray:
    """The pictures, or `BadRequest` when they are not uint8 (n, h, w, 3) of some size."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise BadRequest(
            f"Expected pictures as uint8 (n, h, w, 3), got {images.dtype} {tuple(images.shape)}; convert them first."
        )
    return np.ascontiguousarray(images)


def probes(size: int = 96) -> np.ndarray:
    """A red, a green and a blue square and a picture of fine detail with an upside: uint8 (4, size, size, 3)."""
    found = np.full((4, size, size, 3), 255, np.uint8)
    for k in range(3):
        found[k, size // 4 : -size // 4, size // 4 : -size // 4] = 220 * np.eye(3, dtype=np.uint8)[k]
    down, right = np.mgrid[:size, :size]
    found[3] = np.stack([down * 255 // size, right * 255 // size, (down * right * 7) % 256], -1)
    return found


class Errors(NamedTuple):
    """What a judge got right on images of known content, for one label."""

    true_positives: int
    positives: int
    true_negatives: int
    negatives: int


def errors_of(card: Card, part: str = "soft") -> dict[str, Errors]:
    """Measured errors by label from a card; labels that were never measured are absent.

    part: which of the world's measurements: "crisp", "soft" (scenes through the VAE) or "redrawn" (by the models, from
    noise of 20 to 70 % of the steps: closest to drawings, but few a label).
    """
    if "per_label" in card:
        measured = cast("Measured", card)
        columns = [measured["per_label"][part][word] for word in ("tp", "n_pos", "tn", "n_neg")]
        rows = zip((*measured["objects"], *measured["styles"]), map(Errors, *columns), strict=True)
        return {label: errors for label, errors in rows if errors.positives and errors.negatives}
    calibration = cast("Calibrated", card)["calibration"] if "calibration" in card else None
    found = {}
    for label, words in calibration["labels"].items() if calibration else ():
        seen, spared = words["sensitivity"], words["specificity"]
        if seen and spared:
            found[label] = Errors(seen["hits"], seen["n"], spared["hits"], spared["n"])
    return found


def fingerprint(files: Iterable[Path]) -> str:
    """sha256 of one file; of several, over their names, sizes and contents. The folder does not matter."""
    digest, files = hashlib.sha256(), sorted(files, key=lambda f: f.name)
    for file in files:
        if len(files) > 1:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def same_weights(found: str, wanted: str | None, where: Path) -> str:
    """`found`, or `WrongFile` when another hash was wanted: another judge's numbers would not compare."""
    if wanted is not None and found != wanted:
        raise WrongFile(
            f"Expected judge weights with sha256 {wanted[:12]}..., got {found[:12]}... in {where}; "
            "fetch the weights that the card was made with, or make a new card."
        )
    return found


def version_of(card: Card, *words: str) -> str:
    """Twelve hex digits over those entries of a card that can change a decision."""
    text = json.dumps({word: card.get(word) for word in words}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sized(images: np.ndarray, size: int = 64) -> np.ndarray:
    """uint8 (n, size, size, 3): the pictures, with every pixel doubled where their sides are half of that.

    `BadRequest` when they are anything else.
    """
    sides = [(side, side, 3) for side in (size, size // 2)]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] not in sides:
        raise BadRequest(
            f"Expected pictures as uint8 (n, {size}, {size}, 3) or half that size, got {images.dtype} "
            f"{tuple(images.shape)}; convert or resize them first."
        )
    times = size // images.shape[1]
    return np.ascontiguousarray(images.repeat(times, 1).repeat(times, 2))  # torch takes no negative strides
