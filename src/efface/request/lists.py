"""Requests' lists: concepts and plain texts from files."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, UnknownName, WrongFile
from efface.request.request import Concept


def read_concepts(path: str | Path) -> list[Concept]:
    """TOML, YAML, JSON, CSV or one name a line -> concepts. Raises WrongFile, BadRequest for a concept as such.

    Tables hold `concepts`: a list of texts or of tables with the fields of `Concept`. CSV has a header with at
    least `name`; several synonyms or keep texts in one cell are separated by `;`.
    """
    file = Path(path)
    rows = _rows(file, _text(file))
    try:
        found = [_concept(row) for row in rows]
    except BadRequest as error:
        raise BadRequest(f"{file}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WrongFile(f"{file} is no concept list: {error}; see docs/flow.md for the formats") from None
    if not found:
        raise WrongFile(f"{file} names no concept; write one name a line or a table 'concepts'")
    return found


def read_lines(path: str | Path) -> list[str]:
    """One text a line, blank lines and lines that start with # left out. Raises WrongFile."""
    lines = (line.strip() for line in _text(Path(path)).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a byte-order mark
    except FileNotFoundError:
        raise WrongFile(f"there is no file {file}; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise WrongFile(
            f"{file} is no text file ({type(error).__name__}); expected TOML, YAML, JSON, CSV or lines"
        ) from None


def _rows(file: Path, text: str) -> Sequence[Any]:
    suffix = file.suffix.lower()
    try:
        if suffix == ".toml":
            return _table(tomllib.loads(text), file)
        if suffix == ".json":
            return _table(json.loads(text), file)
        if suffix in (".yaml", ".yml"):
            import yaml

            return _table(yaml.safe_load(text), file)
        if suffix == ".csv":
            return list(csv.DictReader(text.splitlines()))
    except ValueError as error:  # JSON and TOML errors are ValueErrors
        raise WrongFile(f"{file} is no concept list: {_first_line(error)}") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise WrongFile(f"{file} is no concept list: {_first_line(error)}") from None
        raise
    return read_lines(file)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _table(data: Any, file: Path) -> Sequence[Any]:
    rows = data.get("concepts") if isinstance(data, dict) else data
    if not isinstance(rows, list):
        raise WrongFile(f"{file} is no concept list: expected a list or a table with 'concepts'")
    return rows


def _concept(row: Any) -> Concept:
    if isinstance(row, str):
        return Concept.parse(row)
    known = {k: v for k, v in dict(row).items() if v is not None}
    unknown = set(known) - set(Concept.__dataclass_fields__)
    if unknown:
        raise UnknownName("field of a concept", sorted(unknown)[0], Concept.__dataclass_fields__)
    for name in ("synonyms", "keep"):
        value = known.get(name)
        if isinstance(value, str):
            known[name] = tuple(t.strip() for t in value.split(";") if t.strip())
    return Concept(**known)
