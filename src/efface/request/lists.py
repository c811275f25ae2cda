"""Requests' lists: concepts and plain texts from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from efface.errors import BadRequest, UnknownName, WrongFile
from efface.request.request import Concept
from efface.untrusted.tables import Entry, entries

# what a column of texts is called, most particular name first
TEXTS = ("text", "prompt", "name", "keep", "concept", "caption")
LISTS = ("texts", "prompts", "names", "keep", "concepts")


def read_concepts(path: str | Path) -> list[Concept]:
    """TOML, YAML, JSON, JSONL, CSV, TSV or one name a line -> concepts. Raises WrongFile, BadRequest for a concept.

    Documents hold `concepts`: a list of texts or of tables with the fields of `Concept`. CSV has a header with at
    least `name`; several synonyms or keep texts in one cell are separated by `;`.
    """
    found: list[Concept] = []
    seen: dict[str, str] = {}
    for entry in entries(path, ("concepts",), short_rows=True):
        try:
            concept = _concept(entry)
        except BadRequest as error:
            raise BadRequest(f"{entry.where}: {error}") from None
        except (TypeError, ValueError) as error:
            raise WrongFile(f"{entry.where} is no concept: {error}; see docs/flow.md for the formats") from None
        name = concept.name.casefold()
        if name in seen:
            raise BadRequest(f"{entry.where}: {concept.name!r} stands already at {seen[name]}; remove one of them")
        seen[name] = entry.where
        found.append(concept)
    if not found:
        raise WrongFile(f"{path} names no concept; write one name a line or a table 'concepts'")
    return found


def read_lines(path: str | Path) -> list[str]:
    """One text an entry: lines, or the one column of texts of a table. Raises WrongFile.

    Blank lines and lines that start with # are left out.
    """
    return [_line(entry) for entry in entries(path, LISTS)]


def _line(entry: Entry) -> str:
    text = entry.text
    if text is None:
        names = {k.casefold(): k for k in entry.cells}
        column = next((names[t] for t in TEXTS if t in names), None)
        if column is None:
            known, own = ", ".join(TEXTS), ", ".join(entry.cells)[:120]
            raise WrongFile(f"{entry.where}: no column of texts ({known}) among {own!r}; name it so")
        text = entry.cells[column]
    if not isinstance(text, str) or not text.strip():
        raise WrongFile(f"{entry.where}: the text is {'empty' if text == '' else repr(text)[:60]}; expected a text")
    return text


def _concept(entry: Entry) -> Concept:
    if entry.text is not None:
        return Concept.parse(entry.text)
    known = {k: v for k, v in entry.cells.items() if v is not None}
    unknown = set(known) - set(Concept.__dataclass_fields__)
    if unknown:
        raise UnknownName("field of a concept", sorted(unknown)[0], Concept.__dataclass_fields__)
    if "name" not in known:
        raise ValueError("it lacks 'name'")
    fields: Mapping[str, object] = known | {n: _several(known[n]) for n in ("synonyms", "keep") if n in known}
    return Concept(**fields)  # pyright: ignore[reportArgumentType]


def _several(value: object) -> object:
    return tuple(t.strip() for t in value.split(";") if t.strip()) if isinstance(value, str) else value
