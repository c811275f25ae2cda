"""Records: JSON lines with a checksum each; a torn or damaged line is dropped on reading."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efface.errors import WrongFile
from efface.gallery.shot import Shot
from efface.untrusted import owned

_SEAL = ', "sum": "'


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


def shot_of(row: Mapping[str, Any]) -> Shot:
    """The place of an image, of a plan's item or of a record: the one way to tell pictures apart."""
    return Shot(row["prompt"], row["seed"], row.get("guidance"))


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
