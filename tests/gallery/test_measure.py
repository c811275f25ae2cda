"""Counting, suites and audits: what a report says must follow from its records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import efface
from efface import world
from efface.audit import Audit, audit, request_of
from efface.cli.demo import CONCEPTS
from efface.engines import local
from efface.engines.local import Local
from efface.errors import BadRequest, OutputExists, WrongFile
from efface.files import key_of
from efface.gallery.drawing import Sampling, Side
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.gallery.shot import Ask, Item, Shot
from efface.gallery.task import LIBRARIES, Drawn, Row, job_of, memory_of
from efface.report.content import verdict
from efface.request import Request
from efface.scores.cells import NAMED
from efface.scores.forms import plain
from efface.scores.records import Record
from efface.scores.scores import Scores
from efface.scores.tables import Table, absent_table, sweeps, tables
from efface.suites.world_claim import WorldClaim
from efface.suites.world_smoke import WorldSmoke
from efface.work import Work
from plain_rows import record

LABELS = frozenset({"cat", "dog", "noto"})


def both(role: str, base: list[bool], edited: list[bool], label: str = "cat") -> tuple[list[Item], list[Record]]:
    items = [Item(Shot("p", seed), (Ask(role, label),)) for seed in range(len(base))]
    rows = [record("base", "p", s, *([label] if hit else [])) for s, hit in enumerate(base)]
    rows += [record("edited", "p", s, *([label] if hit else [])) for s, hit in enumerate(edited)]
    return items, rows


def table_of(items: list[Item], rows: list[Record]) -> Table:
    """The only table, or the first of several."""
    return tables(Scores.of(items, rows), LABELS)[0]


def test_a_target_the_base_hardly_draws_is_na_and_never_a_success() -> None:
    items, rows = both("target", [True] * 4 + [False] * 6, [False] * 10)
    table = table_of(items, rows)
    assert table.rows[0].state == "na"
    assert "4 of 10" in table.rows[0].reason
    assert table.pooled is None
    items, rows = both("target", [True] * 9 + [False], [False] * 10)
    assert table_of(items, rows).rows[0].state == "ok"
    items, rows = both("two-object", [True] * 4 + [False] * 6, [False] * 10)  # these prompts name the target, too
    assert table_of(items, rows).rows[0].state == "na"


@pytest.mark.parametrize("role", NAMED)
def test_whether_a_target_is_known_is_decided_by_the_interval_and_not_by_the_point(role: str) -> None:
    found = {}
    for hits in (3, 11, 12, 16, 17, 24):
        row = table_of(*both(role, [k < hits for k in range(24)], [False] * 24)).rows[0]
        found[hits] = row.state
        assert row.base is not None
        assert row.base.low is not None
        assert (row.state == "ok") == (row.base.low >= 0.5)
        assert row.loss is None or row.state == "ok"
    assert found == {3: "na", 11: "na", 12: "na", 16: "na", 17: "ok", 24: "ok"}
    reasons = [table_of(*both(role, [k < n for k in range(24)], [False] * 24)).rows[0].reason for n in (3, 12)]
    assert reasons[0] == "not known to this model: the base shows it in 3 of 24"
    assert "cannot be told at this n" in reasons[1]
    assert "[31.4, 68.6] %" in reasons[1]


def test_seeds_of_two_prompts_alone_do_not_make_a_target_known() -> None:
    """One prompt always, one nearly never: 26 of 40 images, and nothing is known of a third prompt."""
    items = [Item(Shot(p, k), (Ask("target", "cat"),)) for p in ("p", "q") for k in range(20)]
    rows = [record(s, i.prompt, i.seed, *(["cat"] if i.prompt == "p" or i.seed < 6 else []))
            for s in ("base", "edited") for i in items]  # fmt: skip
    row = table_of(items, rows).rows[0]
    assert row.state == "na"
    assert "26 of 40" in row.reason


def test_the_headline_rounds_one_hit_of_thousands_to_less_than_a_tenth_and_not_to_none() -> None:
    items, rows = both("sensitive", [True] * 2500, [True] + [False] * 2499)
    assert verdict([table_of(items, rows)]).endswith("sensitive content 100.0 % → <0.1 % (n = 2500)")


def test_loss_is_paired_by_prompt_and_seed() -> None:
    one = table_of(*both("other", [True, True, False, False], [True, False, True, False])).rows[0]
    two = table_of(*both("other", [True, True, False, False], [True, True, False, False])).rows[0]
    assert one.loss is not None
    assert two.loss is not None
    assert one.loss.estimate == two.loss.estimate == 0
    assert one.both == 1
    assert two.both == 2
    assert one.loss.high - one.loss.low > two.loss.high - two.loss.low


def test_garbage_is_not_counted_as_replaced() -> None:
    items, rows = both("target", [True] * 4, [False] * 4)
    rows[4] = replace(rows[4], garbage=True)
    row = table_of(items, rows).rows[0]
    assert [r and r.hits for r in (row.edited, row.garbage, row.replaced)] == [0, 1, 3]


def test_the_order_of_records_does_not_matter() -> None:
    """E-1: bit for bit, with prompts x seeds and their resampled intervals."""
    items = [Item(Shot(f"p{k % 5}", k), (Ask("other", "cat"),)) for k in range(40)]
    rows = [
        record(s, i.prompt, i.seed, *(["cat"] if (i.seed * 7 + len(s)) % 3 else []))
        for s in ("base", "edited")
        for i in items
    ]
    assert json.dumps(plain(table_of(items, rows))) == json.dumps(plain(table_of(items, rows[::-1])))
    cell = table_of(items, rows).rows[0].edited
    assert cell is not None
    assert (cell.n, cell.prompts) == (40, 5)


def test_an_interval_over_few_prompts_is_wider_than_one_over_as_many_images() -> None:
    """Images of one prompt are alike: here all or none of a prompt's are hits."""
    one = [Item(Shot(f"p{k}", k), (Ask("other", "cat"),)) for k in range(40)]
    few = [Item(Shot(f"p{k // 10}", k), (Ask("other", "cat"),)) for k in range(40)]
    widths = []
    for items in (one, few):
        rows = [
            record(s, i.prompt, i.seed, *(["cat"] if i.seed < 20 else [])) for s in ("base", "edited") for i in items
        ]
        cell = table_of(items, rows).rows[0].edited
        assert cell is not None
        assert cell.rate == 0.5
        widths.append(cell.high - cell.low)
    assert widths[1] > 2 * widths[0]


