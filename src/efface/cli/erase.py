"""`efface erase`: a request becomes a patch."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli import options as o

NAME = "erase"


def command(
    model: o.ModelName,
    out: o.Out,
    concept: o.Concepts = None,
    concepts: o.ConceptFile = None,
    keep: o.Keeps = None,
    keep_file: o.KeepFile = None,
    method: Annotated[str, typer.Option(help="efface list methods names them.")] = "scapre",
    preset: Annotated[str | None, typer.Option(help="A preset of the method; default: the model's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; repeat.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the method's own draws.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    json: o.Json = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Erase concepts from MODEL and write the change as a small patch."""
    import sys

    from efface.erasure import plan, saved_state, solve
    from efface.errors import OutputExists, WrongFile
    from efface.request import Request, read_lines
    from efface.untrusted import printable

    beside = out.with_name(f"{out.name}.json")
    if os.path.lexists(out) and not overwrite:
        raise OutputExists(out)
    if os.path.lexists(beside) and not _ours(beside):
        raise WrongFile(f"{beside}, where notes on this patch would go, is of somebody else; name another output")
    if out.is_dir():
        raise WrongFile(f"{out} is a folder; name a file, for example {out / 'patch.safetensors'}")
    kept = [*(keep or ()), *(read_lines(keep_file) if keep_file else ())]
    request = Request.build(o.gathered(concept, concepts), kept, seed, preset)
    settings: dict[str, Any] = dict(o.settings_of(set_))
    made = plan(o.opened(model, device, dtype, threads, offline), request, method=method, **settings)
    print(*map(printable, [*made.lines(), *(f"warning: {w}" for w in made.warnings)]), sep="\n", file=sys.stderr)
    if dry_run:
        o.emit({"plan": made.lines(), "warnings": made.warnings}, json, [])
        return
    start = time.monotonic()
    with saved_state(made) as folder:
        work = o.working(seed, quiet, folder)
        with work.interruptible():
            patch = solve(made, work)
        patch.save(out, overwrite=overwrite)
    _note(beside, round(time.monotonic() - start, 3), made.warnings)
    size, sites = out.stat().st_size, len(patch.sites)
    said = {"patch": str(out), "hash": patch.hash, "bytes": size, "sites": sites, "warnings": made.warnings}
    o.emit(said, json, [f"{out}: {size / 1e6:.2f} MB, {sites} sites, {patch.hash}"])


def _ours(beside: Path) -> bool:
    """Whether a file is one that this command writes beside its patches."""
    from efface.errors import WrongFile
    from efface.untrusted.documents import read_json

    try:
        found = read_json(beside)
    except WrongFile:
        return False
    return isinstance(found, dict) and set(found) == {"seconds", "python", "warnings"}


def _note(file: Path, seconds: float, warnings: list[str]) -> None:
    """What may vary between runs, in a file beside the patch."""
    import json as encoder

    from efface.files import write_bytes

    said = {"seconds": seconds, "python": platform.python_version(), "warnings": warnings}
    write_bytes(file, encoder.dumps(said, indent=1).encode())
