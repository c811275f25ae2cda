"""Files of strangers: none runs code, none changes a byte outside the output. `models/` holds one folder a trick."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import efface
from conftest import Cli
from efface import untrusted
from efface.audit import audit
from efface.errors import EffaceError, WrongFile
from efface.files import write_bytes
from efface.gallery.images import Images
from efface.judges.panel import Seat
from efface.patch.merge import merge
from efface.report.compare_page import HEAD, table
from efface.report.comparison import Block, Entry, RunCost, RunRow
from efface.runs.folder import stored_images
from efface.runs.sweeping import sweep
from efface.scores.records import Records
from efface.scores.tables import Rate
from plain_rows import record
from small_report import SUITE
from tiny_world import make_world, small

HERE = Path(__file__).parent
MODELS = sorted(p.name for p in (HERE / "models").iterdir())


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a stranger's code writes when it runs."""
    monkeypatch.setenv("EFFACE_HOSTILE_MARK", str(tmp_path / "ran"))
    return tmp_path / "ran"


def laid(tiny: Path, place: Path, case: str) -> Path:
    """The tiny pipeline with the files of a case over it."""
    shutil.copytree(tiny, place)
    shutil.copytree(HERE / "models" / case, place, dirs_exist_ok=True)
    return place


def contents(root: Path, *without: Path) -> dict[str, bytes | str]:
    """Every file below `root` by its path: its bytes, or where it points to."""
    found: dict[str, bytes | str] = {}
    for file in sorted(root.rglob("*")):
        if not any(file.is_relative_to(w) for w in without) and (file.is_symlink() or file.is_file()):
            found[str(file.relative_to(root))] = os.readlink(file) if file.is_symlink() else file.read_bytes()
    return found


# --- model folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MODELS)
def test_no_model_folder_runs_code_or_writes_elsewhere(
    case: str, tiny_folder: Path, tmp_path: Path, mark: Path, cli: Cli, cache: Path
) -> None:
    """Every command refuses the folder in one sentence, before anything of it is imported."""
    (tmp_path / "payload").mkdir()
    (tmp_path / "payload" / "secret.txt").write_text("of the user")
    model, out = laid(tiny_folder, tmp_path / "model", case), tmp_path / "out"
    efface.erase(efface.load(tiny_folder), ["dog"], ["cat"], method="uce").save(tmp_path / "p.safetensors")
    before = contents(tmp_path, out, cache)
    for words in (
        ("inspect", model),
        ("erase", model, "-c", "dog", "--keep", "cat", "--method", "uce", "-o", out / "e.safetensors"),
        ("apply", model, tmp_path / "p.safetensors", "-o", out / "merged"),
        ("generate", model, "--prompt", "a dog", "--steps", 1, "-o", out / "pictures"),
        ("audit", model, "--patch", tmp_path / "p.safetensors", "-c", "dog", "-o", out / "run"),
    ):
        said = cli(*words)
        assert said.code in (1, 2), words
        assert len(said.err.strip().splitlines()) == 1, said.err
        assert "Traceback" not in said.err
    assert contents(tmp_path, out, cache) == before
    assert not mark.exists()
    assert not out.exists() or not any(out.iterdir())


def test_a_merged_part_may_not_be_a_link_out_of_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    """Else `apply` would put the user's own files into what is handed on."""
    patch = efface.erase(efface.load(tiny_folder), ["dog"], ["cat"], method="uce")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("of the user")
    for number, (link, target) in enumerate(
        [("README.md", "private/key.txt"), ("scheduler/notes.txt", "private/key.txt"), ("scheduler/more", "private"),
         ("unet/more.json", "private/key.txt")]
    ):  # fmt: skip
        model = tmp_path / f"model{number}"
        shutil.copytree(tiny_folder, model)
        (model / link).symlink_to(tmp_path / target)
        with pytest.raises(WrongFile, match="link that leaves"):
            merge(efface.load(model), patch, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_links_into_the_blobs_of_a_hub_cache_are_followed(tiny_folder: Path, tmp_path: Path) -> None:
    """As `snapshot_download` lays a model out; a link into another model's blobs is not."""
    home, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for n, file in enumerate(f for f in sorted(tiny_folder.rglob("*")) if f.is_file()):
        shutil.copyfile(file, blobs / str(n))
        link = home / file.relative_to(tiny_folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(n), link.parent))
    patch = efface.erase(efface.load(home), ["dog"], ["cat"], method="uce")
    merge(efface.load(home), patch, tmp_path / "out")
    assert not [f for f in (tmp_path / "out").rglob("*") if f.is_symlink()]
    assert (tmp_path / "out" / "vae" / "config.json").read_bytes() == (tiny_folder / "vae" / "config.json").read_bytes()
    shutil.move(blobs, tmp_path / "models--a--c")
    blobs.symlink_to(tmp_path / "models--a--c")
    with pytest.raises(WrongFile, match="link that leaves"):
        untrusted.contained(home / "model_index.json", home)


def test_every_class_that_a_family_names_can_be_had() -> None:
    """A closed list is of use only when what stands in it exists."""
    import diffusers
    import transformers

    from efface.registry import find, names

    libraries = {"diffusers": diffusers, "transformers": transformers}
    for name in names("families"):
        family = find("families", name)
        for part in family.parts:
            for library, cls in part.classes:
                assert not cls.startswith("Auto") or cls == "AutoencoderKL"
                assert isinstance(getattr(libraries[library], cls), type)
        assert all(hasattr(diffusers, s) and s.endswith("Scheduler") for s in family.schedulers)


