"""`artists-50`: fifty painters dead for over seventy years. Card: docs/suites.md; data: prompts/artists-50.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.suites._listed import Listed

__all__ = ["Artists50"]


@dataclass(frozen=True)
class Artists50(Listed):
    """images: a class. wording: protocol (one sentence) or many. first_seed: seeds run from it."""

    data: ClassVar[str] = "artists-50"
    kind: ClassVar[str] = "style"
    judge: ClassVar[str] = "clip"
    template: ClassVar[str] = "an image in the style of {}"


PLUGIN = Artists50
