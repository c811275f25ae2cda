"""`efface generate`: pictures of a model, with or without patches."""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli import options as o

if TYPE_CHECKING:
    from efface.gallery.shot import Shot
    from efface.model import Model

NAME = "generate"


def command(
    model: o.ModelName,
    out: o.Out,
    patch: Annotated[list[Path] | None, typer.Option("--patch", help="Applied in this order; repeat.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Repeat for several.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A table of prompts, or one a line.")] = None,
    seeds: Annotated[str | None, typer.Option(help="0-3 or 0,5,9; default: the table's, else 0.")] = None,
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
    asked = _asked(prompt or [], prompts, seeds, guidance)
    where = o.engine_named(engine, address)
    opened = o.opened(model, device, dtype, threads, offline)
    _readable(opened, asked)
    from efface.files import new_folder
    from efface.gallery.drawing import Sampling, Side
    from efface.gallery.gallery import Gallery
    from efface.patch import Patch
    from efface.runs.folder import shared_images

    shots = [shot for one in asked for shot in one]
    names = [f"{i:04d}-{shot.seed}.png" for i, one in enumerate(asked) for shot in one]
    sampling, work = Sampling.of(opened, steps, guidance), o.working(0, quiet)
    with new_folder(out, overwrite, _drawn) as made:  # before anything is drawn: it may be refused
        with work.interruptible(), ExitStack() as stack:
            for file in patch or ():
                stack.enter_context(Patch.load(file).applied(opened))
            gallery = Gallery(Side("generated", opened, opened.in_force), sampling, shared_images())
            gallery.damaged(shots, {})  # torn ones are drawn again
            gallery.draw(gallery.shards(shots), work, engine=where)
        for name, shot in zip(names, shots, strict=True):
            shutil.copyfile(gallery.images.path(gallery.key(shot)), made / name)
    rows = [{"file": n, "prompt": s.prompt, "seed": s.seed} for n, s in zip(names, shots, strict=True)]
    o.emit({"folder": str(out), "images": rows}, json, [f"{out}: {len(rows)} images"])


def _asked(texts: list[str], file: Path | None, seeds: str | None, guidance: float | None) -> list[list[Shot]]:
    """The shots of each prompt, in order. Raises BadRequest, WrongFile."""
    from efface.errors import BadRequest, WrongFile
    from efface.gallery.shot import Shot
    from efface.prompts.tables import Row, missing_seeds, read_rows
    from efface.request import read_lines
    from efface.untrusted.tables import is_form

    if bad := [text for text in texts if any("\ud800" <= c <= "\udfff" for c in text)]:
        raise BadRequest(f"--prompt holds bytes that are no text ({bad[0][:60]!r}); write it as UTF-8")
    rows = [Row(text, 0) for text in texts]
    if file and is_form(file):
        table = read_rows(file)
        own = any(r.seed is not None for r in table)
        if own and seeds is None and any(r.seed is None for r in table):
            raise WrongFile(missing_seeds(file, table, "name all with --seeds"))
        rows += table
    elif file:
        rows += [Row(text, 0) for text in read_lines(file)]
    if not rows:
        raise BadRequest("no prompt was given; pass --prompt TEXT or --prompts FILE")
    numbers = o.seeds_of(seeds or "0")

    def of(row: Row) -> list[int]:
        return numbers if row.seed is None or seeds is not None else [row.seed]

    return [[Shot(r.prompt, seed, r.guidance if guidance is None else None) for seed in of(r)] for r in rows]


def _readable(model: Model, asked: list[list[Shot]]) -> None:
    """Raises BadRequest for the first prompt that the model does not read to its end, before any is drawn."""
    from efface.errors import BadRequest

    for number, (shot, *_) in enumerate(asked, 1):
        size, most = model.sizes(shot.prompt)
        if size > most:
            raise BadRequest(
                f"prompt {number}, {shot.prompt[:60]!r}, has {size} tokens, the model reads {most}; shorten it"
            )


def _drawn(folder: Path) -> bool:
    """True for a folder that holds pictures of this command and nothing else."""
    return all(re.fullmatch(r"\d{4,}-\d+\.png", f.name) for f in folder.iterdir())
