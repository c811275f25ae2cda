"""The folder of a run: what is frozen in it, what is repaired, what is swept, how far it is.

spec.json decides the run; environment.json says where it was measured; plan.json is written before the first image:
every item, the key of its image on both sides, and the batches in which missing ones are drawn. So a killed run goes
on with the same batches, and with them the same pixels. records.jsonl and images/ grow; report.html and report.json
come last.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from efface.errors import OutputExists, WrongFile
from efface.files import VERSION, cache_folder, leftovers, write_bytes
from efface.gallery.drawing import Sampling, Side, shards_of
from efface.gallery.images import Images, pixel_hash
from efface.scores.records import Records, read_records, shot_of
from efface.gallery.shot import Ask, Item
from efface.untrusted import refuse_links

__all__ = ["Folder", "environment", "opened", "read_plan", "rows_of", "status", "sweep", "sweep_cache"]

Json = dict[str, Any]


@contextmanager
def opened(out: Path, spec: Json, overwrite: bool) -> Iterator[Folder]:
    """The folder of this spec, made or gone on with, held against other processes.

    overwrite: another run is deleted first, and never anything else. Raises OutputExists for another run or something
    else, WrongFile when another process writes it or `overwrite` meets what is no run.
    """
    found = _spec(out)
    same = found == json.loads(json.dumps(spec))
    if not same and _occupied(out):
        if not overwrite:
            raise OutputExists(out)
        if not (isinstance(found, dict) and str(found.get("format")).startswith("efface-run/")):
            raise WrongFile(f"{out} is no run, and --overwrite replaces nothing but runs; name another folder")
    if out.is_dir():
        refuse_links(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise WrongFile(f"another process is writing {out}; wait for it or name another folder") from None
    except OSError as error:
        raise WrongFile(f"cannot write {out}: {error.strerror or error}; choose another place") from None
    try:
        if not same:
            _empty(out)
            write_bytes(out / "spec.json", json.dumps(spec, sort_keys=True, indent=1).encode())
        _note_environment(out)
        yield Folder(out, Records(out / "records.jsonl"), Images(out / "images"), Images(cache_folder() / "images"))
    finally:
        lock.release()


def _occupied(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(e.name != ".lock" for e in out.iterdir()))


def _spec(out: Path) -> Any:
    """What decides the run in this folder, None where there is none. Raises WrongFile for a damaged spec."""
    file = out / "spec.json"
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise WrongFile(f"{file} is damaged; take it from a copy, or begin anew with another folder") from None


def _empty(out: Path) -> None:
    for entry in out.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def environment() -> Json:
    """Versions and machine, without anything that names it."""
    found = {"efface": VERSION, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "numpy"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return found | {"system": platform.system(), "machine": platform.machine()}


def _note_environment(out: Path) -> None:
    """The environment of the start, and every other one in which the run went on."""
    file, now = out / "environment.json", environment()
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = []
    if now not in known:
        write_bytes(file, json.dumps([*known, now], indent=1).encode())


@dataclass
class Folder:
    """One open run."""

    path: Path
    records: Records
    images: Images
    cache: Images

    @property
    def environments(self) -> list[Json]:
        return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))

    # --- the plan ----------------------------------------------------------------------------------------------------

    def freeze(self, sides: Sequence[Side], items: Sequence[Item], sampling: Sampling, private: bool) -> Json:
        """The plan: as it stands in the folder, else made from what is missing now and written.

        A plan whose images another version of Efface named otherwise is made anew; `planned` leaves their records out.
        """
        keys = {side.name: [side.image_key(i, sampling) for i in items] for side in sides}
        found = _plan(self.path / "plan.json")
        if found is not None and {name: part["keys"] for name, part in found["sides"].items()} == keys:
            return found
        made: Json = {"format": "efface-plan/1", "items": [_item_row(i, private) for i in items], "sides": {}}
        for side in sides:
            place = {key: i for i, key in enumerate(keys[side.name])}
            missing = [items[i] for key, i in place.items() if not (self.images.has(key) or self.cache.has(key))]
            batches = [[place[row[2]] for row in b] for b in shards_of(side, missing, sampling)]
            made["sides"][side.name] = {"keys": keys[side.name], "shards": batches}
        body = json.dumps(made, sort_keys=True)
        sealed = json.dumps({"sum": zlib.crc32(body.encode()), "plan": made}, sort_keys=True)
        write_bytes(self.path / "plan.json", sealed.encode())
        return made

    def shards(self, plan: Json, side: Side, items: Sequence[Item], sampling: Sampling) -> list[list[tuple[Any, ...]]]:
        """The frozen batches of one side, then batches of what got lost since."""
        part = plan["sides"][side.name]
        pairs = zip((i.shot for i in items), part["keys"], strict=True)
        rows = [(shot.prompt, shot.seed, key, shot.guidance) for shot, key in pairs]
        frozen = [[rows[i] for i in batch] for batch in part["shards"]]
        planned = {row[2] for batch in frozen for row in batch}
        lost = [
            item
            for item, key in zip(items, part["keys"], strict=True)
            if key not in planned and not (self.images.has(key) or self.cache.has(key))
        ]
        return frozen + shards_of(side, lost, sampling)

    @property
    def planned(self) -> frozenset[tuple[str, str]]:
        """Side and image of everything that the plan draws."""
        plan = _plan(self.path / "plan.json") or {"sides": {}}
        return frozenset((name, key) for name, part in plan["sides"].items() for key in part["keys"])

    # --- repair ------------------------------------------------------------------------------------------------------

    def drop_damaged(self, keys: Sequence[str], pixels: Mapping[str, str]) -> list[str]:
        """Delete images that are torn or no longer hold the pixels that were judged; returns their keys."""
        bad = [k for k in keys if not all(place.whole(k, pixels.get(k)) for place in (self.images, self.cache))]
        for key in bad:
            self.images.drop(key)
            self.cache.drop(key)
        return bad

    def void_changed(self, damaged: Sequence[str]) -> int:
        """Take out of force the records of redrawn images whose pixels came out otherwise (another batch: 1/255)."""
        of_image: dict[str, list[Json]] = {}
        for row in self.records:
            of_image.setdefault(row["image"], []).append(row)
        found = 0
        for key in damaged:
            for row in of_image.get(key, ()):
                if self.images.has(key) and row.get("pixels") not in ("", pixel_hash(self.images.get(key))):
                    self.records.void(row["key"], "the image was damaged and drawn again with other pixels")
                    found += 1
        return found


def _item_row(item: Item, private: bool) -> Json:
    shot = item.shot.veiled() if private else item.shot
    row: Json = {"prompt": shot.prompt, "seed": shot.seed, "asks": [[a.role, a.label] for a in item.asks]}
    return row if shot.guidance is None else row | {"guidance": shot.guidance}


def _plan(file: Path) -> Json | None:
    """The plan of a folder; None where there is none or its checksum fails: it is made again from what is missing."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        plan = found["plan"]
        whole = zlib.crc32(json.dumps(plan, sort_keys=True).encode()) == found["sum"]
        return plan if whole and plan["format"] == "efface-plan/1" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_plan(run: Path) -> tuple[list[Item], Json]:
    """Items of a run (prompts veiled where it is private) and its plan. Raises WrongFile."""
    plan = _plan(run / "plan.json")
    if plan is None:
        raise WrongFile(
            f"{run} has no plan.json (older than version 0.2, or damaged); run its audit command again: "
            "nothing is drawn twice"
        )
    return [Item(shot_of(r), tuple(Ask(*a) for a in r["asks"])) for r in plan["items"]], plan


