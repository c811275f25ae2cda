"""An image's place is its shot: prompt, seed and guidance; tables and metrics tell images apart alike."""

from __future__ import annotations

from typing import Any

from efface.gallery.shot import Ask, Item, Shot
from efface.metrics import Table, questions
from efface.metrics.accuracy import Accuracy
from efface.scores.tables import pairs_of, tables

LABELS = frozenset({"cat", "dog"})
# One prompt and seed at two guidances: two images, with a question each.
ITEMS = [Item(Shot("a pet", 0, 5.0), (Ask("target", "dog"),)), Item(Shot("a pet", 0, 9.0), (Ask("other", "cat"),))]


def records() -> list[dict[str, Any]]:
    return [
        {"side": side, "prompt": "a pet", "seed": 0, "guidance": guidance, "hits": [label], "garbage": False,
         "values": {"dog": 0.5, "cat": 0.5}}
        for side in ("base", "edited") for guidance, label in ((5.0, "dog"), (9.0, "cat"))
    ]  # fmt: skip


def test_shots_that_differ_in_guidance_alone_are_two_images_for_tables_and_metrics_alike() -> None:
    rows = questions(ITEMS, records())
    asked = {(r["side"], r["role"], r["concept"]) for r in rows}
    assert asked == {(s, p.role, p.label) for p in pairs_of(ITEMS, records()) for s in ("base", "edited")}
    assert len(asked) == len(rows) == 4


def test_questions_of_shots_that_differ_in_guidance_alone_have_their_partners() -> None:
    """No target is lost, and none stands in for another."""
    twice = [Item(i.shot, (Ask("target", "dog"),)) for i in ITEMS]
    rows = questions(twice, records())
    base, edited = Table.of(rows).pairs()
    assert [r["guidance"] for r in base] == [r["guidance"] for r in edited] == [5.0, 9.0]
    (table,) = tables(twice, records(), LABELS)
    counted = next(c for c in Accuracy().aggregate(rows) if c.name == "target" and c.side == "edited")
    assert (counted.hits, counted.n) == (table["rows"][0]["edited"]["hits"], 2)
