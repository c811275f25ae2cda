"""Find methods, attacks, metrics, judges, suites and families: a file in its folder, or an entry point.

The file's name is the name everywhere; hyphen and underscore are the same. A file holds one class or function
that its `__all__` names first. Outsiders register `efface.<kind>` entry points that point at the same object.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from efface.errors import BadRequest, UnknownName

__all__ = ["FOLDERS", "configure", "find", "names", "presets_of", "resolve"]

FOLDERS = ("methods", "attacks", "metrics", "judges", "suites", "families", "engines")


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def _files(folder: str) -> dict[str, str]:
    package = importlib.import_module(f"efface.{folder}")
    found = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    beside = getattr(package, "BESIDE", ())  # files of the folder that are no plug-ins
    return {_plain(name): f"efface.{folder}.{name}" for name in found if _plain(name) not in beside}


def names(folder: str) -> list[str]:
    """All names of one kind, sorted, entry points included."""
    return sorted({*_files(folder), *(_plain(e.name) for e in entry_points(group=f"efface.{folder}"))})


def find(folder: str, name: str) -> Any:
    """The object behind a name. Raises UnknownName with the nearest names."""
    files = _files(folder)
    if _plain(name) in files:
        module = importlib.import_module(files[_plain(name)])
        return getattr(module, "PLUGIN", None) or getattr(module, module.__all__[0])
    for entry in entry_points(group=f"efface.{folder}"):
        if _plain(entry.name) == _plain(name):
            return entry.load()
    raise UnknownName(
        folder.removesuffix("s").replace("familie", "family"), name, names(folder), f"efface list {folder}"
    )


def configure(name: str, settings: dict[str, Any], folder: str = "methods") -> Any:
    """A method (or suite) by name with the user's settings; text values are converted to the field's type."""
    cls = find(folder, name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in settings:
        if key not in fields:
            raise UnknownName(f"setting of {name}", key, fields)
    return cls(**{key: _convert(cls, key, value) for key, value in settings.items()})


def _convert(cls: type, key: str, value: Any) -> Any:
    """Text -> the annotated type, through pydantic, which knows unions and literals."""
    from typing import get_type_hints

    from pydantic import TypeAdapter, ValidationError

    hint = get_type_hints(cls)[key]
    try:
        return (
            TypeAdapter(hint).validate_strings(value)
            if isinstance(value, str)
            else TypeAdapter(hint).validate_python(value)
        )
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise BadRequest(f"setting {key!r} of {cls.__name__}: got {value!r}; {said}") from None


def presets_of(method: Any) -> dict[str, dict[str, Any]]:
    """The presets that stand in the method's file."""
    return importlib.import_module(type(method).__module__).PRESETS


def resolve(method: Any, request: Any, card: Any) -> Any:
    """Fill every field that is None: the user's value, else the preset by kind, else the preset.

    A preset by kind is written `"efface/style"`; it is used when every concept of the request has that kind.
    Raises UnknownName for a preset the method does not have, BadRequest when a field stays open.
    """
    presets = presets_of(method)
    preset = request.preset or card.preset
    public = sorted({p.partition("/")[0] for p in presets})
    if preset not in public:
        raise UnknownName(f"preset of {type(method).__name__}", preset, public)
    kinds = {c.kind for c in request.concepts}
    values = dict(presets[preset])
    if len(kinds) == 1:
        values |= presets.get(f"{preset}/{next(iter(kinds))}", {})
    filled = {
        f.name: values[f.name]
        for f in dataclasses.fields(method)
        if getattr(method, f.name) is None and f.name in values
    }
    return dataclasses.replace(method, **filled)
