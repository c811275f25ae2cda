"""Files that survive a kill at any instant: whole or not at all, under names that are hashes of what decides them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, OutputExists, WrongFile

__all__ = ["VERSION", "cache_folder", "key_of", "leftovers", "new_folder", "write_bytes"]

VERSION = "0.1.0"  # of Efface; part of every recipe and of every cached statistic


def write_bytes(path: Path, data: bytes, overwrite: bool = True, sync: bool = True) -> Path:
    """Write under a temporary name in the same folder, then rename. Raises OutputExists, WrongFile."""
    if path.exists() and not overwrite:
        raise OutputExists(path)
    if path.is_dir():
        raise WrongFile(f"cannot write {path}: it is a folder; name a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
    if out.exists() and not overwrite:
        raise OutputExists(out)
    if out.exists() and not (out.is_dir() and not out.is_symlink() and (own(out) or not any(out.iterdir()))):
        raise WrongFile(f"{out} was not made by this command, so --overwrite leaves it; name another output")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        os.replace(temporary, out)
    except OSError as error:
        raise WrongFile(f"cannot write {out}: {error.strerror or error}; choose another place") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def key_of(**parts: Any) -> str:
    """Hash of named values: the same values, the same key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def leftovers(folder: Path, older: float = 3600.0) -> list[Path]:
    """Temporary files of writers that were killed: those not touched for `older` seconds."""
    now = time.time()
    found = (f for f in folder.rglob(".*.tmp") if f.is_file())
    return sorted(f for f in found if now - f.stat().st_mtime >= older)


def cache_folder() -> Path:
    """Where caches live: `EFFACE_CACHE`, else `~/.cache/efface`."""
    return Path(os.environ.get("EFFACE_CACHE") or Path.home() / ".cache" / "efface")
