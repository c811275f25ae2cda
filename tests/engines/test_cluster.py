"""Audits on a Ray cluster that loses workers, nodes and drivers end with the records of the in-process run.

Two nodes on this machine, one worker each. What is killed is a worker in the middle of a shard, found by the file into
which it writes its process number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import efface
from efface.audit import Audit, audit, request_of
from efface.engines import Answer, Engine, Job, engine_of
from efface.engines import ray as on_ray
from efface.errors import BadRequest, EffaceError, Unavailable
from efface.scores.records import Records
from efface.work import Work

pytestmark = pytest.mark.cluster
EVERY = float(os.environ.get("EFFACE_KILL_EVERY", "20"))  # seconds from one kill to the next
SIZES = (("targets", 48), ("others", 48), ("other_styles", 0))
SHARD_SECONDS = 5.0


class Noting(on_ray.Worker):
    """A worker that notes when it begins and ends a shard, once the job is open."""

    log = Path(os.devnull)

    def answer(self, shard: object) -> Answer:
        self._opened()
        self.note("begins", shard)
        answer = super().answer(shard)
        self.note("ends", shard)
        return answer

    def note(self, word: str, shard: Any) -> None:
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(f"{word} {os.getpid()} {shard[0][2]}\n")


@dataclass
class Nodes:
    """A cluster of two nodes: the one with the driver, and one that can be lost."""

    cluster: Any
    second: Any

    @property
    def engine(self) -> Engine:
        return engine_of("ray", self.cluster.address)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    ray = on_ray.imported()
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the tests before this
    sizes = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={**sizes, "include_dashboard": False})
    yield Nodes(cluster, cluster.add_node(**sizes, num_gpus=1))
    ray.shutdown()
    cluster.shutdown()


def asked(steps: int) -> Audit:
    model = efface.load("micro", "cpu")
    patch = efface.erase(model, ["rocket"], keep=["pizza"])
    return Audit(model, request_of(patch), "world-smoke", patch, steps=steps, settings=SIZES)


def steps_for(seconds: float) -> int:
    """With which a shard takes about so long on this machine as it is just now."""
    model, start = efface.load("micro", "cpu"), 0.0
    for _ in range(2):  # the first opens the model
        start = time.perf_counter()
        model.sample(["a cat"] * 16, list(range(16)), batch=16, steps=10)
    return max(10, round(10 * seconds / (time.perf_counter() - start)))


def rows(run: Path) -> list[dict[str, Any]]:
    return sorted(Records(run / "records.jsonl"), key=lambda record: record.key)


def alone(home: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Records of the run in this process, with a cache of its own."""
    with monkeypatch.context() as patched:
        patched.setenv("EFFACE_CACHE", str(home / "cache-alone"))
        audit(asked(steps), home / "alone", engine=engine_of("inline"))
    return rows(home / "alone")


# --- losses ----------------------------------------------------------------------------------------------------------


class Chaos(threading.Thread):
    """Every so often kills a worker in the middle of a shard that has drawn one before; once it takes the node away.

    A worker that has drawn nothing is left alone: if opening the model takes longer than its life, nobody gets on.
    """

    def __init__(self, log: Path, nodes: Nodes) -> None:
        super().__init__(daemon=True)
        self.log, self.nodes = log, nodes
        self.done = threading.Event()
        self.lost: list[str] = []

    def run(self) -> None:
        while not self.done.wait(EVERY):
            while not (drawing := self.drawing()) and not self.done.wait(0.02):
                pass
            if self.done.is_set():
                return
            if len(self.lost) == 1:  # the second time
                self.nodes.cluster.remove_node(self.nodes.second, allow_graceful=False)
                self.lost.append("node")
            else:
                os.kill(drawing[0], signal.SIGKILL)
                self.lost.append("worker")

    def drawing(self) -> list[int]:
        """Workers that ended a shard, began another and are alive."""
        lines = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        last = {int(pid): word for word, pid, _ in lines}
        drew = {int(pid) for word, pid, _ in lines if word == "ends"}
        return [pid for pid in drew if last[pid] == "begins" and Path(f"/proc/{pid}").exists()]


