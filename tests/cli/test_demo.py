"""Ctrl-C in the demo: exit 130, nothing torn, the same command goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
import efface.model
from conftest import Cli
from efface.cli import demo
from efface.gallery import task
from efface.gallery.images import Images
from efface.suites import world_smoke
from tiny_world import NAMES, make_world


@pytest.fixture
def tiny_demo(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo as it is, on a tiny model and with few images."""
    world = make_world(tiny_folder, tmp_path / "world", names={**NAMES, "hamburger": "dishes"})
    load = efface.model.load
    few = dataclasses.make_dataclass(
        "Few",
        [("targets", int, 6), ("styles", int, 6), ("neighbours", int, 6), ("others", int, 6), ("other_styles", int, 0)],
        bases=(world_smoke.WorldSmoke,),
        frozen=True,
    )
    monkeypatch.setattr(efface.model, "load", lambda name, *a, **k: load(world if name == "mini" else name, *a, **k))
    monkeypatch.setattr(world_smoke, "WorldSmoke", few)
    monkeypatch.setattr(demo, "CONCEPTS", ("cat", "hamburger", "monochrome style"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("tiny_demo")
def test_ctrl_c_in_the_demo_ends_with_130_and_the_same_command_goes_on(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, draw_shard, count = tmp_path / "demo", task.draw_shard, iter(range(99))

    def interrupted(*args: Any) -> task.Drawn:
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return draw_shard(*args)

    monkeypatch.setattr(task, "draw_shard", interrupted)
    said = cli("demo", "--quiet", "-o", out)
    assert said.code == 130, said.err
    assert said.err.splitlines()[-1].startswith("efface: ")
    assert not (out / "report.html").exists()
    assert not (out / "patch.safetensors").exists()
    drawn = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache" / "images").rglob("*.png")}
    assert drawn
    said = cli("demo", "--quiet", "--json", "-o", out)
    assert said.code == 0, said.err
    assert {f: f.stat().st_mtime_ns for f in drawn} == drawn
    assert efface.Patch.load(out / "patch.safetensors").sites
    keys = {k for part in json.loads((out / "plan.json").read_text())["plan"]["sides"].values() for k in part["keys"]}
    assert set(Images(out / "images").keys()) == keys
