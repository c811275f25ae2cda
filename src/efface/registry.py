"""Find methods, attacks, metrics, judges, suites and families, and settle their settings.

A file in a kind's folder is a plug-in and its name is the name everywhere; hyphen and underscore are the same. Its
`PLUGIN` is the class or function that is found. Outsiders register `efface.<kind>` entry points that point at such an
object.

Settings are the fields of a frozen dataclass, or of one inside it where settings belong together. A setting is written
by its path (`mask.power`), or by its own name where no other has it (`power`); the name of a group stands for the
group's first field.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_type_hints

from efface.errors import BadRequest, UnknownName

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

__all__ = [
    "KINDS", "Chosen", "changed", "choose", "configure", "find", "flat", "names", "presets_of", "resolve", "spellings",
]  # fmt: skip

# Folder -> one of what is in it, in words.
KINDS = {
    "methods": "method",
    "attacks": "attack",
    "metrics": "metric",
    "judges": "judge",
    "suites": "suite",
    "families": "family",
    "engines": "engine",
}


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
        return importlib.import_module(files[_plain(name)]).PLUGIN
    for entry in entry_points(group=f"efface.{folder}"):
        if _plain(entry.name) == _plain(name):
            return entry.load()
    raise UnknownName(KINDS[folder], name, names(folder), f"efface list {folder}")


def rule_of(name: str) -> Any:
    """The class of a rule of the sampler: `Rule` in the file of the method of that name. Raises UnknownName."""
    homes = _files("methods") | {_plain(e.name): e.module for e in entry_points(group="efface.methods")}
    found = _rule(homes[_plain(name)]) if _plain(name) in homes else None
    if found is None:
        known = [n for n, home in homes.items() if _rule(home) is not None]
        raise UnknownName("guard rule", name, known)
    return found


def _rule(module: str) -> Any:
    return getattr(importlib.import_module(module), "Rule", None)


# --- settings --------------------------------------------------------------------------------------------------------

Path = tuple[str, ...]
"""Names of fields, from the outermost to the setting itself."""


@cache
def _groups(cls: type) -> dict[str, type[DataclassInstance]]:
    """Fields that are groups of settings, with their classes."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[f.name])}


def _paths(cls: type[DataclassInstance]) -> list[Path]:
    """Of every setting, in the order of the fields."""
    groups = _groups(cls)
    return [
        path
        for f in dataclasses.fields(cls)
        for path in ([(f.name, *inner) for inner in _paths(groups[f.name])] if f.name in groups else [(f.name,)])
    ]


@cache
def spellings(cls: type[DataclassInstance]) -> dict[str, Path]:
    """Every way to write a setting of this class, or a group of settings -> its path."""
    paths = _paths(cls)
    found: dict[str, Path] = {}
    for path in paths:
        if sum(path[-1] == other[-1] for other in paths) == 1:
            found[path[-1]] = path
    for path in paths:
        for end in range(1, len(path) + 1):
            found[".".join(path[:end])] = path[:end]
    return found


def flat(settings: DataclassInstance) -> dict[str, Any]:
    """Every setting by its path, `mask.power`, with its value."""
    found: dict[str, Any] = {}
    for path in _paths(type(settings)):
        value: Any = settings
        for name in path:
            value = getattr(value, name)
        found[".".join(path)] = value
    return found


def _path(cls: type[DataclassInstance], key: str, owner: str) -> Path:
    """Where the setting of this name stands. Raises UnknownName, BadRequest where two groups have the name."""
    known = spellings(cls)
    if key in known:
        return known[key]
    if several := [".".join(path) for path in _paths(cls) if path[-1] == key]:
        raise BadRequest(f"setting {key!r} of {owner} stands for {' and '.join(several)}; write one of them")
    raise UnknownName(f"setting of {owner}", key, known)


def _placed(cls: type[DataclassInstance], key: str, value: object, owner: str) -> dict[Path, object]:
    """The settings that one of the user's names with its value stands for, by path. Raises UnknownName."""
    path, inner = _path(cls, key, owner), cls
    for name in path:
        inner = _groups(inner).get(name)
        if inner is None:
            return {path: value}
    if isinstance(value, inner):
        value = flat(value)
    if not isinstance(value, Mapping):
        return {path + _paths(inner)[0]: value}
    found: dict[Path, object] = {}
    for name, own in value.items():
        found |= {path + rest: v for rest, v in _placed(inner, name, own, inner.__name__).items()}
    return found


