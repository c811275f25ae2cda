"""`diversi-50`: fifty classes of common life. Card: docs/suites.md; data: prompts/diversi-50.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.suites._listed import Listed

__all__ = ["Diversi50"]


@dataclass(frozen=True)
class Diversi50(Listed):
    """images: a class. wording: protocol (one sentence) or many. first_seed: seeds run from it."""

    data: ClassVar[str] = "diversi-50"
    kind: ClassVar[str] = "object"
    judge: ClassVar[str] = "transformers-classifier"


PLUGIN = Diversi50
