"""Methods: one paper, one file, one frozen dataclass. See docs/adding-a-method.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from efface.errors import BadRequest

if TYPE_CHECKING:
    from dataclasses import Field

    from efface.evidence.gather import Evidence
    from efface.evidence.needs import Needs
    from efface.model import Model
    from efface.model.card import Card
    from efface.patch import Answer
    from efface.request import Request
    from efface.work import Work

__all__ = ["Method", "require"]


class Method(Protocol):
    """What every method is: a frozen dataclass whose fields are settings, each with a value."""

    def ask(self, request: Request, card: Card) -> Needs:
        """What will be looked at. Pure: no weights, no model."""
        ...

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """The edits, with numbers for the recipe. The model is bit-equal afterwards, also after an exception."""
        ...

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def require(
    settings: object, *fields: str, above: float | None = None, least: float | None = None, most: float | None = None
) -> None:
    """Raise BadRequest for a number of these fields that is out of range or not finite; words pass."""
    bounds = {"above": above, "at least": least, "at most": most}
    said = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
    for field in fields:
        value = getattr(settings, field)
        if isinstance(value, str):
            continue
        low = (above is None or value > above) and (least is None or value >= least)
        if not (low and value < math.inf and (most is None or value <= most)):
            raise BadRequest(f"setting {field!r} of {type(settings).__name__} must be {said}, got {value}")
