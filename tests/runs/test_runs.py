"""Runs: killed at any instant they go on and end alike; damage is found and repaired; failures are ERROR."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import efface
from conftest import Cli
from efface.audit import Audit, audit
from efface.errors import BadRequest, EffaceError, OutputExists, Unavailable, WrongFile
from efface.files import leftovers, write_bytes
from efface.gallery import task
from efface.gallery.drawing import fingerprint
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images, pixel_hash
from efface.judges import garbage
from efface.judges.panel import LabelPanel, seated
from efface.patch import Dense, Gate
from efface.runs import folder as runfolder
from efface.runs.spec import Spec
from efface.runs.sweeping import sweep
from efface.scores.records import Record, Records
from efface.work import Work
from tiny_world import SMALL, make_world, small, zero_patch


@pytest.fixture(scope="module")
def world(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tiny_folder, tmp_path_factory.mktemp("world") / "tiny-world")


@pytest.fixture(scope="module")
def _loaded(world: Path) -> efface.Model:
    return efface.load(world, "cpu")


@pytest.fixture
def model(_loaded: efface.Model) -> Iterator[efface.Model]:
    yield _loaded
    assert not _loaded.in_force


def rows(run: Path) -> list[Record]:
    return list(Records(run / "records.jsonl"))


def pixels(run: Path) -> dict[str, bytes]:
    images = Images(run / "images")
    return {k: images.get(k).tobytes() for k in sorted(images.keys())}


def without_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on only images of one colour are garbage."""

    def absent(judge: Any, folder: Any = None) -> Any:
        raise Unavailable("no detector for this judge")

    monkeypatch.setattr(garbage, "load", absent)


def test_a_models_own_garbage_detector_comes_first(model: efface.Model, tmp_path: Path) -> None:
    plan, folder = small(model).planned(), tmp_path / "model"
    usual = seated(plan.judge, plan.brief)
    assert isinstance(usual, LabelPanel)
    assert usual.versions == seated(plan.judge).versions
    shutil.copytree(model.folder, folder)
    judge, rng = usual.judge, np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 64, 64, 3), np.uint8)
    own = garbage.Garbage(garbage.fit(images, judge.look(images).features), judge.version)
    garbage.save(own, judge, {}, folder)
    found = seated(plan.judge, small(efface.load(str(folder), "cpu")).planned().brief)
    assert found.versions.garbage == own.version != usual.versions.garbage


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def struck(asked: Audit, out: Path, at: int) -> bool:
    """Audit in a child that is killed at its `at`-th change of the disk, before, in the middle or after; True if so."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            _arm(at)
            audit(asked, out)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _arm(at: int) -> None:
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == at

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            now = due()
            if now and at % 2:
                die()
            real(*args)
            if now:
                die()

        return call

    append = Records._write

    def torn(self: Records, text: str) -> None:
        if due():
            size = self.file.stat().st_size if self.file.exists() else 0
            append(self, text)
            os.truncate(self.file, size + (self.file.stat().st_size - size) * (at % 5) // 4)
            die()
        append(self, text)

    os.replace, os.link, Records._write = around(os.replace), around(os.link), torn


def _kill_and_go_on(model: efface.Model, home: Path, kills: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    luck, asked = random.Random(seed), small(model)
    audit(asked, home / "whole")
    wanted, done, attempt = rows(home / "whole"), 0, 0
    while done < kills:
        out, cache = home / f"run{attempt}", home / f"cache{attempt}"
        monkeypatch.setenv("EFFACE_CACHE", str(cache))
        while done < kills and struck(asked, out, luck.randint(1, 120)):
            done += 1
        audit(asked, out)
        assert rows(out) == wanted
        assert pixels(out) == pixels(home / "whole")
        assert Records(out / "records.jsonl").damaged <= done
        sweep(out)
        assert leftovers(out, 0) == []
        assert runfolder.status(out).state == "finished"
        attempt += 1


def test_three_kills_at_random_moments_change_nothing(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-4, in short: same rows, same pixels, no orphan, no torn file."""
    _kill_and_go_on(model, tmp_path, 3, 1, monkeypatch)


