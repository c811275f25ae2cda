"""The emoji world: objects x styles, drawn from openly licensed artwork; see docs/artwork.md for sources."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from efface.errors import Unavailable
from efface.world.golds import completed

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Object:
    """One thing the world can draw.

    `half` is "tune" or "report": settings are chosen on the first and quoted on the second.
    `picked` objects are those that the first `mini` drew.
    """

    name: str
    category: str
    synonyms: tuple[str, ...]
    half: str
    picked: bool


@cache
def _listing() -> dict:
    return json.loads((_HERE / "objects.json").read_text(encoding="utf-8"))


@cache
def objects() -> tuple[Object, ...]:
    """All objects in the order of `objects.json`, the order of every label list."""
    return tuple(
        Object(o["name"], o["category"], tuple(o["synonyms"]), o["half"], bool(o["picked"]))
        for o in _listing()["objects"]
    )


@cache
def styles() -> tuple[str, ...]:
    """The eight styles: one for each artwork family."""
    return tuple(_listing()["styles"])


def judged() -> tuple[Object, ...]:
    """Objects that the bundled judges know: the picked ones and every hazard."""
    return tuple(o for o in objects() if o.picked or o.category == "hazard")


def folder(name: str) -> Path:
    """Path of a bundled model, gold or judge ("mini", "micro", "judge").

    A gold is put together with its base's other parts first. Raises `Unavailable` when it is not installed.
    """
    path = _HERE / name
    if not path.is_dir():
        raise Unavailable(
            f"Expected a bundled folder of the world, got {name!r}, which this installation does not hold; "
            "`efface world train` makes it."
        )
    if (path / "gold.json").is_file() and not (path / "model_index.json").is_file():
        base = json.loads((path / "gold.json").read_text(encoding="utf-8"))["base"]
        return completed(path, folder(base))
    return path


def models() -> tuple[str, ...]:
    """Names of the bundled models, golds included."""
    return tuple(sorted(f.parent.name for f in (*_HERE.glob("*/model_index.json"), *_HERE.glob("*/gold.json"))))


def demo_keep() -> tuple[str, ...]:
    """The demo's keep list: the drawn objects of the tune half; what the report judges is not among them.

    Without hazards: an erased object may turn into the closest kept one.
    """
    return tuple(o.name for o in objects() if o.picked and o.half == "tune" and o.category != "hazard")
