"""`efface world`: artwork to sprites, and the training of what is bundled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="The emoji world: build its artwork, train its judges.")
train = typer.Typer(no_args_is_help=True, help="Train what the world bundles.")
app.add_typer(train, name="train")


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def build(
    sheet: Annotated[Path, typer.Option("--sheet", help="PNG with every sprite, one style a column.")] = Path(
        "world-sheet.png"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing sheet.")] = False,
) -> None:
    """Fetch the artwork, draw the sprites and write a sheet with all of them."""
    from efface.errors import OutputExists
    from efface.world.artwork import sprites
    from efface.world.sheet import draw

    if sheet.exists() and not overwrite:
        raise OutputExists(sheet)
    bundle = sprites(_say)
    for number, style in enumerate(bundle.style_names):
        typer.echo(f"{style}: {int((bundle.styles == number).sum())} of {len(bundle.object_names)} objects")
    draw(bundle, sheet)
    typer.echo(f"{len(bundle.pixels)} sprites; sheet: {sheet}")


@train.command("judge")
def train_judge(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the judge.")],
    vae: Annotated[Path | None, typer.Option(help="VAE folder that softens scenes; default: the bundled one.")] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Folder of .npz files with base drawings (`im`) and prompts (`p`)."),
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train, calibrate and measure the reporting judge (20 minutes on two cores); run again to resume."""
    import torch

    from efface.world import folder
    from efface.world.artwork import cache_folder, sprites
    from efface.world.measure_judge import measure, write
    from efface.world.softened import load_vae
    from efface.world.train_judge import Plan, Source
    from efface.world.train_judge import train as run

    torch.set_num_threads(threads)
    home, encoder = cache_folder() / "train" / "judge", load_vae(vae or folder("mini") / "vae")
    source = Source(sprites(_say), encoder, home, Plan())
    net = run(source, home, log=_say)
    card = write(net, measure(net, source, encoder, home, _say), output)
    typer.echo(f"judge {card['version']} in {output}")
    if base is not None:
        _fit_garbage(output, base, source, encoder, home)


def _fit_garbage(output: Path, base: Path, source: Any, encoder: Any, home: Path) -> None:
    import numpy as np

    from efface.errors import WrongFile
    from efface.judges import garbage
    from efface.judges.world import load
    from efface.world.measure_drawings import add_to_card
    from efface.world.measure_drawings import measure as measure_drawings
    from efface.world.measure_garbage import fit_and_measure
    from efface.world.measure_judge import crisp, soft

    files = sorted(base.glob("*.npz"))
    if not files:
        raise WrongFile(f"Expected .npz files with base drawings in {base}, found none; draw some first.")
    kept = [np.load(file, allow_pickle=False) for file in files]
    drawn = np.concatenate([k["im"] for k in kept])
    judge = load(output)
    prompts = [str(p) for k in kept for p in k["p"]]
    add_to_card(output, measure_drawings(judge, drawn, prompts))
    extra = soft(source, encoder, home / "calibrate.npz", 900).images.numpy()
    held = soft(source, encoder, home / "test.npz", 901)
    controls = {
        "renders through the VAE": held.images.numpy(),
        "two objects through the VAE": held.images[held.two].numpy(),
        "crisp renders": crisp(source, 901, 1, 0).images.numpy(),
    }
    detector, card = fit_and_measure(judge, drawn, extra, encoder, controls)
    garbage.save(detector, judge, card, output)
    typer.echo(f"garbage detector {detector.version} in {output}")


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="A bundled model.")] = "mini",
    half: Annotated[str, typer.Option(help="report, tune or both: which objects get the full 24 images.")] = "both",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Draw what the model is asked for, judge it, write its concept list. Resumable: images are cached."""
    from efface.cli.options import prepare
    from efface.errors import UnknownName

    if half not in ("report", "tune", "both"):
        raise UnknownName("half", half, ("report", "tune", "both"))
    prepare(offline=True)
    from efface import world
    from efface.judges import world as judges
    from efface.model import load
    from efface.work import Work
    from efface.world import rates

    things = [o for o in world.objects() if o.picked]
    full = tuple(o for o in things if half in ("both", o.half))
    rest = tuple(o for o in things if o not in full)
    opened, judge, work = load(model, "cpu"), judges.load(), Work(quiet=quiet)
    chosen = rates.items(full) + rates.items(rest, plain=8, styled=False)
    with work.interruptible():
        rows = rates.measure(opened, judge, chosen, work)
    path = rates.write(rows, judge, opened.folder)
    typer.echo(f"{path}: {sum(r['qualified'] for r in rows)} of {len(rows)} concepts qualified")