def test_workers_killed_and_a_node_lost_leave_the_records_of_the_run_in_process(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most the shards in flight are drawn twice, which is one a loss."""
    import ray

    steps, log = steps_for(SHARD_SECONDS), tmp_path / "log"
    expected = alone(tmp_path, steps, monkeypatch)
    monkeypatch.setattr(Noting, "log", log)
    monkeypatch.setattr(on_ray, "Worker", Noting)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    chaos, start = Chaos(log, nodes), time.monotonic()
    chaos.start()
    audit(asked(steps), tmp_path / "there", engine=nodes.engine)
    chaos.done.set()
    chaos.join()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    begun = Counter(line.split()[2] for line in log.read_text().splitlines() if line.startswith("begins"))
    print(f"{steps} steps, {time.monotonic() - start:.0f} s, lost: {chaos.lost}")
    print(f"{len(begun)} shards, begun {begun.total()} times")
    assert rows(tmp_path / "there") == expected
    assert len(expected) == 2 * (48 + 48 + 12)  # targets, others, neighbours
    assert {"worker", "node"} <= set(chaos.lost)
    assert 1 <= begun.total() - len(begun) <= len(chaos.lost)


# --- drivers ---------------------------------------------------------------------------------------------------------


def pictures(home: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in home.rglob("*.png") if not f.name.startswith(".")}


def test_a_killed_driver_started_again_goes_on(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked(20)
    assert whole.patch is not None
    patch, out, cache = whole.patch.save(tmp_path / "p.safetensors"), tmp_path / "there", tmp_path / "cache-there"
    sets = [word for k, v in SIZES for word in ("--set", f"{k}={v}")]
    words = ["audit", "micro", "--patch", patch, "--steps", 20, *sets, "--quiet", "-o", out]
    words += ["--engine", "ray", "--address", nodes.cluster.address]
    code = "from efface.cli import main; main()"
    command = [sys.executable, "-c", code, *(str(w) for w in words)]
    environment = os.environ | {"EFFACE_CACHE": str(cache)}
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    while len(pictures(cache)) < 40 and first.poll() is None:
        time.sleep(0.1)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    kept = pictures(cache)
    assert 40 <= len(kept) < 2 * 108
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    print(f"{len(kept)} pictures when the driver was killed, {len(pictures(cache))} at the end")
    assert {f: t for f, t in pictures(cache).items() if f in kept} == kept
    assert rows(out) == alone(tmp_path, 20, monkeypatch)


# --- what a cluster does not have ------------------------------------------------------------------------------------


def said_of(engine: Engine, words: Sequence[str], **more: Any) -> list[Any]:
    return list(engine.run(Job("engines._task:rehearsal", {}, **more), words, Work(), "rehearsing"))


def test_workers_share_a_gpu_and_ask_for_no_more_than_there_is(nodes: Nodes) -> None:
    engine = nodes.engine
    assert isinstance(engine, on_ray.Ray)
    half = replace(engine, num_gpus=0.5, num_cpus=0.5)
    assert len({s["worker"] for s in said_of(half, ["wait 2"] * 4, gpu=True)}) == 2
    with pytest.raises(BadRequest, match="2 GPU"):
        said_of(replace(engine, num_gpus=2), ["say 0"], gpu=True)
    with pytest.raises(BadRequest, match=r"9000\.0 GB"):
        said_of(engine, ["say 0"], memory=9 * 10**12)


def test_a_shard_that_kills_every_worker_ends_the_run_in_one_sentence(nodes: Nodes) -> None:
    engine = nodes.engine
    assert isinstance(engine, on_ray.Ray)
    with pytest.raises(EffaceError, match=r"^a shard lost its workers: [^\n]+ 2 times, [^\n]+$"):
        said_of(replace(engine, losses=1), ["die"])


def test_nobody_at_the_address_is_one_sentence_at_once() -> None:
    on_ray.imported().shutdown()
    start = time.monotonic()
    with pytest.raises(Unavailable, match="ray start --head"):
        said_of(engine_of("ray", "127.0.0.1:9"), ["say 0"])
    assert time.monotonic() - start < 20
