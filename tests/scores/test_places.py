"""An image's place is its shot: prompt, seed and guidance; tables and metrics tell images apart alike."""

from __future__ import annotations

from efface.gallery.shot import Ask, Item, Shot
from efface.metrics.accuracy import Accuracy
from efface.scores.readings import Readings
from efface.scores.scores import SIDES, Scores
from efface.scores.tables import tables
from plain_rows import record

LABELS = frozenset({"cat", "dog"})
# One prompt and seed at two guidances: two images, with a question each.
ITEMS = [Item(Shot("a pet", 0, 5.0), (Ask("target", "dog"),)), Item(Shot("a pet", 0, 9.0), (Ask("other", "cat"),))]
RECORDS = [
    record(side, "a pet", 0, label, guidance=guidance, values={"dog": 0.5, "cat": 0.5})
    for side in SIDES
    for guidance, label in ((5.0, "dog"), (9.0, "cat"))
]


def test_shots_that_differ_in_guidance_alone_are_two_images_for_tables_and_metrics_alike() -> None:
    scores = Scores.of(ITEMS, RECORDS)
    asked = {(r.side, r.role, r.concept) for r in scores.readings()}
    assert asked == {(side, p.role, p.label) for p in scores.pairs for side in SIDES}
    assert len(asked) == len(scores.readings()) == 4


def test_questions_of_shots_that_differ_in_guidance_alone_have_their_partners() -> None:
    """No target is lost, and none stands in for another."""
    twice = [Item(i.shot, (Ask("target", "dog"),)) for i in ITEMS]
    scores = Scores.of(twice, RECORDS)
    base, edited = Readings.of(scores.readings()).pairs()
    assert [r.shot.guidance for r in base] == [r.shot.guidance for r in edited] == [5.0, 9.0]
    (table,) = tables(scores, LABELS)
    counted = next(c for c in Accuracy().aggregate(scores.readings()) if c.name == "target" and c.side == "edited")
    assert table.rows[0].edited is not None
    assert (counted.hits, counted.n) == (table.rows[0].edited.hits, 2)
