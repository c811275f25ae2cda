"""The report page: nothing leaves it, nothing unknown becomes a number, nothing hostile gets through."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from efface.errors import WrongFile
from efface.report import page as pages
from efface.report.report import GateResult, RuleResult, ShownPair, read_report
from efface.report.words import percent, points
from efface.scores.tables import Rate
from small_report import report

HOSTILE = "<img src=x onerror=alert(1)>\"'&</style><script>alert(2)</script>{{ 7*7 }}"
REASON = "The base model draws it in 9 of 30 images, less than half."
VOID = {"meta", "img", "br", "hr", "link", "input"}
SVG_VOID = {"path", "line", "circle"}


def cell(hits: int, n: int, low: float, high: float) -> dict[str, Any]:
    return {"hits": hits, "n": n, "rate": hits / n, "low": low, "high": high}


def row(name: str, **over: Any) -> dict[str, Any]:
    loss = {"estimate": 0.9, "low": 0.702, "high": 0.955, "p": 0.0, "changed": 27}
    base, edited = cell(28, 30, 0.787, 0.982), cell(1, 30, 0.006, 0.167)
    content = {"name": name, "state": "ok", "reason": "", "base": base, "edited": edited, "loss": loss, "images": 30}
    return {**content, "garbage": None, "replaced": None, "note": "", **over}


def example(name: str = "cat") -> dict[str, Any]:
    absent = row("narwhal", state="na", reason=REASON, base=cell(9, 30, 0.167, 0.479), edited=None, loss=None)
    pair = {"prompt": f"a {name}", "seed": 7, "base": "red", "edited": "blue"}
    return {
        "format": "efface-report/1",
        "title": f"{name} erased",
        "verdict": {"line": "1 of 30 images still shows it.", "state": "undecided"},
        "flags": [],
        "asked": {"model": "mini", "concepts": [{"name": name, "kind": "object", "anchor": None}], "seed": 0,
                  "keep": [], "method": name, "preset": "", "suite": "world-standard", "command": ""},
        "tables": [
            {"role": "target", "label": "Targets", "direction": "down", "rows": [row(name), absent],
             "pooled": row("pooled")},
        ],
        "sheets": [{"title": "Targets", "role": "target", "note": "",
                    "pairs": [{**pair, "base_shown": True, "edited_shown": None}]}],
        "garbage": {"base": cell(0, 60, 0, 0.06), "edited": cell(0, 60, 0, 0.06)},
        "not_measured": ["Attacks."],
        "limits": ["Thirty images a concept."],
        "recipe": {"method": name, "solver": {"condition": 12.5}, "edits": [{"concept": name, "scale": 1.0}]},
        "judges": [{"name": "judge", "version": "2", "role": "reporting", "threshold": "0.5", "note": ""}],
        "suite": {"name": "world-standard", "version": "1", "hash": "0", "prompts": 60, "images": 120,
                  "sampler": {"steps": 20, "guidance": 4.0, "dtype": "float32", "scheduler": "DDIM"}},
        "hashes": {"base model": "sha256:0", "patch": "", "edited model": "", "run": ""},
        "environment": {"torch": "2"}, "cost": {"seconds": 4.5}, "images": "", "gate": {}, "sweeps": [],
        "detectable": [], "scores": [], "metrics": [], "records": {"rows": 0, "rows of other judges or versions": 0},
        "neighbourhood": {"nearest": [], "proposals": [], "harm": [], "arguments": ""},
    }  # fmt: skip


def render(content: dict[str, Any], image: Callable[[str], bytes]) -> str:
    return pages.render(read_report(content), image)


def table_text(content: dict[str, Any]) -> str:
    return pages.table_text(read_report(content))


def write(content: dict[str, Any], folder: Path, image: Callable[[str], bytes]) -> Path:
    return pages.write(read_report(content), folder, image)


def image(key: str, size: int = 64) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (size, size), key).save(buffer, "PNG")
    return buffer.getvalue()


class Page(HTMLParser):
    """Tags, attributes and text; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_VOID | VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_stands_alone() -> None:
    text = render(example(), image)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("href", "srcset", "action")
            assert not name.startswith("on")
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize("name", [HOSTILE, "\x1b[31mred", "| a | b |\n# c", "[bold]x[/] :cat:", "猫" * 60])
def test_hostile_names_stay_text(name: str) -> None:
    page, calm = Page(render(example(name), image)), Page(render(example(), image))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in calm.tags]
    assert [sorted(a) for _, a in page.tags] == [sorted(a) for _, a in calm.tags]
    assert " ".join(name.split()) in page.text
    table = table_text(example(name))
    assert "\x1b" not in table
    assert len(table.splitlines()) == len(table_text(example()).splitlines())
    counts = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(counts) == 1


def test_unknown_is_na_with_its_reason_and_never_a_rate() -> None:
    page = render(example(), image)
    line = page[page.index('class="na"') :].split("</tr>")[0]
    assert "NA" in line
    assert REASON in line
    assert "9/30" in line
    assert "<svg" not in line
    assert ">0.0<" not in line
    assert "1 of 2 scored" in page
    text = next(part for part in table_text(example()).splitlines() if part.startswith("| narwhal"))
    assert [p.strip() for p in text.split("|")][2:5] == ["30.0 [16.7, 47.9] 9/30", "NA", ""]
    assert REASON in table_text(example())


