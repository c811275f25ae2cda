"""Shards in worker processes, one thread each: on CPU two of them draw about 1.4 times as fast as one with two threads.

A worker is `python -m efface.engines.local`. It reads a job and then shards, one line of JSON each, and answers every
shard with a line. It has one shard at a time, so a killed worker loses at most that one, and the others draw it again.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Literal

from efface.engines import Answer, Job, answered, later, result_of, task_of
from efface.errors import BadRequest, EffaceError
from efface.work import Work

__all__ = ["Local"]

# The libraries' own warnings are not about the user's request.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True)
class Local:
    """Processes of this machine."""

    workers: int = 0
    """How many; 0: one a thread, and no more than fit into memory."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise BadRequest(f"workers is 0 or more, got {self.workers}; leave it out for as many as fit")

    @property
    def reach(self) -> Literal["machine"]:
        return "machine"

    def run(self, job: Job, shards: Sequence[object], work: Work, label: str) -> Iterator[object]:
        if job.gpu:
            raise BadRequest("the engine local draws on the CPU; leave --engine out, or name --engine ray")
        task_of(job)
        lanes = min(self.workers or lanes_for(job.memory), len(shards))
        crew = _Crew(deque(json.dumps(shard) for shard in shards))
        try:
            for _ in range(lanes):
                crew.hire(job)
            yield from work.progress(crew.results(work), label, total=len(shards))
        finally:
            crew.dismiss()


def lanes_for(memory: int) -> int:
    """How many workers: as many as torch has threads here, and as many of `memory` bytes as are free, at least one."""
    import torch

    threads, free = torch.get_num_threads(), free_memory()
    return threads if free is None or not memory else max(1, min(threads, free // memory))


def free_memory() -> int | None:
    """Bytes that new processes can have; None where the system (other than Linux) does not say."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None


# --- in the process that asks ----------------------------------------------------------------------------------------


class _Crew:
    """The workers, and the shards that wait as lines of JSON."""

    def __init__(self, waiting: deque[str]) -> None:
        self.waiting = waiting
        self.workers: list[subprocess.Popen[str]] = []
        self.busy: dict[subprocess.Popen[str], str] = {}
        self.answered: set[subprocess.Popen[str]] = set()
        self.selector = selectors.DefaultSelector()

    def hire(self, job: Job) -> None:
        """Start a worker, tell it the job and give it a shard."""
        self.workers.append(worker := _start())
        self.selector.register(worker.stdout or 0, selectors.EVENT_READ, worker)
        told = asdict(replace(job, here=None)) | {"files": [str(file) for file in job.files]}
        if self.say(worker, json.dumps(told)):
            self.hand(worker)

    def say(self, worker: subprocess.Popen[str], line: str) -> bool:
        """Write a line to a worker; False for one that is gone, which the end of its output will tell."""
        assert worker.stdin is not None
        try:
            worker.stdin.write(f"{line}\n")
            worker.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def hand(self, worker: subprocess.Popen[str]) -> None:
        """The next shard, where one waits."""
        if self.waiting:
            self.busy[worker] = self.waiting.popleft()
            self.say(worker, self.busy[worker])

    def results(self, work: Work) -> Iterator[object]:
        """The result of each shard, from whichever worker is first; looks for cancellation twice a second."""
        while self.busy or self.waiting:
            work.check()
            for key, _ in self.selector.select(timeout=0.5):
                if line := _line(key.fileobj):
                    self.answered.add(key.data)
                    del self.busy[key.data]
                    self.hand(key.data)
                    yield result_of(json.loads(line))
                else:
                    self.lose(key.data)

    def lose(self, worker: subprocess.Popen[str]) -> None:
        """Give the shard of a worker that was killed to another. Raises EffaceError where none is left."""
        self.selector.unregister(worker.stdout or 0)
        self.workers.remove(worker)
        code, shard = worker.wait(), self.busy.pop(worker, None)
        if shard is not None:
            self.waiting.appendleft(shard)
        if code >= 0:
            when = "" if worker in self.answered else " before it began"
            raise EffaceError(f"a worker process ended with code {code}{when}; its message is above")
        if not self.workers:
            raise EffaceError("every worker process was killed; free some memory and run the same command again")
        for other in self.workers:
            if other not in self.busy:
                self.hand(other)

    def dismiss(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
            for pipe in filter(None, (worker.stdin, worker.stdout)):
                with suppress(OSError):
                    pipe.close()
        self.selector.close()


def _line(stream: object) -> str:
    """A whole line of a worker; what a kill tore counts as nothing."""
    line: str = stream.readline()  # pyright: ignore[reportAttributeAccessIssue]
    return line if line.endswith("\n") else ""


def _start() -> subprocess.Popen[str]:
    environment = os.environ | QUIET | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "efface.engines.local"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        start_new_session=True,  # Ctrl-C goes to the parent, which ends its workers
    )


# --- in a worker -----------------------------------------------------------------------------------------------------


def _work(told: IO[str], say: IO[str]) -> None:
    """Do shard after shard until there is none, or until nobody is there to ask for more."""
    first = json.loads(told.readline())
    parent, do = os.getppid(), later(Job(**first | {"files": tuple(Path(file) for file in first["files"])}))
    for line in told:
        if os.getppid() != parent:
            return
        answer: Answer = answered(lambda line=line: do(json.loads(line)))
        say.write(f"{json.dumps(answer)}\n")
        say.flush()


PLUGIN = Local


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not lie among the answers
    _work(sys.stdin, answers)
