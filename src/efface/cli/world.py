"""`efface world`: artwork to sprites, the training of models and judges, and the card of what they draw."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from efface.cli import options as o

app = typer.Typer(no_args_is_help=True, help="The emoji world: build its artwork, train its models and judges.")


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def build(
    sheet: Annotated[Path | None, typer.Option("--sheet", help="PNG with every sprite, one style a column.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="One file with every sprite, for training without a network.")
    ] = None,
    overwrite: o.Overwrite = False,
) -> None:
    """Fetch the artwork, draw the sprites; write a sheet or a bundle of them all."""
    from efface.errors import OutputExists
    from efface.worldmaking import artwork
    from efface.worldmaking.sheet import draw

    for path in (sheet, bundle):
        if path is not None and path.exists() and not overwrite:
            raise OutputExists(path)
    sprites = artwork.sprites(_say)
    for number, style in enumerate(sprites.style_names):
        typer.echo(f"{style}: {int((sprites.styles == number).sum())} of {len(sprites.object_names)} objects")
    if sheet is not None:
        draw(sprites, sheet)
        typer.echo(f"{len(sprites.pixels)} sprites; sheet: {sheet}")
    if bundle is not None:
        artwork.write(bundle, sprites)
        typer.echo(f"{len(sprites.pixels)} sprites; bundle: {bundle} ({bundle.stat().st_size / 1e6:.1f} MB)")


@app.command()
def train(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="micro, mini or judge.")],
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="NAME", help="An object or style to withhold: a gold model; repeat."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what is done, what is left and how long; train nothing.")
    ] = False,
    minutes: Annotated[float, typer.Option("--minutes", help="How long at one go, at most 150.")] = 150.0,
    bundle: Annotated[Path | None, typer.Option("--bundle", help="Sprites from a file of `world build`.")] = None,
    start: Annotated[
        Path | None,
        typer.Option("--start", metavar="FOLDER", help="Take VAE and first U-Net phase from a model of this shape."),
    ] = None,
    join: Annotated[Path | None, typer.Option("--join", help="Take over pieces of another machine first.")] = None,
    pieces: Annotated[
        Path | None, typer.Option("--pieces", help="Folder for the results, in files of at most 15 MB.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Copy what is finished into this folder.")] = None,
    device: o.Device = None,
    threads: o.Threads = None,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Train what the world bundles, part by part; the same command goes on where the last one stopped."""
    o.prepare(threads, offline=True)
    from efface.errors import BadRequest
    from efface.work import Work
    from efface.worldmaking import artwork
    from efface.worldmaking import transport as carried
    from efface.worldmaking.course import copy_out, course, start_from
    from efface.worldmaking.sittings import Go
    from efface.worldmaking.sizes import size

    chosen = course(target, _names(without), bundle)
    if start is not None:
        if target == "judge" or without:
            raise BadRequest("--start is for micro and mini; a gold's U-Net begins from nothing")

        def sprites() -> artwork.Sprites:
            return artwork.read(bundle) if bundle else artwork.sprites(_say)

        with chosen.alone():
            typer.echo(f"taken over from {start}: {', '.join(start_from(size(target), start, sprites))}")
    if join is not None:
        with chosen.alone():
            typer.echo(f"joined: {', '.join(carried.join(chosen, join)) or 'nothing newer than what is here'}")
    if not plan:
        go = Go(Work(quiet=quiet), minutes, _device(device))
        with go.work.interruptible():
            chosen.train(go, _say)
    for line in chosen.plan():
        typer.echo(line)
    if pieces is not None:
        for path in carried.split(chosen, pieces, overwrite):
            typer.echo(path)
    if out is not None:
        for place in copy_out(chosen.results(out), overwrite):
            typer.echo(place)


def _names(without: list[str] | None) -> list[str]:
    return [name for text in without or () for name in text.split(",") if name.strip()]


def _device(device: str | None) -> str:
    import torch

    from efface.model.devices import device_of

    found = device_of(device)
    if found.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return found


@app.command()
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled name or a model folder.")] = "mini",
    judge: Annotated[
        Path | None, typer.Option("--judge", help="Folder that holds `reporting` and `selection`; default: bundled.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Few images: a first look in ten minutes. Without -o its card goes to the cache."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where the card goes; default: the model's folder.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="PNG with 200 of the drawings, those judged wrong first.")
    ] = None,
    threads: o.Threads = None,
    quiet: o.Quiet = False,
) -> None:
    """Draw what the model is asked for, judge it, write its card and concept list. Resumable: images are cached."""
    o.prepare(threads, offline=True)
    from efface.errors import Unavailable
    from efface.files import cache_folder
    from efface.judges import Judge, selection
    from efface.judges import world as reporting
    from efface.model import load
    from efface.work import Work
    from efface.worldmaking import check as card

    opened, work = load(model, "cpu", "float32", offline=True), Work(quiet=quiet)
    judges: list[Judge] = [reporting.load(judge and judge / "reporting")]
    try:
        judges.append(selection.load(judge and judge / "selection"))
    except Unavailable as error:
        _say(f"the selection judge's rates are left out: {error}")
    with work.interruptible():
        found = card.check(opened, judges, card.QUICK if quick else card.FULL, work, card.parts_of(opened), sheet)
    # too few images to qualify anything: the model keeps the list of its last full check
    path = card.write(found, out or (cache_folder() / "cards" / opened.folder.name if quick else opened.folder))
    typer.echo(path.with_name("card.md").read_text(encoding="utf-8"))
    typer.echo(str(path))
