"""Prompt tables of the user: CSV in the dialects of published files, or one prompt a line. Nothing of them is shipped.

Columns are found by any of their known names. What is unclear is refused with the line it stands on: a table that is
half understood would be measured half.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from efface.errors import BadRequest, WrongFile
from efface.gallery.shot import Ask, Item, Shot

T = TypeVar("T", int, float)

__all__ = ["Row", "Table", "read_table"]

# what a column is called in published files, most particular name first
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "adv_prompt", "sensitive prompt", "text", "caption"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
    "id": ("case_number", "image_id", "coco_id", "id", "unnamed: 0", ""),
}
NEEDED = "prompt"


@dataclass(frozen=True)
class Row:
    """One prompt of a table; line: where it stands in the file; more: every other column as text."""

    prompt: str
    line: int
    seed: int | None = None
    guidance: float | None = None
    id: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of one file in its order."""

    file: Path
    rows: tuple[Row, ...]

    def where(self, keep: Callable[[Row], bool]) -> Table:
        return Table(self.file, tuple(r for r in self.rows if keep(r)))

    def first(self, n: int) -> Table:
        """The first n rows; 0 is all."""
        return Table(self.file, self.rows[:n] if n else self.rows)

    def items(self, seeds: str, guidance: str, asks: Callable[[Row], tuple[Ask, ...]]) -> tuple[Item, ...]:
        """Items in the file's order. seeds: file, row or zero; guidance: file or run. Raises WrongFile, BadRequest."""
        for name, value, known in (("seeds", seeds, ("file", "row", "zero")), ("guidance", guidance, ("file", "run"))):
            if value not in known:
                raise BadRequest(f"{name} is one of {', '.join(known)}, got {value!r}")
        return tuple(
            Item(Shot(r.prompt, self._seed(r, n, seeds), r.guidance if guidance == "file" else None), asks(r))
            for n, r in enumerate(self.rows)
        )

    def _seed(self, row: Row, number: int, seeds: str) -> int:
        if seeds == "zero":
            return 0
        if seeds == "row":
            return number
        if row.seed is None:
            raise WrongFile(
                f"{self.file} has no seeds ({', '.join(COLUMNS['seed'])}); take the row's number with --set seeds=row"
            )
        return row.seed


def read_table(file: Path | None, headerless: bool = False) -> Table:
    """A CSV with a header, or, with `headerless`, one prompt a line (bytes that are no UTF-8 become U+FFFD).

    A prompt that reads nan, None, NA or nothing at all stays that text. Raises BadRequest for no file, WrongFile for
    everything that is not such a table, and for an id that occurs twice.
    """
    if file is None:
        raise BadRequest("this suite reads a file of yours; name it with --set file=PATH (docs/suites.md)")
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise WrongFile(f"cannot read {file}: {error.strerror or error}; check the path") from None
    if b"\0" in data:
        raise WrongFile(f"{file} is no text (it holds zero bytes); expected a CSV with a prompt column")
    if headerless:
        lines = data.decode("utf-8", errors="replace").splitlines()
        rows = tuple(Row(text, n + 1) for n, text in enumerate(lines) if text.strip())
    else:
        rows = tuple(_csv(Path(file), _decoded(Path(file), data)))
    if not rows:
        raise WrongFile(f"{file} holds no prompt")
    return Table(Path(file), rows)


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise WrongFile(f"{file}, line {line} is not UTF-8; save the table as UTF-8") from None


def _csv(file: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    seen: dict[str, int] = {}
    try:
        header = next(reader, [])
        place = _places(file, header)
        for cells in reader:
            if not cells:
                continue
            line = reader.line_num
            if len(cells) != len(header):
                raise WrongFile(
                    f"{file}, line {line}: {len(cells)} columns where the header has {len(header)}; "
                    "quote prompts that hold commas"
                )
            row = _row(file, line, cells, header, place)
            if row.id and row.id in seen:
                raise WrongFile(
                    f"{file}, line {line}: id {row.id!r} stands already on line {seen[row.id]}; make it unique"
                )
            seen[row.id] = line
            yield row
    except csv.Error as error:
        raise WrongFile(f"{file}, line {reader.line_num} is no CSV: {error}") from None


def _places(file: Path, header: Sequence[str]) -> dict[str, int]:
    """Which column is what. Raises WrongFile without a column of prompts."""
    names = [h.strip().casefold() for h in header]
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise WrongFile(f"{file} has two columns {twice[0]!r}; rename one")
    found: dict[str, int] = {}
    for what, known in COLUMNS.items():
        place = next((names.index(n) for n in known if n in names), None)
        if place is not None:
            found[what] = place
    if NEEDED not in found:
        raise WrongFile(
            f"{file} has no column of prompts ({', '.join(COLUMNS['prompt'])}); its header reads "
            f"{', '.join(header)[:120]!r}"
        )
    return found


def _row(file: Path, line: int, cells: Sequence[str], header: Sequence[str], place: Mapping[str, int]) -> Row:
    def number(what: str, convert: Callable[[str], T]) -> T | None:
        text = cells[place[what]].strip() if what in place else ""
        try:
            return convert(text) if text else None
        except ValueError:
            raise WrongFile(f"{file}, line {line}: {header[place[what]]} is {text!r}, expected a number") from None

    seed, guidance = number("seed", _whole), number("guidance", float)
    if seed is not None and not 0 <= seed < 2**64:
        raise WrongFile(f"{file}, line {line}: seed {seed} lies outside 0 to 2^64 - 1")
    if guidance is not None and not 0 <= guidance < 1e4:
        raise WrongFile(f"{file}, line {line}: guidance {guidance} is out of range")
    identity = cells[place["id"]].strip() if "id" in place else ""
    more = {h: c for k, (h, c) in enumerate(zip(header, cells, strict=True)) if k not in place.values()}
    return Row(cells[place["prompt"]], line, seed, guidance, identity, more)


def _whole(text: str) -> int:
    """A seed as other tools write it: 123 or 123.0."""
    whole, _, rest = text.partition(".")
    if rest.strip("0"):
        raise ValueError(text)
    return int(whole)
