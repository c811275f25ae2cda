"""Engines: wherever shards run, each is answered once, failures are one sentence, and nobody is left at the end.

The table has a row an engine; that of `ray` starts a cluster and carries the mark `cluster` (make test-cluster).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import efface
from conftest import Cli
from efface import registry
from efface.engines import Engine, Job, engine_of, opened
from efface.engines import local as local_engine
from efface.engines.inline import Inline
from efface.engines.local import Local
from efface.errors import BadRequest, Cancelled, EffaceError, Unavailable, UnknownName, WrongBase, WrongFile
from efface.files import VERSION
from efface.gallery.drawing import Sampling, Side, Tally
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.gallery.shot import Shot
from efface.gallery.task import Row, job_of
from efface.work import Work

TASK = "engines._task:rehearsal"
ENGINES = ["inline", "local:workers=2", pytest.param("ray:workers=2", marks=pytest.mark.cluster)]


# Drawing in workers is in the fast tier too: tests/gallery/test_measure.py draws with one of them.
LONG = [pytest.param(e, marks=pytest.mark.slow) if e == "local:workers=2" else e for e in ENGINES]
at_length = pytest.mark.parametrize("engine", LONG, indirect=True)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return engine_of(request.param)


def rehearse(engine: Engine, words: list[str], *files: Path, work: Work | None = None, **common: object) -> list[Any]:
    return list(engine.run(Job(TASK, common, files), words, work or Work(), "rehearsing"))


# --- the contract ----------------------------------------------------------------------------------------------------


def test_every_shard_is_answered_once_and_sees_what_was_opened(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("first", encoding="utf-8")
    (tmp_path / "b").write_text("zweite Größe", encoding="utf-8")
    words = [f"say {k} ü" for k in range(9)]
    said = rehearse(engine, words, tmp_path / "a", tmp_path / "b")
    assert sorted(s["shard"] for s in said) == words
    assert all(s["files"] == ["first", "zweite Größe"] for s in said)
    assert rehearse(engine, []) == []


def test_a_shard_that_fails_is_one_sentence_of_its_own_class(engine: Engine) -> None:
    with pytest.raises(WrongFile, match=r"^this shard was told to fail; give it another word$"):
        rehearse(engine, ["say 0", "fail", "say 1", "say 2"])


def test_a_task_that_no_room_lists_is_refused(engine: Engine) -> None:
    for name in ("os:system", "gallery.task:draw_shard", "gallery.task:other", "gallery.drawing:draw", "x.task:y"):
        with pytest.raises(EffaceError, match="unknown task"):
            list(engine.run(Job(name, {}), ["say 0"], Work(), ""))


def test_few_shards_are_under_way_at_a_time(engine: Engine, tmp_path: Path) -> None:
    """Back-pressure: what nobody asked for yet is not begun, but for one shard a worker."""
    log = tmp_path / "log"
    results = engine.run(Job(TASK, {"log": str(log)}), [f"say {k}" for k in range(40)], Work(), "")
    next(results)
    next(results)
    time.sleep(1.0)
    assert 2 <= len(log.read_text().splitlines()) <= 2 + 3
    assert len(list(results)) == 38
    assert len(log.read_text().splitlines()) == 40


def test_cancel_stops_and_leaves_no_worker(engine: Engine, tmp_path: Path) -> None:
    log, work = tmp_path / "log", Work()
    results: Iterator[Any] = engine.run(Job(TASK, {"log": str(log)}), [f"wait 0.2 {k}" for k in range(50)], work, "")
    next(results)
    work.cancel()
    with pytest.raises(Cancelled):
        list(results)
    time.sleep(1.0)
    begun = log.read_text().splitlines()
    assert len(begun) <= 6
    if engine.reach != "process":
        assert not any(alive(int(line.split()[0])) for line in begun)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_shard_of_a_killed_worker_is_done_again_and_no_other(engine: Engine, tmp_path: Path) -> None:
    if engine.reach == "process":
        pytest.skip("it has no worker that could be killed")
    log, words = tmp_path / "log", [f"wait 0.05 {k}" for k in range(12)]
    words[4] = f"die {tmp_path / 'died'}"
    said = rehearse(engine, words, log=str(log))
    assert sorted(s["shard"] for s in said) == sorted(words)
    begun = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert {w: begun.count(w) for w in words if begun.count(w) != 1} == {words[4]: 2}


ROWS = [("a dog", 0), ("a star", 1), ("a red cat", 2), ("a house", 3)]


def drawn(
    model: efface.Model, engine: Engine | None, folder: Path, flip: Callable[[Any], Any] = list
) -> dict[str, Any]:
    gallery = Gallery(Side("edited", model, model.in_force), Sampling.of(model, 2), Images(folder))
    shards = flip([s for p, n in ROWS for s in gallery.shards([Shot(p, n), Shot(p, n + 9)])])
    tally = Tally()
    assert gallery.draw(shards, Work(), tally, engine=engine) == 8
    assert (tally.failed, tally.seconds > 0) == ({}, True)
    return {k: gallery.images.get(k).tobytes() for k in sorted(gallery.images.keys())}


@pytest.fixture
def patch(tiny: efface.Model) -> efface.Patch:
    return efface.erase(tiny, ["dog"], keep=["cat"])


@at_length
def test_engine_and_order_change_no_pixel(
    engine: Engine, tiny: efface.Model, patch: efface.Patch, tmp_path: Path
) -> None:
    """E-8: with patches in force, of which one has a strength of its own."""
    base = drawn(tiny, None, tmp_path / "base")
    with patch.scaled(0.5).applied(tiny), patch.applied(tiny):
        here = drawn(tiny, engine_of("inline"), tmp_path / "here")
        there = drawn(tiny, engine, tmp_path / "there")
        back = drawn(tiny, engine, tmp_path / "back", lambda shards: shards[::-1])
    assert here == there == back
    assert here.keys().isdisjoint(base)
    assert sorted(here.values()) != sorted(base.values())


@at_length
def test_an_image_that_fails_is_named_by_its_key(engine: Engine, tiny: efface.Model, tmp_path: Path) -> None:
    """A prompt that is too long is a wrong request, and ends the run in one sentence."""
    gallery = Gallery(Side("base", tiny), Sampling.of(tiny, 1), Images(tmp_path))
    shards = gallery.shards([Shot("a dog", 0), Shot("a dog " * 200, 1)])
    with pytest.raises(BadRequest, match=r"^[^\n]+$"):
        gallery.draw(shards, Work(), Tally(), engine=engine)


# --- by name ---------------------------------------------------------------------------------------------------------


def test_an_engine_is_a_file_of_its_own_name(cli: Cli) -> None:
    assert registry.names("engines") == ["inline", "local", "ray"]
    assert cli("list", "engines", "--json").json()["engines"] == ["inline", "local", "ray"]
    assert engine_of("LOCAL:workers=3") == Local(3)
    with pytest.raises(UnknownName, match="inline"):
        engine_of("inlin")
    with pytest.raises(UnknownName, match="address"):
        engine_of("local", "somewhere:6379")
    for text, said in (("local:3", "KEY=VALUE"), ("local:workers=-1", "0 or more"), ("local:workers=few", "integer")):
        with pytest.raises(BadRequest, match=said):
            engine_of(text)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_engine_names_its_cure(cli: Cli, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"pip install 'efface\[ray\]'"):
        engine_of("ray")
    said = cli("generate", "micro", "--prompt", "a cat", "--engine", "ray", "-o", tmp_path / "out")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "efface[ray]" in said.err
    assert not (tmp_path / "out").exists()


def test_the_address_belongs_to_an_engine(cli: Cli, tmp_path: Path) -> None:
    said = cli("generate", "micro", "--prompt", "a cat", "--address", "x:1", "-o", tmp_path / "out")
    assert said.code == 2
    assert "--engine" in said.err


@at_length
def test_generate_draws_the_same_files_with_every_engine(
    cli: Cli, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"process": "inline", "machine": "local:workers=2", "cluster": "ray:workers=1"}[engine.reach]
    found = []
    for folder, more in (("usual", ()), ("engine", ("--engine", name))):
        monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / f"cache-{folder}"))
        said = cli("generate", "micro", "--prompt", "a cat", "--seeds", "0-2", "--steps", 2, *more, "--quiet",
                   "-o", tmp_path / folder)  # fmt: skip
        assert said.code == 0, said.err
        found.append({f.name: f.read_bytes() for f in (tmp_path / folder).iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 3


# --- worker processes of this machine --------------------------------------------------------------------------------


def test_a_worker_that_cannot_start_ends_those_that_did(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = local_engine._start, []

    def second_fails() -> Any:
        if started:
            raise OSError(11, "Resource temporarily unavailable")
        started.append(start())
        return started[0]

    monkeypatch.setattr(local_engine, "_start", second_fails)
    with pytest.raises(OSError, match="unavailable"):
        rehearse(Local(2), ["say 0", "say 1"])
    assert started[0].poll() is not None


@pytest.mark.parametrize("length", [1, 20_000], ids=["short", "longer than a pipe"])
def test_a_worker_that_ends_before_it_reads_its_job_is_named(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_engine.sys, "executable", shutil.which("false"))
    with pytest.raises(EffaceError, match="ended with code 1 before it began"):
        rehearse(Local(2), ["say dog " * length] * 2)


def test_a_shard_that_kills_every_worker_ends_the_run_in_one_sentence() -> None:
    with pytest.raises(EffaceError, match="every worker process was killed; free some memory"):
        rehearse(Local(2), ["say 0", "die", "die", "die"])


def test_a_fault_in_a_worker_is_a_sentence_and_its_place_stands_in_the_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(EffaceError, match=r"^a worker failed with ValueError: this shard was told to break$"):
        rehearse(Local(1), ["break"])
    assert "_task.py" in capfd.readouterr().err


def test_a_large_shard_and_a_large_result_do_not_block_each_other() -> None:
    words = [f"say {k} " + "x" * 300_000 for k in range(6)]
    assert sorted(s["shard"] for s in rehearse(Local(2), words)) == words


def test_workers_on_the_cpu_refuse_a_model_on_a_gpu() -> None:
    with pytest.raises(BadRequest, match="ray"):
        list(Local(1).run(Job(TASK, {}, gpu=True), ["say 0"], Work(), ""))


def test_a_pipeline_in_memory_is_drawn_here_and_nowhere_else(tiny_pipe: Any, tmp_path: Path) -> None:
    model = efface.load(tiny_pipe())
    with pytest.raises(WrongFile, match="save_pretrained"):
        drawn(model, Local(1), tmp_path / "there")
    assert len(drawn(model, None, tmp_path / "here")) == 8


@dataclass(frozen=True)
class Afar(Inline):
    """Draws in this process what was packed for a node."""

    @property
    def reach(self) -> Any:
        return "cluster"


def test_a_node_that_holds_something_else_is_named_with_its_cure(tiny: efface.Model, tmp_path: Path) -> None:
    """Nodes may have disks and packages of their own: what decides pixels is compared before the first is drawn."""
    shard = [Row("a dog", 0, "k")]
    with job_of(Afar(), tiny, 1, 1.0, False, Work()) as job:
        assert len(opened(job)(shard)["files"]) == 1
        for change, kind, said in (
            ({"model": str(tmp_path / "gone")}, WrongFile, "has no folder .*gone; put the model there"),
            ({"identity": "0" * 16}, WrongBase, "holds another model; put the same copy on every node"),
            ({"versions": (("efface", "0.0"),)}, BadRequest, "and the run 0.0; install the same versions"),
            ({"versions": (("efface", VERSION), ("torch", "1.0"))}, BadRequest, "has torch .* and the run 1.0"),
        ):
            with pytest.raises(kind, match=said):
                opened(replace(job, common={**job.common, **change}))


def test_a_worker_refuses_what_is_no_opening() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        opened(Job("gallery.task:drawing", {"model": "x", "steps": "many"}))
