"""The field's standard measurements through the command line, with stand-ins for judges whose weights are not here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from efface import registry
from efface.errors import BadRequest, EffaceWarning
from efface.gallery.shot import Shot
from efface.judges import clip, torchmetrics_features
from efface.judges.panel import Brief, RegionPanel, seated
from efface.metrics.distribution import Distribution
from efface.request import Request, forms_of
from efface.scores.readings import Reading
from efface.scores.records import Records
from efface.suites import Known
from small_judges import save_clip

if TYPE_CHECKING:
    from conftest import Cli

REGIONS = ["FACE", "FEET_COVERED", "HAND_EXPOSED", "EAR_EXPOSED"]


@pytest.fixture
def patch(cli: Cli, tmp_path: Path) -> Path:
    file = tmp_path / "p.safetensors"
    said = cli("erase", "micro", "-c", "airplane", "--keep", "octopus", "--method", "uce", "-o", file, "--quiet")
    assert said.code == 0, said.err
    return file


def detector(monkeypatch: pytest.MonkeyPatch, folder: Path, *found: str) -> None:
    """The detector's package, whose network finds these regions in every picture."""

    class Eye:
        def __init__(self, model_path: str | None = None) -> None: ...

        def detect(self, image: np.ndarray) -> list[dict[str, Any]]:
            return [{"class": name, "score": 0.9} for name in found]

    folder.mkdir(exist_ok=True)
    (folder / "small.onnx").write_bytes(b"weights")
    made = ModuleType("nudenet")
    made.__dict__.update({"__file__": str(folder / "__init__.py"), "NudeDetector": Eye, "__labels": REGIONS})
    monkeypatch.setitem(sys.modules, "nudenet", made)


def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.csv"
    file.write_text("prompt,sd_seed\na fox in a garden,3\na red car,4\n")
    return file


def audited(cli: Cli, patch: Path, out: Path, suite: str, *more: object) -> dict[str, Any]:
    said = cli(
        "audit", "micro", "--patch", patch, "--suite", suite, "--steps", 1, "-o", out, "--quiet", "--json", *more
    )
    assert said.code == 0, said.err
    return json.loads(said.out)


def cell(report: dict[str, Any], name: str, concept: str = "", side: str = "edited") -> dict[str, Any]:
    return next(c for c in report["metrics"] if (c["name"], c["concept"], c["side"]) == (name, concept, side))


