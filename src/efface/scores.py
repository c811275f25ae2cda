"""Metrics on a run: composites from the counts alone, and any metric by name from the stored images of both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from efface.errors import BadRequest
from efface.judges import Verdict
from efface.measure import Watch
from efface.metrics import Item as Measured
from efface.metrics.composites import Composites, Summary
from efface.registry import configure
from efface.store import Images
from efface.suites import Ask, Item
from efface.tables import Pair

__all__ = ["composites", "configured", "measure"]

CHUNK = 128  # images of one side in memory
KEPT, TARGETS = ("neighbour", "other"), ("target", "style")
Json = dict[str, Any]


def composites(pairs: Mapping[str, Sequence[Pair]]) -> list[Json]:
    """Overall, H_c, H_o, UQ and mean rank of the runs of one table, the base model among them; NA with a reason.

    pairs: scored pairs by run. Accuracies are means over concepts, as in the papers. UQ and mean rank change with what
    stands in the table, so each names its pool.
    """
    first = next(iter(pairs.values()))
    rows = [_summary("base", first, "base"), *(_summary(name, found, "edited") for name, found in pairs.items())]
    return [cell.as_row() for cell in Composites().table(rows)]


def _summary(name: str, pairs: Sequence[Pair], side: str) -> Summary:
    def mean(roles: tuple[str, ...]) -> float | None:
        by_label: dict[str, list[bool]] = {}
        for p in pairs:
            if p.role in roles:
                by_label.setdefault(p.label, []).append(getattr(p, side))
        rates = [sum(hits) / len(hits) for hits in by_label.values()]
        return sum(rates) / len(rates) if rates else None

    return Summary(name, mean(TARGETS), mean(KEPT), mean(("synonym",)))


def configured(texts: Sequence[str]) -> list[tuple[str, Any]]:
    """`NAME` or `NAME:KEY=VALUE,...` -> metrics under these names. Raises BadRequest, UnknownName."""
    found = []
    for text in texts:
        name, _, rest = text.partition(":")
        pairs = [p.partition("=") for p in rest.split(",") if p.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise BadRequest(f"a metric is written NAME or NAME:KEY=VALUE,..., got {text!r}")
        found.append((text, configure(name, {k.strip(): v.strip() for k, _, v in pairs}, "metrics")))
    return found


def measure(
    metrics: Sequence[tuple[str, Any]], items: Sequence[Item], rows: Sequence[Json], images: Images, watch: Watch
) -> list[Json]:
    """Cells of each metric over the images of a run, both sides; images that are not stored are left out."""
    made: dict[str, list[Json]] = {name: [] for name, _ in metrics}
    if not metrics:
        return []
    for side, item, ask, measured in _looked(items, rows, images, watch):
        for name, metric in metrics:
            if side == "base" and metric.of_pairs:
                continue  # it has nothing to say of the base alone
            scored = metric.score(measured)
            made[name].append({
                "side": side, "prompt": item.prompt, "seed": item.seed, "role": ask.role, "concept": ask.label,
                "state": scored.state, "hit": scored.hit, "value": scored.value, "reason": scored.reason,
                "garbage": measured.garbage, "features": metric.features(measured), **(scored.detail or {}),
            })  # fmt: skip
    return [{"metric": name, **cell.as_row()} for name, metric in metrics for cell in metric.aggregate(made[name])]


def _looked(
    items: Sequence[Item], rows: Sequence[Json], images: Images, watch: Watch
) -> Iterator[tuple[str, Item, Ask, Measured]]:
    """Every question of every stored image as a metric sees it, base side first in each chunk."""
    by_place = {(r["side"], r["prompt"], r["seed"], r.get("guidance")): r for r in rows if r.get("state", "ok") == "ok"}
    both = []
    for item in items:
        pair = [by_place.get((s, item.prompt, item.seed, item.guidance)) for s in ("base", "edited")]
        if all(row is not None and images.has(row["image"]) for row in pair):
            both.append((item, pair))
    for start in range(0, len(both), CHUNK):
        part = both[start : start + CHUNK]
        sides = [np.stack([images.get(pair[k]["image"]) for _, pair in part]) for k in (0, 1)]  # (n, h, w, 3)
        said = [watch.judge.look(p) if hasattr(watch.judge, "look") else None for p in sides]
        for n, (item, pair) in enumerate(part):
            for k, side in enumerate(("base", "edited")):
                for ask in item.asks:
                    yield side, item, ask, _measured(item, ask, pair[k], sides, said, watch, n, k)


def _measured(
    item: Item, ask: Ask, row: Json, sides: list[np.ndarray], said: list[Verdict | None], watch: Watch, n: int, k: int
) -> Measured:
    verdict, base = said[k], said[0]
    known = {ask.label: row["values"][ask.label]} if ask.label in row["values"] else None
    return Measured(
        image=sides[k][n], prompt=item.prompt, concept=ask.label, base=sides[0][n] if k else None,
        probabilities=known, hits=frozenset(row["hits"]), features=verdict.features[n] if verdict else None,
        base_features=base.features[n] if base and k else None,
        boxes=tuple((b[0], b[1]) for b in row["boxes"]) if "boxes" in row else None, garbage=row["garbage"],
    )  # fmt: skip