# --- how far, and what can go ----------------------------------------------------------------------------------------


def status(run: Path) -> Json:
    """How far a run is. Raises WrongFile for a folder that is none."""
    if not (run / "spec.json").is_file():
        raise WrongFile(f"{run} is no run: it has no spec.json; efface audit ... -o {run} starts one")
    try:
        spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
    except ValueError:
        raise WrongFile(f"{run / 'spec.json'} is damaged; take it from a copy, or begin anew") from None
    found, damaged = read_records(run / "records.jsonl")
    rows = list(found.values())
    plan = _plan(run / "plan.json")
    own, cache = Images(run / "images"), Images(cache_folder() / "images")
    sides = {}
    for name, part in (plan["sides"] if plan else {}).items():
        judged = {r["image"] for r in rows if r["side"] == name}
        sides[name] = {
            "planned": len(part["keys"]),
            "drawn": sum(own.has(k) or cache.has(k) or k in judged for k in part["keys"]),
            "judged": len(judged & set(part["keys"])),
        }
    errors = sum(r.get("state") == "error" for r in rows)
    finished = (run / "report.json").is_file() and all(s["judged"] == s["planned"] for s in sides.values())
    return {
        "run": str(run), "state": "finished" if finished else "unfinished", "suite": spec["suite"],
        "suite_hash": spec["suite_hash"], "base": spec["base"], "patch": spec["patch"] or spec["edited"],
        "sides": sides, "records": len(rows), "errors": errors, "damaged_lines": damaged,
        "leftovers": len(leftovers(run, 0)),
        "bytes": sum(f.stat().st_size for f in run.rglob("*") if f.is_file()),
        "next": f"efface report {run}" if finished else "run the same audit command again: it goes on from here",
    }  # fmt: skip


