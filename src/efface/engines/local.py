"""Shards in worker processes, one thread each: on CPU two of them draw about 1.4 times as fast as one with two threads.

A worker is `python -m efface.engines.local`; it reads one job as JSON, opens the model by its folder, applies the
patches, draws its shards and writes each image under its key. Nothing is sent back but a line a shard, so a killed
worker loses at most the shard it was drawing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import EffaceError
from efface.gallery.images import Images
from efface.patch import Patch
from efface.work import Work

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["Tally", "draw_shard", "run"]

# The libraries' own warnings are not about the user's request.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
LIBRARIES = 500_000_000  # bytes that a process holds before it opens a model
Shard = Sequence[Sequence[Any]]
"""(prompt, seed, key of the image) of each image, and its guidance where that is not the run's (one a shard)."""


@dataclass
class Tally:
    """What drawing cost and what could not be drawn.

    seconds: spent in the sampler, an average over the workers. failed: key of an image -> why; None: failing raises.
    """

    seconds: float = 0.0
    failed: dict[str, str] | None = field(default_factory=dict)


def draw_shard(model: Model, shard: Shard, sampling: dict[str, Any], images: Images, tally: Tally) -> None:
    """Draw one shard as one batch and store its images; if that fails and may, each image by itself."""
    if len(shard[0]) > 3 and shard[0][3] is not None:
        sampling = sampling | {"guidance": shard[0][3]}
    prompts, seeds, keys = ([row[i] for row in shard] for i in range(3))
    start = time.perf_counter()
    try:
        found = model.sample(prompts, seeds, batch=len(shard), **sampling)
    except (EffaceError, RuntimeError) as error:
        tally.seconds += time.perf_counter() - start
        # What happens while drawing (NaN, no memory) is a result; a wrong file or request is not.
        if tally.failed is None or not (type(error) in (EffaceError, RuntimeError) or _no_memory(error)):
            raise
        if len(shard) == 1:
            tally.failed[keys[0]] = (str(error).splitlines() or [type(error).__name__])[0][:300]
        for row in shard if len(shard) > 1 else ():
            draw_shard(model, [row], sampling, images, tally)
        return
    tally.seconds += time.perf_counter() - start
    for key, image in zip(keys, found, strict=True):
        images.put(key, image)


def _no_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"


def lanes_for(model: Model) -> int:
    """How many workers: as many as torch has threads here, and as many as the free memory holds, at least one.

    A worker holds the weights, and about as much again while it opens them and draws.
    """
    import torch

    threads, free = torch.get_num_threads(), free_memory()
    return threads if free is None else max(1, min(threads, free // (2 * model.nbytes + LIBRARIES)))


def free_memory() -> int | None:
    """Bytes that new processes can have; None where the system (other than Linux) does not say."""
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return 1024 * int(facts["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return None


def run(
    lanes: int,
    folder: Path,
    patches: Sequence[Patch],
    sampling: dict[str, Any],
    images: Path,
    shards: Sequence[Shard],
    work: Work,
    label: str,
    tally: Tally | None = None,
) -> None:
    """Draw the shards with `lanes` workers. Raises Cancelled, and EffaceError when a worker fails."""
    tally = tally or Tally(failed=None)
    with tempfile.TemporaryDirectory() as place:
        files = [str(p.save(Path(place) / f"{i}.safetensors")) for i, p in enumerate(patches)]
        job = {"folder": str(folder), "patches": files, "sampling": sampling, "images": str(images)}
        job["tolerant"] = tally.failed is not None
        workers: list[subprocess.Popen[str]] = []
        try:
            for _ in range(lanes):
                workers.append(_start())
            for lane, worker in enumerate(workers):
                _hand(worker, job | {"shards": list(shards[lane::lanes])})
            for line in work.progress(_lines(workers, work), label, total=len(shards)):
                said = json.loads(line)
                tally.seconds += said["seconds"] / lanes
                if tally.failed is not None:
                    tally.failed |= said["failed"]
            for worker in workers:
                if worker.wait():
                    raise EffaceError(f"a drawing process ended with code {worker.returncode}; its message is above")
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def _start() -> subprocess.Popen[str]:
    environment = os.environ | QUIET | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "efface.engines.local"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C goes to the parent, which ends its workers
    )


def _hand(worker: subprocess.Popen[str], job: dict[str, Any]) -> None:
    """Give a worker its job. Raises EffaceError for one that ended before it read it."""
    assert worker.stdin is not None
    try:
        worker.stdin.write(json.dumps(job))
        worker.stdin.close()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            worker.stdin.close()
        raise EffaceError(f"a drawing process ended with code {worker.wait()} before it began") from None


def _lines(workers: list[subprocess.Popen[str]], work: Work) -> Iterator[str]:
    """The line of each finished shard, from whichever worker is first; looks for cancellation twice a second."""
    import selectors

    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ)  # pyright: ignore[reportArgumentType]
        open_ends = len(workers)
        while open_ends:
            work.check()
            for key, _ in selector.select(timeout=0.5):
                if line := key.fileobj.readline():  # pyright: ignore[reportAttributeAccessIssue]
                    yield line
                else:
                    selector.unregister(key.fileobj)
                    open_ends -= 1


def _work(job: dict[str, Any]) -> None:
    import torch

    from efface.model import load

    torch.set_num_threads(1)
    parent = os.getppid()
    model = load(job["folder"], "cpu", torch.float32)
    for file in job["patches"]:
        model.push(Patch.load(file))
    store = Images(Path(job["images"]))
    for shard in job["shards"]:
        if os.getppid() != parent:
            return  # the parent was killed: nobody asks for more
        tally = Tally(failed={} if job["tolerant"] else None)
        draw_shard(model, shard, job["sampling"], store, tally)
        print(json.dumps({"seconds": tally.seconds, "failed": tally.failed or {}}), flush=True)


if __name__ == "__main__":
    _work(json.load(sys.stdin))
