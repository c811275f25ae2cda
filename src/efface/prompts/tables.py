"""Prompt tables of the user in the dialects of published files, or one prompt a line. None of them is shipped.

Columns are found by any of their known names. What is unclear is refused with the line it stands on: a table that is
half understood would be measured half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from efface.errors import WrongFile
from efface.untrusted import short
from efface.untrusted.tables import Entry, entries, lines

__all__ = ["COLUMNS", "Row", "missing_seeds", "read_rows"]

T = TypeVar("T", int, float)

# what a column is called in published files, most particular name first
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "adv_prompt", "sensitive prompt", "text", "caption"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale"),
    "id": ("case_number", "image_id", "coco_id", "id", "unnamed: 0", ""),
}
MOST_GUIDANCE = 1e4


@dataclass(frozen=True)
class Row:
    """One prompt of a table; line: where it stands in the file; more: every other column as text."""

    prompt: str
    line: int
    seed: int | None = None
    guidance: float | None = None
    id: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


def read_rows(file: Path, headerless: bool = False) -> tuple[Row, ...]:
    """Prompts of a table (a file without a known ending is read as CSV), or, with `headerless`, one a line.

    In lines, bytes that are no UTF-8 become U+FFFD. A prompt that reads nan, None, NA or nothing at all stays that
    text. Raises WrongFile for everything that is not such a table, and for an id that occurs twice.
    """
    if headerless:
        rows = [Row(text, number) for number, text in lines(file, any_bytes=True)]
    else:
        rows = list(_rows(entries(file, ("prompts",), lines_as=".csv"), file))
    if not rows:
        raise WrongFile(f"{file} holds no prompt")
    return tuple(rows)


def missing_seeds(file: Path, rows: Sequence[Row], cure: str) -> str:
    """Why rows without a seed are refused: none has one, or some have none."""
    bad = [r.line for r in rows if r.seed is None]
    if len(bad) == len(rows):
        return f"{file} has no seeds ({', '.join(COLUMNS['seed'])}); {cure}"
    return (
        f"{file}, line {bad[0]}: the seed is missing ({len(bad)} of {len(rows)} rows have none); fill it in, or {cure}"
    )


def _rows(found: Iterable[Entry], file: Path) -> Iterator[Row]:
    seen: dict[str, int] = {}
    header: tuple[str, ...] | None = None
    place: Mapping[str, str] = {}
    for entry in found:
        if entry.text is None and tuple(entry.cells) != header:
            header = tuple(entry.cells)
            place = _places(file, header)
        row = Row(entry.text, entry.line) if entry.text is not None else _row(entry, place)
        if row.id and row.id in seen:
            raise WrongFile(f"{entry.where}: id {row.id!r} stands already on line {seen[row.id]}; make it unique")
        seen[row.id] = entry.line
        yield row
    if header is None and not seen:
        known = ", ".join(COLUMNS["prompt"])
        raise WrongFile(f"{file} holds no prompt: it has no column of prompts ({known}) with a row below its name")


def _places(file: Path, header: Sequence[str]) -> dict[str, str]:
    """What a column is -> its own name. Raises WrongFile without a column of prompts."""
    names = {h.casefold(): h for h in header}
    found = {what: next((names[n] for n in known if n in names), None) for what, known in COLUMNS.items()}
    if found["prompt"] is None:
        raise WrongFile(
            f"{file} has no column of prompts ({', '.join(COLUMNS['prompt'])}); its header reads "
            f"{', '.join(header)[:120]!r}"
        )
    return {what: name for what, name in found.items() if name is not None}


def _row(entry: Entry, place: Mapping[str, str]) -> Row:
    def number(what: str, convert: Callable[[str], T]) -> T | None:
        text = _said(entry.cells.get(place.get(what, "")), entry).strip() if what in place else ""
        try:
            return convert(text) if text else None
        except ValueError:
            raise WrongFile(f"{entry.where}: {place[what]} is {short(text)}, expected a number") from None

    seed, guidance = number("seed", _whole), number("guidance", float)
    if seed is not None and not 0 <= seed < 2**64:
        raise WrongFile(f"{entry.where}: seed {short(seed)} lies outside 0 to 2^64 - 1")
    if guidance is not None and not 0 <= guidance < MOST_GUIDANCE:
        raise WrongFile(f"{entry.where}: guidance {guidance} is out of range")
    identity = _said(entry.cells[place["id"]], entry).strip() if "id" in place else ""
    more = {h: _said(c, entry) for h, c in entry.cells.items() if h not in place.values()}
    prompt = entry.cells[place["prompt"]]
    if not isinstance(prompt, str):
        raise WrongFile(f"{entry.where}: the prompt is {short(prompt)}, expected a text")
    return Row(prompt, entry.line, seed, guidance, identity, more)


def _said(value: object, entry: Entry) -> str:
    """A cell as text."""
    if value is None or isinstance(value, str | int | float):
        return "" if value is None else str(value)
    raise WrongFile(f"{entry.where}: a cell is {short(value)}, expected a text or a number")


def _whole(text: str) -> int:
    """A seed as other tools write it: 123 or 123.0."""
    whole, _, rest = text.partition(".")
    if rest.strip("0") or not whole.removeprefix("-").isdecimal() or len(whole) > 40:
        raise ValueError(text)
    return int(whole)
