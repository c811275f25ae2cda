"""Run a named task on shards somewhere: in this process, in processes of this machine, on a cluster."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol

from efface import errors
from efface.errors import BadRequest, EffaceError, UnknownName
from efface.registry import configure
from efface.work import Work

__all__ = ["Answer", "Do", "Engine", "Job", "Task", "Values", "answered", "engine_of", "later", "opened", "result_of"]

Values = Mapping[str, object]
"""Plain values as JSON has them: they travel between processes and machines."""
Do = Callable[[object], object]
"""A shard -> its result, both plain values."""
Task = Callable[[Values, Sequence[Path]], Do]
"""Opens once what every shard needs, from plain values and files; returns what does one shard after another."""
Answer = dict[str, object]
"""What a worker says of a shard: `result`, or `error` (a class of `errors`) and `said`."""

_NAME = re.compile(r"([a-z]+\._?task):([a-z_]+)")


@dataclass(frozen=True)
class Job:
    """A task by name, and what every worker opens once."""

    task: str
    """`room.task:name`: the file `task.py` of a room lists the task under this name in its TASKS."""
    common: Values
    """What a worker opens; the same for every shard."""
    files: tuple[Path, ...] = ()
    """Small files that belong to it; an engine brings them to workers that see another disk."""
    here: Do | None = None
    """What does a shard in this process with what is open already; no engine sends it away."""
    memory: int = 0
    """Bytes of main memory that one worker needs; 0 is unknown."""
    gpu: bool = False
    """Whether a worker needs a GPU."""


class Engine(Protocol):
    """Where shards run. A plug-in is one file in this folder: a frozen dataclass whose fields are settings."""

    @property
    def reach(self) -> Literal["process", "machine", "cluster"]:
        """Where its workers are: in this process, on this machine's disk, or on nodes with disks of their own."""
        ...

    def run(self, job: Job, shards: Sequence[object], work: Work, label: str) -> Iterator[object]:
        """The result of every shard, in whatever order they end; few shards are under way at a time.

        Raises what a shard raised as one sentence, and Cancelled when `work` is; then no worker is left.
        """
        ...


def engine_of(text: str, address: str = "") -> Engine:
    """`NAME` or `NAME:KEY=VALUE,...` -> an engine; `address` is a setting that has an option of its own.

    Raises BadRequest, UnknownName, and Unavailable for an engine whose library is not installed.
    """
    name, _, rest = text.partition(":")
    pairs = [p.partition("=") for p in rest.split(",") if p.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise BadRequest(f"an engine is written NAME or NAME:KEY=VALUE,..., got {text!r}")
    settings = {k.strip().replace("-", "_"): v.strip() for k, _, v in pairs}
    return configure(name, settings | ({"address": address} if address else {}), "engines")


# --- what engines share ----------------------------------------------------------------------------------------------


def task_of(job: Job) -> Task:
    """The job's task. Raises UnknownName for one that no room of Efface lists; engines ask before a worker starts."""
    found = _NAME.fullmatch(job.task)
    if not found:
        raise UnknownName("task", job.task, ["gallery.task:drawing"])
    try:
        tasks: dict[str, Task] = import_module(f"efface.{found[1]}").TASKS
    except (ModuleNotFoundError, AttributeError):
        tasks = {}
    if found[2] not in tasks:
        raise UnknownName("task", job.task, [f"{found[1]}:{name}" for name in tasks] or ["gallery.task:drawing"])
    return tasks[found[2]]


def opened(job: Job) -> Do:
    """The job's task, opened."""
    return task_of(job)(job.common, job.files)


def later(job: Job) -> Do:
    """The job's task, opened with its first shard, so that a failure to open is an answer too."""
    found: list[Do] = []

    def do(shard: object) -> object:
        if not found:
            found.append(opened(job))
        return found[0](shard)

    return do


def answered(do: Callable[[], object]) -> Answer:
    """What a worker sends of one shard: its result, else its failure as a sentence."""
    try:
        return {"result": do()}
    except EffaceError as error:
        return {"error": type(error).__name__, "said": str(error)}
    except Exception as error:  # a fault: the worker's own output holds where
        traceback.print_exc(file=sys.stderr)
        first = (str(error).splitlines() or [""])[0][:300]
        return {"error": "EffaceError", "said": f"a worker failed with {type(error).__name__}: {first}"}


def result_of(answer: Answer) -> object:
    """The result in an answer. Raises the failure, in the class that it had where that needs a sentence alone."""
    if "error" not in answer:
        return answer["result"]
    plain = ("BadRequest", "NothingChanged", "Unavailable", "WrongBase", "WrongFile")
    kind = getattr(errors, str(answer["error"])) if answer["error"] in plain else EffaceError
    raise kind(str(answer["said"]))
