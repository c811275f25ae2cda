"""`coco-30k`: the user's own file of COCO captions: what an edit costs where no target is named.

The package ships no caption. Rows without a target are `quality`; a row that names one of the request's texts is left
out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from efface.errors import BadRequest
from efface.gallery.shot import Ask
from efface.judges.panel import PLAIN, Brief
from efface.request import Request
from efface.suites import Known, Plan, merged
from efface.suites._kept import naming
from efface.suites._tables import read_table

__all__ = ["Coco30k"]


@dataclass(frozen=True)
class Coco30k:
    """file: the CSV. rows: the first so many; 0 is all. seeds: file, row (its number) or zero."""

    file: Path | None = None
    rows: int = 0
    seeds: Literal["file", "row", "zero"] = "file"
    version: ClassVar[str] = "1"
    judge: ClassVar[str] = "clip"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = PLAIN

    def plan(self, request: Request, known: Known) -> Plan:
        """Raises BadRequest, WrongFile."""
        whole = read_table(self.file).first(self.rows)
        named = naming(request)
        table = whole.where(lambda row: not named.search(row.prompt))
        if not table.rows:
            raise BadRequest(f"every caption of {self.file} names a target")
        items = merged(table.items(self.seeds, "run", lambda row: (Ask("quality", "caption"),)))
        left = len(whole.rows) - len(table.rows)
        notes = [f"{left} captions that name a target are left out"] if left else []
        notes += [f"rows after the first {self.rows}"] if self.rows else []
        return Plan(items, {}, (f"{len(items)} captions", *notes, "targets: this suite names none"))


PLUGIN = Coco30k
