"""`efface generate`: pictures of a model, with or without patches."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

NAME = "generate"


def command(
    model: o.ModelName,
    out: o.Out,
    patch: Annotated[list[Path] | None, typer.Option("--patch", help="Applied in this order; repeat.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Repeat for several.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="One prompt a line.")] = None,
    seeds: Annotated[str, typer.Option(help="0-3 or 0,5,9.")] = "0",
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0)] = None,
    engine: o.EngineName = None,
    address: o.Address = None,
    json: o.Json = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw every prompt with every seed into a folder: NNNN-SEED.png, N the prompt's number from 0.

    --overwrite replaces a folder that holds nothing else.
    """
    from efface.errors import BadRequest
    from efface.request import read_lines

    texts = [*(prompt or ()), *(read_lines(prompts) if prompts else ())]
    if not texts:
        raise BadRequest("no prompt was given; pass --prompt TEXT or --prompts FILE")
    numbers = o.seeds_of(seeds)
    where = o.engine_named(engine, address)
    opened = o.opened(model, device, dtype, threads, offline)
    from efface.files import new_folder
    from efface.gallery.drawing import Sampling, Side
    from efface.gallery.gallery import Gallery
    from efface.gallery.shot import Shot
    from efface.patch import Patch
    from efface.runs.folder import shared_images

    shots = [Shot(text, seed) for text in texts for seed in numbers]
    names = [f"{i // len(numbers):04d}-{shot.seed}.png" for i, shot in enumerate(shots)]
    sampling, work = Sampling.of(opened, steps, guidance), o.working(0, quiet)
    with new_folder(out, overwrite, _drawn) as made:  # before anything is drawn: it may be refused
        with work.interruptible(), ExitStack() as stack:
            for file in patch or ():
                stack.enter_context(Patch.load(file).applied(opened))
            gallery = Gallery(Side("generated", opened, opened.in_force), sampling, shared_images())
            gallery.draw(gallery.shards(shots), work, engine=where)
        for name, shot in zip(names, shots, strict=True):
            shutil.copyfile(gallery.images.path(gallery.key(shot)), made / name)
    rows = [{"file": n, "prompt": s.prompt, "seed": s.seed} for n, s in zip(names, shots, strict=True)]
    o.emit({"folder": str(out), "images": rows}, json, [f"{out}: {len(rows)} images"])


def _drawn(folder: Path) -> bool:
    """True for a folder that holds pictures of this command and nothing else."""
    return all(re.fullmatch(r"\d{4,}-\d+\.png", f.name) for f in folder.iterdir())
