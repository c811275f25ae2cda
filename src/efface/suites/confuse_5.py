"""`confuse-5`: five groups of look-alikes, reconstructed. Card: docs/suites.md; data: prompts/confuse-5.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.suites._listed import Listed

__all__ = ["Confuse5"]


@dataclass(frozen=True)
class Confuse5(Listed):
    """images: a class. wording: protocol (one sentence) or many. first_seed: seeds run from it."""

    data: ClassVar[str] = "confuse-5"
    kind: ClassVar[str] = "object"
    judge: ClassVar[str] = "transformers-classifier"


PLUGIN = Confuse5
