"""`efface demo`: five objects and one style leave the bundled model, and a report says how gone they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "demo"
CONCEPTS = ("rabbit", "hamburger", "guitar", "rocket", "penguin", "monochrome style")


def command(
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")] = Path("runs/demo"),
    json: o.Json = False,
    threads: o.Threads = None,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Erase from the bundled model, measure, write the report.

    A finished demo is drawn anew, an unfinished one goes on.
    """
    o.prepare(threads, offline=True)
    from efface.audit import Audit, audit
    from efface.erasure import plan, solve
    from efface.model import load
    from efface.report.page import table_text
    from efface.request import Request
    from efface.world import demo_keep

    if _finished_demo(out):
        shutil.rmtree(out)
    model, work = load("mini", "cpu"), o.working(0, quiet)
    with work.interruptible():
        made = plan(model, Request.build(CONCEPTS, demo_keep()))
        patch = solve(made, work)
        command_line = "efface demo"
        result = audit(Audit(model, made.request, "world-smoke", patch, command=command_line), out, work, overwrite)
    patch.save(out / "patch.safetensors")
    o.emit(
        {"report": str(out / "report.html"), "tables": result["tables"], "cost": result["cost"]},
        json,
        [table_text(result), f"report: {(out / 'report.html').resolve()}"],
    )


def _finished_demo(folder: Path) -> bool:
    """True for a run of this command that was finished; any other folder is left alone."""
    import json as encoder

    try:
        return encoder.loads((folder / "report.json").read_text(encoding="utf-8"))["asked"]["command"] == "efface demo"
    except (OSError, ValueError, KeyError, TypeError):
        return False
