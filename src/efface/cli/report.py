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
    import json as encoder

    from efface.audit import images_of
    from efface.errors import WrongFile
    from efface.report import page
    from efface.report.content import picture_source

    file = run / "report.json"
    try:
        found = encoder.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WrongFile(f"{file} is missing or torn; efface audit ... -o {run} makes it") from None
    private = bool(found.get("suite", {}).get("private"))
    page.write(found, run, picture_source(images_of(run), private))
    o.emit(found, json, [page.table_text(found), f"report: {run / 'report.html'}"])
