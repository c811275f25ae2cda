"""`efface status`: how far is a run?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "status"


def command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    json: o.Json = False,
) -> None:
    """Say how many images of RUN are planned, drawn and judged, and what comes next. Nothing is changed."""
    from efface.runs.folder import status
    from efface.scores.forms import row_of

    found = status(run)
    lines = [f"{run}: {found.state}, suite {found.suite}, {found.bytes / 1e6:.1f} MB"]
    for side, n in found.sides.items():
        lines.append(f"{side}: {n.planned} planned, {n.drawn} drawn, {n.judged} judged")
    lines += [f"{count} {words}" for count, words in (
        (found.errors, "images failed (ERROR)"),
        (found.damaged_lines, "records are damaged; they are judged again"),
        (found.leftovers, f"files of killed writers; efface gc {run} deletes them"),
    ) if count]  # fmt: skip
    o.emit(row_of(found), json, [*lines, found.next])
