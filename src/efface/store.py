"""Records and content-addressed files that survive a kill at any instant.

Files appear under their final name only when complete: temporary name, fsync, rename. Records are JSON lines with a
checksum each, appended one `write` each; a torn or damaged line is dropped on reading. An image is named by the hash
of everything that can change its pixels, so it is drawn once for every run, method and suite that shares it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from efface.errors import BadRequest, OutputExists, WrongFile
from efface.untrusted import owned

__all__ = [
    "Images",
    "Records",
    "key_of",
    "leftovers",
    "new_folder",
    "pixel_hash",
    "read_images",
    "read_records",
    "write_bytes",
]

_SEAL = ', "sum": "'
_KEY = re.compile(r"[0-9a-f]{32}")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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


class Records:
    """One append-only file of JSON records, each with a unique `key`.

    damaged: lines that were dropped on reading, because they were torn by a kill or fail their checksum.
    """

    def __init__(self, file: Path) -> None:
        self.file = owned(file)
        self._rows, self.damaged = read_records(file)
        self._mend()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """In key order, so that nothing depends on the order of writing."""
        return iter([self._rows[k] for k in sorted(self._rows)])

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> dict[str, Any] | None:
        return self._rows.get(key)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a record. The same content again is a no-op; other content under the same key raises WrongFile."""
        record = json.loads(json.dumps(dict(row), allow_nan=False))
        known = self._rows.get(record["key"])
        if known is not None:
            if known != record:
                raise WrongFile(f"{self.file} already holds another record {record['key']}; use a new run folder")
            return
        self._write(record)
        self._rows[record["key"]] = record

    def void(self, key: str, reason: str) -> None:
        """Take a record out of force, for example because its image was lost. The old line stays in the file."""
        if self._rows.pop(key, None) is not None:
            self._write({"key": key, "void": reason})

    def sync(self) -> None:
        """Ask the disk to keep what was appended, also through a power cut."""
        if self.file.exists():
            with self.file.open("rb+") as stream:
                os.fsync(stream.fileno())

    def _write(self, record: dict[str, Any]) -> None:
        new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as stream:
            stream.write((_sealed({"format": "efface-records/2"}) if new else b"") + _sealed(record))

    def _mend(self) -> None:
        """End a torn last line, so that the next record starts on a line of its own."""
        if self.file.exists() and self.file.stat().st_size:
            with self.file.open("rb+") as stream:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")


def _sealed(record: dict[str, Any]) -> bytes:
    """One line; the checksum is over the line without it."""
    body = json.dumps(record, sort_keys=True)
    return (body[:-1] + _ending(body) + "\n").encode()


def _ending(body: str) -> str:
    return f'{_SEAL}{zlib.crc32(body.encode()):08x}"' + "}"


def _opened(line: bytes) -> tuple[dict[str, Any] | None, bool]:
    """A line's record, or None if it is damaged, and whether the line has a checksum."""
    try:
        text = line.decode()
        head, seal, tail = text.rpartition(_SEAL)
        body = head + "}"
        if seal and seal + tail == _ending(body):
            return json.loads(body), True
        row = json.loads(text)
    except ValueError:
        return None, False
    return (row, False) if isinstance(row, dict) and "sum" not in row else (None, False)


def read_records(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Rows by key and the number of damaged lines. Files of version 0.1 have no checksums before the first that has."""
    rows: dict[str, dict[str, Any]] = {}
    damaged, sealed = 0, False
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        row, has_sum = _opened(line) if line else ({}, False)
        if not line or (row is not None and has_sum and "key" not in row):
            sealed = sealed or bool(line)
            continue
        if row is None or "key" not in row or (sealed and not has_sum):
            damaged += 1
            continue
        sealed = sealed or has_sum
        if "void" in row:
            rows.pop(row["key"], None)
        else:
            rows[row["key"]] = row
    return rows, damaged


def pixel_hash(image: np.ndarray) -> str:
    """Of the decoded values: the PNG's compression and metadata do not matter. image: (h, w, 3) uint8."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:32]


class Images:
    """Images by draw key, as PNG; `has` trusts only files that were renamed into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where an image lies. Raises WrongFile for what is no key: records come from strangers too."""
        if not _KEY.fullmatch(key):
            raise WrongFile(f"{key[:60]!r} is no name of an image; the records or the plan that name it are damaged")
        return self.folder / key[:2] / f"{key}.png"

    def has(self, key: str) -> bool:
        return self.path(key).exists()

    def keys(self) -> Iterator[str]:
        """Every image that is there."""
        return (f.stem for f in self.folder.glob("??/*.png") if not f.name.startswith("."))

    def put(self, key: str, image: np.ndarray) -> None:
        """image: (h, w, 3) uint8. An image that is there already stays: records may speak of it."""
        from PIL import Image

        if self.has(key):
            return
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        write_bytes(self.path(key), buffer.getvalue(), sync=False)

    def adopt(self, other: Images, keys: Iterable[str]) -> None:
        """Hold the images of `other` too: a second name of the same file where the disk can, else a copy."""
        for key in keys:
            source, target = other.path(key), self.path(key)
            if target.exists() or not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except FileExistsError:
                continue
            except OSError:
                write_bytes(target, source.read_bytes(), sync=False)

    def drop(self, key: str) -> None:
        with suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def png(self, key: str) -> bytes:
        """The file's bytes. Raises WrongFile."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            raise WrongFile(f"the image {key} is gone; run the same command again to redraw it") from None

    def get(self, key: str) -> np.ndarray:
        """(h, w, 3) uint8. A torn file is deleted and raises WrongFile."""
        try:
            return _decoded(self.png(key))
        except (OSError, SyntaxError, ValueError):
            self.drop(key)
            raise WrongFile(f"the image {key} was damaged and is deleted; run the same command again") from None

    def whole(self, key: str, pixels: str | None = None) -> bool:
        """True unless the file is damaged or, where `pixels` is known, holds other pixels. An absent one is whole."""
        if not self.has(key):
            return True
        try:
            found = _decoded(self.png(key))
        except (OSError, SyntaxError, ValueError):
            return False
        return pixels is None or pixel_hash(found) == pixels


def _decoded(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def leftovers(folder: Path, older: float = 3600.0) -> list[Path]:
    """Temporary files of writers that were killed: those not touched for `older` seconds."""
    now = time.time()
    found = (f for f in folder.rglob(".*.tmp") if f.is_file())
    return sorted(f for f in found if now - f.stat().st_mtime >= older)


def read_images(folder: Path) -> dict[str, np.ndarray]:
    """Every picture of a user's folder by its path inside -> (h, w, 3) uint8. Nothing is changed.

    Raises WrongFile for a missing or empty folder, and for broken pictures, all of which it names (ten at most).
    """
    if not folder.is_dir():
        raise WrongFile(f"there is no image folder {folder}; check the path")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _PICTURES and f.is_file())
    if not files:
        raise WrongFile(f"{folder} holds no image ({', '.join(_PICTURES)}); name the folder with the pictures")
    found, broken = {}, []
    for file in files:
        try:
            found[file.relative_to(folder).as_posix()] = _decoded(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            broken.append(file.relative_to(folder).as_posix())
    if broken:
        raise WrongFile(
            f"{len(broken)} of {len(files)} pictures in {folder} cannot be read: {', '.join(broken[:10])}; "
            "fetch them again or take them out"
        )
    return found
