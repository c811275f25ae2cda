"""Drawing as a task: a worker opens a model with its patches once and draws one batch after another.

Nothing is written where it is drawn. A batch comes back as the bytes of its PNG files, in text, and the process that
asked stores them: so nodes need no common disk, and a worker killed at any instant leaves nothing half done.
"""

from __future__ import annotations

import base64
import io
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from efface.engines import Do, Engine, Job, Task, Values
from efface.engines.inline import Inline
from efface.engines.local import Local, lanes_for
from efface.errors import BadRequest, EffaceError, WrongBase, WrongFile
from efface.files import VERSION
from efface.work import Work

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from efface.model import Model

__all__ = ["TASKS", "Drawn", "Opening", "Row", "draw_shard", "drawing", "engine_for", "job_of", "memory_of"]

LIBRARIES = 500_000_000  # bytes that a process holds before it opens a model


class Row(NamedTuple):
    """One image of a shard."""

    prompt: str
    seed: int
    key: str
    """Its name in the store of images."""
    guidance: float | None = None
    """Where that is not the run's; one a shard."""


@dataclass(frozen=True)
class Opening:
    """What a worker opens, and how it draws."""

    model: str
    """Its folder."""
    device: str
    dtype: str
    steps: int
    guidance: float
    tolerant: bool
    """Whether an image that fails is a result; else its failure is raised."""
    threads: int
    """Of torch while it draws: another number may move pixels by 1/255."""
    identity: str = ""
    """Hash that the model must have, where the worker may see another disk."""
    versions: tuple[tuple[str, str], ...] = ()
    """Packages that must be the same there."""


@dataclass
class Drawn:
    """A shard as it was drawn."""

    files: dict[str, str] = field(default_factory=dict)
    """Key of an image -> its PNG file in base64."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key of an image -> why it could not be drawn."""
    seconds: float = 0.0
    """Spent in the sampler."""
    worker: str = ""
    """Which process drew it."""

    def pngs(self) -> Iterator[tuple[str, bytes]]:
        """Each image's key and file."""
        return ((key, base64.b64decode(text)) for key, text in self.files.items())


@cache
def reader_of(kind: type) -> TypeAdapter:
    """Reads plain values as this class, and refuses others."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


# --- where it is asked for -------------------------------------------------------------------------------------------


def memory_of(model: Model) -> int:
    """Bytes of a worker: it holds the weights, and about as much again while it opens them and draws."""
    return 2 * model.nbytes + LIBRARIES


def engine_for(model: Model, shards: int) -> Engine:
    """Without the user's word: worker processes where they pay, which they do on CPU for two shards each or more."""
    lanes = lanes_for(memory_of(model)) if model.can_move and shards else 1
    return Local(lanes) if lanes > 1 and shards >= 2 * lanes else Inline()


@contextmanager
def job_of(engine: Engine, model: Model, steps: int, guidance: float, tolerant: bool, work: Work) -> Iterator[Job]:
    """The job of drawing with this model and the patches in force; its files are there while the block lasts.

    Raises WrongFile for a pipeline in memory, which no other process can open.
    """
    with TemporaryDirectory() as place:
        opening = _opening(engine, model, steps, guidance, tolerant)
        if engine.reach == "process":

            def here(shard: object) -> object:
                return asdict(draw_shard(model, _rows(shard), opening, work))

            yield Job("gallery.task:drawing", asdict(opening), here=here)
            return
        files = tuple(p.save(Path(place) / f"{i}.safetensors") for i, p in enumerate(model.changes))
        gpu = model.device.type == "cuda"
        yield Job("gallery.task:drawing", asdict(opening), files, memory=memory_of(model), gpu=gpu)


def _opening(engine: Engine, model: Model, steps: int, guidance: float, tolerant: bool) -> Opening:
    threads = 1 if model.can_move else torch.get_num_threads()
    dtype = str(model.dtype).removeprefix("torch.")
    folder = "" if engine.reach == "process" else str(model.folder.resolve())
    afar = engine.reach == "cluster"
    there = (model.identity, _versions()) if afar else ("", ())
    return Opening(folder, model.device.type, dtype, steps, guidance, tolerant, threads, *there)


def _versions() -> tuple[tuple[str, str], ...]:
    """Of what decides pixels."""
    return (("efface", VERSION), ("torch", torch.__version__), ("diffusers", version("diffusers")))


# --- in a worker -----------------------------------------------------------------------------------------------------


def drawing(common: Values, files: Sequence[Path]) -> Do:
    """Open the model and push the patches. Raises WrongFile, and WrongBase where this node holds something else."""
    from efface.model import load
    from efface.patch import Patch

    opening: Opening = reader_of(Opening).validate_python(common)
    _agree(opening)
    model = load(opening.model, opening.device, opening.dtype)
    if opening.identity and model.identity != opening.identity:
        raise WrongBase(f"{opening.model} on {platform.node()} holds another model; put the same copy on every node")
    for file in files:
        model.push(Patch.load(file))
    return lambda shard: asdict(draw_shard(model, _rows(shard), opening, Work()))


def _agree(opening: Opening) -> None:
    """Raise BadRequest, WrongFile where this node has other packages or lacks the model."""
    for (name, there), (_, here) in zip(opening.versions, _versions(), strict=False):
        if there != here:
            raise BadRequest(
                f"{platform.node()} has {name} {here} and the run {there}; install the same versions on every node"
            )
    if not Path(opening.model).is_dir():
        raise WrongFile(
            f"{platform.node()} has no folder {opening.model}; put the model there under the same path as here"
        )


def _rows(shard: object) -> list[Row]:
    return reader_of(list[Row]).validate_python(shard)


def draw_shard(model: Model, rows: Sequence[Row], opening: Opening, work: Work) -> Drawn:
    """Draw one shard as one batch; if that fails and may, each image by itself."""
    start, why, files = time.perf_counter(), "", {}
    try:
        files = _files(model, rows, opening, work)
    except (EffaceError, RuntimeError) as error:
        if not (opening.tolerant and _is_result(error)):
            raise
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
    failed = {rows[0].key: why} if why and len(rows) == 1 else {}
    drawn = Drawn(files, failed, time.perf_counter() - start, f"{platform.node()} {os.getpid()}")
    for row in rows if why and not failed else ():
        _add(drawn, draw_shard(model, [row], opening, work))
    return drawn


def _files(model: Model, rows: Sequence[Row], opening: Opening, work: Work) -> dict[str, str]:
    prompts, seeds = [r.prompt for r in rows], [r.seed for r in rows]
    guidance = opening.guidance if rows[0].guidance is None else rows[0].guidance
    with _threads(opening.threads):
        found = model.sample(prompts, seeds, batch=len(rows), steps=opening.steps, guidance=guidance, work=work)
    return {row.key: _png(image) for row, image in zip(rows, found, strict=True)}


def _add(drawn: Drawn, part: Drawn) -> None:
    drawn.files |= part.files
    drawn.failed |= part.failed
    drawn.seconds += part.seconds


def _is_result(error: Exception) -> bool:
    """What happens while drawing (NaN, no memory) is a result; a wrong file or request is not."""
    return type(error) in (EffaceError, RuntimeError) or type(error).__name__ == "OutOfMemoryError"


@contextmanager
def _threads(wanted: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _png(image: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


TASKS: Mapping[str, Task] = {"drawing": drawing}
