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
    """Merge PATCH into MODEL and write a diffusers folder that loads anywhere.

    --overwrite replaces a folder that this command wrote.
    """
    from efface.patch import Patch

    wanted = Patch.load(patch).scaled(strength)  # before the model: a wrong strength is found at once
    o.prepare(offline=offline)
    from efface.model import load
    from efface.model.sources import Folder
    from efface.patch.merge import merge

    base = load(model, "cpu", "float32", offline)
    done = merge(base, wanted, out, overwrite)
    absent = [part for part, there in Folder(base.folder).parts.items() if not there]
    lines = [f"{out}: {done} weights changed", *(f"without {part}: {model} lacks it" for part in absent)]
    o.emit({"folder": str(out), "sites": done, "absent": absent}, json, lines)
