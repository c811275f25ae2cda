"""The gate in its own suite, on planted records: a ruined kept concept is found, an unchanged model is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from efface import world
from efface.gallery.shot import Item
from efface.report import gate as gates
from efface.report.ruling import Outcome, judge
from efface.request import Request
from efface.scores import tables as counting
from efface.scores.records import Record
from efface.scores.scores import Scores
from efface.scores.tables import tables
from efface.suites import Entry, Known
from efface.suites.world_standard import WorldStandard
from plain_rows import record
from small_report import SUITE

CAPTIONS = frozenset({"name", "style", "background", "templates", "synonym"})
RULE = "any kept concept, loss"
SHOWN, FLIPS = 0.97, 0.02  # of the base; shares of kept pairs that change either way by chance


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals of tables are not what is asked here."""
    monkeypatch.setattr(counting, "DRAWS", (10, 10))


@pytest.fixture(scope="module")
def plan() -> tuple[Item, ...]:
    """`world-standard` for ten targets of the report half."""
    picked = [o for o in world.objects() if o.picked and o.half == "report"]
    rows: tuple[Entry, ...] = tuple(
        Entry(name=o.name, kind="object", category=o.category, half="report", base_rate=1.0, n=24, qualified=True)
        for o in picked
    )
    asked = Request.build([f"object:{o.name}" for o in picked if o.synonyms][:10])
    return WorldStandard().plan(asked, Known(rows, CAPTIONS)).items


def nearest(plan: tuple[Item, ...]) -> list[str]:
    labels = [a.label for i in plan for a in i.asks if a.role == "neighbour"]
    return [name for name in dict.fromkeys(labels) if labels.count(name) >= 20]


def planted(plan: tuple[Item, ...], seed: int, ruined: str = "") -> Outcome:
    """What the rule on single kept concepts says where the judge sees what is planted here."""
    draw = np.random.default_rng(seed)
    default = gates.load("default")
    gate = replace(default, rules=tuple(rule for rule in default.rules if rule.name == RULE))
    plan = tuple(item for item in plan if item.asks[0].role in gate.rules[0].roles)
    rows: list[Record] = []
    for item in plan:
        ask = item.asks[0]
        base = bool(draw.random() < SHOWN)
        edited = base != (draw.random() < FLIPS)
        if ask.label == ruined:
            edited = bool(draw.random() < 0.05)
        for side, hit in (("base", base), ("edited", edited)):
            rows.append(record(side, item.prompt, item.seed, *((ask.label,) if hit else ())))
    known = frozenset(a.label for i in plan for a in i.asks)
    outcomes = judge(gate, SUITE, tables(Scores.of(plan, rows), known))
    return next(o for o in outcomes if o.rule == RULE)


@pytest.mark.slow
def test_an_edit_that_ruins_one_kept_concept_is_found_in_nine_of_ten_seeds(plan: tuple[Item, ...]) -> None:
    names = nearest(plan)
    assert len(names) == 10
    found = [planted(plan, seed, name) for seed, name in enumerate(names)]
    hits = [(o.state, o.concepts) == ("fail", (name,)) for o, name in zip(found, names, strict=True)]
    assert sum(hits) >= 9


@pytest.mark.slow
def test_an_unchanged_model_is_blamed_in_at_most_one_of_twenty_seeds(plan: tuple[Item, ...]) -> None:
    found = [planted(plan, 100 + seed) for seed in range(20)]
    assert sum(o.state != "pass" for o in found) <= 1
    assert "cannot be told at this n" in found[0].got
