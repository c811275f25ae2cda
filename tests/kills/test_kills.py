"""Kill -9 at random moments, a hundred times over six commands: given again, each ends as if nothing had happened.

Outside the tenths of the slow tier, like what needs a cluster or an accelerator: `make test-kills`. Seeds are printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import efface
from efface.audit import audit
from efface.gallery.images import Images
from efface.scores.records import Records
from tiny_world import make_world, small, zero_patch

pytestmark = pytest.mark.kills
KILLS = int(os.environ.get("EFFACE_KILLS", "17"))  # of each of six commands


@dataclass(frozen=True)
class Command:
    """What is run; `out` is its output."""

    run: Callable[[Path], object]
    held: Callable[[Path], object]
    """What has to be the same."""


def child_of(run: Callable[[Path], object], out: Path, cache: Path) -> int:
    """The number of a process that runs a command."""
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        code = 1
        try:
            os.environ["EFFACE_CACHE"] = str(cache)
            torch.set_num_threads(1)
            with open(os.devnull, "w") as nothing:
                sys.stdout = nothing
                run(out)
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return number


def ended(number: int) -> int | None:
    """The exit code of a child; None where it was killed."""
    _, status = os.waitpid(number, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def litter(*places: Path) -> list[str]:
    """What killed writers left: everything with a leading dot but locks."""
    found = (f for place in places for f in place.rglob(".*") if f.name != ".lock")
    return sorted(str(f) for f in found)


def cli(*words: object) -> Callable[[Path], object]:
    """A command of the command line that writes to -o."""
    from efface.cli import main

    return lambda out: main([*map(str, words), "-o", str(out)])


def bytes_of(out: Path) -> object:
    files = [out] if out.is_file() else sorted(f for f in out.rglob("*") if f.is_file())
    return {str(f.relative_to(out.parent)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def records_of(out: Path) -> object:
    images = Images(out / "images")
    pixels = {key: images.get(key).tobytes() for key in sorted(images.keys())}
    return list(Records(out / "records.jsonl")), pixels, json.loads((out / "report.json").read_text())["tables"]


def trained(out: Path) -> object:
    """The weights of the toy world, in the cache that is named `out`; a state also holds how long it took."""
    found = sorted((out / "train" / "toy").rglob("*.safetensors"))
    return {f"{f.parent.name}/{f.name}": f.read_bytes() for f in found if f.name != "state.safetensors"}


def train(out: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "worldmaking"))
    from toy import TOY, sprites  # pyright: ignore[reportMissingImports]

    from efface.work import Work
    from efface.worldmaking.assemble import Withheld
    from efface.worldmaking.course import model_course
    from efface.worldmaking.sittings import Go

    os.environ["EFFACE_CACHE"] = str(out)
    assert model_course(TOY, Withheld.parse((), TOY), sprites).train(Go(Work()), lambda line: None)


@pytest.fixture(scope="module")
def commands(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    home = tmp_path_factory.mktemp("kills")
    world = make_world(tiny_folder, home / "tiny-world")
    model = efface.load(world, "cpu")
    patch, run = home / "p.safetensors", home / "run"
    zero_patch(model, 0.5).save(patch)
    with pytest.MonkeyPatch.context() as own:
        own.setenv("EFFACE_CACHE", str(home / "cache"))
        audit(small(model), run)
    steps = ("--steps", 2, "--seeds", "0-23", "--engine", "inline", "--quiet")
    kscu = ("--method", "kscu", "--set", "updates=12", "--keep", "dog", "--quiet", "--device", "cpu")
    return {
        "erase": Command(cli("erase", tiny_folder, "-c", "object:cat", *kscu), bytes_of),
        "generate": Command(cli("generate", tiny_folder, "--prompt", "a dog", *steps), bytes_of),
        "audit": Command(lambda out: audit(small(model), out), records_of),
        "compare": Command(cli("compare", run), bytes_of),
        "apply": Command(cli("apply", tiny_folder, patch, "--strength", 0.5), bytes_of),
        "world train": Command(train, trained),
    }


@pytest.mark.parametrize("name", ["erase", "generate", "audit", "compare", "apply", "world train"])
def test_a_killed_command_given_again_ends_as_if_nothing_had_happened(
    name: str, commands: dict[str, Command], tmp_path: Path
) -> None:
    command, seed = commands[name], int(os.environ.get("EFFACE_KILLS_SEED", "0"))
    suffix = ".safetensors" if name == "erase" else ""
    whole = tmp_path / "whole" / f"out{suffix}"
    whole.parent.mkdir()
    begin = time.monotonic()
    assert ended(child_of(command.run, whole, tmp_path / "cache")) == 0
    length, wanted, killed = time.monotonic() - begin, command.held(whole), 0
    wanted_names = sorted(f.name for f in whole.parent.iterdir())
    for number in range(10 * KILLS):
        place, cache = tmp_path / "again", tmp_path / "other-cache"
        place.mkdir()
        out, luck = place / f"out{suffix}", random.Random(f"{name} {seed} {number}")
        child = child_of(command.run, out, cache)
        time.sleep(luck.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        hit = ended(child) is None
        killed += hit
        print(f"{name}: seed {seed}, kill {number}, {'killed' if hit else 'was done'}")
        done = out.exists() and name in ("erase", "generate", "apply")
        code = ended(child_of(command.run, out, cache))
        assert code == (1 if done else 0)  # what is there already is refused
        assert command.held(out) == wanted
        assert done or sorted(f.name for f in place.iterdir()) == wanted_names
        assert litter(place, cache) == []
        shutil.rmtree(place)
        shutil.rmtree(cache, ignore_errors=True)
        if killed >= KILLS:
            break
    assert killed >= KILLS
