"""What every suite promises, one row each: a plan is pure, repeats, and says what it leaves out.

Suites over a table of the user's get a small one. A row names a setting that draws or asks otherwise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import pytest

import efface
from efface import registry
from efface.errors import BadRequest, EffaceError
from efface.gallery.shot import ROLES
from efface.model import Model
from efface.request import Request
from efface.suites import Entry, Known, Plan, Suite, suite_hash

PROMPTS = "prompt,seed,source,categories\n" + "".join(f"a red box {k},{k},coco,x\n" for k in range(4))


@dataclass(frozen=True)
class Row:
    """One suite: what it is asked, and a setting that alters its plan."""

    concept: str
    other: str
    file: bool = False
    """Whether it reads a table of the user's."""


WORLD = Row("rocket", "targets=3")
ROWS = {
    "world-smoke": WORLD,
    "world-standard": Row("rocket", "others=3"),
    "world-full": WORLD,
    "world-claim": Row("rocket", "targets=3"),
    "imagenette-10": Row("church", "images=3"),
    "diversi-50": Row("tabby", "images=3"),
    "confuse-5": Row("tabby", "images=3"),
    "artists-5": Row("style:Vincent van Gogh", "images=3"),
    "artists-50": Row("style:Vincent van Gogh", "images=3"),
    "i2p": Row("sensitive:anything", "rows=2", True),
    "ring-a-bell": Row("sensitive:anything", "rows=2", True),
    "coco-30k": Row("dog", "rows=2", True),
    "unlearncanvas": Row("style:Sketch", "seeds=188"),
}
every_row = pytest.mark.parametrize("name", ROWS)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Settings that name the user's files, by suite."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text(PROMPTS)
    (tmp_path / "styles.txt").write_text("Old_Photo\nSketch\n")
    (tmp_path / "objects.txt").write_text("Dogs\nTrees\n")
    grid = {"styles": str(tmp_path / "styles.txt"), "objects": str(tmp_path / "objects.txt")}
    return {"unlearncanvas": grid} | {n: {"file": str(prompts)} for n, row in ROWS.items() if row.file}


def suite(name: str, tables: dict[str, dict[str, str]], **more: str) -> Suite:
    return registry.configure(name, {**tables.get(name, {}), **more}, "suites")


@cache
def base() -> Model:
    return efface.load("micro", "cpu")


def planned(made: Suite, name: str) -> Plan:
    known = Known(cast("tuple[Entry, ...]", base().concepts), base().captions)
    return made.plan(Request.build([ROWS[name].concept]).settle(base().kinds), known)


def test_every_suite_has_a_row() -> None:
    assert set(ROWS) == set(registry.names("suites"))


@every_row
def test_the_same_request_is_the_same_plan(name: str, tables: dict[str, dict[str, str]]) -> None:
    first, second = (planned(suite(name, tables), name) for _ in range(2))
    assert first == second
    assert first.items
    assert suite_hash(first.items) == suite_hash(second.items)


@every_row
def test_no_shot_stands_twice_and_every_question_has_a_known_role(name: str, tables: dict[str, dict[str, str]]) -> None:
    plan = planned(suite(name, tables), name)
    assert len({i.shot for i in plan.items}) == len(plan.items)
    assert {a.role for i in plan.items for a in i.asks} <= set(ROLES)
    assert all(i.asks for i in plan.items) or name == "coco-30k"


@every_row
def test_a_role_that_is_left_out_has_a_reason(name: str, tables: dict[str, dict[str, str]]) -> None:
    plan = planned(suite(name, tables), name)
    asked = {a.role for i in plan.items for a in i.asks}
    assert set(plan.absent) <= set(ROLES) - asked
    assert all(reason.strip() for reason in (*plan.absent.values(), *plan.not_measured))


@every_row
def test_another_setting_draws_or_asks_otherwise(name: str, tables: dict[str, dict[str, str]]) -> None:
    word, _, value = ROWS[name].other.partition("=")
    there = planned(suite(name, tables, **{word: value}), name)
    assert suite_hash(there.items) != suite_hash(planned(suite(name, tables), name).items)


@every_row
def test_it_states_a_version_a_judge_and_whether_its_pictures_are_private(
    name: str, tables: dict[str, dict[str, str]]
) -> None:
    made = suite(name, tables)
    assert made.version
    assert made.judge.partition(":")[0] in registry.names("judges")
    plan = planned(made, name)
    shown = {a.role for i in plan.items for a in i.asks}
    assert made.private == ("sensitive" in shown)
    json.dumps([made.brief.threshold, list(made.brief.counts)])


@every_row
def test_what_does_not_fit_is_one_sentence(name: str, tables: dict[str, dict[str, str]]) -> None:
    with pytest.raises(BadRequest, match="nonsense") as caught:
        suite(name, tables, nonsense="1")
    assert len(str(caught.value).splitlines()) == 1
    word, _, _ = ROWS[name].other.partition("=")
    with pytest.raises(EffaceError) as said:
        planned(suite(name, tables, **{word: "many of them"}), name)
    assert len(str(said.value).splitlines()) == 1
