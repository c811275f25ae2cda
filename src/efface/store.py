"""Records and content-addressed files that survive a kill at any instant.

Files appear under their final name only when complete: temporary name, fsync, rename. Records are JSON lines,
appended one `write` each; a torn last line is dropped on reading. An image is named by the hash of everything that
can change its pixels, so it is drawn once for every run, method and suite that shares it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from efface.errors import OutputExists, WrongFile

__all__ = ["Images", "Records", "key_of", "write_bytes"]


def write_bytes(path: Path, data: bytes, overwrite: bool = True, sync: bool = True) -> Path:
    """Write under a temporary name in the same folder, then rename. Raises OutputExists, WrongFile."""
    if path.exists() and not overwrite:
        raise OutputExists(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
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


def key_of(**parts: Any) -> str:
    """Hash of named values: the same values, the same key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


class Records:
    """One append-only file of JSON records, each with a unique `key`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: dict[str, dict[str, Any]] = {row["key"]: row for row in _lines(file)}
        self._mend()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """In key order, so that nothing depends on the order of writing."""
        return iter([self._rows[k] for k in sorted(self._rows)])

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a record. The same content again is a no-op; other content under the same key raises WrongFile."""
        record = json.loads(json.dumps(dict(row), allow_nan=False))
        known = self._rows.get(record["key"])
        if known is not None:
            if known != record:
                raise WrongFile(f"{self.file} already holds another record {record['key']}; use a new run folder")
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as stream:
            stream.write(json.dumps(record, sort_keys=True).encode() + b"\n")
        self._rows[record["key"]] = record

    def _mend(self) -> None:
        """End a torn last line, so that the next record starts on a line of its own."""
        if self.file.exists() and self.file.stat().st_size:
            with self.file.open("rb+") as stream:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_bytes().split(b"\n"):
        try:
            row = json.loads(line) if line else None
        except ValueError:
            continue  # torn by a kill: its image is judged again
        if isinstance(row, dict) and "key" in row:
            yield row


class Images:
    """Images by draw key, as PNG; `has` trusts only files that were renamed into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"

    def has(self, key: str) -> bool:
        return self.path(key).exists()

    def put(self, key: str, image: np.ndarray) -> None:
        """image: (h, w, 3) uint8."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        write_bytes(self.path(key), buffer.getvalue(), sync=False)

    def png(self, key: str) -> bytes:
        """The file's bytes. Raises WrongFile."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError:
            raise WrongFile(f"the image {key} is gone; run the same command again to redraw it") from None

    def get(self, key: str) -> np.ndarray:
        """(h, w, 3) uint8. A torn file is deleted and raises WrongFile."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.png(key))) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError):
            self.path(key).unlink(missing_ok=True)
            raise WrongFile(f"the image {key} was damaged and is deleted; run the same command again") from None
