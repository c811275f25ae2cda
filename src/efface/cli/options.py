"""Options that many commands share, and what they do."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import BadRequest
from efface.untrusted import escaped, printable, short

if TYPE_CHECKING:
    from efface.engines import Engine
    from efface.model import Model
    from efface.request import Concept
    from efface.work import Work

__all__ = [
    "Address", "ConceptFile", "Concepts", "Device", "Dtype", "EngineName", "Json", "KeepFile", "Keeps", "ModelName",
    "Offline", "Out", "Overwrite", "Quiet", "Threads", "command_line", "emit", "engine_named", "gathered", "opened",
    "prepare", "seeds_of", "settings_of",
]  # fmt: skip

MOST_SEEDS = 100_000
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="mini, a diffusers folder, or a hub id.")]
Concepts = Annotated[
    list[str] | None,
    typer.Option("-c", "--concept", metavar="[KIND:]NAME[=ANCHOR]", help="What to erase; repeat."),
]
ConceptFile = Annotated[Path | None, typer.Option("--concepts", help="TOML, YAML, JSON, CSV or one name a line.")]
Keeps = Annotated[list[str] | None, typer.Option("--keep", help="A text to protect; repeat.")]
KeepFile = Annotated[Path | None, typer.Option("--keep-file", help="Texts to protect: a table, or one a line.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where the result goes.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, mps; default: cuda where there is one.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, float16 or bfloat16.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the model hub.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
EngineName = Annotated[
    str | None, typer.Option("--engine", metavar="NAME[:KEY=VALUE,...]", help="Where images are drawn.")
]
Address = Annotated[str | None, typer.Option("--address", help="Of the cluster that the engine joins.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


def prepare(threads: int | None = None, offline: bool = False) -> None:
    """Threads, offline mode, and silence from the libraries: their warnings are not about the user's request."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    if threads:
        torch.set_num_threads(threads)
    for name in ("transformers", "diffusers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()


def opened(name: str, device: str | None, dtype: str | None, threads: int | None, offline: bool) -> Model:
    """The model, after `prepare`."""
    prepare(threads, offline)
    from efface.model import load

    return load(name, device, dtype, offline)


def engine_named(name: str | None, address: str | None) -> Engine | None:
    """The engine of --engine and --address; None leaves the choice to the machine. Raises BadRequest, Unavailable."""
    if address and not name:
        raise BadRequest("--address belongs to an engine; name one with --engine, for example --engine ray")
    from efface.engines import engine_of

    return engine_of(name, address or "") if name else None


def gathered(texts: list[str] | None, file: Path | None) -> list[Concept]:
    """Concepts of -c and of a file."""
    from efface.request import Concept, read_concepts

    return [*(Concept.parse(t) for t in texts or ()), *(read_concepts(file) if file else ())]


def settings_of(pairs: list[str] | None) -> dict[str, str]:
    """`key=value` texts -> settings. Raises BadRequest."""
    made: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadRequest(f"--set needs key=value, got {pair!r}")
        made[key.strip().replace("-", "_")] = value.strip()
    return made


def seeds_of(text: str) -> list[int]:
    """`0-3` -> 0, 1, 2, 3; `0,5,9`. Raises BadRequest, also for a seed of more than 64 bits and for too many."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part.strip())
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high < 2**64:
            raise BadRequest(f"seeds are written 0-3 or 0,5,9, each below 2^64; got {short(text)}")
        if len(found) + high - low + 1 > MOST_SEEDS:
            raise BadRequest(f"at most {MOST_SEEDS} seeds at one go, got {short(text)}; take them in parts")
        found += range(low, high + 1)
    if len(set(found)) < len(found):
        raise BadRequest(f"a seed is named twice in {short(text)}; name each once")
    return found


def emit(result: dict[str, Any], as_json: bool, lines: list[str]) -> None:
    """The result as one JSON object on stdout, or as lines for people."""
    if as_json:
        print(escaped(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)))
        return
    for line in lines:
        print(printable(line))


def command_line() -> str:
    """The command as it was typed, for the report."""
    import shlex

    return shlex.join(["efface", *sys.argv[1:]])


def working(seed: int, quiet: bool, folder: Path | None = None) -> Work:
    from efface.work import Work

    return Work(seed, folder, quiet)