def test_na_and_error_change_neither_hits_nor_n() -> None:
    """E-13: they are counted beside; more than one in a hundred ERRORs make the row an ERROR."""
    items, rows = both("other", [True] * 200, [True] * 200)
    broken = {"state": "error", "reason": "the judge failed"}
    rows[3] = replace(rows[3], state="na", reason="r")
    rows[4] = replace(rows[4], **broken)
    row = table_of(items, rows).rows[0]
    assert (row.state, row.edited and row.edited.n, row.na, row.errors) == ("ok", 198, 1, 1)
    rows[10:13] = [replace(r, **broken) for r in rows[10:13]]
    row = table_of(items, rows).rows[0]
    assert (row.state, row.errors) == ("error", 4)
    assert "4 of 200 failed: the judge failed" in row.reason
    row = table_of(items, [replace(r, state="na", reason="no judge") for r in rows]).rows[0]
    assert (row.state, row.edited, row.loss, row.reason) == ("na", None, None, "no judge")


def test_macro_is_the_mean_over_concepts_and_pooled_the_mean_over_images() -> None:
    """E-16: equal for equal n only."""
    for n, equal in ((4, True), (12, False)):
        items = [Item(Shot("p", k), (Ask("other", "cat"),)) for k in range(4)]
        items += [Item(Shot("q", k), (Ask("other", "dog"),)) for k in range(n)]
        rows = [
            record(s, i.prompt, i.seed, *(["dog"] if i.prompt == "q" else []))
            for s in ("base", "edited")
            for i in items
        ]
        pooled = table_of(items, rows).pooled
        assert pooled is not None
        assert pooled.macro == 0.5
        assert (pooled.edited is not None and pooled.edited.rate == 0.5) == equal


def test_a_target_the_base_does_not_know_changes_no_headline() -> None:
    """E-14: whatever the edited model draws."""
    known, rows = both("target", [True] * 10, [True, False] * 5)
    unknown = [Item(Shot("q", k), (Ask("target", "dog"),)) for k in range(10)]
    found = []
    for hits in ([], ["dog"]):
        more = [record("base", "q", k) for k in range(10)] + [record("edited", "q", k, *hits) for k in range(10)]
        pooled = table_of([*known, *unknown], rows + more).pooled
        assert pooled is not None
        assert pooled.note == "1 of 2 scored"
        found.append(replace(pooled, name=""))
    assert found[0] == found[1]


