"""Counting in one pass gives what counting record by record gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.gallery.shot import Ask, Item, Shot
from efface.numerics import clusters, intervals
from efface.scores.forms import plain, row_of
from efface.scores.records import Record
from efface.scores.scores import Scores
from efface.scores.tables import tables
from efface.work import seed_of
from plain_rows import record

ROLES = ("target", "neighbour", "other")


def run_of(prompts: int, seeds: int) -> tuple[list[Item], list[Record]]:
    """Three concepts of each role; a few images are NA or ERROR, a few garbage."""
    draw = np.random.default_rng(5)
    items, rows = [], []
    for k, role in enumerate(ROLES * 3):
        label = f"c{k}"
        for p in range(prompts):
            for seed in range(seeds):
                items.append(Item(Shot(f"{label} {p}", seed), (Ask(role, label),)))
                for side, share in (("base", 0.9), ("edited", 0.1 if role == "target" else 0.8)):
                    state = "na" if draw.random() < 0.02 else "ok"
                    hit = state == "ok" and draw.random() < share
                    hits, broken = (label,) if hit else (), bool(draw.random() < 0.1)
                    more = {"state": state, "reason": "r", "garbage": broken}
                    rows.append(record(side, items[-1].prompt, seed, *hits, **more))
    return items, rows


def slow_rate(name: str, role: str, label: str, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Hits and images of each prompt, one image after the other."""
    hits, sizes = {}, {}
    for pair in pairs:
        hits[pair["prompt"]] = hits.get(pair["prompt"], 0) + int(pair[name])
        sizes[pair["prompt"]] = sizes.get(pair["prompt"], 0) + 1
    k, n = sum(hits.values()), sum(sizes.values())
    low, high = intervals.wilson(k, n)
    if len(sizes) > 1 and max(sizes.values()) > 1:
        draws = min(max(2_000_000 // len(sizes), 400), 2000)
        generator = np.random.default_rng(seed_of("interval", name, role, label, n))
        shown, drawn = (np.asarray(list(v.values()), np.float64) for v in (hits, sizes))
        wide = clusters.cluster_rate(shown, drawn, generator, draws)
        low, high = wide.low, wide.high
    return {"hits": k, "n": n, "rate": k / n, "low": low, "high": high, "prompts": len(sizes)}


@pytest.mark.parametrize(("prompts", "seeds"), [(7, 3), (12, 1), (1, 9)])
def test_every_cell_is_that_of_the_slow_count(prompts: int, seeds: int) -> None:
    """Bit for bit; E-1."""
    items, rows = run_of(prompts, seeds)
    place = {(r.side, r.shot): r for r in rows}
    known = frozenset(f"c{k}" for k in range(9))
    found = {(t.role, r.name): r for t in tables(Scores.of(items, rows), known) for r in t.rows}
    assert len(found) == 9
    for (role, label), row in found.items():
        pairs = []
        for item in items:
            base, edited = (place[side, item.shot] for side in ("base", "edited"))
            if item.asks[0].label == label and base.state == edited.state == "ok":
                pairs.append({"prompt": item.prompt, "base": label in base.hits, "edited": label in edited.hits,
                              "edited_garbage": edited.garbage,
                              "replaced": label not in edited.hits and not edited.garbage})  # fmt: skip
        wanted = {n: slow_rate(n, role, label, pairs) for n in ("base", "edited", "edited_garbage", "replaced")}
        assert row.state == "ok"
        assert row.loss is not None
        assert (row_of(row.base), row_of(row.edited)) == (wanted["base"], wanted["edited"])
        assert row_of(row.garbage) == wanted["edited_garbage"]
        assert plain(row.replaced) == (wanted["replaced"] if role == "target" else None)
        lost = sum(p["base"] and not p["edited"] for p in pairs)
        won = sum(p["edited"] and not p["base"] for p in pairs)
        assert row.both == sum(p["base"] and p["edited"] for p in pairs)
        assert row.loss.changed == lost + won
        assert row.loss.estimate == (lost - won) / len(pairs)
        assert row.loss.p == intervals.mcnemar_exact(lost, won)
