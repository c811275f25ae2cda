"""`artists-5`: the five painters of two papers. Card: docs/suites.md; data: prompts/artists-5.toml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from efface.suites._listed import Listed

__all__ = ["Artists5"]


@dataclass(frozen=True)
class Artists5(Listed):
    """images: a class. wording: protocol (one sentence), many, or titles (of works).

    first_seed: seeds run from it.
    """

    data: ClassVar[str] = "artists-5"
    kind: ClassVar[str] = "style"
    judge: ClassVar[str] = "clip"
    template: ClassVar[str] = "an image in the style of {}"


PLUGIN = Artists5
