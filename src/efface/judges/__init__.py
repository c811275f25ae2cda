"""What a judge is: uint8 pictures in, one probability and one decision a label out (docs/judges.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from efface.errors import BadRequest, WrongFile


@dataclass(frozen=True)
class Verdict:
    """What a judge says of n pictures; labels are the judge's objects, then its styles."""

    probabilities: np.ndarray  # float32 (n, labels), after temperature
    hits: np.ndarray  # bool (n, labels), probability at or above the label's threshold
    features: np.ndarray  # float32 (n, f), for distances between pictures


class Judge(Protocol):
    """One frozen judge. `version` changes with weights, labels, thresholds, temperature or preprocessing."""

    name: str
    version: str
    role: str  # "selection" or "reporting"
    objects: tuple[str, ...]
    styles: tuple[str, ...]
    card: dict[str, Any]

    def look(self, images: np.ndarray) -> Verdict:
        """Judge uint8 (n, 64, 64, 3) in float32; a picture alone and in a batch agree to 1e-5.

        Raises `BadRequest` for any other type or shape.
        """
        ...


class TextImage(Protocol):
    """A judge that places images and texts in one space (CLIP, SigLIP)."""

    name: str
    version: str
    card: dict[str, Any]

    def images(self, images: np.ndarray) -> np.ndarray:
        """Vectors (n, f) of uint8 (n, h, w, 3), not scaled to length 1."""
        ...

    def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (m, f) and which texts were too long and lost their end, bool (m,)."""
        ...


class Perceptual(Protocol):
    """A judge of how far two images are from each other (LPIPS)."""

    name: str
    version: str
    card: dict[str, Any]

    def distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distances (n,) of uint8 (n, h, w, 3) pairs."""
        ...


class Detector(Protocol):
    """A judge that finds regions; what its labels mean is its own affair."""

    name: str
    version: str
    card: dict[str, Any]

    def boxes(self, images: np.ndarray) -> list[tuple[tuple[str, float], ...]]:
        """(label, score) of every region of each uint8 (n, h, w, 3) image."""
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


def errors_of(card: Mapping[str, Any], part: str = "soft") -> dict[str, Errors]:
    """Measured errors by label from a card; labels that were never measured are absent.

    part: which of the world's measurements: "crisp", "soft" (scenes through the VAE) or "redrawn" (by the models, from
    noise of 20 to 70 % of the steps: closest to drawings, but few a label).
    """
    if "per_label" in card:
        columns = [card["per_label"][part][word] for word in ("tp", "n_pos", "tn", "n_neg")]
        rows = zip((*card["objects"], *card["styles"]), map(Errors, *columns), strict=True)
        return {label: errors for label, errors in rows if errors.positives and errors.negatives}
    found = {}
    for label, words in ((card.get("calibration") or {}).get("labels", {})).items():
        sides = [words["sensitivity"], words["specificity"]]
        if None not in sides:
            found[label] = Errors(*(side[w] for side in sides for w in ("hits", "n")))
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


def version_of(card: Mapping[str, Any], *words: str) -> str:
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
