"""Shards on a Ray cluster: one that is there, or one of this machine that lasts as long as this process.

Ray does what a cluster needs: a worker is an actor that opens the job once, placed by what it asks for (CPUs, memory,
a share of a GPU), and Ray tells when its process or node is gone. Here is only that a worker has one shard at a time,
that a lost one is replaced and its shard handed out again, and that failures are sentences.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import socket
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Literal, Protocol

from efface.engines import Answer, Do, Job, answered, opened, result_of, task_of
from efface.engines.local import QUIET
from efface.errors import BadRequest, EffaceError, Unavailable
from efface.work import Work

__all__ = ["Ray"]

_SAME = "install Efface on every node as it is here"
_ROOM = "see to the memory of the nodes and run the same command again"


@dataclass(frozen=True)
class Ray:
    """Workers on the nodes of a cluster."""

    address: str = ""
    """`HOST:PORT` or `auto` as Ray knows them; "" is RAY_ADDRESS, and without it a cluster of this machine alone."""
    workers: int = 0
    """How many at most; 0: as many as the cluster holds when it is asked."""
    num_cpus: float = 1.0
    """CPUs that a worker asks for; it draws with one thread where the model is on the CPU in float32."""
    num_gpus: float = 1.0
    """Share of a GPU that a worker asks for, where the model is on one."""
    losses: int = 5
    """How many workers one shard may lose before the run ends."""

    def __post_init__(self) -> None:
        if find_spec("ray") is None:
            raise Unavailable("the engine ray needs Ray, which is not installed: pip install 'efface[ray]'")
        if min(self.num_cpus, self.num_gpus) <= 0 or min(self.workers, self.losses) < 0:
            raise BadRequest(
                "num_cpus and num_gpus are above 0, workers and losses not below it; leave one out instead"
            )

    @property
    def reach(self) -> Literal["cluster"]:
        return "cluster"

    def run(self, job: Job, shards: Sequence[object], work: Work, label: str) -> Iterator[object]:
        if not shards:
            return
        task_of(job)
        ray = _joined(self.address)
        asked = self._asked(job)
        lanes = min(len(shards), _places(ray, asked), self.workers or len(shards))
        crew = _Crew(ray, shards, self.losses)
        crew.prepare(job, asked)
        try:
            for _ in range(lanes):
                crew.hire()
            yield from work.progress(crew.results(work), label, total=len(shards))
        finally:
            crew.dismiss()

    def _asked(self, job: Job) -> dict[str, float]:
        """What one worker asks of a node, in Ray's words."""
        asked = {"num_cpus": self.num_cpus}
        if job.gpu:
            asked["num_gpus"] = self.num_gpus
        return asked | ({"memory": job.memory} if job.memory else {})


class Worker:
    """An actor: it opens the job with its first shard, then does one after another."""

    def __init__(self, job: Job, *files: bytes) -> None:
        os.environ.update(QUIET)
        warnings.filterwarnings("ignore")
        self.job, self.files = job, files
        self.do: Do | None = None

    def hello(self) -> Answer:
        """Said when Ray has placed it and it runs."""
        return {}

    def answer(self, shard: object) -> Answer:
        return answered(lambda: self._opened()(shard))

    def _opened(self) -> Do:
        """The job opened, its files laid where this node can read them."""
        if self.do is None:
            with TemporaryDirectory() as place:
                paths = tuple(Path(place) / file.name for file in self.job.files)
                for path, content in zip(paths, self.files, strict=True):
                    path.write_bytes(content)
                self.do = opened(dataclasses.replace(self.job, files=paths))
        return self.do


# --- in the process that asks ----------------------------------------------------------------------------------------


class _Remote(Protocol):
    """A method of an actor: called, it returns at once with a reference to what will be answered."""

    def remote(self, *given: object) -> object: ...


class _Actor(Protocol):
    """A Worker from afar."""

    hello: _Remote
    answer: _Remote


