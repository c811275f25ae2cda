"""A garbage detector that is fitted on a run's own base pictures, for judges that none was bundled with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from efface.judges import garbage, pictures

__all__ = ["FEWEST", "MOST", "OwnGarbage"]

FEWEST = 300  # base pictures of a run that has a detector of its own
MOST = 2000  # base pictures that it is fitted on
ENOUGH = 250  # of them that could be drawn: with fewer no share of 1 % can be told
Batches = Callable[[], Iterator[np.ndarray]]
Look = Callable[[np.ndarray], np.ndarray]


class OwnGarbage:
    """The statistics of `garbage.py` over any judge's features; fitted when it is first asked.

    Its version is that of what it is fitted on, so that it is known before anything is drawn.
    """

    def __init__(self, version: str, batches: Batches, look: Look) -> None:
        """batches: base pictures uint8 (n, h, w, 3), some at a time; look: the judge's features (n, f) of pictures."""
        self.version, self._batches, self._look = version, batches, look

    def flags(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """bool (n,): True for garbage. features: of the same pictures."""
        images, known = pictures(images), self._reference
        flat = garbage.constant(images)
        if known is None:
            return flat
        values = garbage.placed(known, garbage.pixel_statistics(images), _padded(features))
        return flat | (garbage.tail(known, values) <= garbage.RATE)

    @cached_property
    def _reference(self) -> garbage.Reference | None:
        """None where too few could be drawn."""
        seen = [(garbage.pixel_statistics(batch), _padded(self._look(batch))) for batch in self._batches()]
        if sum(len(values) for values, _ in seen) < ENOUGH:
            return None
        values, features = (np.concatenate(column) for column in zip(*seen, strict=True))
        fine = np.isfinite(features).all(1)
        return garbage.fitted(values[fine], features[fine], among=True) if fine.sum() >= ENOUGH else None


def _padded(features: np.ndarray) -> np.ndarray:
    """Features (n, f) with two empty columns, where the bundled judge has outputs for empty and broken pictures."""
    return np.concatenate([features, np.zeros((len(features), 2))], 1).astype(np.float32)
