"""Results of a training in files small enough to carry: written on one machine, joined on another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

from efface.errors import WrongFile
from efface.store import write_bytes
from efface.world.learning import DONE, EMA_FILE, Part, share_of, write_json
from efface.world.training import Course

__all__ = ["LARGEST", "join", "split"]

LARGEST = 15_000_000  # bytes of one file
LEFT_OUT = ("latents",)  # parts that are made again from the others in minutes
STATE = "state.safetensors"  # the optimiser's memory: four times the weights, and not needed to go on


def split(course: Course, folder: Path, overwrite: bool = False) -> list[Path]:
    """What `course` has reached as NAME.tar.000, ... of at most 15 MB each, and NAME.json with checksums.

    Finished parts travel whole, the part in hand as the float16 running mean of its weights; of the phases of the
    U-Net only the last one carries weights. Raises WrongFile when there is nothing yet.
    """
    rows = [part for part in course.parts if part.name not in LEFT_OUT and (part.done or part.share)]
    if not rows:
        raise WrongFile(f"there is nothing of {course.name} to carry yet; train it first")
    old = [p for p in (*folder.glob(f"{course.name}.tar.*"), folder / f"{course.name}.json") if p.exists()]
    if old and not overwrite:
        raise WrongFile(f"{old[0]} exists already; pass --overwrite or name another folder")
    for path in old:
        path.unlink()
    data = _packed(rows)
    made = []
    for number, start in enumerate(range(0, len(data), LARGEST)):
        made.append(write_bytes(folder / f"{course.name}.tar.{number:03d}", data[start : start + LARGEST]))
    facts = {
        "name": course.name, "sha256": hashlib.sha256(data).hexdigest(), "pieces": [p.name for p in made],
        "parts": {p.name: round(p.share, 4) for p in rows},
    }  # fmt: skip
    return [*made, write_json(folder / f"{course.name}.json", facts)]


def _packed(rows: list[Part]) -> bytes:
    last = [p.name for p in rows if p.name.startswith("unet")][-1:]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for part in rows:
            for file in sorted(p for p in part.home.iterdir() if p.is_file() and not p.name.startswith(".")):
                earlier = part.name.startswith("unet") and part.name not in last
                if file.name == STATE or (earlier and file.suffix == ".safetensors"):
                    continue
                if file.name == EMA_FILE and part.done:
                    continue
                entry = tarfile.TarInfo(f"{part.name}/{file.name}")
                entry.size = file.stat().st_size
                archive.addfile(entry, io.BytesIO(file.read_bytes()))
    return stream.getvalue()


def join(course: Course, folder: Path) -> list[str]:
    """Take over every part in which the pieces are further than this machine; their names.

    Raises WrongFile for missing pieces, another checksum or another course; nothing is touched then.
    """
    index = folder / f"{course.name}.json"
    try:
        facts = json.loads(index.read_text(encoding="utf-8"))
        data = b"".join((folder / name).read_bytes() for name in facts["pieces"] if "/" not in name)
        found = hashlib.sha256(data).hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WrongFile(
            f"expected {index} and the pieces it names, cannot read them ({error}); copy them again"
        ) from None
    if found != facts["sha256"]:
        raise WrongFile(f"expected pieces with sha256 {facts['sha256'][:12]}, got {found[:12]}; copy them again")
    staging = course.home / f".join-{os.getpid()}"
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(staging, filter="data")
        return [part.name for part in course.parts if _taken(part, staging / part.name)]
    except (tarfile.TarError, OSError) as error:
        raise WrongFile(f"cannot unpack the pieces in {folder} ({error}); free some space or copy them again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _taken(part: Part, found: Path) -> bool:
    """Move a part's folder into place when it is further than the local one."""
    share = 1.0 if (found / DONE).is_file() else share_of(found)
    if not found.is_dir() or part.done or share <= part.share:
        return False
    settings = found / "settings.txt"
    if settings.is_file() and settings.read_text(encoding="utf-8") != part.settings:
        raise WrongFile(f"the pieces of {part.name} were trained with other settings; use the same version of Efface")
    shutil.rmtree(part.home, ignore_errors=True)
    part.home.parent.mkdir(parents=True, exist_ok=True)
    os.replace(found, part.home)
    return True
