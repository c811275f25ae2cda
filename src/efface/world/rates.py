"""How often a model of the world draws what it is asked: the concept list beside its weights (`concepts.json`).

Report-half seeds. An object: 16 images of "a NAME" and one in each of the eight styles; a style: those same images.
Qualified: drawn in >= 80 % of n >= 24, so that suites can take it as a target, neighbour or other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface import world
from efface.measure import Sampling, Side, draw
from efface.store import Images, write_bytes
from efface.suites import Ask, Item
from efface.suites.world_smoke import FIRST_SEED
from efface.work import Work, cache_folder

if TYPE_CHECKING:
    from efface.judges import Judge
    from efface.model import Model

__all__ = ["items", "measure", "write"]

PLAIN = 16
QUALIFIED_RATE, QUALIFIED_N = 0.8, 24


def items(things: tuple[world.Object, ...], plain: int = PLAIN, styled: bool = True) -> list[Item]:
    """The images that a concept list rests on."""
    made = [Item(f"a {o.name}", FIRST_SEED + k, (Ask("other", o.name),)) for k in range(plain) for o in things]
    for j, style in enumerate(world.styles() if styled else ()):
        seed = FIRST_SEED + PLAIN + j
        made += [
            Item(f"a {o.name} in {style} style", seed, (Ask("other", o.name), Ask("style", style))) for o in things
        ]
    return made


def measure(model: Model, judge: Judge, chosen: list[Item], work: Work) -> list[dict[str, Any]]:
    """Draw what is missing, judge, count: one row a concept, in the order of `objects.json`, then the styles."""
    images, sampling, side = Images(cache_folder() / "images"), Sampling.of(model), Side("base", model)
    draw(side, chosen, sampling, images, work)
    labels = [*judge.objects, *judge.styles]
    hits: dict[str, list[bool]] = {}
    for start in range(0, len(chosen), 256):
        part = chosen[start : start + 256]
        verdict = judge.look(_stack(images, [side.image_key(i, sampling) for i in part]))
        for row, item in enumerate(part):
            for ask in item.asks:
                hits.setdefault(ask.label, []).append(bool(verdict.hits[row, labels.index(ask.label)]))
    listed = [(o.name, "object", o.category, o.half) for o in world.objects() if o.picked]
    listed += [(s, "style", "style", "report") for s in world.styles()]
    return [_row(*entry, hits.get(entry[0], [])) for entry in listed]


def _stack(images: Images, keys: list[str]) -> Any:
    import numpy as np

    return np.stack([images.get(k) for k in keys])  # (n, h, w, 3)


def _row(name: str, kind: str, category: str, half: str, hits: list[bool]) -> dict[str, Any]:
    n, rate = len(hits), sum(hits) / len(hits) if hits else None
    qualified = rate is not None and n >= QUALIFIED_N and rate >= QUALIFIED_RATE
    return {"name": name, "kind": kind, "category": category, "half": half,
            "base_rate": None if rate is None else round(rate, 4), "n": n, "qualified": qualified}  # fmt: skip


def write(rows: list[dict[str, Any]], judge: Judge, folder: Path) -> Path:
    """`concepts.json` beside the weights."""
    content = {"judge": judge.version, "seeds": f"{FIRST_SEED} to {FIRST_SEED + PLAIN + 7}", "concepts": rows}
    return write_bytes(folder / "concepts.json", (json.dumps(content, indent=1) + "\n").encode())
