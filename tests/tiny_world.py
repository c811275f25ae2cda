"""A random tiny pipeline that claims to know a few objects, and small audits of it, for tests of runs.

It draws nothing that a judge knows. Where a test needs pictures of things, they are put into the cache under the keys
of the images that would be drawn, so that nothing is drawn and everything after drawing is as always.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import efface
from efface.audit import Audit
from efface.files import cache_folder
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.gallery.shot import Item
from efface.patch import Dense, Patch
from efface.request import Request

NAMES = {
    "cat": "pets and farm animals", "dog": "pets and farm animals", "pig": "pets and farm animals", "pizza": "dishes",
    "egg": "dishes", "rocket": "vehicles", "crown": "clothes", "bell": "instruments and sound",
}  # fmt: skip
SMALL = (("targets", 8), ("styles", 0), ("neighbours", 8), ("others", 16), ("other_styles", 0))
Paint = Callable[[Item], np.ndarray]


def make_world(
    tiny: Path, folder: Path, captions: tuple[str, ...] = ("name", "style", "background"),
    names: Mapping[str, str] = NAMES,
) -> Path:  # fmt: skip
    """A copy of the tiny pipeline with a concept list."""
    shutil.copytree(tiny, folder)
    rows: list[dict[str, Any]] = [
        {"name": n, "kind": "object", "category": c, "half": "report", "base_rate": 1.0, "n": 24, "qualified": True}
        for n, c in names.items()
    ]
    (folder / "concepts.json").write_text(json.dumps({"concepts": rows}))
    (folder / "efface.json").write_text(json.dumps({"steps": 1, "guidance": 1.0, "captions": captions}))
    return folder


def zero_patch(model: efface.Model, factor: float = -1.0, method: str = "none") -> Patch:
    """A patch that scales the values of cross-attention away; factor 0 changes nothing."""
    sites = [s.name for s in model.card.select("cross.v")]
    edits = tuple(Dense(s, factor * model.weight(s).float()) for s in sites)
    recipe = {"method": method, "request": Request.build(["object:cat"]).asdict()}
    return Patch(edits, recipe, model.fingerprint(sites))


def small(model: efface.Model, patch: Patch | None = None, **more: Any) -> Audit:
    """An audit of 32 images a side."""
    patch = zero_patch(model) if patch is None and "edited" not in more else patch
    given: dict[str, Any] = {"settings": SMALL, "request": Request.build(["cat"]), "suite": "world-smoke"} | more
    return Audit(model, given.pop("request"), given.pop("suite"), patch, **given)


# --- pictures of things ----------------------------------------------------------------------------------------------


@cache
def pictures() -> dict[str, np.ndarray]:
    """One picture of each of several objects in which the bundled judge sees that object and no garbage."""
    from efface.judges import garbage
    from efface.judges import world as judges

    judge = judges.load()
    with np.load(Path(__file__).with_name("pictures.npz"), allow_pickle=False) as kept:
        scenes = kept["scenes"][:48]
        labels = np.unpackbits(kept["labels"], axis=1)[:48, : len(judge.objects)].astype(bool)
    verdict = judge.look(scenes)
    broken = garbage.load(judge).flags(scenes, verdict)
    found: dict[str, np.ndarray] = {}
    for k, scene in enumerate(scenes):
        name = judge.objects[int(labels[k].argmax())]
        seen = [judge.objects[i] for i in np.flatnonzero(verdict.hits[k, : len(judge.objects)])]
        if seen == [name] and not broken[k]:
            found.setdefault(name, scene)
    return found


def categories() -> dict[str, str]:
    """The category of each pictured object; at least four, so that targets have neighbours and others."""
    from efface import world

    known = {o.name: o.category for o in world.objects()}
    names = list(pictures())
    return {name: ("near" if k < len(names) // 2 else known[name]) for k, name in enumerate(names)}


def named(item: Item) -> np.ndarray:
    """What an honest model would draw."""
    return pictures()[item.asks[0].label]


def paint(asked: Audit, edited: Paint, base: Paint = named) -> Audit:
    """Put the pictures of both sides where drawing would put them."""
    plan, shared = asked.planned(), Images(cache_folder() / "images")
    for side, picture in zip(plan.sides, (base, edited), strict=True):
        gallery = Gallery(side, plan.sampling, shared)
        for item in plan.items:
            shared.put(gallery.key(item.shot), picture(item))
    return asked
