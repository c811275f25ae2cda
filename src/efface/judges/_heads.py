"""Labels as judges and questions spell them, and two judges as one of styles and objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import numpy as np

from efface.errors import BadRequest
from efface.files import key_of
from efface.judges import Card, Judge, Verdict

__all__ = ["TwoHeads", "counted", "spelled"]


def spelled(labels: Sequence[str], asked: Sequence[str]) -> tuple[str, ...]:
    """A judge's labels as the questions spell them: case, and "_" for a blank, make no other label."""
    own = {_folded(text): text for text in asked}
    return tuple(own.get(_folded(label), label) for label in labels)


def _folded(text: str) -> str:
    return text.casefold().replace("_", " ").strip()


def counted(labels: Iterable[str], patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that one of the patterns matches, whatever their case; no pattern is every label."""
    wanted = [p.casefold() for p in patterns]
    return tuple(n for n in labels if not wanted or any(fnmatchcase(n.casefold(), p) for p in wanted))


class TwoHeads:
    """A judge of styles and one of objects as one judge of both."""

    def __init__(self, styles: Judge, objects: Judge) -> None:
        self._two = (objects, styles)
        self.name = f"{styles.name} + {objects.name}"
        self.version = key_of(styles=styles.version, objects=objects.version)[:12]
        self.role = "selection" if "selection" in (styles.role, objects.role) else "reporting"
        self.card: Card = {"name": self.name, "role": self.role, "styles": styles.card, "objects": objects.card,
                           "thresholds": "of each judge"}  # fmt: skip
        # what either judge calls its labels, it is asked for one kind of them
        self.objects, self.styles = ((*j.objects, *j.styles) for j in self._two)
        both = {*map(_folded, self.objects)} & {*map(_folded, self.styles)}
        if both:
            raise BadRequest(f"both judges have the label {min(both)!r}; name one judge of styles and one of objects")

    def look(self, images: np.ndarray) -> Verdict:
        said = [judge.look(images) for judge in self._two]
        return Verdict(*(np.concatenate([getattr(v, part) for v in said], 1)
                         for part in ("probabilities", "hits", "features")))  # fmt: skip
