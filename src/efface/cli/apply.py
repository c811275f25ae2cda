"""`efface apply`: base and patch become a checkpoint of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "apply"


def command(
    model: o.ModelName,
    patch: Annotated[Path, typer.Argument(help="A patch file.")],
    out: o.Out,
    strength: Annotated[float, typer.Option(help="0 is the base, 1 the patch as it is.")] = 1.0,
    json: o.Json = False,
    offline: o.Offline = False,
    overwrite: o.Overwrite = False,
) -> None:
    """Merge PATCH into MODEL and write a diffusers folder that loads anywhere."""
    o.prepare(offline=offline)
    from efface.model import load
    from efface.patch import Patch
    from efface.stream import merge

    done = merge(load(model, "cpu", "float32", offline), Patch.load(patch).scaled(strength), out, overwrite)
    o.emit({"folder": str(out), "sites": done}, json, [f"{out}: {done} weights changed"])
