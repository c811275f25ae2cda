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
