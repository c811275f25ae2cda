"""The report of one erasure: a self-contained page, the same content as JSON, and a table for the terminal.

The page order follows what readers look for: verdict, pictures, rates with denominators and intervals, what
was not measured, limits, then everything needed to repeat it (Liang et al., HELM, TMLR 2023; Mitchell et al.,
model cards, FAT* 2019). Nothing here computes a number.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import NamedTuple, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table as Printed
from rich.text import Text

from efface.errors import WrongFile
from efface.files import write_bytes
from efface.report.report import Report
from efface.report.words import cell_text, known, percent, points
from efface.scores.forms import Plain, plain
from efface.scores.tables import Loss, Rate, Row

__all__ = ["pages", "render", "table_text", "write"]

DIRECTIONS = {"down": ("↓", "should fall"), "up": ("↑", "should rise"), "same": ("=", "should stay")}
LISTED = 8  # longer groups stand as their pooled row in the terminal, folded on the page
SHOWN_WIDTH = 256  # pixels; larger images are embedded reduced, the gallery keeps the originals
OPTIONAL = ("loss", "garbage", "replaced")  # columns of a table that may be empty


class Picture(NamedTuple):
    """An embedded image; small ones are enlarged without smoothing, so that one sees the real pixels."""

    uri: str
    small: bool


def render(report: Report, image: Callable[[str], bytes]) -> str:
    """The page as one HTML text; `image` gives the bytes of an image by its key in the report."""
    _check(report)
    picture = cache(lambda key: _picture(key, image(key)))
    template = pages().get_template("report.html.j2")
    return template.render(r=report, picture=picture, directions=DIRECTIONS, listed=LISTED, columns=_columns(report))


def _check(report: Report) -> None:
    wrong = sorted({table.direction for table in report.tables} - set(DIRECTIONS))
    if wrong:
        raise WrongFile(f"expected direction {', '.join(DIRECTIONS)}, got {wrong[0]!r}; measure again")


@cache
def pages() -> Environment:
    """Templates of this package, with the filters that round honestly."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of concepts and prompts come from users
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(pct=percent, points=points, plain=_plain_text, entries=_entries, lines=_lines)
    environment.tests.update(
        longer=lambda rows: len(rows) > LISTED, known=known, group=_is_group, records=_is_records, alike=_is_alike
    )
    return environment


def _entries(value: object) -> list[tuple[str, Plain]]:
    """Of a dataclass or a table."""
    found = plain(value)
    return list(found.items()) if isinstance(found, dict) else []


def _lines(rows: Sequence[object]) -> list[Plain]:
    """Dataclasses or tables as what JSON holds."""
    return [plain(row) for row in rows]


def write(report: Report, folder: Path, image: Callable[[str], bytes]) -> Path:
    """Writes report.json and report.html into `folder`, each whole or not at all; returns the page's path."""
    page = render(report, image)
    content = json.dumps(report.content(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in (("report.json", content), ("report.html", page)):
        write_bytes(folder / name, text.encode("utf-8", "replace"))
    return folder / "report.html"


def table_text(report: Report) -> str:
    """The verdict and the table as Markdown text: it reads in a terminal and pastes into an issue."""
    columns = _columns(report)
    table, notes = Printed(box=box.MARKDOWN), []
    table.add_column("concept", no_wrap=True)
    heads = ["base, %", "edited, %"] + ["loss, points" if c == "loss" else f"{c}, %" for c in columns]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for group in report.tables:
        arrow, meaning = DIRECTIONS[group.direction]
        table.add_row(Text(f"{_line(group.label)} {arrow} {meaning}"), *[""] * len(heads))
        pooled = [group.pooled] if group.pooled else []
        shown = list(group.rows) if len(group.rows) <= LISTED or not pooled else []
        for row in shown + pooled:
            table.add_row(*(Text(text) for text in _text_row(row, columns)))
        notes += [f"{_line(row.name)}: {_line(text)}" for row in shown for text in (row.reason, row.note) if text]
    top = [_line(report.title), _line(report.verdict.line), ""]
    return "\n".join([*top, *_printed(table), "", "Rates in per cent with 95 % intervals.", *notes]) + "\n"


def _printed(table: Printed) -> list[str]:
    """Lines of a fixed, generous width: the same report gives the same text in every terminal."""
    out = StringIO()
    Console(file=out, width=4000, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return [line.strip() for line in out.getvalue().splitlines() if line.strip()]


def _columns(report: Report) -> list[str]:
    """The optional columns that at least one row fills; one set for all groups keeps them aligned."""
    rows = [row for table in report.tables for row in (*table.rows, table.pooled) if row]
    return [name for name in OPTIONAL if any(_cell(row, name) for row in rows)]


def _cell(row: Row, column: str) -> Rate | Loss | None:
    return getattr(row, column)


def _picture(key: str, raw: bytes) -> Picture:
    """Bytes as a data URI: a PNG as it is, anything large reduced to what the page can show."""
    try:
        with Image.open(BytesIO(raw), formats=("PNG", "JPEG", "WEBP")) as opened:
            kind, size = opened.format, opened.size
            if kind != "PNG" or max(size) > SHOWN_WIDTH:
                reduced = opened.convert("RGB")
                reduced.thumbnail((SHOWN_WIDTH, SHOWN_WIDTH), Image.Resampling.LANCZOS)
                raw = _png(reduced)
    except OSError as error:
        raise WrongFile(f"expected a PNG, JPEG or WebP for {key!r}, got {error}; draw it again") from None
    return Picture("data:image/png;base64," + b64encode(raw).decode(), max(size) <= 128)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _text_row(row: Row, columns: Sequence[str]) -> list[str]:
    first = [_line(row.name), cell_text(row.base)]
    if row.state != "ok":
        return [*first, row.state.upper(), *("" for _ in columns)]
    return [*first, *(cell_text(_cell(row, column)) for column in ("edited", *columns))]


def _line(text: object) -> str:
    """One line without control characters: a name must not move the cursor or break the table."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text)).replace("|", "¦")


def _plain_text(value: object) -> str:
    """A leaf of the recipe in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, list | tuple):
        return ", ".join(_plain_text(item) for item in value) or "none"
    return "none" if value is None or value == {} else str(value) or "not stated"


def _is_group(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _is_alike(value: object) -> bool:
    """Flat records with the same keys read better as a table than as a list of lists."""
    rows = cast("list[Mapping[str, object]]", value) if _is_records(value) else []
    flat = bool(rows) and not any(isinstance(x, Mapping) for row in rows for x in row.values())
    return flat and all(list(row) == list(rows[0]) for row in rows)
