"""Thousands of damaged files, seeded: what is read is right or refused in a sentence, without a hang or a flood.

The fast tier reads fifty of each kind, the slow one 2,000 patches, 1,000 concept files, 1,000 tables, 500 run folders.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mutations import bent_json, bitten

import efface
from efface.audit import audit
from efface.cli import inspect, report, status
from efface.errors import EffaceError
from efface.patch import Patch
from efface.prompts import read_pairs
from efface.prompts.tables import read_rows
from efface.report.compare import compare
from efface.request import Request, read_concepts, read_lines
from efface.runs.sweeping import sweep
from tiny_world import make_world, small, zero_patch

Read = Callable[[], object]
ALARM = 60  # seconds after which a file is said to hang
GIGABYTE = 2**20  # as the system counts the largest size of a process: in kilobytes


def times(fast: int, slow: int) -> pytest.MarkDecorator:
    """How many files are tried in either tier."""
    return pytest.mark.parametrize("n", [fast, pytest.param(slow, marks=pytest.mark.slow)])


@contextmanager
def watched(seed: object) -> Iterator[None]:
    """Any exception that is not ours, or a hang, is named with the seed of its file."""

    def hung(number: int, frame: object) -> None:
        raise TimeoutError(f"file {seed} hangs")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(ALARM)
    try:
        yield
    except EffaceError as error:
        if len(str(error).splitlines()) > 2:
            raise AssertionError(f"file {seed}: {error}") from error
    except Exception as error:
        raise AssertionError(f"file {seed} ends in {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def lean() -> Iterator[None]:
    """At most one gigabyte above what the process took before the first file."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= GIGABYTE


# --- patches ----------------------------------------------------------------------------------------------------------


