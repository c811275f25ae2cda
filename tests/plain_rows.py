"""Readings and records written as plain tables, for tests that are about many of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from efface.gallery.shot import Shot
from efface.scores.readings import Reading
from efface.scores.records import Record

FIELDS = set(Reading.__dataclass_fields__) - {"shot", "told"}


def reading(row: Mapping[str, Any]) -> Reading:
    """A row: prompt, seed and guidance are its shot, what is no field of a reading was told by a metric."""
    rest = {k: v for k, v in row.items() if k not in ("prompt", "seed", "guidance")}
    given = {k: v for k, v in rest.items() if k in FIELDS}
    if given.get("features") is not None:
        given["features"] = np.asarray(given["features"])
    if given.get("boxes") is not None:
        given["boxes"] = tuple((label, score) for label, score in given["boxes"])
    shot = Shot(row.get("prompt", ""), row.get("seed", 0), row.get("guidance"))
    return Reading(shot=shot, told={k: v for k, v in rest.items() if k not in FIELDS}, **given)


def readings(rows: Iterable[Mapping[str, Any]]) -> list[Reading]:
    return [reading(row) for row in rows]


def record(side: str, prompt: str, seed: int, *hits: str, guidance: float | None = None, **more: Any) -> Record:
    """What a judge said of one image: the labels that it shows."""
    return Record(side=side, shot=Shot(prompt, seed, guidance), hits=hits, **more)


def rows(n: int = 120, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Both sides of n images: concepts c0 to c5, three prompts each; targets fall from about 90 % to 5 %."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(n):
        c = i % 6
        role = ("target", "neighbour", "other")[c % 3]
        for side in ("base", "edited"):
            rate = 0.05 if side == "edited" and role == "target" else 0.9
            made.append({
                "side": side, "prompt": f"c{c} in wording {i // 6 % 3}", "seed": i // 18, "role": role,
                "concept": f"c{c}", "state": "ok", "hit": bool(draw.random() < rate), "value": float(draw.random()),
                "garbage": bool(draw.random() < 0.02), "probability": float(draw.random()), "boxes": [],
                "features": draw.normal(size=4).tolist(), "style": "s0", "style_seen": "s0", "object": f"c{c}",
                "object_seen": f"c{c}", "target_hit": False, "method": "m", "seen": f"c{c}", **more,
            })  # fmt: skip
    return made
