"""Methods: one paper, one file, one frozen dataclass. See docs/adding-a-method.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from efface.evidence import Evidence
    from efface.model import Model
    from efface.needs import Needs
    from efface.patch import Patch
    from efface.request import Request
    from efface.sites import Card
    from efface.work import Work

__all__ = ["Method"]


class Method(Protocol):
    """What every method is: a frozen dataclass whose fields are settings (None: the preset decides)."""

    def ask(self, request: Request, card: Card) -> Needs:
        """What will be looked at. Pure: no weights, no model."""
        ...

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """The edits, with numbers for the recipe. The model is bit-equal afterwards, also after an exception."""
        ...

    __dataclass_fields__: dict[str, Any]
