"""The pages say what is there: files, tests, commands, options, snippets, the version."""

from __future__ import annotations

import ast
import json
import re
import shlex
import statistics
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import efface
from efface import registry

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
AGREED = (
    "README.md", "NOTICE", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/flow.md", "docs/adding-a-method.md",
    "docs/patch-format.md", "docs/properties.md", "docs/results.md", "benchmarks/log/README.md", "docs/glossary.md",
    "docs/methods/uce.md", "docs/methods/scapre.md", "docs/world.md", "docs/judges.md", "docs/reproduction.md",
    "docs/presets.md", "docs/training.md",
)  # fmt: skip
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
LOGS = sorted((ROOT / "benchmarks" / "log").glob("*.md"))  # names in them are those of the day
TEST_NAME = re.compile(r"(tests/[\w/]+\.py)(?:::(test_\w+))?")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


METHOD_WORDS = 900  # of a method's page: five minutes
LONGEST_SENTENCE, MEDIAN_SENTENCE = 35, 14
NOUNS = 30


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [m[3] for m in FENCE.finditer(page.read_text(encoding="utf-8")) if m[1] == language]


@pytest.mark.parametrize("file", AGREED)
def test_the_agreed_page_exists_and_is_not_empty(file: str) -> None:
    assert len((ROOT / file).read_text(encoding="utf-8").strip()) > 100


def test_decisions_are_numbered_without_a_gap_and_each_has_a_title() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert pages
    assert [p.name[:4] for p in pages] == [f"{i:04d}" for i in range(1, len(pages) + 1)]
    assert all(p.read_text(encoding="utf-8").startswith("# ") for p in pages)


@pytest.mark.parametrize("kind", ["methods", "attacks", "metrics"])
def test_every_plug_in_has_a_page_and_every_page_a_plug_in(kind: str) -> None:
    files = {p.stem for p in (ROOT / "src" / "efface" / kind).glob("[!_]*.py")}
    assert {p.stem.replace("-", "_") for p in (DOCS / kind).glob("*.md")} == files


@pytest.mark.parametrize("method", registry.names("methods"))
def test_the_page_of_a_method_names_its_paper_every_preset_and_every_setting(method: str) -> None:
    cls = registry.find("methods", method)
    text = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
    found = registry.presets_of(cls)
    settings = {s for preset in found.values() for s in registry.flat(preset)}
    presets = {p.partition("/")[0] for p in found}
    assert {s for s in (*settings, *presets) if f"`{s}`" not in text} == set()
    papers = re.findall(r"\d{4}\.\d{5}", sys.modules[cls.__module__].__doc__ or "")
    assert papers
    assert all(p in text for p in papers)


@cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


@pytest.mark.parametrize(
    ("script", "page"),
    [
        ("benchmarks/results.py", "docs/results.md"),
        ("docs/rooms.py", "docs/flow.md"),
        ("docs/presets.py", "docs/presets.md"),
        ("benchmarks/full_size.py", "README.md"),
    ],
)
def test_a_page_that_a_script_writes_is_up_to_date(script: str, page: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page}: {done.stderr}"


def test_a_measured_rate_needs_its_n_and_its_conditions(tmp_path: Path) -> None:
    results = _script("benchmarks/results.py")
    data = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    assert len(results.read()[0]) == len(data["tables"]) > 15

    def refused(**changes: Any) -> str:
        table = data["tables"][0] | changes
        file = tmp_path / "results.json"
        file.write_text(json.dumps(data | {"tables": [table]}), encoding="utf-8")
        with pytest.raises(ValueError, match=table["id"]) as caught:
            results.read(file)
        return str(caught.value)

    assert "no n" in refused(head=["what", "base"], rows=[["targets shown", {"value": 1.0, "unit": "%"}]])
    assert "conditions" in refused(conditions="elsewhere")
    assert "date" in refused(date="")
    assert "a row of 1 cells" in refused(rows=[["targets shown"]])