class _Crew:
    """The workers, and the shards that wait.

    Ray's own restarts count tries to reach a node that is gone as losses, so here a lost worker is replaced by a new
    one. Nobody waits for that one: it gets a shard when it has said that it is there, and others may be first.
    """

    def __init__(self, ray: ModuleType, shards: Sequence[object], losses: int) -> None:
        self.ray = ray
        self.shards = shards
        self.losses = losses
        self.waiting = deque(range(len(shards)))
        self.busy: dict[object, tuple[_Actor, int | None]] = {}
        """What is under way -> the worker and its shard, None while it starts."""
        self.idle: list[_Actor] = []
        self.lost: Counter[int | None] = Counter()

    def prepare(self, job: Job, options: Mapping[str, float]) -> None:
        """Settle what every worker is, and send the files of the job out once."""
        self.kind = self.ray.remote(**options)(Worker)
        self.job = dataclasses.replace(job, here=None)
        self.files = [self.ray.put(file.read_bytes()) for file in job.files]

    def hire(self) -> None:
        worker = self.kind.remote(self.job, *self.files)
        self.busy[worker.hello.remote()] = worker, None

    def hand(self, worker: _Actor) -> None:
        """The next shard, where one waits."""
        if self.waiting:
            shard = self.waiting.popleft()
            self.busy[worker.answer.remote(self.shards[shard])] = worker, shard
        else:
            self.idle.append(worker)

    def results(self, work: Work) -> Iterator[object]:
        """The result of each shard, from whichever worker is first; looks for cancellation twice a second."""
        left = len(self.shards)
        while left:
            work.check()
            done, _ = self.ray.wait(list(self.busy), timeout=0.5)
            for ref in done:
                worker, shard = self.busy.pop(ref)
                if (answer := self.answer_of(ref, worker, shard)) is None:
                    continue
                self.hand(worker)
                if shard is not None:
                    left -= 1
                    yield result_of(answer)

    def answer_of(self, ref: object, worker: _Actor, shard: int | None) -> Answer | None:
        """What a worker said; None for one that was lost, whose shard is the next to be handed out."""
        broken = self.ray.exceptions
        try:
            answer = self.ray.get(ref)
            self.lost[shard] = 0
            return answer
        except broken.RayError as error:
            if isinstance(error, broken.RayTaskError) or "creation task" in _first(error):
                raise EffaceError(f"a worker of the cluster does not work ({_last(error)}); {_SAME}") from None
        self.lose(worker, shard)
        return None

    def lose(self, worker: _Actor, shard: int | None) -> None:
        """Replace a worker, and let its shard be the next. Raises EffaceError for a shard that lost too many."""
        self.ray.kill(worker)
        self.lost[shard] += 1
        if self.lost[shard] > self.losses:
            what = "no worker could begin: they" if shard is None else "a shard lost its workers: they"
            raise EffaceError(f"{what} were killed {self.lost[shard]} times, one after the other; {_ROOM}")
        if shard is not None:
            self.waiting.appendleft(shard)
        if self.idle:
            self.hand(self.idle.pop())
        else:
            self.hire()

    def dismiss(self) -> None:
        for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]:
            self.ray.kill(worker)


def imported() -> ModuleType:
    """Ray, told not to send or print what nobody asked for."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Efface sends nothing about its users anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # it tells of lost workers on stdout, among our answers
    return importlib.import_module("ray")


def _joined(address: str) -> ModuleType:
    """Ray, connected; a process that is connected already stays where it is. Raises Unavailable."""
    ray = imported()
    if ray.is_initialized():
        return ray
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"include_dashboard": False, "num_cpus": _threads()} if where == "local" else {}
    try:
        _knock(where)
        ray.init(where, logging_level="error", log_to_driver=False, **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {where} ({_first(error)}); start one with 'ray start --head', or leave the "
            "address out for one of this machine"
        ) from None
    return ray


def _knock(where: str) -> None:
    """Raise OSError where nobody listens: Ray itself would go on asking for minutes."""
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _places(ray: ModuleType, asked: dict[str, float]) -> int:
    """How many workers the nodes hold that are there now. Raises BadRequest where none holds one."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    held = sum(min(math.floor(node.get(names[k], 0.0) / n + 1e-9) for k, n in asked.items() if n) for node in nodes)
    if not held:
        wants = ", ".join(f"{n / 1e9:.1f} GB" if k == "memory" else f"{n:g} {names[k]}" for k, n in asked.items())
        raise BadRequest(f"no node of the cluster has room for a worker ({wants}); ask for less or add a node")
    return held


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _last(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]


PLUGIN = Ray
