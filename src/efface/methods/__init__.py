"""Methods: one paper, one file, one frozen dataclass. See docs/adding-a-method.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from efface.errors import BadRequest

if TYPE_CHECKING:
    from efface.evidence import Evidence
    from efface.model import Model
    from efface.needs import Needs
    from efface.patch import Patch
    from efface.request import Request
    from efface.sites import Card
    from efface.work import Work

__all__ = ["Method", "require"]


class Method(Protocol):
    """What every method is: a frozen dataclass whose fields are settings (None: the preset decides)."""

    def ask(self, request: Request, card: Card) -> Needs:
        """What will be looked at. Pure: no weights, no model."""
        ...

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """The edits, with numbers for the recipe. The model is bit-equal afterwards, also after an exception."""
        ...

    __dataclass_fields__: dict[str, Any]


def require(method: Any, positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Raise BadRequest for a number that is out of range; None (the preset decides) and words pass."""
    for field in (*positive, *not_negative):
        value = getattr(method, field)
        least = "above 0" if field in positive else "at least 0"
        if value is None or isinstance(value, str):
            continue
        if not (0 < value < math.inf or (value == 0 and field in not_negative)):
            raise BadRequest(f"setting {field!r} of {type(method).__name__} must be {least}, got {value}")