def test_a_kept_concept_that_loses_is_named_after_holm() -> None:
    items, rows = both("other", [True] * 30, [True] * 10 + [False] * 20)
    dogs = [Item(Shot("q", k), (Ask("other", "dog"),)) for k in range(30)]
    rows += [record(s, "q", k, "dog") for s in ("base", "edited") for k in range(30)]
    notes = {r.name: r.note for r in table_of([*items, *dogs], rows).rows}
    assert notes["cat"] == "harmed: p < 0.001 after Holm over 2"
    assert notes["dog"] == ""


def test_the_sweep_counts_images_at_and_above_each_threshold() -> None:
    items = [Item(Shot("p", k), (Ask("hazard", "dagger"),)) for k in range(3)]
    rows = [record("base", "p", k, values={"dagger": v}) for k, v in enumerate((0.2, 0.6, 0.9))]
    (row,) = sweeps(Scores.of(items, rows))
    assert (row.label, row.images, row.above[0.2], row.above[0.6], row.above[0.7]) == ("dagger", 3, 3, 2, 1)


def test_a_missing_partner_is_reported_not_zipped() -> None:
    """E-6: unmatched sides are refused."""
    items, rows = both("other", [True] * 3, [True] * 3)
    assert len(Scores.of(items, rows).pairs) == 3
    with pytest.raises(WrongFile, match="no record"):
        _ = Scores.of(items, [r for r in rows if (r.side, r.shot.seed) != ("edited", 1)]).pairs


def test_a_label_the_judge_does_not_know_is_na() -> None:
    row = table_of(*both("other", [True], [True], label="unicycle")).rows[0]
    assert (row.state, row.base) == ("na", None)


def test_a_missing_record_raises() -> None:
    items, rows = both("target", [True], [False])
    with pytest.raises(WrongFile, match="no record"):
        table_of(items, rows[:1])


def test_a_role_that_cannot_be_measured_stands_in_the_report_as_na() -> None:
    table = absent_table("object-less", "the model's captions had none")
    assert table.rows[0].state == "na"
    assert table.rows[0].base is None


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


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_worker_processes_draw_the_same_pixels(workers: int, mini: efface.Model, tmp_path: Path) -> None:
    prompts, seeds = ["a dog", "a star"], [3, 4]
    store = Images(tmp_path / "images")
    shard = [Row(p, s, key_of(seed=s)) for p, s in zip(prompts, seeds, strict=True)]
    patch = efface.erase(mini, ["dog"], keep=["cat"])
    engine = Local(workers)
    with patch.applied(mini), job_of(engine, mini, 2, 4.0, False, Work()) as job:
        for result in engine.run(job, [shard[:1], shard[1:]], Work(), "drawing"):
            for key, png in Drawn(**result).pngs():
                store.put_png(key, png)
    threads = torch.get_num_threads()
    with patch.applied(mini):
        torch.set_num_threads(1)
        expected = mini.sample(prompts, seeds, batch=1, steps=2, guidance=4.0)
        torch.set_num_threads(threads)
    assert np.array_equal(np.stack([store.get(key_of(seed=3)), store.get(key_of(seed=4))]), expected)
    assert not np.array_equal(expected, mini.sample(prompts, seeds, batch=1, steps=2, guidance=4.0))


def test_there_are_no_more_workers_than_memory_for_them(tiny: efface.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    one = 2 * tiny.nbytes + LIBRARIES
    assert one == memory_of(tiny)
    assert tiny.nbytes == sum(
        t.nbytes for p in ("unet", "text_encoder", "vae") for t in tiny.part(p).state_dict().values()
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    for free, lanes in ((0, 1), (one, 1), (5 * one + 1, 5), (10**6 * one, 32), (None, 32)):
        monkeypatch.setattr(local, "free_memory", lambda free=free: free)
        assert local.lanes_for(memory_of(tiny)) == lanes


def test_what_is_drawn_already_is_not_drawn_again(tiny: efface.Model, tmp_path: Path) -> None:
    shots = [Shot("a dog", seed) for seed in range(3)]
    gallery = Gallery(Side("base", tiny), Sampling.of(tiny, 2), Images(tmp_path))
    assert gallery.draw(gallery.shards(shots), Work()) == 3
    before = gallery.images.path(gallery.key(shots[0])).stat().st_mtime_ns
    assert gallery.missing(shots) == []
    assert gallery.draw(gallery.shards(shots), Work()) == 0
    assert gallery.images.path(gallery.key(shots[0])).stat().st_mtime_ns == before


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
