"""Who may import whom, how long a thing may be, and what no file may hold. Read from the source, nothing is run.

Rooms, floors, arrows and circles are counted by `benchmarks/structure.py`; lazy imports and those for types count too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
FILES = sorted(SRC.rglob("*.py"))
# Who knows diffusers. `cli/options.py` silences its warnings and progress bars.
KNOW_DIFFUSERS = ("families/", "model/network.py", "worldmaking/", "cli/options.py")
LONGEST_FUNCTION, LONGEST_FILE = 60, 400
MOST_ROOMS = 32
# Files that are no text of ours.
BINARY = {".safetensors", ".png", ".npz", ".ico"}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def place(file: Path) -> str:
    """Path inside the package."""
    return file.relative_to(SRC / "efface").as_posix()


def imports(module: ast.Module, package: str) -> set[str]:
    """Dotted names of everything that is imported, at any depth; relative ones are made absolute."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, node.module] if node.module else parents)
            found |= {base} | {f"{base}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def imported(file: Path) -> set[str]:
    package = ".".join(file.relative_to(SRC).parent.parts)
    return imports(tree(file), package)


def within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def test_the_reader_of_imports_sees_every_form() -> None:
    """A reader that is blind would let everything pass."""
    text = "import a.b\nfrom c import d\ndef f():\n    from . import e\n    from ..g import h\n    import_module('i')\n"
    assert imports(ast.parse(text), "efface.cli") == {
        "a.b", "c", "c.d", "efface.cli", "efface.cli.e", "efface.g", "efface.g.h", "i",
    }  # fmt: skip
    assert within("diffusers.utils", "diffusers")
    assert not within("diffusers_extra", "diffusers")
    assert len(FILES) > 40


sys.path.insert(0, str(ROOT / "benchmarks"))
import structure  # noqa: E402


@pytest.fixture(scope="module")
def shape() -> structure.Shape:
    """Everything that is counted."""
    return structure.shape()


def test_every_room_has_a_floor_and_no_arrow_runs_up(shape: structure.Shape) -> None:
    assert (shape.no_floor, shape.arrows_up, shape.arrows_level) == ([], [], [])
    assert len(shape.rooms) <= MOST_ROOMS


def test_there_is_no_circle_of_files_and_none_of_rooms(shape: structure.Shape) -> None:
    assert (shape.circles_of_files, shape.circles_of_rooms) == ([], [])


def test_the_making_of_the_world_is_imported_by_its_command_alone() -> None:
    """What the world is stands in `world`; how it is made, in `worldmaking`."""
    know = {place(f) for f in FILES if any(within(n, "efface.worldmaking") for n in imported(f))}
    assert {k for k in know if not k.startswith("worldmaking/")} == {"cli/world.py"}


def test_functions_and_files_fit_on_a_screen(shape: structure.Shape) -> None:
    assert shape.functions.median <= 8
    assert shape.functions.p95 <= 30
    assert shape.files.p95 <= 320


def test_settings_fit_into_a_hand(shape: structure.Shape) -> None:
    assert [f"{f.name}: {f.count}" for f in shape.dataclasses if f.settings and f.count > 16] == []


def test_few_values_are_of_any_type(shape: structure.Shape) -> None:
    """Parameters and results that are `Any` or a bare table: at most half of what there was before the rooms."""
    assert sum(shape.loose.values()) <= 196


@pytest.mark.parametrize("file", [f for f in FILES if place(f).startswith("numerics/")], ids=place)
def test_numerics_know_nothing_of_diffusers_or_of_ours(file: Path) -> None:
    for name in imported(file):
        assert not within(name, "diffusers", "transformers", "PIL", "safetensors"), name
        assert not within(name, "efface") or within(name, "efface.numerics") or name == "efface", name
    assert "efface" not in {n for n in imported(file) if not within(n, "efface.numerics")}


def test_nothing_imports_the_studio() -> None:
    for file in FILES:
        if not place(file).startswith("ui/"):
            assert not [n for n in imported(file) if within(n, "efface.ui", "gradio")], place(file)


def test_only_those_who_may_know_diffusers_import_it() -> None:
    know = {place(f) for f in FILES if any(within(n, "diffusers") for n in imported(f))}
    assert know, "the reader finds nobody"
    assert {k for k in know if not k.startswith(KNOW_DIFFUSERS)} == set()


@pytest.mark.parametrize("kind", ["methods", "attacks", "metrics"])
def test_a_plug_in_imports_neither_diffusers_nor_another_plug_in(kind: str) -> None:
    for file in (SRC / "efface" / kind).glob("*.py"):
        if file.stem.startswith("_"):
            continue  # what several plug-ins share, and what runs them
        names = imported(file)
        assert not [n for n in names if within(n, "diffusers", "transformers")], place(file)
        others = [
            f"efface.{k}.{f.stem}"
            for k in ("methods", "attacks", "metrics")
            for f in (SRC / "efface" / k).glob("*.py")
            if f != file and not f.stem.startswith("_")
        ]
        assert not [n for n in names if within(n, *others)], place(file)


def test_the_cli_is_imported_by_nobody() -> None:
    for file in FILES:
        if not place(file).startswith("cli/") and place(file) != "__main__.py":
            assert not [n for n in imported(file) if within(n, "efface.cli", "typer")], place(file)


@pytest.mark.parametrize("file", FILES, ids=place)
def test_nothing_is_too_long(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{place(file)} has {lines} lines"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= LONGEST_FUNCTION, f"{place(file)}: {node.name} has {size} lines"


KNOW_FAMILIES = ("families/", "worldmaking/")
# What belongs to one architecture; roles, doors and spans are what all others ask for.
OF_A_FAMILY = {
    "the part of one architecture": re.compile(r"(?i)\bunet|text_encoder|StableDiffusion"),
    "the call of one denoiser": re.compile(r"encoder_hidden_states"),
    "the first stream in place of a door's": re.compile(r"streams\[0\]"),
    "arithmetic on tokens": re.compile(
        r"\.count [-+] \d|spans\.\w+(\[\d\])? [-+] \d|len\((\w+\.)*(input_)?(ids|tokens?)\b[^()]*\) [-+] \d"
    ),
}


def code(module: ast.Module) -> str:
    """A file without comments and without strings that stand alone."""

    class Bare(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.AST:
            text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            return ast.Pass() if text else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Bare().visit(ast.parse(ast.unparse(module)))))


@pytest.mark.parametrize("file", [f for f in FILES if not place(f).startswith(KNOW_FAMILIES)], ids=place)
def test_what_is_special_to_a_family_stands_in_its_file(file: Path) -> None:
    """And in the room that makes the world, which is a Stable Diffusion."""
    text = code(tree(file))
    assert [(what, found[0]) for what, pattern in OF_A_FAMILY.items() if (found := pattern.search(text))] == []


def test_the_patterns_of_families_find_what_they_forbid() -> None:
    for text in ("n = e.count - 2", "x.spans.last + 1", "spans.end[0] - 1", "len(ids) - 2", "len(found.input_ids) - 1",
                 "card.streams[0].width", "glob('unet-*')", "f(encoder_hidden_states=x)", "pipe.text_encoder_2",
                 "import UNet2DConditionModel"):  # fmt: skip
        assert any(p.search(text) for p in OF_A_FAMILY.values()), text
    for text in ("n = count - 1", "len(rows) - 1", "card.streams", "list.count(x) + 1", "self.count + other.count"):
        assert not any(p.search(text) for p in OF_A_FAMILY.values()), text
    assert "unet" not in code(ast.parse('"""unet"""\nx = 1  # unet\n"""unet"""\n'))


def test_no_pickle_no_remote_code_no_shell() -> None:
    for file in FILES:
        assert not [n for n in imported(file) if within(n, "pickle", "dill", "joblib", "marshal")], place(file)
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("eval", "exec", "os.system"), f"{place(file)}: {name}"
                for k in node.keywords:
                    assert (k.arg, ast.unparse(k.value)) != ("trust_remote_code", "True"), place(file)
                if (
                    name.endswith(".from_pretrained")
                    and name.startswith("Auto")
                    and not name.startswith("AutoencoderKL")
                ):
                    assert "trust_remote_code" in {k.arg for k in node.keywords}, place(file)
                    assert (k.arg, ast.unparse(k.value)) not in (("allow_pickle", "True"), ("weights_only", "False"))
                if name == "torch.load":
                    assert "weights_only" in {k.arg for k in node.keywords}, place(file)


# --- every file of the tree ------------------------------------------------------------------------------------------


def _texts() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git, the sources and tests."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = [ROOT / line for line in said.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        found = [p for folder in ("src", "tests", "docs") for p in (ROOT / folder).rglob("*")]
    return [f for f in found if f.is_file() and f.suffix not in BINARY and f != Path(__file__)]


# Where packages and models come from is the user's configuration, not ours; and paths of somebody's machine.
FORBIDDEN = {
    "a package registry": re.compile(r"registry\.(npmjs|yarnpkg)|pypi\.org|files\.pythonhosted|jsdelivr|unpkg"),
    "another registry's address": re.compile(r"--((extra-)?index-url|registry)[= ]+\S*//|(?m:^registry *= *http)"),
    "a path of one machine": re.compile(r"(?<![\w.])/(home/\w+|Users/\w+|root|w[o]rk)/(?!\.\.)"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    guilty = []
    for file in _texts():
        text = file.read_text(encoding="utf-8", errors="replace")
        if found := FORBIDDEN[what].search(text):
            guilty.append(f"{file.relative_to(ROOT)}: {found[0]}")
    assert guilty == []


def test_the_patterns_find_what_they_forbid() -> None:
    for what, text in {
        "a package registry": "https://registry.npmjs.org/x",
        "another registry's address": "pip install --index-url https://example.org/simple x",
        "a path of one machine": "open('/home/someone/x')",
    }.items():
        assert FORBIDDEN[what].search(text)
    assert not FORBIDDEN["a path of one machine"].search("see ./home/a/x and https://a.org/home/x and /workshop/")
