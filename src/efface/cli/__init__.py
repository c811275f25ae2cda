"""The command line. One command, one file; nothing heavy is imported before a command runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from efface.cli import apply, audit, compare, demo, erase, gc, generate, inspect, listing, report, status, world
from efface.errors import EffaceError
from efface.untrusted import printable

__all__ = ["app", "main"]

app = typer.Typer(
    name="efface",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Erase concepts from text-to-image diffusion models, measure how gone they are, ship a small patch.",
)
for _command in (demo, erase, apply, generate, audit, report, compare, status, gc, inspect):
    app.command(_command.NAME)(_command.command)
app.command("list")(listing.command)
app.add_typer(world.app, name="world", help="Build the emoji world: artwork, scenes, judge.")


def _version(asked: bool) -> None:
    if asked:
        from efface import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and exit: 0 done, 1 error, 2 usage, 3 gate failed, 130 interrupted.

    Errors are at most two lines on stderr.
    """
    code = 0
    for stream in (sys.stdout, sys.stderr):  # what they cannot write is shown as an escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(list(arguments) if arguments is not None else None, standalone_mode=False) or 0
    except EffaceError as error:
        code = _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        code = _say("interrupted; the same command goes on from here", 130)
    except BrokenPipeError:
        code = 1
    except OSError as error:
        where = error.filename or type(error).__name__
        code = _say(f"{where}: {error.strerror or error}; see to the path, its permissions and the space left", 1)
    except Exception as error:
        # typer carries a click of its own in some versions: its errors are known by what they can do
        if not hasattr(error, "format_message"):
            raise
        code = _say(f"{error.format_message()} (efface --help shows what there is)", 2)  # pyright: ignore
    sys.exit(code if isinstance(code, int) else 0)


def _say(message: str, code: int) -> int:
    print(printable(f"efface: {message}"), file=sys.stderr)
    return code
