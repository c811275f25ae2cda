"""The suites of the world: counts, roles that are NA, halves; smoke and claim draw what they always drew."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from efface import world
from efface.errors import BadRequest, UnknownName
from efface.gallery.shot import Ask, Item, Shot
from efface.request import Request
from efface.suites import Known, merged, suite_hash
from efface.suites.world_claim import WorldClaim
from efface.suites.world_full import WorldFull
from efface.suites.world_smoke import WorldSmoke
from efface.suites.world_standard import WorldStandard

ALL = frozenset({"name", "style", "background", "templates", "synonym", "clue", "category", "two", "empty"})
MINI = frozenset({"name", "style", "background"})


def concepts(half: str = "report") -> tuple[dict[str, Any], ...]:
    """A concept list in which every drawn object of a half and two styles are qualified."""
    rows = [
        {"name": o.name, "kind": "object", "category": o.category, "half": o.half, "qualified": o.half == half}
        for o in world.objects()
        if o.picked
    ]
    styles = [
        {"name": s, "kind": "style", "category": "style", "half": "report", "qualified": s in ("noto", "monochrome")}
        for s in world.styles()
    ]
    return (*rows, *styles)


def request(n: int, *more: str) -> Request:
    names = [o.name for o in world.objects() if o.picked and o.half == "report" and o.synonyms][:n]
    return Request.build([f"object:{name}" for name in names] + [f"style:{s}" for s in more])


def count(items: tuple[Item, ...], role: str) -> int:
    return sum(a.role == role for i in items for a in i.asks)


def test_standard_is_ten_targets_of_thirty_100_synonym_150_neighbour_and_250_other_images_at_least() -> None:
    plan = WorldStandard().plan(request(10), Known(concepts(), ALL))
    counts = {role: count(plan.items, role) for role in ("target", "synonym", "neighbour", "other")}
    least = WorldStandard(nearest=0).plan(request(10), Known(concepts(), ALL))
    assert {role: count(least.items, role) for role in counts} == {
        "target": 300, "synonym": 100, "neighbour": 150, "other": 250,
    }  # fmt: skip
    assert set(least.items) < set(plan.items)
    assert 800 < len(plan.items) <= 960
    assert plan.absent == {}
    labels = [a.label for i in plan.items for a in i.asks if a.role == "target"]
    assert {labels.count(label) for label in labels} == {30}
    assert {i.seed for i in plan.items} <= set(range(500, 1000))
    for role in ("target", "synonym", "neighbour", "other"):
        assert len({i.prompt for i in plan.items if i.asks[0].role == role}) >= 8
    target = labels[0]
    assert len({i.prompt for i in plan.items if Ask("target", target) in i.asks}) >= 8


def test_few_targets_get_more_images_each_so_that_together_they_stay_at_300() -> None:
    assert count(WorldStandard().plan(request(3), Known(concepts(), ALL)).items, "target") == 300
    assert count(WorldStandard().plan(request(12), Known(concepts(), ALL)).items, "target") == 360
    styled = WorldStandard().plan(request(1, "monochrome"), Known(concepts(), ALL)).items
    assert (count(styled, "style"), count(styled, "in-prompt")) == (30, 30)
    assert count(styled, "unstyled") == count(styled, "neighbour") + count(styled, "other") >= 400


def test_the_nearest_ten_kept_objects_have_twenty_images_each() -> None:
    for asked in (request(10), request(1), request(0, "monochrome")):
        items = WorldStandard().plan(asked, Known(concepts(), ALL)).items
        each = Counter(a.label for i in items for a in i.asks if a.role in ("neighbour", "other"))
        assert sum(n >= 20 for n in each.values()) >= 10
        assert len(items) == len({i.shot for i in items})
    near = WorldStandard().plan(request(10), Known(concepts(), ALL)).items
    each = Counter(a.label for i in near for a in i.asks if a.role == "neighbour")
    assert sum(n >= 20 for n in each.values()) == 10


def test_roles_that_the_captions_never_had_are_na_with_the_reason() -> None:
    plan = WorldStandard().plan(request(10), Known(concepts(), MINI))
    assert plan.absent == {"synonym": "the model's captions had none (synonym)"}
    assert count(plan.items, "synonym") == 0
    full = WorldFull().plan(request(3), Known(concepts(), MINI))
    assert set(full.absent) == {"synonym", "implicit", "category", "two-object", "hazard", "object-less"}
    silent = WorldFull().plan(request(3), Known(concepts(), None))
    assert "does not say" in silent.absent["implicit"]


def test_full_has_every_role_and_only_qualified_concepts_are_kept() -> None:
    asked = Request.build(["object:dog", "object:dagger", "style:monochrome"])
    plan = WorldFull().plan(asked, Known(concepts(), ALL))
    roles = {a.role for i in plan.items for a in i.asks}
    assert roles == {
        "target", "synonym", "implicit", "category", "two-object", "hazard", "style", "unstyled", "neighbour", "other",
        "other-style", "in-prompt", "beside", "object-less",
    }  # fmt: skip
    assert plan.absent == {}
    qualified = {c["name"] for c in concepts() if c["qualified"]}
    kept = {a.label for i in plan.items for a in i.asks if a.role in ("neighbour", "other", "other-style", "beside")}
    assert kept <= qualified - {"dog", "dagger", "monochrome"}
    pair = next(i for i in plan.items if i.asks[0].role == "two-object")
    assert [a.role for a in pair.asks] == ["two-object", "beside"]
    assert all(a.label in i.prompt for i in plan.items for a in i.asks if a.role == "beside")
    for item in plan.items:
        if item.asks[0].role in ("synonym", "implicit", "category", "hazard"):
            assert item.asks[0].label not in item.prompt.split()


def test_halves_share_no_seed_and_the_tune_half_keeps_its_own_objects() -> None:
    asked = Request.build(["object:horse"])
    tune = WorldFull(half="tune").plan(asked, Known(concepts("tune"), ALL)).items
    report = WorldFull().plan(asked, Known(concepts(), ALL)).items
    assert {i.seed for i in tune} <= set(range(500))
    assert not {i.seed for i in tune} & {i.seed for i in report}
    assert not {i.prompt for i in tune if i.asks[0].role == "target"} & {i.prompt for i in report}
    with pytest.raises(UnknownName, match="half"):
        WorldStandard(half="reprot").plan(asked, Known(concepts(), ALL))
    with pytest.raises(BadRequest, match="qualified objects of the tune half"):
        WorldStandard(half="tune").plan(asked, Known(concepts(), ALL))


def test_smoke_and_claim_draw_what_they_always_drew() -> None:
    """The hashes were taken with version 0.1."""
    asked = Request.build(["object:dog", "object:pizza", "style:monochrome"])
    for suite, wanted in ((WorldSmoke(), "9060612675186465"), (WorldClaim(), "03b9714db7a6407a")):
        plan = suite.plan(asked, Known(concepts(), MINI))
        assert plan.items == suite.items(asked, concepts())
        assert suite_hash(plan.items) == wanted
        assert set(plan.absent) == {"object-less"}


@pytest.mark.parametrize("suite", [WorldSmoke(), WorldClaim(), WorldStandard(), WorldFull()])
def test_a_style_alone_has_no_neighbours_and_the_plan_says_so(suite: Any) -> None:
    plan = suite.plan(request(0, "monochrome"), Known(concepts(), ALL))
    assert plan.absent["neighbour"] == "the model has no qualified object of this kind left"
    assert count(plan.items, "style") > 0
    assert count(plan.items, "neighbour") == 0


def test_smoke_says_when_there_is_no_other_style() -> None:
    objects = tuple(c for c in concepts() if c["kind"] == "object")
    assert "other-style" in WorldSmoke().plan(request(1), Known(objects, MINI)).absent
    assert "other-style" not in WorldSmoke(other_styles=0).plan(request(1), Known(objects, MINI)).absent


def test_the_same_image_is_one_item_with_all_its_questions() -> None:
    one, two = Item(Shot("p", 1), (Ask("target", "a"),)), Item(Shot("p", 1), (Ask("target", "a"), Ask("other", "b")))
    assert merged([one, two, Item(Shot("p", 2))]) == (two, Item(Shot("p", 2)))
    assert suite_hash((one,)) != suite_hash((two,))
    assert suite_hash((one,)) != suite_hash((Item(Shot("p", 1, guidance=3.0), one.asks),))