def _values(cls: type[DataclassInstance], settings: Mapping[str, object], owner: str) -> dict[Path, object]:
    """The user's settings by path, each of its field's type. Raises UnknownName, BadRequest."""
    found: dict[Path, object] = {}
    for key, given in settings.items():
        found |= {path: _convert(cls, path, key, value) for path, value in _placed(cls, key, given, owner).items()}
    return found


def changed(settings: S, values: Mapping[str, object], owner: str = "") -> S:
    """The same settings with other values, by any spelling; texts become the field's type.

    owner: whose settings they are, for messages. Raises UnknownName for a setting that this class does not have,
    BadRequest for a value that does not fit.
    """
    return _built(settings, _values(type(settings), values, owner or type(settings).__name__))


def _built(settings: S, values: Mapping[Path, object]) -> S:
    """One new object, whatever the number of values."""
    new: dict[str, Any] = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
        inner = {path[1:]: value for path, value in values.items() if path[0] == name and len(path) > 1}
        new[name] = _built(getattr(settings, name), inner)
    return dataclasses.replace(settings, **new)


def _convert(cls: type, path: Path, key: str, value: object) -> object:
    """Text -> the annotated type, through pydantic, which knows unions and literals. `key` is for the message."""
    from pydantic import TypeAdapter, ValidationError

    for name in path[:-1]:
        cls = _groups(cls)[name]
    adapter = TypeAdapter(get_type_hints(cls)[path[-1]])
    try:
        return adapter.validate_strings(value) if isinstance(value, str) else adapter.validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise BadRequest(f"setting {key!r} of {cls.__name__}: got {value!r}; {said}") from None


def configure(name: str, settings: Mapping[str, object], folder: str) -> Any:
    """A suite or metric by name, of its defaults and the user's settings. Raises UnknownName, BadRequest."""
    cls = find(folder, name)
    return cls(**{path[0]: value for path, value in _values(cls, settings, name).items()})


# --- methods: presets ------------------------------------------------------------------------------------------------


class Named(Protocol):
    """What `resolve` reads of a concept."""

    @property
    def kind(self) -> str: ...


class Asking(Protocol):
    """What `resolve` reads of a request."""

    @property
    def preset(self) -> str | None: ...

    @property
    def concepts(self) -> Sequence[Named]: ...


class Presetting(Protocol):
    """What `resolve` reads of a card."""

    @property
    def preset(self) -> str: ...


@dataclass(frozen=True)
class Chosen:
    """A method by name with the user's own settings, before it is known which preset they belong to."""

    name: str
    """As in `names("methods")`."""
    plugin: type
    """What is registered under the name."""
    settings: Mapping[str, object]
    """By any spelling, as given."""


def choose(name: str, settings: Mapping[str, object]) -> Chosen:
    """A method with the user's settings. Raises UnknownName for a setting that the method has with no preset."""
    plugin = find("methods", name)
    known = {s for preset in presets_of(plugin).values() for s in spellings(type(preset))}
    for key in settings:
        if key not in known | {s.rpartition(".")[2] for s in known}:
            raise UnknownName(f"setting of {_plain(name)}", key, known)
    return Chosen(_plain(name), plugin, dict(settings))


def presets_of(plugin: type) -> Mapping[str, Any]:
    """The presets that stand in a method's file: a name -> an object with every setting decided."""
    return sys.modules[plugin.__module__].PRESETS


def resolve(chosen: Chosen, request: Asking, card: Presetting) -> Any:
    """The method with every setting decided: the user's value, else that of the preset.

    A preset by kind is written `"efface/style"`; it is used when every concept of the request has that kind. Presets of
    one method may be of different classes, and the preset decides which one it is. Raises UnknownName for a preset that
    the method does not have or a setting that this preset's class does not have, BadRequest.
    """
    presets, preset = presets_of(chosen.plugin), request.preset or card.preset
    public = sorted({p.partition("/")[0] for p in presets})
    if preset not in public:
        raise UnknownName(f"preset of {chosen.name}", preset, public)
    base = presets[_by_kind(preset, {c.kind for c in request.concepts}, presets)]
    return changed(base, chosen.settings, f"{chosen.name} (preset {preset})")


def _by_kind(preset: str, kinds: set[str], presets: Iterable[str]) -> str:
    """The preset for requests of one kind, where there is one."""
    own = f"{preset}/{next(iter(kinds))}" if len(kinds) == 1 else preset
    return own if own in presets else preset
