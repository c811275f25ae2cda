"""Counting, suites and audits: what a report says must follow from its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import efface
from efface import world
from efface.audit import Audit, audit, request_of
from efface.cli.demo import CONCEPTS
from efface.engines import local
from efface.errors import BadRequest, OutputExists, WrongFile
from efface.measure import Sampling, Side, absent_table, draw, tables
from efface.measure import _one_thread as one_thread
from efface.request import Request
from efface.sampler import sample
from efface.store import Images
from efface.suites import Ask, Item
from efface.suites.world_claim import WorldClaim
from efface.suites.world_smoke import WorldSmoke
from efface.work import Work

LABELS = frozenset({"cat", "dog", "noto"})


def record(side: str, prompt: str, seed: int, *hits: str, garbage: bool = False) -> dict[str, Any]:
    return {"side": side, "prompt": prompt, "seed": seed, "hits": list(hits), "garbage": garbage}


def both(
    role: str, base: list[bool], edited: list[bool], label: str = "cat"
) -> tuple[list[Item], list[dict[str, Any]]]:
    items = [Item("p", seed, (Ask(role, label),)) for seed in range(len(base))]
    rows = [record("base", "p", s, *([label] if hit else [])) for s, hit in enumerate(base)]
    rows += [record("edited", "p", s, *([label] if hit else [])) for s, hit in enumerate(edited)]
    return items, rows


def test_a_target_the_base_hardly_draws_is_na_and_never_a_success() -> None:
    items, rows = both("target", [True] * 4 + [False] * 6, [False] * 10)
    (table,) = tables(items, rows, LABELS)
    assert table["rows"][0]["state"] == "na"
    assert "4 of 10" in table["rows"][0]["reason"]
    assert table["pooled"] is None
    items, rows = both("target", [True] * 5 + [False] * 5, [False] * 10)
    assert tables(items, rows, LABELS)[0]["rows"][0]["state"] == "ok"


def test_loss_is_paired_by_prompt_and_seed() -> None:
    one = tables(*both("other", [True, True, False, False], [True, False, True, False]), LABELS)[0]["rows"][0]
    two = tables(*both("other", [True, True, False, False], [True, True, False, False]), LABELS)[0]["rows"][0]
    assert one["loss"]["estimate"] == two["loss"]["estimate"] == 0
    assert one["both"] == 1
    assert two["both"] == 2
    assert one["loss"]["high"] - one["loss"]["low"] > two["loss"]["high"] - two["loss"]["low"]


def test_garbage_is_not_counted_as_replaced() -> None:
    items, rows = both("target", [True] * 4, [False] * 4)
    rows[4]["garbage"] = True
    row = tables(items, rows, LABELS)[0]["rows"][0]
    assert (row["edited"]["hits"], row["garbage"]["hits"], row["replaced"]["hits"]) == (0, 1, 3)


def test_the_order_of_records_does_not_matter() -> None:
    items, rows = both("target", [True, True, False, True], [False, True, False, False])
    assert tables(items, rows, LABELS) == tables(items, rows[::-1], LABELS)


def test_a_label_the_judge_does_not_know_is_na() -> None:
    row = tables(*both("other", [True], [True], label="unicycle"), LABELS)[0]["rows"][0]
    assert (row["state"], row["base"]) == ("na", None)


def test_a_missing_record_raises() -> None:
    items, rows = both("target", [True], [False])
    with pytest.raises(WrongFile, match="no record"):
        tables(items, rows[:1], LABELS)


def test_a_role_that_cannot_be_measured_stands_in_the_report_as_na() -> None:
    table = absent_table("object-less", "the model's captions had none")
    assert table["rows"][0]["state"] == "na"
    assert table["rows"][0]["base"] is None


def test_world_smoke_draws_what_it_promises(mini: efface.Model) -> None:
    request = Request.build(CONCEPTS, world.demo_keep()).settle(mini.kinds)
    items = WorldSmoke().items(request, mini.concepts)
    asked = [(a.role, a.label) for i in items for a in i.asks]
    targets = {c.label for c in request.concepts if c.kind == "object"}
    assert all(asked.count(("target", t)) == 24 for t in targets)
    assert asked.count(("style", "monochrome")) == 24
    kept = [i for i in items if {a.role for a in i.asks} & {"neighbour", "other", "in-prompt"}]
    assert len(kept) == 60
    assert min(i.seed for i in items) >= 500
    qualified = {c["name"] for c in mini.concepts if c["qualified"]}
    judged = {label for role, label in asked if role in ("neighbour", "other", "in-prompt")}
    assert judged <= qualified - targets
    assert not judged & set(world.demo_keep())


def test_world_claim_is_large_enough_for_its_claim(mini: efface.Model) -> None:
    request = Request.build(CONCEPTS, world.demo_keep()).settle(mini.kinds)
    items = WorldClaim().items(request, mini.concepts)
    count = {role: sum(a.role == role for i in items for a in i.asks) for role in ("target", "style", "unstyled")}
    kept = sum(a.role in ("neighbour", "other", "in-prompt") for i in items for a in i.asks)
    assert min(count.values()) >= 300
    assert kept >= 1000


def test_a_suite_of_the_world_needs_a_concept_list() -> None:
    with pytest.raises(BadRequest, match="concept list"):
        WorldSmoke().items(Request.build(["cat"]), ())


def test_demo_targets_are_qualified_and_of_the_report_half(mini: efface.Model) -> None:
    rows = {c["name"]: c for c in mini.concepts}
    for name in CONCEPTS:
        row = rows[name.removesuffix(" style")]
        assert row["qualified"]
        assert row["half"] == "report"


def test_worker_processes_draw_the_same_pixels(mini: efface.Model, tmp_path: Path) -> None:
    prompts, seeds = ["a dog", "a star"], [3, 4]
    store = Images(tmp_path / "images")
    shard = [(p, s, f"key{s}") for p, s in zip(prompts, seeds, strict=True)]
    patch = efface.erase(mini, ["dog"], keep=["cat"])
    how = {"steps": 2, "guidance": 4.0}
    local.run(2, mini.folder, [patch], how, store.folder, [shard[:1], shard[1:]], Work(), "drawing")
    with patch.applied(mini), one_thread(True):
        expected = sample(mini, prompts, seeds, batch=1, steps=2, guidance=4.0)
    assert np.array_equal(np.stack([store.get("key3"), store.get("key4")]), expected)
    assert not np.array_equal(expected, sample(mini, prompts, seeds, batch=1, steps=2, guidance=4.0))


def test_what_is_drawn_already_is_not_drawn_again(tiny: efface.Model, tmp_path: Path) -> None:
    items = [Item("a dog", seed, ()) for seed in range(3)]
    side, sampling, images = Side("base", tiny), Sampling.of(tiny, 2), Images(tmp_path)
    assert draw(side, items, sampling, images, Work()) == 3
    before = images.path(side.image_key(items[0], sampling)).stat().st_mtime_ns
    assert draw(side, items, sampling, images, Work()) == 0
    assert images.path(side.image_key(items[0], sampling)).stat().st_mtime_ns == before


@pytest.mark.slow
def test_an_audit_repeats_its_numbers_and_refuses_another_spec(mini: efface.Model, tmp_path: Path) -> None:
    patch = efface.erase(mini, ["rocket"], keep=["bus"])
    asked = Audit(mini, request_of(patch), "world-smoke", patch, steps=1)
    first = audit(asked, tmp_path / "one")
    (tmp_path / "one" / "report.json").unlink()
    records = tmp_path / "one" / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-50])  # torn by a kill
    again = audit(asked, tmp_path / "one")
    other = audit(asked, tmp_path / "two")
    assert first["tables"] == again["tables"] == other["tables"]
    assert json.loads((tmp_path / "two" / "report.json").read_text())["tables"] == json.loads(
        json.dumps(first["tables"])
    )
    with pytest.raises(OutputExists):
        audit(Audit(mini, request_of(patch), "world-smoke", patch, steps=2), tmp_path / "one")
