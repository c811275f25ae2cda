"""`efface compare`: many runs in one table and page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "compare"


def command(
    run: Annotated[list[Path], typer.Argument(help="Finished run folders.")],
    out: o.Out,
    baseline: Annotated[
        Path | None, typer.Option(help="The run that differences are taken to; default: the first of each table.")
    ] = None,
    common: Annotated[
        bool, typer.Option("--common", help="Put runs of different suites together on the images they share.")
    ] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric", metavar="NAME", help="Also this cell of the runs' own metrics, as reports name it; repeat."
        ),
    ] = None,
    json: o.Json = False,
    overwrite: o.Overwrite = False,
) -> None:
    """Write compare.html, compare.md, compare.csv and compare.json: rates, paired differences, costs, plots."""
    from efface.report.compare import compare
    from efface.report.compare_page import markdown, write

    found = compare(run, baseline, common, metric or ())
    write(found, out, overwrite)
    o.emit(found.content(), json, [markdown(found), f"page: {out / 'compare.html'}"])