# --- judges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformers-classifier", "clip"])
def test_no_judge_folder_runs_code(kind: str, mark: Path) -> None:
    from efface.registry import find

    with pytest.raises(WrongFile, match="code of its own"):
        find("judges", kind)(HERE / "judge")
    assert not mark.exists()


# --- run folders -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A finished run of 32 images a side under this name, anew at each call."""
    make_world(tiny_folder, tmp_path / "world")

    def finished(name: str) -> Path:
        again(tmp_path / name, tmp_path)
        return tmp_path / name

    return finished


def _link_records(run: Path, victim: Path) -> None:
    (run / "records.jsonl").unlink()
    (run / "records.jsonl").symlink_to(victim)


def _name_records_twice(run: Path, victim: Path) -> None:
    (run / "records.jsonl").unlink()
    (run / "records.jsonl").hardlink_to(victim)


def _link_images(run: Path, victim: Path) -> None:
    shutil.rmtree(run / "images")
    (run / "images").symlink_to(victim.parent, target_is_directory=True)


def _link_lock(run: Path, victim: Path) -> None:
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").symlink_to(victim)


def _link_page(run: Path, victim: Path) -> None:
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(victim)


TRICKS = (_link_records, _name_records_twice, _link_images, _link_lock, _link_page)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda t: t.__name__.strip("_"))
def test_no_link_in_a_run_folder_is_written_through(
    trick: Callable[[Path, Path], None], run: Callable[[str], Path], tmp_path: Path, cli: Cli, cache: Path
) -> None:
    made = run("run")
    (tmp_path / "home").mkdir()
    victim = tmp_path / "home" / "victim.png"
    victim.write_bytes(b"of the user")
    trick(made, victim)
    before = contents(tmp_path / "home")
    for words in (("report", made), ("compare", made, "-o", tmp_path / "out"), ("gc", made), ("status", made)):
        said = cli(*words)
        assert "Traceback" not in said.err
    with pytest.raises(EffaceError):
        again(made, tmp_path)
    assert contents(tmp_path / "home") == before


def again(made: Path, tmp_path: Path) -> None:
    """The same audit in a folder: a run there is gone on with."""
    audit(small(efface.load(tmp_path / "world")), made)


@pytest.mark.parametrize("key", ["../../../home/victim", "/home/victim", "..", "f" * 31, "F" * 32, "f" * 33, ""])
def test_what_is_no_key_names_no_image(key: str, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "victim.png").write_bytes(b"of the user")
    images = Images(tmp_path / "run" / "images")
    for use in (images.path, images.drop, images.png, images.get, images.has):
        with pytest.raises(WrongFile, match="no name of an image"):
            use(key)
    with pytest.raises(WrongFile, match="no name of an image"):
        images.put(key, np.zeros((2, 2, 3), np.uint8))
    assert (tmp_path / "home" / "victim.png").read_bytes() == b"of the user"


def test_images_of_a_strangers_run_do_not_enter_the_cache(
    run: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    """Else another audit with the same settings would count pictures that somebody painted."""
    made = run("run")
    shutil.rmtree(cache / "images", ignore_errors=True)
    again(made, tmp_path)
    stored_images(made)
    sweep(made)
    assert not list((cache / "images").rglob("*.png"))


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"of the user")
    (tmp_path / f".out.{os.getpid()}.tmp").symlink_to(victim)
    write_bytes(tmp_path / "out", b"ours")
    assert victim.read_bytes() == b"of the user"
    assert (tmp_path / "out").read_bytes() == b"ours"


def test_records_are_appended_to_a_file_of_one_name(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.append(record("base", "p", 1, key="a"))
    (tmp_path / "second").hardlink_to(tmp_path / "records.jsonl")
    with pytest.raises(WrongFile, match="second name"):
        Records(tmp_path / "records.jsonl")


# --- tables ----------------------------------------------------------------------------------------------------------


def test_no_formula_reaches_a_csv() -> None:
    """Names of runs, methods and concepts are text of strangers; a spreadsheet must show them, not compute them."""
    formulas = [row["prompt"] for row in csv.DictReader(io.StringIO((HERE / "tables" / "formulas.csv").read_text()))]
    formulas += ["+1", "-1+cmd", "\t=1", "  =1", "\r=1"]
    cells = {name: Entry(Rate(1, 4, -0.25, 0.0, 1.0), place=1) for name in formulas}
    cost = RunCost(None, None, None, None)
    runs = tuple(RunRow(f, f, f, f, False, "", (), cells, None, None, None, cost) for f in formulas)
    judge, columns = Seat("j", "1", "reporting", "", ""), dict.fromkeys(formulas, "x")
    text = table([Block(SUITE, "b", judge, "", (), 0, False, "", {}, runs, columns, (), ())])
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(formulas) ** 2
    for row in rows:
        assert tuple(row) == HEAD
        assert row["estimate"] == "-0.25"
        for word in ("run", "method", "preset", "patch", "column"):
            assert row[word][0] == "'"
            assert row[word][1:] in [f.replace("\t", " ").replace("\r", " ") for f in formulas]
    assert untrusted.cell("plain = text") == "plain = text"
    assert untrusted.cell(-1.5) == -1.5