@pytest.mark.slow
def test_thirty_kills_at_random_moments_change_nothing(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-4: thirty kills, each in the middle of some change of the disk."""
    _kill_and_go_on(model, tmp_path, 30, 2, monkeypatch)


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(file: Path, place: int) -> None:
    data = file.read_bytes()
    place %= len(data)
    file.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])


def test_a_flipped_byte_in_image_record_or_plan_is_repaired_and_nothing_else_is_drawn(
    model: efface.Model, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    audit(small(model), out)
    before, images = rows(out), pixels(out)
    for place in (5, 40):
        flip(Images(out / "images").path(sorted(images)[place]), 70)
        flip(out / "records.jsonl", 600 * place)
        result = audit(small(model), out)
        assert (rows(out), pixels(out)) == (before, images)  # drawn in its frozen batch: bit-equal
        assert result["cost"]["images repaired"] == 1
        assert result["cost"]["base images drawn"] + result["cost"]["edited images drawn"] == 1
        assert result["cost"]["damaged records dropped"] >= 1
    flip(out / "plan.json", 500)
    cost = audit(small(model), out)["cost"]
    assert cost["base images drawn"] + cost["edited images drawn"] + cost["images repaired"] == 0
    assert (rows(out), pixels(out)) == (before, images)


def test_image_record_and_plan_damaged_at_once_come_back_within_one_level(model: efface.Model, tmp_path: Path) -> None:
    """Without the plan the batch of the lost image is another one; its record follows its pixels."""
    out = tmp_path / "run"
    audit(small(model), out)
    images = pixels(out)
    for key in sorted(images)[::7]:
        flip(Images(out / "images").path(key), 70)
    flip(out / "records.jsonl", 3000)
    flip(out / "plan.json", 500)
    audit(small(model), out)
    found = pixels(out)
    assert found.keys() == images.keys()
    for key, raw in found.items():
        levels = (np.frombuffer(raw, np.uint8).astype(int), np.frombuffer(images[key], np.uint8).astype(int))
        assert np.abs(levels[0] - levels[1]).max() <= 1
    assert len(rows(out)) == 64
    held = Images(out / "images")
    assert all(row.pixels == pixel_hash(held.get(row.image)) for row in rows(out))


def test_an_image_that_was_exchanged_is_noticed_by_its_pixels(model: efface.Model, tmp_path: Path) -> None:
    out = tmp_path / "run"
    audit(small(model), out)
    before, images = rows(out), pixels(out)
    one, two = (Images(out / "images").path(k) for k in sorted(images)[:2])
    one.write_bytes(two.read_bytes())
    assert audit(small(model), out)["cost"]["images repaired"] == 1
    assert (rows(out), pixels(out)) == (before, images)


def test_a_damaged_spec_is_named_and_the_records_are_kept(model: efface.Model, tmp_path: Path) -> None:
    out = tmp_path / "run"
    audit(small(model), out)
    before = (out / "records.jsonl").read_bytes()
    (out / "spec.json").write_text('{"base": ')
    with pytest.raises(WrongFile, match=r"spec\.json is damaged"):
        audit(small(model), out)
    assert (out / "records.jsonl").read_bytes() == before


# --- one run, one spec -----------------------------------------------------------------------------------------------


def test_a_finished_run_draws_and_judges_nothing_and_another_suite_shares_its_images(
    model: efface.Model, tmp_path: Path
) -> None:
    first = audit(small(model), tmp_path / "one")
    records = (tmp_path / "one" / "records.jsonl").read_bytes()
    again = audit(small(model), tmp_path / "one")
    assert (tmp_path / "one" / "records.jsonl").read_bytes() == records
    assert dataclasses.replace(again, cost=first.cost) == first
    assert again["cost"]["images taken from the cache"] == 64
    larger = (("targets", 12), *SMALL[1:])
    shared = audit(small(model, settings=larger), tmp_path / "two")
    assert shared["cost"]["base images drawn"] == shared["cost"]["edited images drawn"] == 4
    assert {"seconds drawing", "seconds judging", "seconds beside drawing", "seconds"} <= set(shared["cost"])
    with pytest.raises(OutputExists):
        audit(small(model, settings=larger), tmp_path / "one")
    assert (tmp_path / "one" / "records.jsonl").read_bytes() == records


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    """A folder that holds no run keeps every file, and so does a file; its name was a slip."""
    spec, mine = Spec("", "", "", "one", "", "", {}), tmp_path / "mine"
    note = write_bytes(mine / "notes" / "mine.txt", b"mine")
    for place in (tmp_path, mine, note):
        with pytest.raises(WrongFile, match="is no run"), runfolder.opened(place, spec, overwrite=True):
            pass
    write_bytes(mine / "spec.json", b'{"openapi": 3}')
    with pytest.raises(WrongFile, match="is no run"), runfolder.opened(mine, spec, overwrite=True):
        pass
    assert sorted(f.name for f in mine.rglob("*") if f.is_file()) == ["mine.txt", "spec.json"]
    out = tmp_path / "run"
    with runfolder.opened(out, spec, overwrite=True):
        write_bytes(out / "report.html", b"old")
    with runfolder.opened(out, dataclasses.replace(spec, suite="two"), overwrite=True):
        assert not (out / "report.html").exists()


def test_another_recipe_draws_nothing_again_and_another_edit_strength_or_gate_draws_its_own(
    model: efface.Model, tmp_path: Path
) -> None:
    patch = zero_patch(model, -0.5)
    first = audit(small(model, patch), tmp_path / "first")
    assert first["cost"]["edited images drawn"] == 32
    told = dataclasses.replace(patch, recipe={**patch.recipe, "preset": "another"})
    again = audit(small(model, told), tmp_path / "again")
    assert again["cost"]["base images drawn"] == again["cost"]["edited images drawn"] == 0
    assert again["hashes"]["patch"] == told.hash != first["hashes"]["patch"]
    assert pixels(tmp_path / "again") == pixels(tmp_path / "first")
    head = patch.edits[0]
    assert isinstance(head, Dense)
    moved = head.change.clone()
    moved.view(-1)[0] += 0.01
    for name, other in {
        "edit": dataclasses.replace(patch, edits=(dataclasses.replace(head, change=moved), *patch.edits[1:])),
        "gate": dataclasses.replace(patch, edits=(dataclasses.replace(head, gate=Gate(("a",))), *patch.edits[1:])),
        "strength": patch.scaled(0.5),
    }.items():
        cost = audit(small(model, other), tmp_path / name)["cost"]
        assert (cost["base images drawn"], cost["edited images drawn"]) == (0, 32), name


def test_a_run_whose_images_were_named_otherwise_counts_each_once(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an older version left it: the edited side under other keys, in plan and records."""
    named, out = Gallery.key, tmp_path / "run"
    with monkeypatch.context() as older:
        older.setattr(Gallery, "key", lambda g, shot: named(g, shot)[::-1] if g.side.patch else named(g, shot))
        before = audit(small(model), out)
    after = audit(small(model), out)
    assert (after["cost"]["base images drawn"], after["cost"]["edited images drawn"]) == (0, 32)
    assert {k: after[k] for k in ("tables", "garbage")} == {k: before[k] for k in ("tables", "garbage")}
    assert after["records"] == {"rows": 64, "rows of other judges or versions": 32}
    assert runfolder.status(out).state == "finished"


def test_two_processes_do_not_write_one_run(model: efface.Model, tmp_path: Path) -> None:
    from filelock import FileLock

    out = tmp_path / "run"
    audit(small(model), out)
    with FileLock(out / ".lock"), pytest.raises(WrongFile, match="another process"):
        audit(small(model), out)


def test_every_run_says_where_it_was_measured_and_both_sides_have_the_same_places(
    model: efface.Model, tmp_path: Path
) -> None:
    """E-6: base and edited are one run, prompt by prompt."""
    out = tmp_path / "run"
    result = audit(small(model), out)
    places = {s: {r.shot for r in rows(out) if r.side == s} for s in ("base", "edited")}
    assert places["base"] == places["edited"]
    assert json.loads((out / "environment.json").read_text())[0]["torch"] == torch.__version__
    write_bytes(out / "environment.json", json.dumps([{"efface": "0.0"}]).encode())
    again = audit(small(model), out)
    assert again["environment"]["went on in"] == [result["environment"]]


def test_order_and_number_of_lanes_change_no_pixel(model: efface.Model, tmp_path: Path) -> None:
    """E-8: batches belong to the shards, so engine and order do not matter."""
    plan, found = small(model).planned(), []
    for name in ("forward", "backward"):
        images = Images(tmp_path / name)
        gallery = Gallery(plan.sides[0], plan.sampling, images)
        shards = gallery.shards(i.shot for i in plan.items[:32])
        gallery.draw(shards if name == "forward" else shards[::-1], Work())
        found.append({k: images.get(k).tobytes() for k in sorted(images.keys())})
    assert found[0] == found[1]
    assert len(found[0]) == 32


def test_across_batch_sizes_pixels_stay_within_one_level(model: efface.Model) -> None:
    """E-8: initial latents are bit-equal, so images differ by rounding at most."""

    prompts, seeds = ["a cat", "a dog", "a pizza"] * 3, list(range(9))
    whole = model.sample(prompts, seeds, batch=8).astype(int)
    for batch in (1, 3):
        other = model.sample(prompts[::-1], seeds[::-1], batch=batch)[::-1].astype(int)
        assert np.abs(whole - other).max() <= 1


# --- edited equals base ----------------------------------------------------------------------------------------------


def test_an_edit_that_changes_nothing_is_refused_unless_it_is_a_control(model: efface.Model, tmp_path: Path) -> None:
    """E-7: with the zero patch every difference is exactly zero."""
    zero = zero_patch(model, 0.0)
    with zero.applied(model):
        assert fingerprint(model) == model.identity
    with zero_patch(model).applied(model):
        assert fingerprint(model) != model.identity
    with pytest.raises(BadRequest, match="--control"):
        audit(small(model, zero), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadRequest, match="--control"):
        small(model, edited=model)
    result = audit(small(model, zero, control=True), tmp_path / "run")
    assert "Control, declared with --control" in result["verdict"]["line"]
    assert result["cost"]["edited images drawn"] == 0
    losses = [r["loss"] for t in result["tables"] for r in t["rows"] if r["loss"]]
    assert losses
    assert all(loss["estimate"] == 0 and loss["p"] == 1 for loss in losses)
    found = rows(tmp_path / "run")
    hashes = {s: {r.image: r.pixels for r in found if r.side == s} for s in ("base", "edited")}
    assert hashes["base"] == hashes["edited"]


def test_a_guard_is_part_of_the_fingerprint(model: efface.Model) -> None:
    from efface.patch import Guard, Patch

    guarded = Patch((Guard("negative-prompt", {"text": "a cat"}),))
    with guarded.applied(model):
        assert fingerprint(model) != model.identity
    with guarded.scaled(0.0).applied(model):
        assert fingerprint(model) == model.identity


# --- ERROR and NA ----------------------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_drawn_is_an_error_and_the_others_are_measured(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-13: an error is no number, and the run goes on."""
    import efface

    real = efface.Model.sample

    def failing(opened: efface.Model, prompts: Any, *args: Any, **more: Any) -> Any:
        if opened.in_force and "a pizza" in prompts:
            raise EffaceError("the model drew NaN")
        return real(opened, prompts, *args, **more)

    monkeypatch.setattr(efface.Model, "sample", failing)
    result = audit(small(model), tmp_path / "run")
    failed = [r for r in rows(tmp_path / "run") if r.state == "error"]
    assert {r.shot.prompt for r in failed} == {"a pizza"}
    assert {r.reason for r in failed} == {"the model drew NaN"}
    table = next(t for t in result["tables"] if t["role"] == "other")
    states = {r["name"]: r["state"] for r in table["rows"]}
    assert states.pop("pizza") == "error"
    assert set(states.values()) == {"ok"}
    assert audit(small(model), tmp_path / "run")["cost"]["edited images drawn"] == 0
    without_detector(monkeypatch)  # what failed is tried again for the other detector, and fails again
    again = audit(small(model), tmp_path / "run")
    table = next(t for t in again["tables"] if t["role"] == "other")
    assert next(r["state"] for r in table["rows"] if r["name"] == "pizza") == "error"


def test_what_failed_is_tried_again_by_the_same_command(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ERROR record is no answer: neither a drawing that failed nor a judge that did."""
    import efface

    real, look = efface.Model.sample, LabelPanel.look

    def failing(opened: efface.Model, prompts: Any, *args: Any, **more: Any) -> Any:
        if opened.in_force and "a pizza" in prompts:
            raise EffaceError("the model drew NaN")
        return real(opened, prompts, *args, **more)

    def blind(self: LabelPanel, pixels: Any, questions: Any) -> Any:
        if any(q.prompt == "a dog" for q in questions):
            raise EffaceError("no memory is left")
        return look(self, pixels, questions)

    with monkeypatch.context() as broken:
        broken.setattr(efface.Model, "sample", failing)
        broken.setattr(LabelPanel, "look", blind)
        audit(small(model), tmp_path / "run")
    assert any(r.state == "error" for r in rows(tmp_path / "run"))
    again = audit(small(model), tmp_path / "run")
    assert not [r for r in rows(tmp_path / "run") if r.state == "error"]
    assert again["tables"] == audit(small(model), tmp_path / "other")["tables"]


def test_a_wrong_model_file_is_no_result(world: Path, tmp_path: Path) -> None:
    """Only what happens while drawing is an ERROR row; a damaged model stops the run."""
    import shutil

    broken = Path(shutil.copytree(world, tmp_path / "broken"))
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WrongFile):
        audit(small(efface.load(world, "cpu"), edited=efface.load(broken, "cpu")), tmp_path / "run")


def test_a_judge_that_is_not_here_leaves_na_with_its_cure(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.judges import world as judges

    def absent() -> Any:
        raise Unavailable("fetch it with ...")

    with monkeypatch.context() as patched:
        patched.setattr(judges, "load", absent)
        result = audit(small(model), tmp_path / "run")
    assert {r["state"] for t in result["tables"] for r in t["rows"]} == {"na"}
    assert "fetch it with" in result["not_measured"][-1]
    later = audit(small(model), tmp_path / "run")
    assert later["cost"]["base images drawn"] == later["cost"]["edited images drawn"] == 0
    assert later["records"]["rows of other judges or versions"] == 64


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(world: Path, tmp_path: Path, model: efface.Model) -> list[str]:
    patch = zero_patch(model).save(tmp_path / "p.safetensors")
    sets = [word for k, v in SMALL for word in ("--set", f"{k}={v}")]
    return ["audit", str(world), "--patch", str(patch), "--quiet", *sets, "-o", str(tmp_path / "run")]


def test_ctrl_c_in_an_audit_ends_with_130_and_the_same_command_goes_on(
    cli: Cli, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_shard, count = task.draw_shard, iter(range(99))

    def interrupted(*args: Any) -> task.Drawn:
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return draw_shard(*args)

    monkeypatch.setattr(task, "draw_shard", interrupted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # in this process, whatever the machine
    said = cli(*command)
    assert said.code == 130, said.err
    assert said.err.splitlines()[-1].startswith("efface: ")
    assert not (tmp_path / "run" / "report.json").exists()
    unfinished = cli("status", tmp_path / "run", "--json").json()
    assert unfinished["state"] == "unfinished"
    assert unfinished["sides"]["base"] == {"planned": 32, "drawn": 32, "judged": 32}
    assert unfinished["sides"]["edited"]["judged"] < 32
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*.png")}
    assert cli(*command).code == 0
    assert {f: f.stat().st_mtime_ns for f in kept} == kept
    finished = cli("status", tmp_path / "run")
    assert "finished" in finished.out
    assert cli("gc", tmp_path / "run").code == 0


def test_a_gate_that_is_not_met_ends_with_3_and_says_which_line(
    cli: Cli, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-54: exit code 3 exactly when a rule fails; the noise of this random model is left aside."""
    without_detector(monkeypatch)
    said = cli(*command, "--gate", "default")
    assert said.code == 3
    assert "gate default failed: targets shown, together: expected" in said.err
    assert "got NA: cat: not known to this model" in said.err
    assert len(said.err.strip().splitlines()) <= 2
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["gate"]["state"] == report["verdict"]["state"] == "fail"
    assert "<h2>Gate default</h2>" in (tmp_path / "run" / "report.html").read_text()
    lax = tmp_path / "lax.toml"
    lax.write_text('[[rule]]\nname = "e"\nmetric = "errors"\nroles = ["other"]\nstatistic = "estimate"\nlimit = 0\n')
    assert cli(*command, "--gate", lax).code == 0
    lax.write_text('[[rule]]\nname = "e"\nroles = ["other"]\nstatistic = "estimate"\nlimit = 0\n')
    assert cli(*command, "--gate", lax).code == 2


def test_gc_deletes_orphans_and_leftovers_and_nothing_else(cli: Cli, model: efface.Model, tmp_path: Path) -> None:
    """E-4: only `gc` removes an image that no plan names."""
    out = tmp_path / "run"
    audit(small(model), out)
    keep = {f for f in out.rglob("*") if f.is_file()}
    Images(out / "images").put("f" * 32, np.zeros((4, 4, 3), np.uint8))
    audit(small(model), out)
    (out / "images" / ".x.png.9.tmp").write_bytes(b"half")
    assert Images(out / "images").has("f" * 32)
    assert cli("gc", out, "--dry-run", "--json").json()["deleted"] is False
    assert len(cli("gc", out, "--json").json()["files"]) == 2
    assert {f for f in out.rglob("*") if f.is_file()} == keep
    held = len(list(Images(tmp_path / "cache" / "images").keys()))
    cached = Images(tmp_path / "cache" / "images")
    cached.put("e" * 32, np.zeros((4, 4, 3), np.uint8))
    assert cli("gc", "--days", "0", "--json").json()["files"] == []  # young: an audit may have drawn it just now
    os.utime(cached.path("e" * 32), (1, 1))
    assert len(cli("gc", "--days", "0", "--json").json()["files"]) == 1
    assert len(list(Images(tmp_path / "cache" / "images").keys())) == held
    state = write_bytes(tmp_path / "cache" / "erase" / "k" / "state.safetensors", b"given up")
    assert cli("gc", "--days", "1", "--json").json()["files"] == []
    with FileLock(state.with_name(".lock")):
        assert cli("gc", "--days", "0", "--json").json()["files"] == []
    assert cli("gc", "--days", "0", "--json").json()["files"] == [str(state)]
    assert not state.exists()
    for command in ("status", "gc"):
        assert cli(command, tmp_path).code == 1


def test_a_dry_run_says_what_would_be_drawn_and_writes_nothing(cli: Cli, command: list[str], tmp_path: Path) -> None:
    said = cli(*command, "--dry-run", "--json").json()
    assert said["images_a_side"] == 32
    assert said["roles"] == {"target": 8, "neighbour": 8, "other": 16}
    assert not (tmp_path / "run").exists()
