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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.errors import EffaceError
from efface.patch import Patch
from efface.work import Work

__all__ = ["run"]

# The libraries' own warnings are not about the user's request.
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
Shard = Sequence[tuple[str, int, str]]
"""(prompt, seed, key of the image) of each image."""


def run(
    lanes: int,
    folder: Path,
    patches: Sequence[Patch],
    sampling: dict[str, Any],
    images: Path,
    shards: Sequence[Shard],
    work: Work,
    label: str,
) -> None:
    """Draw the shards with `lanes` workers. Raises Cancelled, and EffaceError when a worker fails."""
    with tempfile.TemporaryDirectory() as place:
        files = [str(p.save(Path(place) / f"{i}.safetensors")) for i, p in enumerate(patches)]
        job = {"folder": str(folder), "patches": files, "sampling": sampling, "images": str(images)}
        workers = [_start(job | {"shards": list(shards[lane::lanes])}) for lane in range(lanes)]
        try:
            for _ in work.progress(_lines(workers, work), label, total=len(shards)):
                pass
            for worker in workers:
                if worker.wait():
                    raise EffaceError(f"a drawing process ended with code {worker.returncode}; its message is above")
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def _start(job: dict[str, Any]) -> subprocess.Popen[str]:
    environment = os.environ | QUIET | {"OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "efface.engines.local"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C goes to the parent, which ends its workers
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(job))
    worker.stdin.close()
    return worker


def _lines(workers: list[subprocess.Popen[str]], work: Work) -> Any:
    """One item a finished shard, from whichever worker says so first; looks up twice a second for cancellation."""
    import selectors

    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ)  # pyright: ignore[reportArgumentType]
        open_ends = len(workers)
        while open_ends:
            work.check()
            for key, _ in selector.select(timeout=0.5):
                if key.fileobj.readline():  # pyright: ignore[reportAttributeAccessIssue]
                    yield None
                else:
                    selector.unregister(key.fileobj)
                    open_ends -= 1


def _work(job: dict[str, Any]) -> None:
    import torch

    from efface.model import load
    from efface.sampler import sample
    from efface.store import Images

    torch.set_num_threads(1)
    model = load(job["folder"], "cpu", torch.float32)
    for file in job["patches"]:
        model.push(Patch.load(file))
    store = Images(Path(job["images"]))
    for shard in job["shards"]:
        prompts, seeds, keys = zip(*shard, strict=True)
        found = sample(model, prompts, seeds, batch=len(shard), **job["sampling"])
        for key, image in zip(keys, found, strict=True):
            store.put(key, image)
        print(len(shard), flush=True)


if __name__ == "__main__":
    _work(json.load(sys.stdin))
