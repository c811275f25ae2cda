"""What a judge is: uint8 pictures in, one probability and one decision a label out (docs/judges.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from efface.errors import BadRequest


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


def checked(images: np.ndarray, size: int = 64) -> np.ndarray:
    """The pictures, or `BadRequest` when they are not uint8 (n, size, size, 3)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise BadRequest(
            f"Expected pictures as uint8 (n, {size}, {size}, 3), got {images.dtype} {tuple(images.shape)}; "
            "convert or resize them first."
        )
    return np.ascontiguousarray(images)  # torch takes no negative strides
