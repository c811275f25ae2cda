"""The two sides of an audit differ in the edit and in nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import efface
from efface.errors import BadRequest
from efface.request import Request
from efface.runs.spec import Audit
from tiny_families import MakePipe


def test_models_with_different_schedulers_are_refused_as_sides(
    tiny_folder: Path, tiny_pipe: MakePipe, tmp_path: Path
) -> None:
    """Else the sampler would count as the edit. Settings that a file leaves out are those of the class."""
    base, request = efface.load(tiny_folder, "cpu"), Request.build(["dog"])
    for name, scheduler in (("same", "dpm"), ("other", "ddim")):
        tiny_pipe(seed=1, scheduler=scheduler).save_pretrained(tmp_path / name)
    Audit(base, request, "coco-30k", None, efface.load(tmp_path / "same", "cpu"))
    with pytest.raises(BadRequest, match="DPMSolverMultistepScheduler and DDIMScheduler") as caught:
        Audit(base, request, "coco-30k", None, efface.load(tmp_path / "other", "cpu"))
    assert len(str(caught.value).splitlines()) == 1
