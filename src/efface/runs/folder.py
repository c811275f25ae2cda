"""The folder of a run: who may write it, what is in it, how far it is.

spec.json decides the run; environment.json says where it was measured; plan.json is frozen before the first image.
records.jsonl and images/ grow; report.html and report.json come last.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from efface.errors import OutputExists, WrongFile
from efface.files import VERSION, cache_folder, is_dead, leftovers, write_bytes
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.runs.plan import SidePlan, plan_of
from efface.runs.spec import RunPlan, Spec
from efface.scores.forms import read
from efface.scores.records import Record, Records, read_records
from efface.untrusted import refuse_links
from efface.untrusted.documents import read_json

__all__ = [
    "Folder",
    "Progress",
    "Status",
    "environment",
    "opened",
    "records_of",
    "shared_images",
    "spec_of",
    "status",
    "stored_images",
]

Environment = dict[str, str]
"""Versions and machine."""
SPEC = "spec.json"
DAMAGED = "take it from a copy, or begin anew with another folder"


@contextmanager
def opened(out: Path, spec: Spec, overwrite: bool) -> Iterator[Folder]:
    """The folder of this spec, made or gone on with, held against other processes.

    overwrite: another run is deleted first, and never anything else. Raises OutputExists for another run or something
    else, WrongFile when another process writes it or `overwrite` meets what is no run.
    """
    found, wanted = _spec(out), json.dumps(spec.line(), sort_keys=True, indent=1)
    same = found == json.loads(wanted)
    if not same and _occupied(out):
        if not overwrite:
            raise OutputExists(out)
        if found is None or not str(found.get("format")).startswith("efface-run/"):
            raise WrongFile(f"{out} is no run, and --overwrite replaces nothing but runs; name another folder")
    if out.is_dir():
        refuse_links(out)
    with held(out, "wait for it or name another folder"):
        if not same:
            _empty(out)
            write_bytes(out / SPEC, wanted.encode())
        for file in leftovers(out, 0):  # nobody else writes here
            file.unlink(missing_ok=True)
        _note_environment(out)
        yield Folder(out, Records(out / "records.jsonl"), Images(out / "images"))


@contextmanager
def held(run: Path, cure: str) -> Iterator[None]:
    """The folder, made where it is not, held against other processes. Raises WrongFile with the cure."""
    lock = FileLock(run / ".lock")
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise WrongFile(f"another process is writing {run}; {cure}") from None
    except OSError as error:
        raise WrongFile(f"cannot write {run}: {error.strerror or error}; choose another place") from None
    try:
        yield
    finally:
        lock.release()


def _occupied(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(e.name != ".lock" and not is_dead(e.name) for e in out.iterdir()))


def _spec(out: Path) -> Mapping[str, object] | None:
    """What decides the run in this folder, None where there is none. Raises WrongFile for a damaged spec."""
    file = out / SPEC
    if not file.is_file():
        return None
    found = read_json(file, DAMAGED)
    if not isinstance(found, dict):
        raise WrongFile(f"{file} is damaged: it is no table; {DAMAGED}")
    return found


def spec_of(run: Path, nothing: str = "efface audit ... -o {} starts one") -> Spec:
    """What decided a run. Raises WrongFile for a folder that is none, with `nothing` as the cure, and a damaged one."""
    found = _spec(run)
    if found is None:
        raise WrongFile(f"{run} is no run: it has no spec.json; {nothing.format(run)}")
    try:
        return read(Spec, found)
    except ValueError as error:
        raise WrongFile(f"{run / SPEC} is damaged ({error}); {DAMAGED}") from None


def _empty(out: Path) -> None:
    for entry in out.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def environment() -> Environment:
    """Versions and machine, without anything that names it."""
    found = {"efface": VERSION, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "numpy"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return found | {"system": platform.system(), "machine": platform.machine()}


def _note_environment(out: Path) -> None:
    """The environment of the start, and every other one in which the run went on."""
    file, now, known = out / "environment.json", environment(), _environments(out)
    if now not in known:
        write_bytes(file, json.dumps([*known, now], indent=1).encode())


def _environments(out: Path) -> list[Environment]:
    """What stands there; nothing where the file is absent or damaged."""
    try:
        return list(read(tuple[Environment, ...], read_json(out / "environment.json"), exact=True))
    except (WrongFile, ValueError):
        return []


@dataclass(frozen=True)
class Folder:
    """One open run."""

    path: Path
    records: Records
    images: Images
    """Pictures that this run holds."""

    @property
    def environments(self) -> list[Environment]:
        """Where it was begun, and where it went on."""
        return _environments(self.path)

    def galleries(self, plan: RunPlan) -> list[Gallery]:
        """Of both sides: pictures are held here, and those of no private suite are shared with other runs."""
        shared = shared_images()
        return [Gallery(side, plan.sampling, self.images, shared, plan.private) for side in plan.sides]


def shared_images() -> Images:
    """Pictures that runs share."""
    return Images(cache_folder() / "images")


def stored_images(run: Path) -> Images:
    """Pictures that a run holds, to be looked at. Raises WrongFile for a folder with links."""
    refuse_links(run)
    return Images(run / "images")


def records_of(run: Path) -> list[Record]:
    """Records in key order, without mending the file: somebody may be writing it."""
    rows, _ = read_records(run / "records.jsonl")
    return [rows[k] for k in sorted(rows)]


# --- how far ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far one side is, in images."""

    planned: int
    drawn: int
    judged: int


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    run: str
    state: str
    """finished or unfinished."""
    suite: str
    suite_hash: str
    base: str
    patch: str
    sides: Mapping[str, Progress]
    records: int
    errors: int
    damaged_lines: int
    leftovers: int
    """Files of killed writers."""
    bytes: int
    next: str
    """What to do next."""


def status(run: Path) -> Status:
    """How far a run is; nothing is changed. Raises WrongFile for a folder that is none."""
    spec, plan = spec_of(run), plan_of(run)
    found, damaged = read_records(run / "records.jsonl")
    records = list(found.values())
    sides = {name: _progress(run, part, records, name) for name, part in (plan.sides if plan else {}).items()}
    finished = (run / "report.json").is_file() and all(s.judged == s.planned for s in sides.values())
    return Status(
        run=str(run),
        state="finished" if finished else "unfinished",
        suite=spec.suite,
        suite_hash=spec.suite_hash,
        base=spec.base,
        patch=spec.patch or spec.edited,
        sides=sides,
        records=len(records),
        errors=sum(r.state == "error" for r in records),
        damaged_lines=damaged,
        leftovers=len(leftovers(run, 0)),
        bytes=sum(f.stat().st_size for f in run.rglob("*") if f.is_file()),
        next=f"efface report {run}" if finished else "run the same audit command again: it goes on from here",
    )


def _progress(run: Path, part: SidePlan, records: Sequence[Record], side: str) -> Progress:
    own, shared = Images(run / "images"), shared_images()
    judged = {r.image for r in records if r.side == side}
    drawn = sum(own.has(k) or shared.has(k) or k in judged for k in part.keys)
    return Progress(len(part.keys), drawn, len(judged & set(part.keys)))
