"""Shards on a Ray cluster: one that is there, or one of this machine that lasts as long as this process.

Ray does what a cluster needs: an actor a worker opens the job once, Ray places it by what it asks for (CPUs, memory, a
share of a GPU), starts it again elsewhere when its process or node is lost, and gives it its shard again. Here is only
that no worker has more than one shard, that results are taken as they come, and that failures are sentences.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import socket
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from efface.engines import Answer, Do, Job, answered, opened, result_of
from efface.engines.local import QUIET
from efface.errors import BadRequest, EffaceError, Unavailable
from efface.work import Work

if TYPE_CHECKING:
    from ray import ObjectRef  # pyright: ignore[reportMissingImports]
    from ray.actor import ActorHandle  # pyright: ignore[reportMissingImports]

__all__ = ["Ray"]


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

    @property
    def reach(self) -> Literal["cluster"]:
        return "cluster"

    def run(self, job: Job, shards: Sequence[object], work: Work, label: str) -> Iterator[object]:
        if not shards:
            return
        ray = _joined(self.address)
        asked = self._asked(job)
        lanes = min(len(shards), _places(ray, asked), self.workers or len(shards))
        crew = _Crew(ray, deque(shards))
        try:
            crew.hire(lanes, job, asked | {"max_restarts": -1, "max_task_retries": self.losses})
            yield from work.progress(crew.results(work), label, total=len(shards))
        except ray.exceptions.RayError as error:
            raise EffaceError(self._sentence(ray, error)) from None
        finally:
            crew.dismiss()

    def _sentence(self, ray: ModuleType, error: Exception) -> str:
        """Of what Ray could not mend itself."""
        last = str(error).strip().splitlines()[-1:] or [""]
        if "creation task" in _first(error):
            return f"a worker could not start ({last[0].strip()[:200]}); install Efface on every node as it is here"
        if isinstance(error, ray.exceptions.RayActorError):
            return (
                f"a shard lost {self.losses + 1} workers one after the other; see to the memory of the nodes and run "
                "the same command again"
            )
        return f"Ray gave a shard up ({_first(error)}); see to the nodes and run the same command again"

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


class _Crew:
    """The workers, and the shards that wait."""

    def __init__(self, ray: ModuleType, waiting: deque[object]) -> None:
        self.ray = ray
        self.waiting = waiting
        self.workers: list[ActorHandle] = []
        self.busy: dict[ObjectRef, ActorHandle] = {}

    def hire(self, lanes: int, job: Job, options: dict[str, float]) -> None:
        kind = self.ray.remote(**options)(Worker)
        files = [self.ray.put(file.read_bytes()) for file in job.files]
        job = dataclasses.replace(job, here=None)
        for _ in range(lanes):
            self.workers.append(worker := kind.remote(job, *files))
            self.hand(worker)

    def hand(self, worker: ActorHandle) -> None:
        """The next shard; a worker for whom none is left makes room for one that Ray has yet to place."""
        if self.waiting:
            self.busy[worker.answer.remote(self.waiting.popleft())] = worker
        else:
            self.ray.kill(worker)
            self.workers.remove(worker)

    def results(self, work: Work) -> Iterator[object]:
        """The result of each shard, from whichever worker is first; looks for cancellation twice a second."""
        while self.busy:
            work.check()
            done, _ = self.ray.wait(list(self.busy), timeout=0.5)
            for ref in done:
                answer = self.ray.get(ref)
                self.hand(self.busy.pop(ref))
                yield result_of(answer)

    def dismiss(self) -> None:
        for worker in self.workers:
            self.ray.kill(worker)


def _joined(address: str) -> ModuleType:
    """Ray, connected; a process that is connected already stays where it is. Raises Unavailable."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Efface sends nothing about its users anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # it tells of lost workers on stdout, among our answers
    ray = importlib.import_module("ray")
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


PLUGIN = Ray
