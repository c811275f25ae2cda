"""Dataclasses out of what a document holds: every entry is checked against the type of its field.

A class with `__pydantic_config__ = SPACED` has spaces for underscores in its keys.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, TypeVar, get_args, get_type_hints

from efface.errors import EffaceError
from efface.untrusted.rules import printable, short

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["SPACED", "read"]

T = TypeVar("T")


def _spaced(name: str) -> str:
    return name.replace("_", " ")


SPACED = {"alias_generator": _spaced}
_NAMED = {"alias_generator": None}  # as the fields are called


@cache
def _reader(kind: type[T]) -> TypeAdapter[T]:
    from pydantic import TypeAdapter

    _settle(kind, set())
    return TypeAdapter(kind)


def _settle(hint: object, seen: set[object]) -> None:
    """Give every class a rule of its own, else it would take over that of the class around it."""
    if hint in seen:
        return
    seen.add(hint)
    inner = list(get_args(hint))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not hasattr(hint, "__pydantic_config__"):
            hint.__pydantic_config__ = _NAMED  # pyright: ignore[reportAttributeAccessIssue]
        inner += get_type_hints(hint).values()
    for part in inner:
        if isinstance(part, Hashable):
            _settle(part, seen)


def read(kind: type[T], content: object, exact: bool = False) -> T:
    """A dataclass from what a document holds. Raises ValueError that names the first entry that is wrong.

    exact: what merely could be read as a field's type is refused as well.
    """
    from pydantic import ValidationError

    try:
        if exact:  # lists stand for tuples in JSON alone
            return _reader(kind).validate_json(json.dumps(content, default=str), strict=True)
        return _reader(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))[:120] or "the whole"
        given = "" if first["type"] == "missing" else f", got {short(first['input'])}"
        raise ValueError(f"{printable(where)}: {first['msg'].lower()}{given}") from None
    except EffaceError as error:  # of a class that looks at its own fields
        raise ValueError(str(error)) from None
