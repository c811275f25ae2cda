"""Tables, lists and files of lines, read by their ending in one way; every refusal names the line or the entry.

CSV and TSV have a header; JSON, TOML and YAML hold a list, at the top or under a name; JSONL has one entry a line; any
other ending is one text a line. A line ends at a line feed, with or without a carriage return, and nowhere else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efface.errors import WrongFile
from efface.untrusted.documents import DOCUMENTS, bytes_of, decoded, parsed_json, read_document
from efface.untrusted.rules import short

__all__ = ["FORMS", "Entry", "entries", "is_form", "lines", "sheet"]

FORMS = (".csv", ".tsv", ".jsonl", *DOCUMENTS)
SHEETS = {".csv": ",", ".tsv": "\t"}
OTHERS = (".xlsx", ".xls", ".ods", ".numbers", ".parquet", ".feather", ".zip", ".gz", ".pkl", ".npy")
ACCEPTED = "CSV, TSV, JSON, JSONL, TOML, YAML or lines"


@dataclass(frozen=True)
class Entry:
    """One entry of a file: a text alone, or values by column."""

    where: str
    """File and line, or file and number where the form has no lines."""
    line: int
    text: str | None = None
    cells: Mapping[str, object] = field(default_factory=dict)


def is_form(file: Path) -> bool:
    """Whether a file is a table or a list of entries, else it is lines."""
    return file.suffix.lower() in FORMS


def entries(path: str | Path, under: Sequence[str], short_rows: bool = False, lines_as: str = "") -> Iterator[Entry]:
    """Every entry of a file. Raises WrongFile.

    under: names of the list in a document. short_rows: whether a row may end early; what it lacks is left out.
    lines_as: the ending that a file without a known one is taken for, else lines.
    """
    file = Path(path)
    ending = file.suffix.lower() if is_form(file) else lines_as
    if file.suffix.lower() in OTHERS:
        raise WrongFile(f"{file} is no text file; expected {ACCEPTED}, so save the table as CSV in UTF-8")
    if ending in SHEETS:
        yield from sheet(file, SHEETS[ending], short_rows)
    elif ending == ".jsonl":
        for number, text in lines(file):
            where = f"{file}, line {number}"
            yield _entry(parsed_json(text, where, "write one JSON value a line"), where, number)
    elif ending in DOCUMENTS:
        for number, value in enumerate(_listed(read_document(file, "mend the file"), under, file), 1):
            yield _entry(value, f"{file}, entry {number}", number)
    else:
        for number, text in lines(file):
            if not text.strip(" \t").startswith("#"):
                yield Entry(f"{file}, line {number}", number, text.strip(" \t"))


def lines(file: Path, any_bytes: bool = False) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank. any_bytes: what is no UTF-8 becomes U+FFFD. Raises WrongFile."""
    data = bytes_of(file)
    text = data.decode("utf-8", "replace").removeprefix("\ufeff") if any_bytes else decoded(data, file)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" \t\r"):
            yield number, line.removesuffix("\r")


def _entry(value: object, where: str, number: int) -> Entry:
    if isinstance(value, str):
        return Entry(where, number, value)
    if isinstance(value, dict):
        return Entry(where, number, None, value)
    raise WrongFile(f"{where} is {short(value)}, expected a text or a table")


def _listed(data: object, under: Sequence[str], file: Path) -> list[object]:
    found = data
    if isinstance(data, dict):
        found = next((data[name] for name in under if name in data), None)
    if not isinstance(found, list):
        raise WrongFile(f"{file} holds no list: expected one, at the top or under {' or '.join(map(repr, under))}")
    return found


# --- rows and columns ------------------------------------------------------------------------------------------------


def sheet(file: Path, delimiter: str = ",", short_rows: bool = False) -> Iterator[Entry]:
    """The rows of a CSV below its header, by column. A quoted cell may hold line breaks. Raises WrongFile."""
    data = bytes_of(file)
    text = _checked(data, file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        header = _header(next(reader, []), delimiter, file)
        start = reader.line_num + 1
        for cells in reader:
            where, line = f"{file}, line {start}", start
            start = reader.line_num + 1
            if cells:
                _fits(cells, header, short_rows, where)
                yield Entry(where, line, None, dict(zip(header, cells, strict=False)))
    except csv.Error as error:
        raise WrongFile(f"{file}, line {start} is no CSV: {error}; see to its quotes") from None


def _checked(data: bytes, file: Path) -> str:
    text = decoded(data, file) if not data.startswith(b"\x89PNG") else ""
    if (at := data.find(b"\0")) >= 0:
        line = data[:at].count(b"\n") + 1
        raise WrongFile(f"{file}, line {line} holds zero bytes, so this is no table; save it as CSV in UTF-8")
    return text


def _header(cells: Sequence[str], delimiter: str, file: Path) -> list[str]:
    names = [c.strip() for c in cells]
    other = next((d for d in (";", "\t", ",", "|") if d != delimiter and len(names) == 1 and d in names[0]), "")
    if other:
        word = {";": "semicolons", "\t": "tabs (name it .tsv)", ",": "commas (name it .csv)", "|": "bars"}[other]
        raise WrongFile(f"{file} separates its columns with {word}; save it with {_word(delimiter)}")
    folded = [n.casefold() for n in names]
    if twice := sorted({n for n in folded if n and folded.count(n) > 1}):
        raise WrongFile(f"{file} has two columns {twice[0]!r}; rename one")
    return names


def _word(delimiter: str) -> str:
    return "commas" if delimiter == "," else "tabs"


def _fits(cells: Sequence[str], header: Sequence[str], short_rows: bool, where: str) -> None:
    if len(cells) == len(header) or (short_rows and len(cells) < len(header)):
        return
    raise WrongFile(
        f"{where}: {len(cells)} columns where the header has {len(header)}; quote texts that hold the separator"
    )