# --- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["i2p", "ring-a-bell"])
def test_only_exposed_regions_count_and_a_table_says_which(
    suite: str, cli: Cli, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector(monkeypatch, tmp_path / "package", "FACE", "FEET_COVERED")
    file = prompts(tmp_path)
    covered = audited(cli, patch, tmp_path / "a", suite, "--set", f"file={file}")
    row = covered["tables"][0]["rows"][0]
    assert (row["base"] or row["edited"])["hits"] == 0
    detector(monkeypatch, tmp_path / "package", "FACE", "HAND_EXPOSED", "HAND_EXPOSED")
    shown = audited(cli, patch, tmp_path / "b", suite, "--set", f"file={file}")
    assert shown["tables"][0]["rows"][0]["base"]["hits"] == 2
    assert cell(shown, "detections", ">= 0.6")["value"] == 4
    assert cell(shown, "detections by region", "HAND_EXPOSED")["value"] == 4
    assert cell(shown, "images with detections by region", "HAND_EXPOSED", "base")["hits"] == 2
    assert not [c for c in shown["metrics"] if c["concept"] == "FACE"]


def test_a_label_that_the_detector_cannot_give_is_refused_before_anything_is_drawn(
    cli: Cli, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector(monkeypatch, tmp_path / "package", "FACE")
    for counts in ("HAND_EXPOSD", "HAND_EXPOSED,WING_*"):
        said = cli("audit", "micro", "--patch", patch, "--suite", "i2p", "--steps", 1, "-o", tmp_path / "run",
                   "--set", f"file={prompts(tmp_path)}", "--set", f"counts={counts}")  # fmt: skip
        assert said.code == 2
        assert counts.split(",")[-1] in said.err
        assert "HAND_EXPOSED" in said.err
        assert not (tmp_path / "run").exists()


def test_a_pattern_matches_whole_labels_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector(monkeypatch, tmp_path / "package", "EAR_EXPOSED")
    one = seated("nudenet", Brief(counts=("ear_*",)))
    assert isinstance(one, RegionPanel)
    with pytest.raises(BadRequest, match="EXPOSED"):
        seated("nudenet", Brief(counts=("EXPOSED",)))


def test_a_missing_judge_is_said_before_anything_is_drawn_and_images_wait_for_it(
    cli: Cli, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    out, file = tmp_path / "run", prompts(tmp_path)
    command = (
        "audit",
        "micro",
        "--patch",
        patch,
        "--suite",
        "i2p",
        "--steps",
        1,
        "-o",
        out,
        "--set",
        f"file={file}",
        "--set",
        "kept=0",
    )
    assert "NudeNet is not installed" in cli(*command, "--dry-run").out
    said = cli(*command)
    assert (said.code, out.exists()) == (1, False)
    assert "NudeNet is not installed" in said.err
    assert "--store-images" in said.err
    assert cli(*command, "--store-images", "--quiet").code == 0
    assert len(list((out / "images").rglob("*.png"))) == 4
    detector(monkeypatch, tmp_path / "package", "EAR_EXPOSED")
    later = json.loads(cli(*command, "--store-images", "--quiet", "--json").out)
    assert later["cost"]["base images drawn"] == later["cost"]["edited images drawn"] == 0
    assert later["tables"][0]["rows"][0]["base"]["hits"] == 2


def test_of_two_judges_a_missing_one_is_said_before_drawing_and_the_images_wait(cli: Cli, tmp_path: Path) -> None:
    for name, text in (("styles", "Old_Photo\nSketch\n"), ("objects", "Dogs\n")):
        (tmp_path / f"{name}.txt").write_text(text)
    file, out = tmp_path / "p.safetensors", tmp_path / "run"
    assert cli("erase", "micro", "-c", "style:Old Photo", "--method", "uce", "-o", file, "--quiet").code == 0
    styles, objects = classifier(tmp_path / "s", "Old_Photo", "Sketch"), tmp_path / "o"
    command = ["audit", "micro", "--patch", file, "--suite", "unlearncanvas", "--steps", 1, "-o", out, "--quiet",
               "--set", f"styles={tmp_path / 'styles.txt'}", "--set", f"objects={tmp_path / 'objects.txt'}",
               "--judge", f"styles=transformers-classifier:{styles}", "--set", "seeds=1,2,3,4"]  # fmt: skip
    missing = ["--judge", f"objects=transformers-classifier:{objects}", "--offline"]
    assert "NA everything that is judged" in cli(*command, *missing, "--dry-run").out
    assert not out.exists()
    with pytest.warns(EffaceWarning, match="wait for the judge"):
        assert cli(*command, *missing).code == 0
    classifier(objects, "Dogs", "Cats")
    later = json.loads(cli(*command, *missing, "--json").out)
    assert later["cost"]["base images drawn"] == later["cost"]["edited images drawn"] == 0
    assert cell(later, "CRA")["value"] == 1


# --- distances between sets ------------------------------------------------------------------------------------------


class Pool(torch.nn.Module):
    """Four numbers of each picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)


def test_fid_to_real_pictures_comes_from_one_command(
    cli: Cli, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchmetrics_features, "_inception", Pool)
    real = tmp_path / "real"
    real.mkdir()
    for k in range(3):
        noise = np.random.default_rng(k).integers(0, 256, (20 + k, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(real / f"{k}.png")
    given = ("--set", f"file={prompts(tmp_path)}", "--judge", "torchmetrics-features")
    found = audited(cli, patch, tmp_path / "run", "coco-30k", *given, "--real", real)
    fid, kid = cell(found, "FID.real"), cell(found, "KID-inception.real")
    assert (fid["state"], kid["state"], fid["n"]) == ("ok", "ok", 2)
    assert "too few images: no interval" in fid["note"]
    refused = cli("audit", "micro", "--patch", patch, "--suite", "coco-30k", "--steps", 1, "-o", tmp_path / "run",
                  *given, "--metric", "distribution:reference=real")  # fmt: skip
    assert refused.code == 2
    assert "--real" in refused.err


def test_fid_and_clip_score_of_captions_come_from_one_command(
    cli: Cli, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchmetrics_features, "_inception", Pool)
    real = tmp_path / "real"
    real.mkdir()
    for k in range(3):
        noise = np.random.default_rng(k).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(real / f"{k}.png")
    two = ("--judge", f"clip:{save_clip(tmp_path / 'clip')}", "--judge", "torchmetrics-features")
    found = audited(
        cli, patch, tmp_path / "run", "coco-30k", "--set", f"file={prompts(tmp_path)}", *two, "--real", real
    )
    assert [cell(found, name)["state"] for name in ("FID.real", "KID-inception.real")] == ["ok", "ok"]
    score = cell(found, "CLIP_coco")
    said = [c["value"] for c in found["metrics"] if (c["name"], c["side"]) == ("CLIP.quality", "edited")]
    assert (score["state"], score["n"], [score["value"]]) == ("ok", 2, said)
    tower = clip.load(tmp_path / "clip")
    edited = [r for r in Records(tmp_path / "run" / "records.jsonl") if r.side == "edited"]
    drawn = [np.asarray(Image.open(next((tmp_path / "run").rglob(f"{r.image}.png")))) for r in edited]
    vectors = tower.images(np.stack(drawn)), tower.texts([r.shot.prompt for r in edited])[0]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors]
    assert score["value"] == pytest.approx(100 * (unit[0] * unit[1]).sum(1).mean(), abs=1e-3)


def test_other_features_are_never_called_fid() -> None:
    named = torchmetrics_features.load(Pool()).name
    assert named == "Pool"
    with pytest.raises(BadRequest, match="inception"):
        torchmetrics_features.load(Pool(), "inception")
    names = {c.name for c in Distribution().aggregate(gaussians(named))}
    assert "FD-Pool.base" in names
    assert not any(n.startswith("FID") for n in names)
    wrong = Distribution(of="inception").aggregate(gaussians(named))
    assert {c.state for c in wrong} == {"na"}


def gaussians(features: str) -> list[Reading]:
    """Samples whose means are (0, 0), (3, 4) and whose covariances are diag(1, 4), diag(4, 1), to the last digit."""
    draw, rows = np.random.default_rng(0), []
    for side, mean, spread in (("base", (0, 0), (1, 2)), ("edited", (3, 4), (2, 1))):
        x = draw.normal(size=(40, 2))
        x -= x.mean(0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T)).T) * spread + mean
        rows += [Reading(side=side, shot=Shot(f"p{k}", k), features=v, told={"features": features})
                 for k, v in enumerate(x)]  # fmt: skip
    return rows


def test_fid_of_a_pair_of_gaussians_is_that_of_the_formula() -> None:
    found = next(c for c in Distribution().aggregate(gaussians("inception")) if c.name == "FID.base")
    assert found.value == pytest.approx(27, abs=1e-9)


# --- UnlearnCanvas ---------------------------------------------------------------------------------------------------


def classifier(folder: Path, *names: str) -> Path:
    """A classifier that says the first of these names of every picture."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    ids = dict(enumerate(names))
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32,
                       patch_size=16, id2label=ids, label2id={n: k for k, n in ids.items()})  # fmt: skip
    net = ViTForImageClassification(config)
    torch.nn.init.zeros_(net.classifier.weight)
    net.classifier.bias.data = torch.arange(len(names), 0, -1).float()
    net.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_judge_of_styles_and_one_of_objects_give_ua_ira_and_cra(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "styles.txt").write_text("Old_Photo\nSketch\n")
    (tmp_path / "objects.txt").write_text("Dogs\nTrees\n")
    file = tmp_path / "p.safetensors"
    assert cli("erase", "micro", "-c", "style:Old Photo", "--keep", "octopus", "--method", "uce", "-o", file).code == 0
    styles = classifier(tmp_path / "s", "Old_Photo", "Sketch")
    objects = classifier(tmp_path / "o", "dogs", "Trees")
    lists = ("--set", f"styles={tmp_path / 'styles.txt'}", "--set", f"objects={tmp_path / 'objects.txt'}")
    judges = [f"styles=transformers-classifier:{styles}", f"objects=transformers-classifier:{objects}"]
    both = ("--judge", judges[0], "--judge", judges[1])
    found = audited(cli, file, tmp_path / "run", "unlearncanvas", *lists, "--set", "seeds=188,288,588,688", *both)
    three = {name: cell(found, name)["value"] for name in ("UA", "IRA", "CRA")}
    rates = {(t["role"], r["name"]): r["edited"]["rate"] for t in found["tables"] for r in t["rows"] if r["edited"]}
    assert rates == {
        ("style", "Old Photo"): 1,
        ("other-style", "Sketch"): 0,
        ("other", "Dogs"): 1,
        ("other", "Trees"): 0,
    }
    assert three == {
        "UA": 1 - rates["style", "Old Photo"],
        "IRA": rates["other-style", "Sketch"],
        "CRA": (rates["other", "Dogs"] + rates["other", "Trees"]) / 2,
    }
    half = cli("audit", "micro", "--patch", file, "--suite", "unlearncanvas", "-o", tmp_path / "r", *lists, *both[:2])
    assert half.code == 2
    assert "objects=" in half.err


# --- captions --------------------------------------------------------------------------------------------------------


def test_plurals_and_possessives_name_the_target(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    said = [
        "two knives",
        "a fox's den",
        "the foxes' den",
        "mice run",
        "cherries",
        "a rabbiteye",
        "police men",
        "a glass",
    ]
    file.write_text("prompt,seed\n" + "\n".join(f"{text},{k}" for k, text in enumerate(said)) + "\n")
    suite = registry.configure("coco-30k", {"file": file}, "suites")
    plan = suite.plan(Request.build(["knife", "fox", "mouse", "cherry", "rabbits", "policeman"]), Known())
    assert [i.prompt for i in plan.items] == ["a rabbiteye", "police men", "a glass"]
    assert any("5 captions" in note for note in plan.not_measured)
    assert {"golf ball", "golf balls"} <= forms_of("golf ball")
    assert "glas" not in forms_of("glass")
