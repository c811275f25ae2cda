"""Methods: one paper, one file, one frozen dataclass. See docs/adding-a-method.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

from efface.errors import BadRequest, WrongFile
from efface.request import read_lines

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.evidence.needs import Needs
    from efface.model import Model
    from efface.model.card import Card
    from efface.model.text import Encoded
    from efface.patch import Patch
    from efface.request import Request
    from efface.work import Work

__all__ = ["Method", "complete_prompts", "finite", "require"]


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


def complete_prompts(method: Any, request: Request) -> list[str]:
    """What the one concept of kind sensitive stands for: the lines of setting `prompt_file`; [] without such a concept.

    No template is filled in for that kind. Raises BadRequest when kind and file do not come together, WrongFile.
    """
    name, sensitive = type(method).__name__, sum(c.kind == "sensitive" for c in request.concepts)
    if sensitive > 1 or (sensitive and not method.prompt_file):
        raise BadRequest(
            "kind 'sensitive' expands no template: one concept a request, and its complete prompts come from your "
            "own file; write --set prompt_file=FILE with one prompt a line"
        )
    if method.prompt_file and not sensitive:
        raise BadRequest(f"setting 'prompt_file' of {name} serves a concept of kind sensitive; the request has none")
    lines = read_lines(method.prompt_file) if sensitive else []
    if sensitive and not lines:
        raise BadRequest(f"setting 'prompt_file' of {name}: {method.prompt_file} holds no prompt; write one a line")
    if gaps := [line for line in lines if "{" in line or "}" in line]:
        raise BadRequest(f"setting 'prompt_file' of {name} takes complete prompts, {gaps[0]!r} has a place to fill in")
    return lines


def finite(encoded: Encoded) -> Encoded:
    """The same text. Raises WrongFile where its rows hold NaN or infinity."""
    if not bool(encoded.rows.isfinite().all()):
        raise WrongFile(f"the text encoder makes NaN or infinity of {encoded.text!r}; use an undamaged copy")
    return encoded
