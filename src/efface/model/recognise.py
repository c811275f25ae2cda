"""Which family a folder or a pipeline is of: by its class, by the classes it inherits from, else by its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from efface.errors import Unavailable
from efface.model.family import Family, Part
from efface.model.reach import unwrapped
from efface.registry import find, names

__all__ = ["family_of_index", "family_of_pipeline"]

_NONE = ("", "NoneType", "None")  # what a part that is not there is called


def family_of_index(index: Mapping[str, Any], where: str) -> Family:
    """From `model_index.json`: its class, else the classes of its parts. Raises Unavailable."""

    def named(part: str) -> str:
        entry = index.get(part)
        return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 else ""

    return _family((str(index.get("_class_name")),), named, where)


def family_of_pipeline(pipe: Any) -> Family:
    """From the user's own pipeline. Raises Unavailable for what is none, and for one of no known family."""
    inherited = tuple(c.__name__ for c in type(pipe).__mro__)
    family = _family(inherited, lambda part: _called(pipe, part), type(pipe).__name__)
    for part in family.parts:
        _refuse_other(part, type(unwrapped(getattr(pipe, part.name, None))))
    return family


def _called(pipe: Any, part: str) -> str:
    return type(unwrapped(getattr(pipe, part, None))).__name__


def _refuse_other(part: Part, found: type) -> None:
    """Raise Unavailable for a part with weights whose class is none of the family's, nor made from one."""
    known = {name for _, name in part.classes}
    if part.weighed and found is not type(None) and not known & {c.__name__ for c in found.__mro__}:
        raise Unavailable(
            f"part {part.name} is of class {found.__name__}, expected {' or '.join(sorted(known))}; use another model"
        )


def _family(classes: tuple[str, ...], named: Callable[[str], str], where: str) -> Family:
    families = [find("families", name)() for name in names("families")]
    for cls in classes:  # the nearest class that some family answers to
        if claimed := [f for f in families if cls in f.pipelines]:
            return _complete(_one(claimed, where), named, where)
    if claimed := _largest([f for f in families if all(_fits(part, named) for part in f.parts)]):
        return _one(claimed, where)
    raise Unavailable(
        f"models of class {classes[0]!r} are not supported yet; efface list families names those that are"
    )


def _fits(part: Part, named: Callable[[str], str]) -> bool:
    return named(part.name) in {cls for _, cls in part.classes} or (not part.needed and named(part.name) in _NONE)


def _largest(families: list[Family]) -> list[Family]:
    """Those whose parts are not all parts of another: two encoders are more than the first of them."""
    parts = [{p.name for p in f.parts} for f in families]
    return [f for f, own in zip(families, parts, strict=True) if not any(own < others for others in parts)]


def _one(claimed: list[Family], where: str) -> Family:
    if len(claimed) > 1:
        raise Unavailable(
            f"{where} is claimed by {len(claimed)} families ({', '.join(f.name for f in claimed)}); "
            "uninstall the plug-in that should not answer to it"
        )
    return claimed[0]


def _complete(family: Family, named: Callable[[str], str], where: str) -> Family:
    """The family. Raises Unavailable where one of its parts is missing."""
    for part in family.parts:
        if part.needed and named(part.name) in _NONE:
            raise Unavailable(f"{where} lacks its part {part.name}, which {family.name} needs; load all of the model")
    return family
