"""`efface report`: the page of a finished run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "report"


def command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    json: o.Json = False,
) -> None:
    """Write RUN/report.html again from RUN/report.json, and print its table."""
    from efface.report import page
    from efface.report.report import opened_report
    from efface.report.sheets import picture_source
    from efface.runs.folder import stored_images

    found = opened_report(run, f"{run / 'report.json'} is missing or torn; efface audit ... -o {run} makes it")
    page.write(found, run, picture_source(stored_images(run), bool(found.suite.private)))
    o.emit(found.content(), json, [page.table_text(found), f"report: {run / 'report.html'}"])