def with_header(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A patch whose header went through `change`; its tensors stay."""
    (size,) = struct.unpack("<Q", data[:8])
    outer = json.loads(data[8 : 8 + size])
    outer["__metadata__"]["efface"] = change(outer["__metadata__"]["efface"].encode()).decode("utf-8", "replace")
    text = json.dumps(outer).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def damaged_patch(data: bytes, rng: random.Random) -> bytes:
    how = rng.randrange(4)
    if how == 0:
        return bitten(data, rng)
    if how == 1:  # the header of the container
        (size,) = struct.unpack("<Q", data[:8])
        text = bent_json(data[8 : 8 + size], rng)
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    return with_header(data, lambda text: bent_json(text, rng) if how == 2 else bitten(text, rng))


@times(50, 2000)
def test_a_damaged_patch_is_whole_or_refused(n: int, tiny: efface.Model, tmp_path: Path, lean: None) -> None:
    zero_patch(tiny)  # weights and fingerprints are there before the first file
    edits = efface.erase(tiny, ["dog"], ["cat"], method="uce")
    wholes = [zero_patch(tiny).to_bytes(), edits.to_bytes()]
    file = tmp_path / "p.safetensors"
    for seed in range(n):
        rng = random.Random(f"patch {seed}")
        file.write_bytes(damaged_patch(rng.choice(wholes), rng))
        with watched(seed):
            inspect._patch(file)
        with watched(seed):
            patch = Patch.load(file)
            patch.rules()
            with patch.applied(tiny):
                tiny.weight(patch.sites[0])
    assert not tiny.in_force


# --- lists and tables -------------------------------------------------------------------------------------------------

CONCEPTS = {
    "c.json": b'{"concepts": ["noto style", {"name": "cat", "kind": "object", "anchor": "lion", "keep": ["tiger"]}]}',
    "c.toml": b'concepts = ["noto style", {name = "cat", anchor = "lion", synonyms = ["kitten"], keep = ["a"]}]\n',
    "c.yaml": b"concepts:\n- noto style\n- name: cat\n  anchor: lion\n  synonyms: [kitten]\n  keep: [tiger, wolf]\n",
    "c.csv": b'name,kind,anchor,synonyms,keep\ncat,object,lion,kitten,"tiger; leopard"\nnoto style,style\n',
    "c.jsonl": b'"noto style"\n{"name": "cat", "anchor": "lion"}\n',
    "c.txt": b"# one a line\nnoto style\nobject:cat=lion\ndog=\n",
}  # fmt: skip
TABLES = {
    "p.csv": b'case_number,prompt,evaluation_seed,evaluation_guidance\n0,"a red, box",7,7.5\n1,"two\nlines",8.0,5\n',
    "p.tsv": b"id\tprompt\tseed\n0\ta box\t7\n1\ta fox\t8\n",
    "p.json": b'{"prompts": [{"id": 0, "prompt": "a box", "seed": 7}, {"id": 1, "prompt": "a fox", "seed": 8.0}]}',
    "p.jsonl": b'{"prompt": "a box", "seed": 7}\n{"prompt": "a fox", "seed": 8}\n',
    "p.txt": b"a box\na fox \x1d\n\xff tail\n",
}


def tried(n: int, kind: str, wholes: dict[str, bytes], folder: Path, readers: list[Callable[[Path], object]]) -> None:
    for seed in range(n):
        rng = random.Random(f"{kind} {seed}")
        name = rng.choice(sorted(wholes))
        file = folder / name
        is_json = name.endswith(".json") and rng.random() < 0.6
        file.write_bytes(bent_json(wholes[name], rng) if is_json else bitten(wholes[name], rng))
        for reader in readers:
            with watched(seed):
                reader(file)


@times(50, 1000)
def test_a_damaged_concept_file_is_read_or_refused(n: int, tmp_path: Path, lean: None) -> None:
    tried(n, "concepts", CONCEPTS, tmp_path, [lambda f: Request.build(read_concepts(f)).settle({}), read_lines])


@times(50, 1000)
def test_a_damaged_prompt_table_is_read_or_refused(n: int, tmp_path: Path, lean: None) -> None:
    readers = [read_rows, lambda f: read_rows(f, headerless=True), read_lines, read_pairs]
    tried(n, "prompts", TABLES, tmp_path, readers)


# --- run folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A finished run, and the world that it is of."""
    place, patch = tmp_path_factory.mktemp("fuzz"), pytest.MonkeyPatch()
    with patch.context() as own:
        own.setenv("EFFACE_CACHE", str(place / "cache"))
        world = make_world(tiny_folder, place / "tiny-world")
        audit(small(efface.load(world, "cpu")), place / "run")
        yield place / "run", world


def damage(run: Path, rng: random.Random) -> None:
    """One to three files of a run edited by hand."""
    names = ["spec.json", "plan.json", "environment.json", "records.jsonl", "report.json", "image"]
    for name in rng.sample(names, rng.randint(1, 3)):
        file = rng.choice(sorted((run / "images").rglob("*.png"))) if name == "image" else run / name
        data = file.read_bytes()
        file.unlink()  # another name of the same file shall stay as it is
        if name.endswith(".json") and rng.random() < 0.8:
            file.write_bytes(sealed_plan(bent_json(data, rng), rng) if name == "plan.json" else bent_json(data, rng))
        elif rng.random() < 0.9:
            file.write_bytes(resealed(data, rng) if name == "records.jsonl" else bitten(data, rng))


def sealed_plan(data: bytes, rng: random.Random) -> bytes:
    """A plan whose checksum was made anew."""
    import zlib

    found = json.loads(data)
    if not isinstance(found, dict) or "plan" not in found or rng.random() < 0.3:
        return data
    body = json.dumps(found["plan"], sort_keys=True)
    return json.dumps({"sum": zlib.crc32(body.encode()), "plan": found["plan"]}).encode()


def resealed(data: bytes, rng: random.Random) -> bytes:
    """Records of which some are bent under a checksum that fits."""
    from efface.scores.records import _opened, _sealed

    lines = data.split(b"\n")
    for number in rng.sample(range(len(lines)), 3):
        body = _opened(lines[number])
        if body is not None:
            lines[number] = _sealed(bent_json(body.encode(), rng).decode()).removesuffix(b"\n")
    return b"\n".join(lines)


@times(50, 500)
def test_a_damaged_run_folder_is_read_or_refused(
    n: int, run: tuple[Path, Path], tmp_path: Path, lean: None, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = run
    for seed in range(n):
        rng, place = random.Random(f"run {seed}"), tmp_path / "run"
        shutil.copytree(whole, place)
        damage(place, rng)
        readers: list[Read] = [
            lambda at=place: status.command(at), lambda at=place: report.command(at),
            lambda at=place: compare([at]), lambda at=place: sweep(at),
        ]  # fmt: skip
        for read in readers:
            with watched(seed):
                read()
        shutil.rmtree(place)
    capsys.readouterr()