def rows_of(run: Path) -> list[Json]:
    """Records in key order, without mending the file: somebody may be writing it."""
    rows, _ = read_records(run / "records.jsonl")
    return [rows[k] for k in sorted(rows)]


def sweep(run: Path, dry: bool = False) -> list[Path]:
    """Delete what no reader of a run needs: files of killed writers, images outside its plan. Returns their paths.

    Raises WrongFile for a folder that is no run or that another process writes.
    """
    if not (run / "spec.json").is_file():
        raise WrongFile(f"{run} is no run: it has no spec.json; nothing was deleted")
    refuse_links(run)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise WrongFile(f"another process is writing {run}; nothing was deleted") from None
    try:
        plan, images = _plan(run / "plan.json"), Images(run / "images")
        kept = {k for part in plan["sides"].values() for k in part["keys"]} if plan else set(images.keys())
        gone = leftovers(run, 0) + [images.path(k) for k in sorted(images.keys()) if k not in kept]
        for file in [] if dry else gone:
            file.unlink(missing_ok=True)
    finally:
        lock.release()
    return gone


def sweep_cache(days: float | None, dry: bool = False) -> list[Path]:
    """Delete temporary files of killed writers and, with `days`, what none used so long: images that no run holds,
    saved states of erasures that were given up and that no process holds."""
    folder = cache_folder() / "images"
    gone = leftovers(folder) if folder.is_dir() else []
    if days is not None and folder.is_dir():
        limit = time.time() - 86400 * days
        files = (f for f in folder.glob("??/*.png") if not f.name.startswith("."))
        gone += sorted(f for f in files if (s := os.stat(f)).st_nlink == 1 and max(s.st_mtime, s.st_atime) < limit)
    if days is not None:
        states = (f for s in (cache_folder() / "erase").glob("*") if not _held(s) for f in s.glob("[!.]*"))
        gone += sorted(f for f in states if f.stat().st_mtime < time.time() - 86400 * days)
    for file in [] if dry else gone:
        file.unlink(missing_ok=True)
    return gone


def _held(place: Path) -> bool:
    """Whether a process holds this folder just now."""
    if not (place / ".lock").is_file():
        return False
    try:
        with FileLock(place / ".lock", timeout=0):
            return False
    except Timeout:
        return True
