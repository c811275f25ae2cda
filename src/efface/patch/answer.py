"""Answer: what a method hands back, before the flow makes a patch of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from efface.patch.edits import Edit

__all__ = ["Answer"]


@dataclass(frozen=True)
class Answer:
    """The edits of one solve; recipe and base are added by the flow."""

    edits: tuple[Edit, ...]
    """What is to be done to which weight."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """What should be reported of the solve, as plain data; nothing that varies between runs."""
