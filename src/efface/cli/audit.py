"""`efface audit`: how gone is it, and what did it cost?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "audit"


def command(
    model: o.ModelName,
    out: o.Out,
    patch: Annotated[Path | None, typer.Option("--patch", help="Judge MODEL with this patch.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="MODEL is an edited model; this is its base.")] = None,
    concept: o.Concepts = None,
    suite: Annotated[str, typer.Option(help="efface list suites names them.")] = "world-smoke",
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    json: o.Json = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw a suite with base and edited model, judge both, write RUN/report.html and RUN/report.json."""
    from efface.errors import BadRequest

    if (patch is None) == (base is None):
        raise BadRequest("name either MODEL --patch PATCH or EDITED --base BASE, one of the two")
    opened = o.opened(model, device, dtype, threads, offline)
    from efface.audit import Audit, audit, concepts_for
    from efface.model import load
    from efface.patch import Patch
    from efface.registry import find
    from efface.report import table_text

    loaded = Patch.load(patch) if patch else None
    original = load(base, device, dtype, offline) if base else opened
    asked = Audit(
        original,
        concepts_for(concept or [], loaded).settle(original.kinds),
        suite,
        loaded,
        None if loaded else opened,
        steps,
        guidance,
        o.command_line(),
    )
    if dry_run:
        count = len(find("suites", suite)().items(asked.request, original.concepts))
        o.emit({"images_a_side": count}, json, [f"{count} images a side, {2 * count} in all if none is cached"])
        return
    work = o.working(0, quiet)
    with work.interruptible():
        result = audit(asked, out, work, overwrite)
    o.emit(
        {
            "report": str(out / "report.html"),
            "tables": result["tables"],
            "verdict": result["verdict"],
            "cost": result["cost"],
        },
        json,
        [table_text(result), f"report: {out / 'report.html'}"],
    )