def _script(file: str) -> Any:
    """A script as a module."""
    spec = spec_from_file_location(Path(file).stem, ROOT / file)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_month_of_the_log_is_on_its_page() -> None:
    text = (ROOT / "benchmarks" / "log" / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in LOGS} - {"README.md"} == set(LINK.findall(text)) & {p.name for p in LOGS}


def words(text: str) -> int:
    return len([w for w in text.replace("|", " ").split() if re.search(r"\w", w)])


def sentences(text: str) -> list[str]:
    """Of everything outside code; a cell of a table and an item of a list end a sentence."""
    found = []
    for line in FENCE.sub("", text).splitlines():
        cells = line.strip().strip("|").split("|") if line.startswith("|") else [line]
        plain = (re.sub(r"^(#+|[-*])\s+", "", re.sub(r"\]\([^)]*\)", "]", c.strip())) for c in cells)
        found += [s for p in plain for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z`\[\"0-9*])", p) if words(s)]
    return found


def test_sentences_end_at_points_cells_and_items() -> None:
    text = "One two. `Three` four\n```\nno. No\n```\n- five\n| six | seven eight |\n|---|---|\n[nine](a.md): Ten."
    assert sentences(text) == ["One two.", "`Three` four", "five", "six", "seven eight", "[nine]:", "Ten."]


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "decisions"], ids=name_of)
def test_no_sentence_is_longer_than_it_must_be(page: Path) -> None:
    """Decisions are records of their day."""
    assert [s for s in sentences(page.read_text(encoding="utf-8")) if words(s) > LONGEST_SENTENCE] == []


@pytest.mark.parametrize("page", sorted((DOCS / "methods").glob("*.md")), ids=name_of)
def test_the_page_of_a_method_is_read_in_five_minutes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert words(FENCE.sub("", text)) <= METHOD_WORDS
    assert statistics.median(n for n in map(words, sentences(text)) if n > 3) <= MEDIAN_SENTENCE  # less is a label
    parts = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert [p for p in parts if p != "Cost"] == ["Idea", "Formula", "Settings", "When to use it", "Limits"]


def test_the_glossary_has_at_most_thirty_nouns_in_rooms_that_exist() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")][2:]
    nouns = [noun for noun, _, _ in rows]
    assert 20 < len(nouns) <= NOUNS
    assert len(set(nouns)) == len(nouns)
    for noun, what, rooms in rows:
        assert 1 <= len(sentences(what)) <= 2, noun
        assert all(words(s) <= LONGEST_SENTENCE for s in sentences(what)), noun
        for room in re.findall(r"`([^`]+)`", rooms):
            assert (ROOT / "src" / "efface" / room).exists(), f"{noun}: {room}"


def test_every_room_says_in_one_sentence_what_it_is() -> None:
    text = (DOCS / "flow.md").read_text(encoding="utf-8")
    between = text.partition("<!-- rooms -->")[2].partition("<!-- end of rooms -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in between.splitlines() if line.startswith("|")][
        2:
    ]
    assert len(rows) > 20
    assert [room for _, room, what in rows if not what] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, test in TEST_NAME.findall(page.read_text(encoding="utf-8")):
        if "NAME" in file or (page.name == "adding-a-method.md" and not test):
            continue  # files that the reader is about to write
        assert (ROOT / file).is_file(), file
        assert not test or test in functions(file), f"{file}::{test}"


def test_the_table_of_properties_names_tests_and_is_up_to_date() -> None:
    text = (DOCS / "properties.md").read_text(encoding="utf-8")
    assert len([t for _, t in TEST_NAME.findall(text) if t]) > 50
    done = subprocess.run(
        [sys.executable, DOCS / "properties.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, *LOGS], ids=name_of)
def test_every_link_to_a_file_leads_there(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_the_changelog_starts_with_this_version_or_with_what_is_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"^## (.*)", text, re.MULTILINE)
    assert first
    assert efface.__version__ in first[1] or first[1].strip("[]").startswith("Unreleased")
    assert f'version = "{efface.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# --- commands ------------------------------------------------------------------------------------------------------


@cache
def command_tree() -> Any:
    import typer.main

    from efface.cli import app

    return typer.main.get_command(app)


def options(words: list[str]) -> tuple[str, set[str]]:
    """The command that these words name, and the options it takes."""
    node, said = command_tree(), "efface"
    for word in words:
        inner = getattr(node, "commands", None)
        if inner is None:
            break
        assert word in inner, f"{said} has no command {word!r}"
        node, said = inner[word], f"{said} {word}"
    found = {o for p in node.params for o in (*p.opts, *p.secondary_opts) if o.startswith("-")}
    return said, found | {"--help", "-h"}


def lines_of(text: str) -> list[str]:
    """Lines that start with `efface`, without comments; lines joined at a backslash."""
    joined = text.replace("\\\n", " ")
    found = [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    return [line for line in found if re.match(r"(\.venv/bin/)?efface\s", line)]


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = [m[3] for m in FENCE.finditer(text) if m[1] in ("sh", "bash", "console", "")]
        inline = re.findall(r"`(efface [^`\n]+)`", text)
        found += [(name_of(page), line) for line in (*(c for b in fenced for c in lines_of(b)), *inline)]
    return found


@pytest.mark.parametrize(("page", "line"), _commands())
def test_every_command_and_option_on_a_page_exists(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"(?<!\S)#.*", "", line).split("|")[0] if "[" not in line else line, comments=False)
    plain = [w for w in words[1:] if re.fullmatch(r"[a-z][a-z-]*", w)]
    said, known = options(plain)
    used = set(re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", " ".join(words[1:])))
    if said == "efface":
        known |= {"--version"}
    assert used <= known, f"{said}: {sorted(used - known)}"


def test_the_readme_shows_every_command_or_the_flow_does() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    assert [c for c in command_tree().commands if f"efface {c}" not in text] == []


@pytest.mark.parametrize("target", re.findall(r"^(?:make |`make )([\w-]+)", (ROOT / "README.md").read_text(), re.M))
def test_every_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_makefile_has_the_agreed_targets() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    agreed = [
        "setup",
        "demo",
        "test",
        "check",
        "fmt",
        "lint",
        "types",
        "docs",
        "bench",
        "test-slow",
        "test-ui",
        "test-gpu",
        "world-claim",
        "ci",
    ]
    assert [t for t in agreed if not re.search(rf"^{t}:", text, re.MULTILINE)] == []


# --- Python ----------------------------------------------------------------------------------------------------------

SNIPPETS = [pytest.param(b, id=f"{name_of(p)}-{i}") for p in PAGES for i, b in enumerate(blocks(p, "python"))]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_snippet_compiles_and_names_what_exists(snippet: str) -> None:
    tree = ast.parse(snippet)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "efface":
            assert hasattr(efface, node.attr), node.attr
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("efface"):
            module = import_module(node.module or "")
            for name in (a.name for a in node.names):
                assert hasattr(module, name) or find_spec(f"{node.module}.{name}"), f"{node.module}.{name}"


@pytest.mark.parametrize(
    "snippet", [pytest.param(b, id=str(i)) for i, b in enumerate(blocks(ROOT / "README.md", "python"))]
)
def test_every_snippet_of_the_readme_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as written, with two steps in place of twenty."""
    (tmp_path / "runs").mkdir()
    for entry in ("src", "docs"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    monkeypatch.chdir(tmp_path)
    short = snippet.replace("num_inference_steps=20", "num_inference_steps=2").replace(
        "seeds=[0])", "seeds=[0], steps=2)"
    )
    assert short != snippet
    exec(compile(short, "README.md", "exec"), {})
