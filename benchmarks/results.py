"""Write docs/results.md from results.json: `python benchmarks/results.py` (`--check` only compares).

The page is never edited by hand. A table of results.json names what was measured, under which conditions, by which
command, when, and where the figures first stood. A cell is a text, or a figure with its unit, its n and its interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Conditions", "Figure", "Table", "page", "read"]

HERE = Path(__file__).parent
DATA = HERE / "results.json"
PAGE = HERE.parent / "docs" / "results.md"

PARTS = {
    "ten": "Ten objects erased jointly",
    "settings": "Settings that were tried",
    "cost": "What the methods cost",
    "published": "Published by others",
}
NAMES = {"uce": "UCE", "scapre": "ScaPre", "fia": "FIA", "kscu": "KSCU"}

INTRO = """# Results

Every measured figure of a method stands on this page. `python benchmarks/results.py` writes it from \
[`benchmarks/results.json`](../benchmarks/results.json); nobody edits it by hand. \
How the figures were found, and what was tried before, says the [log](../benchmarks/log/README.md).

## How to read it

- A rate is the share of images in which the reporting judge sees what was asked for. The judge errs too \
([judges](judges.md)).
- Brackets hold a 95 % interval over prompts. "At most" is a one-sided 95 % bound.
- The bound takes images as independent. Where one concept holds most of the hits, a bound over concepts is wider.
- Settings were chosen on one half of the objects and seeds and are quoted on the other. The same judge saw both.
- All prompts here are "a NAME". The wordings that ScaPre and KSCU erase hold this sentence too.
- Settings carry the names of the day on which they were drawn.
- Line numbers of pages are those at the commit that `results.json` names.
- The bundled models draw emoji. No figure here carries over to a photographic model by itself.
- The two aims are: targets shown in at most 5 %, and kept objects at most 5 points lost.
"""


@dataclass(frozen=True)
class Figure:
    """One number with what makes it readable."""

    value: float | None = None
    unit: str = ""
    n: int | None = None
    hits: int | None = None
    interval: Sequence[float] | None = None
    at_most: float | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.hits} of {self.n}"
        shown = f"{self.value:,}" if isinstance(self.value, int) else f"{self.value}".replace("e-0", "e-")
        said = f"{shown} {self.unit}".strip()
        if self.interval:
            said += f" [{self.interval[0]}, {self.interval[1]}]"
        if self.at_most is not None:
            said += f", at most {self.at_most}{' %' * (self.unit == '%')}"
        return said + f" ({self.note})" * bool(self.note)


@dataclass(frozen=True)
class Conditions:
    """What all figures of a table share."""

    model: str
    judge: str
    seeds: str
    sampling: str
    about: str

    def __str__(self) -> str:
        named = {"Model": self.model, "judge": self.judge, "seeds": self.seeds, "sampling": self.sampling}
        return f"{self.about}\n\n{'; '.join(f'{k}: {v}' for k, v in named.items() if v != 'none')}."


@dataclass(frozen=True)
class Table:
    """Rows of one question; a published one has neither conditions nor a date of ours."""

    id: str
    part: str
    method: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str | Figure]]
    source: Mapping[str, Any]
    conditions: str = ""
    date: str = ""
    command: str = ""
    notes: Sequence[str] = ()
    picture: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"table {self.id}: a row of {len(row)} cells under a head of {len(self.head)}")

    def lines(self) -> Iterator[str]:
        """The table in markdown; n stands in a column of its own, or in the head where it differs by column."""
        labels = next(k for k in range(len(self.head) + 1) if k == len(self.head) or self._figures(k))
        by_row = [{c.n for c in row if isinstance(c, Figure)} - {None} for row in self.rows]
        own = any(by_row) and all(len(found) <= 1 for found in by_row)
        head = [*self.head] if own else [self._headed(k) for k in range(len(self.head))]
        yield _line([*head[:labels], *["n"] * own, *head[labels:]])
        yield "|" + "---|" * (len(head) + own)
        for row, found in zip(self.rows, by_row, strict=True):
            yield _line([*row[:labels], *["".join(f"{n}" for n in found)] * own, *row[labels:]])

    def _figures(self, column: int) -> list[Figure]:
        return [cell for cell in (row[column] for row in self.rows) if isinstance(cell, Figure)]

    def _headed(self, column: int) -> str:
        counts = {f.n for f in self._figures(column)} - {None}
        return self.head[column] + (f" (n = {counts.pop()})" if len(counts) == 1 else "")

    def section(self) -> Iterator[str]:
        """Title, table, notes, where it comes from, picture."""
        yield f"### {self.title}\n"
        yield "\n".join(self.lines()) + "\n"
        if self.notes:
            yield "\n".join(f"- {note}" for note in self.notes) + "\n"
        how = [f"`{self.command}`"] * bool(self.command) + [self.date] * bool(self.date)
        yield f"Source: {', '.join([*how, self._origin()])}.\n"
        if self.picture:
            yield f"![{self.title}: base above, edited below, twice]({self.picture})\n"

    def _origin(self) -> str:
        log = self.source.get("log")
        said = f"`{self.source['page']}` line {self.source['lines']}"
        return said + (f"; `{log['file']}` line {log['lines']}" if log else "")


def _line(cells: Sequence[str | Figure]) -> str:
    return f"| {' | '.join(str(c) for c in cells)} |"


def _cell(found: str | Mapping[str, Any]) -> str | Figure:
    return found if isinstance(found, str) else Figure(**found)


def read(file: Path = DATA) -> tuple[list[Table], dict[str, Conditions], list[dict[str, Any]]]:
    """Tables, conditions by name, what is said of the papers' claims. Raises ValueError for a figure without its n."""
    data = json.loads(file.read_text(encoding="utf-8"))
    known = {name: Conditions(**found) for name, found in data["conditions"].items()}
    tables = [Table(**t | {"rows": [[_cell(c) for c in row] for row in t["rows"]]}) for t in data["tables"]]
    for table in tables:
        _check(table, known)
    return tables, known, data["verdicts"]


def _check(table: Table, known: Mapping[str, Conditions]) -> None:
    """A figure of ours has conditions, a date and, if it is a rate by a judge, its n."""
    if table.part == "published":
        return
    if table.conditions not in known or not table.date:
        raise ValueError(f"table {table.id}: name its conditions and its date")
    judged = known[table.conditions].judge != "none"
    for cell in (c for row in table.rows for c in row if isinstance(c, Figure)):
        if judged and cell.unit in ("%", "points") and cell.n is None:
            raise ValueError(f"table {table.id}: {cell} has no n")


def page(file: Path = DATA) -> str:
    """The whole page."""
    tables, known, verdicts = read(file)
    made = [INTRO]
    for part, title in PARTS.items():
        made.append(f"## {title}\n")
        said = ""
        for table in (t for t in tables if t.part == part):
            if table.conditions not in ("", said):
                said = table.conditions
                made.append(f"{known[said]}\n")
            made += table.section()
    made.append("## What this says of the papers' claims\n")
    for verdict in verdicts:
        made.append(f"### {NAMES[verdict['method']]}: {verdict['claim']}\n")
        made.append("\n".join(f"- {line}" for line in verdict["verdict"]) + "\n")
    return "\n".join(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Compare the page, write nothing.")
    options = parser.parse_args()
    if options.check:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        sys.exit(0 if fresh else "docs/results.md is stale; run python benchmarks/results.py")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
