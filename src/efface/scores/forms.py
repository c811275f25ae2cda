"""Dataclasses as JSON holds them, and back: what a report, a comparison and a plan are on disk.

Keys are the names of the fields. A class with `__pydantic_config__ = SPACED` has spaces for underscores in them. A
field with `metadata=SPARE` is left out of the file while it is None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeAlias

from efface.untrusted.forms import SPACED, read

__all__ = ["SPACED", "SPARE", "Plain", "plain", "read", "row_of"]

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
"""What JSON holds."""
SPARE = {"spare": True}


def plain(value: object) -> Plain:
    """JSON has no NaN and no infinity: what is not a number becomes null, which is printed as NA."""
    if dataclasses.is_dataclass(value):
        return row_of(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def row_of(value: object) -> dict[str, Plain]:
    """The entries of a dataclass."""
    found: dict[str, Plain] = {}
    for name, key, spare in _keys(type(value)):
        entry = getattr(value, name)
        if not (spare and entry is None):
            found[key] = plain(entry)
    return found


@cache
def _keys(kind: type) -> tuple[tuple[str, str, bool], ...]:
    """Field, key in the file, and whether it is left out while it is None."""
    spaced = getattr(kind, "__pydantic_config__", None) is SPACED
    fields = dataclasses.fields(kind)
    return tuple((f.name, f.name.replace("_", " ") if spaced else f.name, "spare" in f.metadata)
                 for f in fields)  # fmt: skip
