"""Prompt tables as suites draw them: rows of a user's file, and items made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from efface.errors import BadRequest, WrongFile
from efface.gallery.shot import Ask, Item, Shot
from efface.prompts.tables import Row, missing_seeds, read_rows

__all__ = ["Row", "Table", "patterns", "read_table"]


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
            raise WrongFile(missing_seeds(self.file, self.rows, "take the row's number with --set seeds=row"))
        return row.seed


def read_table(file: Path | None, headerless: bool = False) -> Table:
    """The prompts of a file (`prompts.tables`). Raises BadRequest for no file, WrongFile."""
    if file is None:
        raise BadRequest("this suite reads a file of yours; name it with --set file=PATH (docs/suites.md)")
    return Table(Path(file), read_rows(Path(file), headerless))


def patterns(text: str) -> tuple[str, ...]:
    """`A,B` -> A and B, without blanks."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
