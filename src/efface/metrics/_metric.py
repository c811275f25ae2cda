"""What a metric is: it looks at one image after another, and counts what it said of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from efface.judges import Boxes
from efface.scores.cells import Cell
from efface.scores.readings import Reading

__all__ = ["Metric", "Scored", "Specimen", "presence"]

Heads = Mapping[str, tuple[str, str]]
"""Head of the judge ("style", "object") -> what the prompt names and what that head finds likeliest, "" for none."""


@dataclass(frozen=True)
class Specimen:
    """One image with what is known of it; a metric that needs an absent part scores it NA."""

    image: np.ndarray
    """uint8 (h, w, 3)."""
    prompt: str = ""
    """The sentence that was drawn."""
    concept: str = ""
    """The label asked for."""
    base: np.ndarray | None = None
    """The base model's image of the same shot."""
    probabilities: Mapping[str, float] | None = None
    """The judge's, by label."""
    hits: frozenset[str] | None = None
    """Labels that the judge finds."""
    heads: Heads | None = None
    """What each head of the judge says."""
    features: np.ndarray | None = None
    """The judge's, (f,)."""
    features_of: str = ""
    """The name of the judge that gave them."""
    base_features: np.ndarray | None = None
    """The judge's of the base's image."""
    latent: np.ndarray | None = None
    """The final latent."""
    base_latent: np.ndarray | None = None
    """The final latent of the base."""
    boxes: Boxes | None = None
    """What a detector found."""
    garbage: bool = False
    """Whether the image is broken."""


@dataclass(frozen=True)
class Scored:
    """What a metric says of one image; exactly one state, a reason for NA and ERROR."""

    state: str = "ok"
    hit: bool | None = None
    value: float | None = None
    detail: Mapping[str, object] | None = None
    """What else belongs into the reading of this image, by name."""
    reason: str = ""


class Metric:
    """A metric is a frozen dataclass whose fields are settings. What stands here holds unless it says otherwise."""

    direction: ClassVar[str]
    """up, down or same: what is good."""
    of_pairs: ClassVar[bool] = False
    """It scores an edited image against the base's, and has nothing to say of the base alone."""
    of_records: ClassVar[bool] = False
    """It counts what the records hold, and needs no image."""
    set_dependent: ClassVar[bool] = False
    """Its value changes with what else stands in the table."""

    @property
    def of_real(self) -> bool:
        """Whether it compares with real pictures: readings of side "real"."""
        return False

    def features(self, specimen: Specimen) -> np.ndarray | None:
        """What a set metric keeps of one image, (f,): the judge's features, unchanged."""
        return specimen.features

    def score(self, specimen: Specimen) -> Scored:
        """The metric's word on one image: does the judge find the concept?"""
        return presence(specimen)

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """All cells of a table; a pure function of the set of readings, whatever their order."""
        raise NotImplementedError


def presence(specimen: Specimen) -> Scored:
    """Does the judge find the concept? NA when it has no such label."""
    known, concept = specimen.probabilities, specimen.concept
    if specimen.hits is None or known is None or concept not in known:
        return Scored("na", reason=f"the judge has no label {concept!r}")
    return Scored(hit=concept in specimen.hits, value=float(known[concept]))
