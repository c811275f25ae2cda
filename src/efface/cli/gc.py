"""`efface gc`: delete what no run needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "gc"


def command(
    run: Annotated[list[Path] | None, typer.Argument(help="Run folders; the image cache is always looked at.")] = None,
    days: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Also what nobody used for so many days: images that no run holds, statistics, saved states."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    json: o.Json = False,
) -> None:
    """Delete files of killed writers and images outside a run's plan. Records, plans and reports are never touched."""
    from efface.evidence import gather as evidence
    from efface.runs.sweeping import sweep, sweep_cache

    gone = [file for folder in run or () for file in sweep(folder, dry_run)] + sweep_cache(days, dry_run)
    gone += evidence.sweep(days, dry_run)
    word = "would go" if dry_run else "deleted"
    o.emit({"files": [str(f) for f in gone], "deleted": not dry_run}, json, [f"{len(gone)} files {word}"])
