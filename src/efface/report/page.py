"""The report of one erasure: a self-contained page, the same content as JSON, and a table for the terminal.

The page order follows what readers look for: verdict, pictures, rates with denominators and intervals, what
was not measured, limits, then everything needed to repeat it (Liang et al., HELM, TMLR 2023; Mitchell et al.,
model cards, FAT* 2019). Nothing here computes a number: a report arrives as a dictionary, "efface-report/1".
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from efface.errors import WrongFile
from efface.files import write_bytes

__all__ = ["FORMAT", "cell_text", "pages", "percent", "points", "render", "table_text", "write"]

FORMAT = "efface-report/1"
DIRECTIONS = {"down": ("↓", "should fall"), "up": ("↑", "should rise"), "same": ("=", "should stay")}
LISTED = 8  # longer groups stand as their pooled row in the terminal, folded on the page
SHOWN_WIDTH = 256  # pixels; larger images are embedded reduced, the gallery keeps the originals

# What may be absent, and what stands in its place; the other keys are required.
OPTIONAL: dict[str, Any] = {
    "asked": {}, "sheets": [], "garbage": {}, "not_measured": [], "limits": [], "recipe": {}, "judges": [],
    "suite": {}, "hashes": {}, "environment": {}, "cost": {}, "images": "", "flags": [], "gate": {}, "sweeps": [],
    "detectable": [], "records": {}, "scores": [], "metrics": [], "neighbourhood": {},
}  # fmt: skip
Json = dict[str, Any]


class Picture(NamedTuple):
    """An embedded image; small ones are enlarged without smoothing, so that one sees the real pixels."""

    uri: str
    small: bool


def render(report: Json, image: Callable[[str], bytes]) -> str:
    """The page as one HTML text; `image` gives the bytes of an image by its key in the report."""
    content = _checked(report)
    picture = cache(lambda key: _picture(key, image(key)))
    template = pages().get_template("report.html.j2")
    return template.render(r=content, picture=picture, directions=DIRECTIONS, listed=LISTED, columns=_columns(content))


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
    environment.filters.update(pct=percent, points=points, plain=_plain_text)
    environment.tests.update(
        longer=lambda rows: len(rows) > LISTED, group=_is_group, records=_is_records, alike=_is_alike
    )
    return environment


def write(report: Json, folder: Path, image: Callable[[str], bytes]) -> Path:
    """Writes report.json and report.html into `folder`, each whole or not at all; returns the page's path."""
    page = render(report, image)
    content = json.dumps(_checked(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in (("report.json", content), ("report.html", page)):
        write_bytes(folder / name, text.encode("utf-8", "replace"))
    return folder / "report.html"


def table_text(report: Json) -> str:
    """The verdict and the table as Markdown text: it reads in a terminal and pastes into an issue."""
    content = _checked(report)
    columns = _columns(content)
    table, notes = Table(box=box.MARKDOWN), []
    table.add_column("concept", no_wrap=True)
    heads = ["base, %", "edited, %"] + ["loss, points" if c == "loss" else f"{c}, %" for c in columns]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for group in content["tables"]:
        arrow, meaning = DIRECTIONS[group["direction"]]
        table.add_row(Text(f"{_line(group['label'])} {arrow} {meaning}"), *[""] * len(heads))
        pooled = [group["pooled"]] if group.get("pooled") else []
        shown = group["rows"] if len(group["rows"]) <= LISTED or not pooled else []
        for row in shown + pooled:
            table.add_row(*(Text(text) for text in _text_row(row, columns)))
            said = [row[key] for key in ("reason", "note") if row.get(key) and row not in pooled]
            notes += [f"{_line(row['name'])}: {_line(text)}" for text in said]
    # A fixed, generous width: the same report gives the same text in every terminal.
    out = StringIO()
    Console(file=out, width=4000, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    lines = [line.strip() for line in out.getvalue().splitlines() if line.strip()]
    top = [_line(content["title"]), _line(content["verdict"]["line"]), ""]
    return "\n".join([*top, *lines, "", "Rates in per cent with 95 % intervals.", *notes]) + "\n"


def percent(cell: Mapping[str, Any] | None) -> str:
    """Rate of a cell in per cent, one decimal; never 0.0 or 100.0 unless it is none or all of them."""
    if cell is None or cell.get("rate") is None:
        return "NA"
    text = f"{100 * cell['rate']:.1f}"
    if text == "0.0" and cell["hits"] > 0:
        return "<0.1"
    return ">99.9" if text == "100.0" and cell["hits"] < cell["n"] else text


def points(value: float | None, sign: bool = False) -> str:
    """A difference or the end of an interval in per cent or points, with a true minus."""
    if value is None:
        return "NA"
    text = f"{100 * value:.1f}"
    text = "0.0" if text == "-0.0" else text
    return ("+" + text if sign and float(text) > 0 else text).replace("-", "−")


def _checked(report: Json) -> Json:
    """A plain copy with defaults filled in, or one sentence that says what is wrong with it."""
    if report.get("format") != FORMAT:
        raise WrongFile(f"expected a report of format {FORMAT}, got {report.get('format')!r}; measure again")
    missing = [key for key in ("title", "verdict", "tables") if key not in report]
    if missing:
        raise WrongFile(f"expected a report with {', '.join(missing)}, got none of them; measure again")
    wrong = sorted({str(group.get("direction")) for group in report["tables"]} - set(DIRECTIONS))
    if wrong:
        raise WrongFile(f"expected direction {', '.join(DIRECTIONS)}, got {wrong[0]!r}; measure again")
    return _finite({**OPTIONAL, **report})


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: what is not a number becomes null, which is printed as NA."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _columns(report: Json) -> list[str]:
    """The optional columns that at least one row fills; one set for all groups keeps them aligned."""
    rows = [row for group in report["tables"] for row in [*group["rows"], group.get("pooled") or {}]]
    return [name for name in ("loss", "garbage", "replaced") if any(row.get(name) for row in rows)]


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


def _text_row(row: Json, columns: list[str]) -> list[str]:
    state = str(row.get("state", "ok"))
    first = [_line(row["name"]), cell_text(row.get("base"))]
    if state != "ok":
        return [*first, state.upper(), *("" for _ in columns)]
    return [*first, *(cell_text(row.get(column)) for column in ("edited", *columns))]


def cell_text(cell: Json | None) -> str:
    if cell is None:
        return ""
    if "estimate" in cell:
        return f"{points(cell['estimate'], True)} [{points(cell['low'])}, {points(cell['high'])}]"
    return f"{percent(cell)} [{points(cell['low'])}, {points(cell['high'])}] {cell['hits']}/{cell['n']}"


def _line(text: object) -> str:
    """One line without control characters: a name must not move the cursor or break the table."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text)).replace("|", "¦")


def _plain_text(value: Any) -> str:
    """A leaf of the recipe in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    if isinstance(value, list):
        return ", ".join(_plain_text(item) for item in value) or "none"
    return "none" if value is None or value == {} else str(value) or "not stated"


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _is_alike(value: Any) -> bool:
    """Flat records with the same keys read better as a table than as a list of lists."""
    flat = _is_records(value) and not any(isinstance(x, Mapping) for item in value for x in item.values())
    return flat and all(list(item) == list(value[0]) for item in value)
