"""`imagenette-10`: ten classes of Imagenette. Card: docs/suites.md; data: prompts/imagenette-10.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.suites._listed import Listed

__all__ = ["Imagenette10"]


@dataclass(frozen=True)
class Imagenette10(Listed):
    """images: a class. wording: protocol (one sentence) or many. first_seed: seeds run from it."""

    data: ClassVar[str] = "imagenette-10"
    kind: ClassVar[str] = "object"
    judge: ClassVar[str] = "transformers-classifier"


PLUGIN = Imagenette10
