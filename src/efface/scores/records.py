"""Records: what a panel said of one picture of one side, one JSON line each with a checksum.

A torn or damaged line, and one that is not of the form, is dropped on reading: its picture is judged again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from efface.errors import EffaceError, WrongFile
from efface.gallery.shot import Shot
from efface.judges import Boxes
from efface.judges.panel import Finding
from efface.untrusted import owned
from efface.untrusted.documents import parsed_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Record", "Records", "read_records"]

_HEAD = '{"format": "efface-records/2"}'
_SEAL = ', "sum": "'


@dataclass(frozen=True, kw_only=True)
class Form:
    """A record as JSON holds it; kinds of values are checked, not only names."""

    key: str
    side: str
    image: str
    prompt: str
    seed: int
    guidance: float | None = None
    judge: str
    judge_version: str
    pixels: str
    garbage: bool
    hits: tuple[str, ...]
    values: dict[str, float]
    boxes: Boxes | None = None
    cut: bool | None = None
    state: Literal["ok", "na", "error"] = "ok"
    reason: str = ""


@cache
def _form() -> TypeAdapter[Form]:
    from pydantic import TypeAdapter

    return TypeAdapter(Form)


@dataclass(frozen=True, kw_only=True)
class Record(Finding):
    """A finding, with what was looked at and who looked."""

    side: str
    """base or edited."""
    shot: Shot
    """What was drawn; its prompt is veiled where the suite is private."""
    key: str = ""
    """Of side, picture and versions; no two records share one."""
    image: str = ""
    """Key of the picture."""
    pixels: str = ""
    """Hash of its decoded values; empty where it could not be drawn."""
    judge: str = ""
    """Name of the judge."""
    judge_version: str = ""
    """Its version."""

    @classmethod
    def read(cls, text: str) -> Record:
        """From JSON. Raises ValueError for what is no record."""
        form = _form().validate_json(text, strict=True)
        own = {k: v for k, v in vars(form).items() if k not in ("prompt", "seed", "guidance")}
        return cls(shot=Shot(form.prompt, form.seed, form.guidance), **own)

    def text(self) -> str:
        """As JSON; what has nothing to say is left out. Raises ValueError for NaN."""
        shot = {"prompt": self.shot.prompt, "seed": self.shot.seed, "guidance": self.shot.guidance}
        own = {k: v for k, v in vars(self).items() if k not in ("shot", "state", "reason")}
        state = {} if self.state == "ok" else {"state": self.state, "reason": self.reason}
        line = {k: v for k, v in (own | shot | state).items() if v is not None}
        return json.dumps(line, sort_keys=True, allow_nan=False, default=dict)


class Records:
    """One append-only file of records, each with a key of its own.

    damaged: lines that were dropped on reading, because they were torn by a kill, fail their checksum or are of
    another form.
    """

    def __init__(self, file: Path) -> None:
        self.file = owned(file)
        self._rows, self.damaged = read_records(file)
        self._mend()

    def __iter__(self) -> Iterator[Record]:
        """In key order, so that nothing depends on the order of writing."""
        return iter([self._rows[k] for k in sorted(self._rows)])

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Record | None:
        return self._rows.get(key)

    def append(self, record: Record) -> None:
        """Add a record. The same content again is a no-op; other content under the same key raises WrongFile."""
        known = self._rows.get(record.key)
        if known is None:
            self._write(record.text())
            self._rows[record.key] = record
        elif known != record:
            raise WrongFile(f"{self.file} already holds another record {record.key}; use a new run folder")

    def extend(self, records: Iterable[Record]) -> None:
        """Add records, and ask the disk to keep them, also through a power cut."""
        for record in records:
            self.append(record)
        if self.file.exists():
            with self.file.open("rb+") as stream:
                os.fsync(stream.fileno())

    def void(self, key: str, reason: str) -> None:
        """Take a record out of force, for example because its image was lost. The old line stays in the file."""
        if self._rows.pop(key, None) is not None:
            self._write(json.dumps({"key": key, "void": reason}, sort_keys=True))

    def _write(self, text: str) -> None:
        new = not self.file.exists()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("ab") as stream:
            stream.write((_sealed(_HEAD) if new else b"") + _sealed(text))

    def _mend(self) -> None:
        """End a torn last line, so that the next record starts on a line of its own."""
        if self.file.exists() and self.file.stat().st_size:
            with self.file.open("rb+") as stream:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")


def _sealed(body: str) -> bytes:
    """One line; the checksum is over the line without it."""
    return (body[:-1] + _ending(body) + "\n").encode()


def _ending(body: str) -> str:
    return f'{_SEAL}{zlib.crc32(body.encode()):08x}"' + "}"


def _opened(line: bytes) -> str | None:
    """A line without its seal; None where the checksum fails or is missing."""
    head, seal, tail = line.decode("utf-8", "replace").rpartition(_SEAL)
    body = head + "}"
    return body if seal and seal + tail == _ending(body) else None


def read_records(file: Path) -> tuple[dict[str, Record], int]:
    """Records by key, and the number of damaged lines."""
    found: dict[str, Record] = {}
    damaged = 0
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        body = _opened(line) if line else _HEAD
        if body is None or not _take(found, body):
            damaged += 1
    return found, damaged


def _take(found: dict[str, Record], body: str) -> bool:
    """Enter what a whole line says; False for a line of another form."""
    try:
        record = Record.read(body)
    except (ValueError, EffaceError):
        return _is_note(found, body)
    found[record.key] = record
    return True


def _is_note(found: dict[str, Record], body: str) -> bool:
    """Whether a line that is no record is the file's head, or takes a record out of force."""
    if body == _HEAD:
        return True
    try:
        note = parsed_json(body, "a record", "judge again")
    except WrongFile:
        return False
    key = note.get("key") if isinstance(note, dict) and "void" in note else None
    if isinstance(key, str):
        found.pop(key, None)
    return isinstance(key, str)
