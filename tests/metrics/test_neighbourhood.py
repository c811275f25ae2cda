"""The neighbourhood of an audit: text space of the bundled model, image space of a judge, names for the keep list."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

import efface
from efface.files import key_of
from efface.gallery.images import Images
from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import EmptyPanel, LabelPanel, Panel
from efface.metrics._run import surroundings
from efface.metrics.neighbourhood import Neighbourhood, image_space, text_space
from efface.report.page import render
from efface.request import Request
from efface.scores.scores import Scores
from plain_rows import record
from small_report import report

NAMES = ("cat", "lion", "sofa", "boat")
PLACES = dict(zip(NAMES, np.asarray([[1.0, 0.1], [0.9, 0.2], [0.1, 1.0], [0.0, 0.9]]), strict=True))


@pytest.fixture(scope="module")
def mini() -> efface.Model:
    return efface.load("mini")


def test_in_text_space_of_the_bundled_model_neighbours_share_a_category(mini: efface.Model) -> None:
    """Four times as often as by chance; the row that starts every text is left out, so not everything is alike."""
    category = {c["name"]: c["category"] for c in mini.concepts if c["kind"] == "object"}
    space = text_space(mini, {n: n for n in category})
    assert set(space) == set(category)
    found = []
    for name in category:
        near = Neighbourhood((name,), space, k=5).nearest()["text"][name]
        assert [c for _, c in near] == sorted((c for _, c in near), reverse=True)
        found += [category[n] == category[name] for n, _ in near]
    names = list(category)
    chance = np.mean([category[a] == category[b] for a in names for b in names if a != b])
    assert np.mean(found) > 4 * chance


def test_a_text_that_the_model_does_not_read_whole_has_no_place(mini: efface.Model) -> None:
    long = " ".join(["a cat and a dog"] * 20)
    assert set(text_space(mini, {"cat": "cat", "long": long, "same": "cat"})) == {"cat", "same"}
    assert text_space(mini, {}) == {}


def test_what_all_features_share_tells_no_neighbours() -> None:
    features = {n: [v + 100, v + 100.02] for n, v in PLACES.items()}
    space = image_space(features)
    assert sum(space.values()) == pytest.approx(0, abs=1e-9)
    near = Neighbourhood(("cat",), images=space).nearest()["image"]["cat"]
    assert near[0][0] == "lion"
    assert near[0][1] > 0.9 > 0 > near[-1][1]
    assert image_space({}) == {}


def test_neighbours_are_of_the_targets_kind_and_those_kept_are_not_proposed() -> None:
    space = {"cat": np.asarray([1.0, 0]), "noto": np.asarray([0.9, 0.1]), "lion": np.asarray([0.8, 0.4]),
             "flat": np.asarray([0.7, 0.1]), "sofa": np.asarray([0.1, 1.0])}  # fmt: skip
    kinds = {"cat": "object", "lion": "object", "sofa": "object", "noto": "style", "flat": "style"}
    metric = Neighbourhood(("cat", "noto"), space, kinds=kinds)
    near = metric.nearest()["text"]
    assert [n for n, _ in near["cat"]] == ["lion", "sofa"]
    assert [n for n, _ in near["noto"]] == ["flat"]
    assert [n for n, _ in metric.proposals(())] == ["flat", "lion", "sofa"]  # nearest first, whoever's neighbour
    assert [n for n, _ in metric.proposals((), {"lion"})] == ["flat", "sofa"]
    assert [n for n, _ in Neighbourhood(("cat", "noto"), space, kinds=kinds, most=1).proposals(())] == ["flat"]


# --- on a run --------------------------------------------------------------------------------------------------------


class Planted:
    """A judge whose features are the colour of a picture."""

    name, version, role, objects, styles = "planted", "1", "reporting", NAMES, ()
    card: dict[str, Any] = {}  # noqa: RUF012

    def look(self, images: np.ndarray) -> Any:
        return SimpleNamespace(features=images[:, 0, 0].astype(np.float32))


def run_of(folder: Path, lost: int) -> tuple[Scores, Images, Panel]:
    """Four pictures a concept whose colour says where it lies; the edited model loses lions in `lost` of 20 pairs."""
    images, items, rows = Images(folder), [], []
    for name in NAMES:
        role = {"cat": "target", "lion": "neighbour"}.get(name, "other")
        for seed in range(20):
            items.append(Item(Shot(f"a {name} {seed % 10}", seed), (Ask(role, name),)))
            red, green = (int(200 * v) for v in PLACES[name])
            images.put(key := key_of(name=name, seed=seed), np.full((4, 4, 3), (red, green, seed), np.uint8))
            for side in ("base", "edited"):
                gone = side == "edited" and (name == "cat" or (name == "lion" and seed < lost))
                hits = () if gone else (name,)
                rows.append(record(side, items[-1].prompt, seed, *hits, image=key, values={name: 0.5}))
    return Scores.of(items, rows), images, LabelPanel.beside(Planted(), None)


def test_the_report_names_neighbours_in_both_spaces_and_whom_to_keep(mini: efface.Model, tmp_path: Path) -> None:
    given = run_of(tmp_path, lost=12)
    found = surroundings(mini, Request.build(["object:cat"], keep=["A dog"]), *given)
    by_space = {s: [n for n in found.nearest if n.space == s] for s in ("text", "image")}
    assert [n.target for n in by_space["text"]] == ["cat"] * 5
    assert by_space["image"][0].concept == "lion"
    lion = by_space["image"][0]
    assert (lion.loss, lion.pairs, lion.kept) == (pytest.approx(0.6), 20, False)
    assert lion.low is not None and lion.high is not None and lion.low < 0.6 < lion.high  # noqa: PT018
    first = found.proposals[0]
    assert (first.concept, first.keep) == ("lion", "lion")
    assert first.why.startswith("lost 60.0 points [")
    assert "not tested" in found.proposals[1].why
    words = shlex.split(found.arguments)
    assert words[::2] == ["--keep"] * len(found.proposals)
    assert words[1::2] == [p.keep for p in found.proposals]
    assert not {"cat", "boat", "sofa"} & {*words}  # the target; what was tested and held
    harm = {(h.name, h.side): h for h in found.harm}
    assert harm["harm.mean", "neighbour"].value == pytest.approx(0.6)
    assert harm["harm.worst", "neighbour"].concept == "lion"
    assert harm["slope", ""].state == "ok"


def test_the_page_shows_the_neighbourhood_with_intervals(mini: efface.Model, tmp_path: Path) -> None:
    found = surroundings(mini, Request.build(["object:cat"]), *run_of(tmp_path, lost=12))
    page = render(report(neighbourhood=found), lambda _: b"")
    row = page[page.index("<td>image</td><td>lion</td>") :].split("</tr>")[0]
    assert re.search(r"<td>\+60\.0 \[\d+\.\d, \d+\.\d\]</td><td>20</td><td>no</td>", row), row
    assert f"<code>{escape(found.arguments)}</code>" in page
    assert "Neighbourhood</h2>" not in render(report(), lambda _: b"")


def test_what_is_kept_already_is_marked_and_not_proposed(mini: efface.Model, tmp_path: Path) -> None:
    given = run_of(tmp_path, lost=12)
    found = surroundings(mini, Request.build(["object:cat"], keep=["Lion"]), *given)
    assert {n.kept for n in found.nearest if n.concept == "lion"} == {True}
    assert "lion" not in [p.concept for p in found.proposals]


@pytest.mark.parametrize(("lost", "proposed"), [(1, False), (2, True)])
def test_one_lost_image_proposes_nobody(tmp_path: Path, lost: int, proposed: bool) -> None:
    scores, _, _ = run_of(tmp_path, lost)
    metric = Neighbourhood(("cat",), PLACES, limit=0.04)  # one image of 20 is above it
    cells = metric.aggregate(r for r in scores.readings() if r.role != "target")
    assert ("lion" in [name for name, _ in metric.proposals(cells)]) == proposed


NOBODY = (Scores.of((), ()), Images(Path("nowhere")), EmptyPanel.of("none", "no judge"))


def test_styles_are_proposed_as_they_are_written(mini: efface.Model) -> None:
    request = Request.build(["noto style"], keep=["flat style"]).settle(mini.kinds)
    found = surroundings(mini, request, *NOBODY)
    near = {n.concept: n.kept for n in found.nearest}
    assert near["flat"]
    assert {mini.kinds[n] for n in near} == {"style"}
    assert all(p.keep == f"{p.concept} style" for p in found.proposals)
    assert "'" in found.arguments


def test_persons_have_no_neighbours(mini: efface.Model) -> None:
    found = surroundings(mini, Request.build(["person:cat"]), *NOBODY)
    assert (found.nearest, found.proposals, found.arguments) == ((), (), "")
