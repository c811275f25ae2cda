"""`efface generate`: pictures of a model, with or without patches."""

from __future__ import annotations

import os
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
    json: o.Json = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw every prompt with every seed into a folder: NNNN-SEED.png, N the prompt's number from 0."""
    from efface.errors import BadRequest, OutputExists
    from efface.request import read_lines

    texts = [*(prompt or ()), *(read_lines(prompts) if prompts else ())]
    if not texts:
        raise BadRequest("no prompt was given; pass --prompt TEXT or --prompts FILE")
    if out.exists() and not overwrite:
        raise OutputExists(out)
    numbers = o.seeds_of(seeds)
    opened = o.opened(model, device, dtype, threads, offline)
    from efface.measure import Sampling, Side, draw
    from efface.patch import Patch
    from efface.store import Images
    from efface.suites import Item
    from efface.work import cache_folder

    items = [Item(t, s, ()) for t in texts for s in numbers]
    sampling, images = Sampling.of(opened, steps, guidance), Images(cache_folder() / "images")
    work = o.working(0, quiet)
    with work.interruptible(), ExitStack() as stack:
        for file in patch or ():
            stack.enter_context(Patch.load(file).applied(opened))
        side = Side("generated", opened, opened.in_force)
        draw(side, items, sampling, images, work)
    part = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        part.mkdir(parents=True)
        names = [f"{i // len(numbers):04d}-{item.seed}.png" for i, item in enumerate(items)]
        for name, item in zip(names, items, strict=True):
            shutil.copyfile(images.path(side.image_key(item, sampling)), part / name)
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    rows = [{"file": n, "prompt": i.prompt, "seed": i.seed} for n, i in zip(names, items, strict=True)]
    o.emit({"folder": str(out), "images": rows}, json, [f"{out}: {len(rows)} images"])
