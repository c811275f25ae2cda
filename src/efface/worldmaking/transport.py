"""Results of a training in files small enough to carry: written on one machine, joined on another."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from efface.errors import WrongFile
from efface.files import write_bytes
from efface.world.golds import digest
from efface.worldmaking.course import Course
from efface.worldmaking.sittings import DONE, EMA_FILE, RESULT, Part, share_of, write_json

__all__ = ["LARGEST", "join", "split"]

LARGEST = 15_000_000  # bytes of one file
BESIDE = ("text", "vae", "decoder")
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
    data = _packed(rows)
    names = [f"{course.name}.tar.{number:03d}" for number in range(-(-len(data) // LARGEST))]
    facts = {
        "name": course.name, "sha256": hashlib.sha256(data).hexdigest(), "pieces": names,
        "parts": {p.name: round(p.share, 4) for p in rows}, "beside": _beside(course),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pieces-", dir=folder) as staging:  # a full disk leaves the old ones
        for number, name in enumerate(names):
            write_bytes(Path(staging) / name, data[number * LARGEST : (number + 1) * LARGEST])
        write_json(Path(staging) / f"{course.name}.json", facts)
        for path in old:
            path.unlink()
        made = [folder / name for name in (*names, f"{course.name}.json")]
        for path in made:
            os.replace(Path(staging) / path.name, path)
    return made


def _beside(course: Course) -> dict[str, str]:
    """Checksums of the finished parts that U-Nets are trained beside: those learn to read and draw with no other."""
    found = {part.name: part.home / RESULT for part in course.parts if part.name in BESIDE and part.done}
    return {name: digest(file) for name, file in found.items() if file.is_file()}


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

    Raises WrongFile for missing pieces, another checksum or another course, and for a U-Net that was trained beside
    another text encoder or VAE than those that lie here; nothing is touched then.
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
        chosen = [part for part in course.parts if _is_further(part, staging / part.name)]
        _check_beside(course, chosen, facts.get("beside", {}))
        for part in chosen:
            shutil.rmtree(part.home, ignore_errors=True)
            part.home.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staging / part.name, part.home)
        return [part.name for part in chosen]
    except (tarfile.TarError, OSError) as error:
        raise WrongFile(f"cannot unpack the pieces in {folder} ({error}); free some space or copy them again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_beside(course: Course, chosen: list[Part], there: dict[str, str]) -> None:
    taken = {part.name for part in chosen}
    if not any(name.startswith("unet") for name in taken):
        return
    for name, here in _beside(course).items():
        if name not in taken and there.get(name, here) != here:
            raise WrongFile(
                f"the pieces' U-Net was trained beside another {name} than the one in {course.home}; "
                "move that folder away to take over all of them"
            )


def _is_further(part: Part, found: Path) -> bool:
    """Whether a part's folder is further than the local one. Raises WrongFile for other settings."""
    share = 1.0 if (found / DONE).is_file() else share_of(found)
    if not found.is_dir() or part.done or share <= part.share:
        return False
    settings = found / "settings.txt"
    if settings.is_file() and settings.read_text(encoding="utf-8") != part.settings:
        raise WrongFile(f"the pieces of {part.name} were trained with other settings; use the same version of Efface")
    return True
