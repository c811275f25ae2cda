"""Suites over bundled lists of names, and that every suite has its card."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from efface import registry
from efface.errors import BadRequest
from efface.request import Request
from efface.suites import Known, Plan
from efface.suites._listed import read

ROOT = Path(__file__).parent.parent.parent
LISTS = {"imagenette-10": 10, "diversi-50": 50, "confuse-5": 25, "artists-5": 5, "artists-50": 50}


def plan(name: str, *concepts: str, **settings: object) -> Plan:
    return registry.configure(name, dict(settings), "suites").plan(Request.build(concepts), Known())


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_its_number_of_classes_a_source_and_a_licence(name: str) -> None:
    data = read(name)
    names = [c["name"] for c in data["classes"]]
    assert len(names) == len(set(names)) == LISTS[name]
    text = (ROOT / "src" / "efface" / "prompts" / f"{name}.toml").read_text(encoding="utf-8")
    head = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert "Licence" in head
    assert "rotocol" in head or "reconstructed" in head
    indices = [c["index"] for c in data["classes"] if "index" in c]
    assert len(indices) == len(set(indices)) in (0, LISTS[name])
    assert all(0 <= i < 1000 for i in indices)


def test_no_painter_is_living_and_those_of_ours_are_dead_for_more_than_seventy_years() -> None:
    assert all(c["died"] < 1995 for c in read("artists-5")["classes"])
    assert all(c["died"] < 2026 - 71 for c in read("artists-50")["classes"])


def test_named_classes_are_targets_and_the_others_are_kept() -> None:
    found = plan("imagenette-10", "church", "Golf Ball")
    roles = {a.label: a.role for i in found.items for a in i.asks}
    assert {k for k, v in roles.items() if v == "target"} == {"church", "golf ball"}
    assert len(found.items) == 500
    assert {i.prompt for i in found.items if i.asks[0].label == "church"} == {"an image of a church"}
    many = plan("imagenette-10", "church", wording="many", images=20)
    prompts = {i.prompt for i in many.items if i.asks[0].label == "English springer"}
    assert len(prompts) == 10
    assert "a photo of an English springer" in prompts
    assert any("one sentence" in n for n in found.not_measured)
    assert not any("one sentence" in n for n in many.not_measured)


def test_look_alikes_of_a_target_are_neighbours() -> None:
    roles = {a.label: a.role for i in plan("confuse-5", "tabby", "tiger cat").items for a in i.asks}
    assert {k for k, v in roles.items() if v == "neighbour"} == {"Persian cat", "Siamese cat", "Egyptian cat"}
    assert roles["pug"] == "other"
    assert list(roles.values()).count("target") == 2


def test_painters_are_known_by_both_of_their_names() -> None:
    roles = {a.label: a.role for i in plan("artists-5", "style:Van Gogh", "style:Monet style").items for a in i.asks}
    assert {k for k, v in roles.items() if v == "style"} == {"Vincent van Gogh", "Claude Monet"}
    assert set(roles.values()) == {"style", "other-style"}
    every = plan("artists-5", *(f"style:{c['name']}" for c in read("artists-5")["classes"]))
    assert set(every.absent) == {"other-style"}


@pytest.mark.parametrize("name", ["artists-5", "artists-50"])
def test_a_closed_set_of_painters_has_names_of_nobody_and_asks_for_none_of_them(name: str) -> None:
    suite = registry.configure(name, {}, "suites")
    asked = {a.label for i in suite.plan(Request.build(["style:Claude Monet"]), Known()).items for a in i.asks}
    neutral = set(suite.brief.labels) - asked
    assert len(neutral) >= 5
    assert asked == {c["name"] for c in read(name)["classes"]}
    assert not neutral & {n for c in read(name)["classes"] for n in (c["name"], *c.get("aliases", ()))}


def test_titles_are_drawn_by_their_painters_and_refused_where_there_are_none() -> None:
    found = plan("artists-5", "style:Van Gogh", wording="titles", images=12)
    own = [i for i in found.items if i.asks[0].label == "Vincent van Gogh"]
    assert len({(i.prompt, i.seed) for i in own}) == 12
    assert (own[0].prompt, own[10].prompt, own[10].seed) == (
        "The Starry Night by Vincent van Gogh", "The Starry Night by Vincent van Gogh", 1)  # fmt: skip
    assert {len(c["titles"]) for c in read("artists-5")["classes"] if "titles" in c} == {10}
    assert not any("one sentence" in n for n in found.not_measured)
    for name, concept in (("artists-50", "style:Claude Monet"), ("imagenette-10", "church")):
        with pytest.raises(BadRequest, match="has no titles"):
            plan(name, concept, wording="titles")


def test_a_list_says_which_kept_classes_it_lacks() -> None:
    classes = read("confuse-5")["classes"]
    whole = plan("confuse-5", *(c["name"] for c in classes if c["group"] == classes[0]["group"]))
    assert set(whole.absent) == {"neighbour"}
    spread = {c["group"]: c["name"] for c in classes}
    assert set(plan("confuse-5", *spread.values()).absent) == {"other"}
    assert plan("imagenette-10", "church").absent == {}


def test_a_request_that_names_no_class_is_refused_and_a_stranger_is_named() -> None:
    with pytest.raises(BadRequest, match="tench"):
        plan("imagenette-10", "unicorn")
    assert any("unicorn" in n for n in plan("imagenette-10", "church", "unicorn").not_measured)


def test_the_judge_is_asked_by_index_never_by_a_string_of_names() -> None:
    """E-35: "cassette player" is class 482 and nothing else."""
    labels = registry.configure("imagenette-10", {}, "suites").labels
    assert labels["cassette player"] == (482,)
    from efface.judges.transformers_classifier import IMAGENETTE

    assert dict(labels) == dict(IMAGENETTE)


def test_a_judge_is_given_the_labels_of_the_suite_and_a_missing_one_leaves_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from efface.errors import Unavailable
    from efface.judges import clip
    from efface.judges.panel import EmptyPanel, seated

    seen = {}

    def load(name: str = "default", labels: tuple[str, ...] = (), *, template: str = "") -> None:
        seen.update(name=name, labels=labels, template=template)
        raise Unavailable("fetch it with ...")

    monkeypatch.setattr(clip, "load", load)
    suite = registry.configure("artists-5", {}, "suites")
    panel = seated("clip:some/model", suite.brief)
    assert seen["name"] == "some/model"
    assert "Claude Monet" in seen["labels"]
    assert seen["template"].format("X") == "an image in the style of X"
    assert (type(panel), panel.why, panel.versions.judge) == (EmptyPanel, "fetch it with ...", "none")
    seated(suite.judge, suite.brief)
    assert seen["name"] == "default"


def test_a_selection_judge_may_not_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """E-37: what methods may ask cannot be what tables quote."""
    from efface.judges import world as judges
    from efface.judges.panel import seated

    judge = judges.load()
    monkeypatch.setattr(judge, "card", judge.card | {"role": "selection"})
    monkeypatch.setattr(judges, "load", lambda: judge)
    with pytest.raises(BadRequest, match="may not report"):
        seated(registry.configure("world-smoke", {}, "suites").judge)


def test_every_suite_has_a_card() -> None:
    text = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    cards = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert set(registry.names("suites")) == set(cards)
    for name, body in cards.items():
        for line in ("source", "licence", "counts", "judge", "decides"):
            assert f"| {line} |" in body, (name, line)
