"""Files that survive a kill at any instant: whole or not at all, under names that are hashes of what decides them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, OutputExists, WrongFile

__all__ = ["VERSION", "cache_folder", "is_dead", "key_of", "leftovers", "new_folder", "sweep_dead", "write_bytes"]

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]  # its processes can be asked for
_TEMPORARY = re.compile(r"\.(?:old)?(\d{1,10})-([0-9a-f]{6})\.tmp$")
VERSION = "0.1.0"  # of Efface; part of every recipe and of every cached statistic


def write_bytes(path: Path, data: bytes, overwrite: bool = True, sync: bool = True) -> Path:
    """Write under a temporary name in the same folder, then rename. Raises OutputExists, WrongFile."""
    if os.path.lexists(path) and not overwrite:  # a link that leads nowhere is somebody's too
        raise OutputExists(path)
    if path.is_dir():
        raise WrongFile(f"cannot write {path}: it is a folder; name a file")
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_dead(path)
        temporary.unlink(missing_ok=True)  # of a dead process with this number, or a link that somebody laid there
        with temporary.open("xb") as stream:
            stream.write(data)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise WrongFile(f"cannot write {path}: {error.strerror or error}; choose another place") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def new_folder(out: Path, overwrite: bool, own: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder beside `out` to fill; it gets the name `out` when the block ends without an exception.

    With `overwrite` an empty folder is replaced, and one of which `own` says that Efface made it. Raises OutputExists,
    BadRequest for `.` and the like, WrongFile for a folder of somebody else's or a place that cannot be written.
    """
    if out.name in ("", ".."):
        raise BadRequest(f"-o {out} is no name for a new folder; write for example -o {out / 'out'}")
    _may_replace(out, overwrite, own)
    temporary, old = _temporary(out), _temporary(out, "old")
    try:
        sweep_dead(out)
        temporary.mkdir(parents=True)
        yield temporary
        _may_replace(out, overwrite, own)  # somebody else may have come meanwhile
        if os.path.lexists(out):
            os.rename(out, old)
        os.rename(temporary, out)
    except OSError as error:
        raise WrongFile(f"cannot write {out}: {error.strerror or error}; choose another place") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _may_replace(out: Path, overwrite: bool, own: Callable[[Path], bool]) -> None:
    if os.path.lexists(out) and not overwrite:
        raise OutputExists(out)
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and (own(out) or not any(out.iterdir()))):
        raise WrongFile(f"{out} was not made by this command, so --overwrite leaves it; name another output")


def _temporary(path: Path, word: str = "") -> Path:
    """Where a file or folder is made: beside it, under a name that says which process of which machine makes it."""
    return path.with_name(f".{path.name}.{word}{os.getpid()}-{HOST}.tmp")


def sweep_dead(path: Path) -> None:
    """Delete what processes of this machine that are no more left half made of a file or folder."""
    if not path.parent.is_dir():
        return
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f".{path.name}.") and is_dead(entry.name):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)


def is_dead(name: str) -> bool:
    """Whether a temporary name is of a process of this machine that is no more."""
    found = _TEMPORARY.search(name)
    if not found or found[2] != HOST or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def key_of(**parts: Any) -> str:
    """Hash of named values: the same values, the same key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def leftovers(folder: Path, older: float = 3600.0) -> list[Path]:
    """Temporary files of writers that were killed: those of processes that are no more, or old ones.

    older: seconds for which such a file was not touched, where its process cannot be asked for.
    """
    now = time.time()
    found = (f for f in folder.rglob(".*.tmp") if f.is_file())
    return sorted(f for f in found if is_dead(f.name) or now - f.stat().st_mtime >= older)


def cache_folder() -> Path:
    """Where caches live: `EFFACE_CACHE`, else `~/.cache/efface`. Raises WrongFile where there is no home."""
    if named := os.environ.get("EFFACE_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "efface"
    except RuntimeError:
        raise WrongFile("there is no home folder for the cache; name a folder in EFFACE_CACHE") from None
