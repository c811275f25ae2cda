"""Comparing runs: pairs on equal images only, differences that follow from records, four files that agree."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import Page

import efface
from conftest import Cli
from efface.audit import audit
from efface.errors import BadRequest, OutputExists, WrongFile
from efface.gallery.shot import Item, Shot
from efface.judges.panel import Versions
from efface.metrics._run import MetricCell, composites
from efface.numerics import intervals
from efface.report.compare import column, compare
from efface.report.compare_page import HEAD, markdown, page, table, write
from efface.report.comparison import Comparison, read_comparison
from efface.report.pareto import plot
from efface.report.report import opened_report
from efface.request import Request
from efface.scores.records import Records
from efface.scores.scores import Pair
from efface.scores.tables import Loss
from efface.work import seed_of
from tiny_world import Paint, categories, make_world, named, paint, pictures, small, zero_patch

SETTINGS = (("targets", 8), ("all_targets", 16), ("synonyms", 0), ("neighbours", 12), ("others", 20), ("nearest", 0))


def keeps(item: Item) -> np.ndarray:
    """Everything but the first two objects as it was; these become another object."""
    return pictures()[list(pictures())[-1]] if item.asks[0].role == "target" else named(item)


def harms(item: Item) -> np.ndarray:
    """About half of the targets stay, about half of the neighbours go."""
    if item.asks[0].role in ("target", "neighbour") and seed_of(item.prompt, item.seed) % 2:
        return pictures()[list(pictures())[-1]]
    return named(item)


def noise(item: Item) -> np.ndarray:
    return np.random.default_rng(item.seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def run(home: Path, model: efface.Model, name: str, targets: tuple[int, ...], edited: Paint, factor: float) -> Path:
    names = list(pictures())
    request = Request.build([names[k] for k in targets])
    patch = zero_patch(model, factor, name)
    audit(paint(small(model, patch, suite="world-standard", request=request, settings=SETTINGS), edited), home / name)
    return home / name


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two methods and noise on one concept set, one method on another."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("EFFACE_CACHE", str(home / "cache"))
        model = efface.load(make_world(tiny_folder, home / "world", names=categories()), "cpu")
        made = [
            run(home, model, "good", (0, 1), keeps, -1.0),
            run(home, model, "harmful", (0, 1), harms, -0.5),
            run(home, model, "noise", (0, 1), noise, -0.25),
            run(home, model, "elsewhere", (2, 3), keeps, -2.0),
        ]
    return made


@pytest.fixture(scope="module")
def found(runs: list[Path]) -> Comparison:
    return compare(runs)


def cells(found: Comparison, key: str) -> dict[str, Any]:
    return {r["run"]: r["cells"][key] for r in found["tables"][0]["runs"]}


def test_runs_of_other_suites_stand_in_another_table_that_says_why(found: Comparison) -> None:
    """E-55: never in one column; the field that differs is named."""
    assert [[r["run"] for r in t["runs"]] for t in found["tables"]] == [["good", "harmful", "noise"], ["elsewhere"]]
    assert found["apart"] == ["Table 2 shares no column with table 1: its suite hash is another."]


def test_the_intersection_is_offered(runs: list[Path]) -> None:
    """E-55: with --common, runs of two suites meet on the images and questions they share."""
    both = compare([runs[0], runs[3]], common=True)
    (block,) = both["tables"]
    assert block["common"]
    assert 0 < block["images"] < 48
    assert "targets shown" not in block["columns"].values()
    assert {r["run"] for r in block["runs"]} == {"good", "elsewhere"}


def test_differences_are_paired_and_follow_from_the_images(found: Comparison) -> None:
    shown, lost = cells(found, "shown"), cells(found, "neighbours")
    assert shown["good"]["cell"]["hits"] == 0
    assert "difference" not in shown["good"]
    hits = shown["harmful"]["cell"]["hits"]
    assert 0 < hits < 16
    difference = shown["harmful"]["difference"]
    assert difference["estimate"] == hits / 16
    assert difference["p"] == intervals.mcnemar_exact(hits, 0)
    p = [shown[n]["difference"]["p"] for n in ("harmful", "noise")]
    assert [shown[n]["difference"]["p_holm"] for n in ("harmful", "noise")] == pytest.approx(list(intervals.holm(p)))
    assert lost["good"]["cell"]["estimate"] == 0
    assert lost["harmful"]["cell"]["estimate"] == lost["harmful"]["difference"]["estimate"] > 0
    assert lost["noise"]["cell"]["estimate"] == 1
    assert lost["noise"]["difference"]["p_holm"] < 0.05


def test_places_are_shared_unless_a_difference_is_sure(found: Comparison) -> None:
    lost = {name: c["place"] for name, c in cells(found, "neighbours").items()}
    assert lost["noise"] == max(lost.values()) > 1
    assert lost["good"] == 1
    few = cells(found, "garbage")
    assert few["good"]["place"] == few["harmful"]["place"] == 1
    assert few["noise"]["place"] == 3


def test_another_baseline_turns_the_differences_round(runs: list[Path]) -> None:
    turned = cells(compare(runs[:2], baseline=runs[1]), "neighbours")
    straight = cells(compare(runs[:2]), "neighbours")
    assert turned["good"]["difference"]["estimate"] == -straight["harmful"]["difference"]["estimate"]
    with pytest.raises(BadRequest, match="baseline"):
        compare(runs[:2], baseline=runs[2])


def test_noise_is_marked_and_not_undominated_by_its_forgetting(found: Comparison) -> None:
    block = found["tables"][0]
    drawn = plot(found.tables[0])
    assert drawn is not None
    places = {p.run: p for p in drawn.points}
    assert places["good"].front
    assert not places["noise"].front
    assert places["noise"].broken > 0.9
    assert block["runs"][2]["flags"]


def test_worst_concepts_and_the_heat_map_are_named(found: Comparison) -> None:
    block = found["tables"][0]
    names = list(pictures())
    assert block["runs"][1]["worst target"]["name"] in names[:2]
    heat = {r["concept"]: r for r in block["heat"]}
    for run in block["runs"]:  # a concept with a few images is never called the worst
        many = {n: r["cells"][run["run"]] for n, r in heat.items() if r["kind"] == "kept"}
        assert all(c["few"] == (c["n"] < 5) for c in many.values())
        enough = [c["value"] for c in many.values() if not c["few"]]
        assert (run["worst kept"] or {}).get("value") == (max(enough) if enough else None)
    assert {n for n, r in heat.items() if r["kind"] == "target"} == set(names[:2])
    assert any(r["kind"] == "kept" for r in heat.values())
    assert heat[names[0]]["cells"]["good"]["value"] == 0
    assert all(0 <= c["value"] <= 1 for c in heat[names[0]]["cells"].values())


def test_the_four_files_agree_and_hold_no_nan(found: Comparison, tmp_path: Path) -> None:
    """E-12: JSON and CSV without NaN or Infinity; NA is a state."""
    assert write(found, tmp_path / "out").name == "compare.html"
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "compare.csv", "compare.html", "compare.json", "compare.md",
    ]  # fmt: skip

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads((tmp_path / "out" / "compare.json").read_text(), parse_constant=refuse)
    assert content == found.content()
    assert read_comparison(content) == found
    lines = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert set(lines[0]) == set(HEAD)
    assert not {"nan", "inf", "Infinity"} & {v for line in lines for v in line.values()}
    line = next(x for x in lines if (x["run"], x["column"]) == ("harmful", "shown"))
    cell = cells(found, "shown")["harmful"]
    assert float(line["estimate"]) == cell["cell"]["rate"]
    assert float(line["p_holm"]) == cell["difference"]["p_holm"]
    text = markdown(found)
    assert "| harmful |" in text
    assert len({row.count("|") for row in text.splitlines() if row.startswith("|")}) <= 2
    assert page(found) == page(read_comparison(content))  # E-56: the same rows, the same bytes
    assert table(found.tables) == table(read_comparison(content).tables)


def test_the_page_stands_alone_and_every_rate_has_its_interval(found: Comparison) -> None:
    """E-53: no bare percentage; no script, no network."""
    opened = Page(page(found).replace("<polyline", "<line"))
    assert not {"script", "link", "iframe", "form"} & {tag for tag, _ in opened.tags}
    assert all(not n.startswith("on") and n not in ("src", "href") for _, a in opened.tags for n in a)
    assert "http" not in page(found).replace("http-equiv", "")
    for run_ in found["tables"][0]["runs"]:
        for entry in run_["cells"].values():
            assert {"low", "high", "n"} <= set(entry["cell"])


def test_what_scrolls_can_be_reached_and_has_a_name(found: Comparison) -> None:
    wide = [a for tag, a in Page(page(found).replace("<polyline", "<line")).tags if a.get("class") == "wide"]
    assert len(wide) == 2 * len(found["tables"])
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in wide)


def test_records_of_another_garbage_detector_are_not_mixed_in(runs: list[Path], tmp_path: Path) -> None:
    """A run that was judged again holds both: its report says which count, and two detectors share no column."""
    copy = Path(shutil.copytree(runs[0], tmp_path / "again"))
    report = json.loads((copy / "report.json").read_text())
    records = Records(copy / "records.jsonl")
    versions = Versions(report["judges"][0]["version"], "new")
    records.extend([replace(r, key=versions.record(r.side, r.image), garbage=True) for r in records])
    old = compare([runs[0], copy])
    assert cells(old, "garbage")["again"]["cell"]["hits"] == cells(old, "garbage")["good"]["cell"]["hits"] == 0
    report["judges"][1]["version"] = "new"
    (copy / "report.json").write_text(json.dumps(report))
    new = compare([runs[0], copy])
    assert new["apart"] == ["Table 2 shares no column with table 1: its garbage detector is another."]
    assert new["tables"][1]["runs"][0]["cells"]["garbage"]["cell"]["rate"] == 1


def test_kept_styles_have_their_column_and_enter_the_scores() -> None:
    """As in `artists-5`: a style is erased, the others are kept."""
    pairs = [Pair("style", "a", Shot(f"a {k}", k), True, False, False, False) for k in range(10)]
    pairs += [Pair("other-style", "b", Shot(f"b {k}", k), True, k > 2, False, False) for k in range(10)]
    cell = column("styles", {"one": pairs}, "one")["one"].cell
    assert isinstance(cell, Loss)
    assert cell.estimate == pytest.approx(0.3)
    overall = next(c for c in composites({"one": pairs}) if (c.name, c.side) == ("Overall", "one"))
    assert overall.value == pytest.approx(2 * 0.7 / 1.7)


def test_a_metric_of_the_reports_is_a_column(tmp_path: Path, runs: list[Path]) -> None:
    """What an audit measured with --metric stands beside the rates, with its interval; elsewhere it is NA."""
    measured = Path(shutil.copytree(runs[0], tmp_path / "measured"))
    report = opened_report(measured, "")
    edited = MetricCell(name="ssim.other", side="edited", value=0.93, low=0.9, high=0.95, n=20, metric="pairs")
    cells = (replace(edited, side="base", value=1.0), edited)
    (measured / "report.json").write_text(json.dumps(replace(report, metrics=cells).content()))
    found = compare([measured, runs[1]], metrics=["ssim.other"])
    mine, other = found.tables[0].runs
    assert mine.cells["ssim.other"].cell == edited
    assert "ssim.other" not in other.cells
    assert "| 0.93 [0.9, 0.95] n = 20 |" in markdown(found)
    assert "0.93" in page(found)
    line = next(x for x in csv.DictReader(table(found.tables).splitlines()) if x["column"] == "ssim.other")
    assert (line["estimate"], line["low"], line["n"], line["place"]) == ("0.93", "0.9", "20", "")
    with pytest.raises(BadRequest, match=r"ssim\.other"):
        compare([measured], metrics=["ssim.target"])


def test_what_is_no_finished_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(WrongFile, match="no finished run"):
        compare([tmp_path])
    old = Path(shutil.copytree(runs[0], tmp_path / "old"))
    (old / "plan.json").unlink()
    with pytest.raises(WrongFile, match=r"plan\.json"):
        compare([old])
    with pytest.raises(BadRequest):
        compare([])


def test_other_base_images_are_refused(runs: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[1], tmp_path / "harmful"))
    kept = list(Records(copy / "records.jsonl"))
    (copy / "records.jsonl").unlink()
    Records(copy / "records.jsonl").extend(replace(r, pixels="0" * 32) if r.side == "base" else r for r in kept)
    with pytest.raises(BadRequest, match="other base images"):
        compare([runs[0], copy])


def test_the_command_writes_the_page_and_refuses_a_foreign_folder(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    said = cli("compare", *runs[:2], "-o", tmp_path / "out", "--json")
    assert said.code == 0, said.err
    assert said.json()["format"] == "efface-compare/1"
    assert cli("compare", *runs[:2], "-o", tmp_path / "out").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = cli("compare", *runs[:2], "-o", tmp_path / "mine")
    assert said.code == 1
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(OutputExists):
        write(compare(runs[:1]), tmp_path / "mine")