def test_a_failed_measurement_says_error() -> None:
    content = example()
    content["tables"][0]["rows"][1] |= {"state": "error", "reason": "The judge failed."}
    assert "ERROR</span>" in render(content, image)
    assert "The judge failed." in render(content, image)


def test_every_rate_has_its_interval_and_its_count() -> None:
    page = Page(render(example(), image)).text
    for part in ("93.3", "[78.7, 98.2]", "28/30", "3.3", "[0.6, 16.7]", "1/30", "+90.0", "[70.2, 95.5]"):
        assert part in page
    assert "suppressed in generation" in page
    assert "deleted" not in page


def test_order_of_the_page() -> None:
    page = render(example(), image)
    marks = ["still shows it", "Before and", "Rates", "Garbage", "What was not", "Limits", "Details"]
    places = [page.index(mark if i == 0 else f"<h2>{mark}") for i, mark in enumerate(marks)]
    assert places == sorted(places)


def test_pictures_say_what_they_show() -> None:
    images = [a for tag, a in Page(render(example(), image)).tags if tag == "img"]
    assert [a["alt"] for a in images] == [
        "base model, “a cat”, seed 7: shows it",
        "edited model, “a cat”, seed 7: not judged",
    ]
    assert all(a["class"] == "small" for a in images)


def test_large_pictures_are_reduced_and_absent_ones_named() -> None:
    content = example()
    small = render(content, lambda key: image(key, 256))
    assert len(render(content, lambda key: image(key, 1024))) < 2 * len(small)
    content["sheets"][0]["pairs"][0]["edited"] = None
    assert "not stored" in render(content, image)


def test_json_has_no_nan(tmp_path: Path) -> None:
    content = example()
    content["tables"][0]["rows"][0]["edited"]["low"] = float("nan")
    content["cost"]["seconds"] = float("inf")
    page = write(content, tmp_path / "out", image)
    assert page == tmp_path / "out" / "report.html"
    assert "nan" not in Page(page.read_text("utf-8")).text.lower()
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]

    def refuse(word: str) -> None:
        raise AssertionError(word)

    written = json.loads((page.parent / "report.json").read_text("utf-8"), parse_constant=refuse)
    assert written["cost"]["seconds"] is None
    assert written["tables"][0]["rows"][0]["base"] == content["tables"][0]["rows"][0]["base"]
    # The written JSON is a report again: reading it back draws the same page.
    assert render(written, image) == page.read_text("utf-8")


def test_same_report_same_bytes(tmp_path: Path) -> None:
    first, second = write(example(), tmp_path / "a", image), write(example(), tmp_path / "b", image)
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a/report.json").read_bytes() == (tmp_path / "b/report.json").read_bytes()


def test_a_failure_leaves_the_old_report(tmp_path: Path) -> None:
    page = write(example(), tmp_path, image)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WrongFile, match="expected a PNG"):
        write(example("dog"), page.parent, lambda key: b"<svg onload=alert(1)>")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [{"format": "efface-report/2"}, {"tables": [{"direction": "sideways"}]}])
def test_another_kind_of_file_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WrongFile, match="expected"):
        render({**example(), **change}, image)
    with pytest.raises(WrongFile, match="verdict"):
        render({key: value for key, value in example().items() if key != "verdict"}, image)


@pytest.mark.parametrize("state", ["pass", "fail", "undecided", "none"])
def test_the_smallest_report_renders(state: str) -> None:
    found = report("Nothing was asked.", state)
    assert (f"<strong>{state}</strong>" in pages.render(found, image)) == (state != "none")
    assert "Nothing was asked." in pages.table_text(found)


def test_a_report_comes_back_as_it_was_written() -> None:
    """Fields and file are one thing: what is left out of the file is None again."""
    found = read_report(example())
    assert read_report(found.content()) == found
    pair = ShownPair("a cat", 7, None, True, None, None)
    rule = RuleResult("r", "fail", "e", "g", "", ("cat",), (pair,))
    judged = found.judged(GateResult("default", "fail", True, (rule,)), "Gate default failed.")
    assert read_report(judged.content()) == judged
    assert judged.content()["gate"]["undecided allowed"] is True
    assert judged.content()["gate"]["rules"][0]["pairs"][0]["base_shown"] is True
    assert found["tables"] == found.content()["tables"]
    assert "macro" not in found.content()["tables"][0]["rows"][0]
    for entry in example():
        assert entry in found.content()


def test_numbers_are_rounded_honestly() -> None:
    assert percent(Rate(1, 5000, 1 / 5000, None, None)) == "<0.1"
    assert percent(Rate(4999, 5000, 4999 / 5000, None, None)) == ">99.9"
    assert percent(Rate(0, 50, 0.0, None, None)) == "0.0"
    assert percent(Rate(0, 0, None, None, None)) == "NA"  # pyright: ignore[reportArgumentType]
    assert percent(None) == "NA"
    assert [points(v, True) for v in (0.033, -0.033, -0.0001, None)] == ["+3.3", "−3.3", "0.0", "NA"]
