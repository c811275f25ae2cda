"""A gate sees what rates alone do not: noise, one colour and blur fail it, an edit that draws other things passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_world import Paint, categories, make_world, named, paint, pictures, small

import efface
from efface import gate as gates
from efface.audit import audit
from efface.errors import BadRequest
from efface.request import Request
from efface.scores import configured
from efface.suites import Item

METRICS = ("pairs", "pairs:measure=psnr", "distribution", "garbage")
BROKEN = "garbage among targets"
SETTINGS = (("all_targets", 60), ("synonyms", 0), ("neighbours", 24), ("others", 48))


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> efface.Model:
    folder = make_world(tiny_folder, tmp_path_factory.mktemp("world") / "pictured", names=categories())
    return efface.load(folder, "cpu")


def targets() -> list[str]:
    return list(pictures())[:2]


def other_things(item: Item) -> np.ndarray:
    """A known good edit: in place of a target another object, everything else as before."""
    return pictures()[list(pictures())[-1]] if item.asks[0].label in targets() else named(item)


def noise(item: Item) -> np.ndarray:
    return np.random.default_rng(item.seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def one_colour(item: Item) -> np.ndarray:
    return np.full((64, 64, 3), 120, np.uint8)


def blurred(item: Item) -> np.ndarray:
    return np.asarray(Image.fromarray(named(item)).filter(ImageFilter.GaussianBlur(6)))


@pytest.mark.parametrize(
    ("edited", "state", "rule"),
    [(other_things, "pass", ""), (noise, "fail", BROKEN), (one_colour, "fail", BROKEN), (blurred, "fail", BROKEN),
     (named, "fail", "targets shown, together")],
)  # fmt: skip
def test_the_default_gate_knows_an_edit_from_a_broken_model(
    edited: Paint, state: str, rule: str, model: efface.Model, tmp_path: Path
) -> None:
    """E-39: noise has no target in it and is no success; the report says so above everything else."""
    asked = small(model, suite="world-standard", request=Request.build(targets()), settings=SETTINGS)
    result = audit(paint(asked, edited), tmp_path / "run", gate=gates.load("default"))
    assert result["cost"]["base images drawn"] == result["cost"]["edited images drawn"] == 0
    rules = {r["rule"]: r for r in result["gate"]["rules"]}
    assert result["gate"]["state"] == result["verdict"]["state"] == state, rules
    if rule:
        assert rules[rule]["state"] == "fail"
        assert len(rules[rule]["pairs"]) == 5
    broken = rule == BROKEN
    assert bool(result["flags"]) == broken
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("Broken: garbage in place of targets" in page) == broken
    target = next(t for t in result["tables"] if t["role"] == "target")["pooled"]
    shares = [target[k]["hits"] for k in ("edited", "replaced", "garbage")]
    if broken:
        assert target["replaced"]["rate"] <= 0.05
    else:
        assert sum(shares) == target["edited"]["n"]


def test_metrics_look_at_the_images_of_the_run_and_scores_follow_from_its_counts(
    model: efface.Model, tmp_path: Path
) -> None:
    asked = small(model, suite="world-standard", request=Request.build(targets()), settings=SETTINGS)
    result = audit(paint(asked, other_things), tmp_path / "run", metrics=configured(METRICS))
    cells = {(c["metric"], c["name"], c["side"]): c for c in result["metrics"]}
    same = cells["pairs", "ssim.other", "edited"]
    assert (same["value"], same["n"], same["n_na"]) == (1.0, 48, 0)
    assert cells["pairs", "ssim.target", "edited"]["value"] < 0.9
    psnr = cells["pairs:measure=psnr", "psnr.other", "edited"]
    assert (psnr["state"], psnr["n"]) == ("na", 48)
    assert "identical" in psnr["reason"]
    assert cells["distribution", "KID-judge.base", "edited"]["n"] > 0
    assert cells["garbage", "target.garbage", "edited"]["hits"] == 0
    scores = {(s["score"], s["side"]): s["value"] for s in result["scores"]}
    assert scores["Overall", "edited"] == 1.0
    assert scores["Overall", "base"] == 0.0
    for wrong in ("ssmi", "pairs:measure", "pairs:mesure=psnr"):
        with pytest.raises(BadRequest):
            configured([wrong])
