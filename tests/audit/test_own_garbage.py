"""A garbage detector of the run's own: judges that none was bundled with find noise, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import efface
from efface import audit as audits
from efface.audit import Audit, audit
from efface.gallery.shot import Item, Shot
from efface.judges import Verdict
from efface.judges._own_garbage import OwnGarbage
from efface.judges.panel import FeaturesPanel, LabelPanel, RegionPanel, TextPanel
from efface.request import Request
from tiny_world import make_world, paint, zero_patch

CARD: dict[str, Any] = {"role": "reporting"}


class Colours:
    """Says cat of everything, and sees the colours of the four quarters."""

    name, version, role, objects, styles, card, labels = "colours", "1", "reporting", ("cat",), (), CARD, ("light",)

    def features(self, images: np.ndarray) -> np.ndarray:
        n, h, w, _ = images.shape
        quarters = images.reshape(n, 2, h // 2, 2, w // 2, 3).mean((2, 4))
        return quarters.reshape(n, 12).astype(np.float32) / 255

    images = features

    def look(self, images: np.ndarray) -> Verdict:
        yes = np.ones((len(images), 1))
        return Verdict(yes.astype(np.float32), yes > 0, self.features(images))

    def texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(texts), 12)), np.zeros(len(texts), bool)

    def boxes(self, images: np.ndarray) -> list[tuple[tuple[str, float], ...]]:
        return [() for _ in images]


PANELS = {
    "labels": lambda: LabelPanel.beside(Colours(), None),
    "text": lambda: TextPanel.of(Colours()),
    "features": lambda: FeaturesPanel.of(Colours()),
}


def smooth(item: Item) -> np.ndarray:
    """Two soft colours."""
    draw = np.random.default_rng(item.seed)
    ends = draw.integers(0, 256, (2, 3))
    slope = np.linspace(0, 1, 64)[:, None, None] * np.ones((1, 64, 1))
    return (ends[0] * (1 - slope) + ends[1] * slope + draw.normal(0, 2, (64, 64, 3))).clip(0, 255).astype(np.uint8)


def noise(item: Item) -> np.ndarray:
    return np.random.default_rng(item.seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def shifted(item: Item) -> np.ndarray:
    """What the base draws, at another seed: as good a picture."""
    return smooth(Item(Shot(item.prompt, item.seed + 10_000), item.asks))


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> efface.Model:
    return efface.load(make_world(tiny_folder, tmp_path_factory.mktemp("world") / "w"), "cpu")


def shots(n: int) -> list[Shot]:
    return [Shot("p", k) for k in range(n)]


def asked(model: efface.Model, tmp_path: Path, n: int, factor: float = -1.0) -> Audit:
    file = tmp_path / "captions.csv"
    file.write_text("prompt,seed\n" + "".join(f"a view of number {k},{k}\n" for k in range(n)))
    return Audit(
        model, Request.build(["object:cat"]), "coco-30k", zero_patch(model, factor), settings=(("file", str(file)),)
    )


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "features" else pytest.mark.slow) for kind in PANELS]
)
def test_noise_is_garbage_to_any_judge_with_features(
    kind: str, model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "seated", lambda name, brief: PANELS[kind]())
    found = {}
    for name, picture, factor in (("noise", noise, -1.0), ("fine", shifted, -0.5)):
        result = audit(paint(asked(model, tmp_path, 320, factor), picture, smooth), tmp_path / name)
        found[name] = {side: result["garbage"][side]["rate"] for side in ("base", "edited")}
        assert bool(result["flags"]) == (name == "noise")
        seat = next(s for s in result["judges"] if s["role"] == "garbage detector")
        assert "fitted on 320 base images" in seat["note"]
        assert len([s for s in result["judges"] if s["role"] == "garbage detector"]) == 1
    assert found["noise"]["edited"] > 0.98
    assert max(found["noise"]["base"], found["fine"]["base"], found["fine"]["edited"]) < 0.05


def test_the_same_command_again_judges_nothing_and_fits_nothing(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "seated", lambda name, brief: PANELS["labels"]())
    audit(paint(asked(model, tmp_path, 320), noise, smooth), tmp_path / "run")
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    monkeypatch.setattr(OwnGarbage, "flags", lambda *_: pytest.fail("asked again"))
    audit(asked(model, tmp_path, 320), tmp_path / "run")
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_with_too_few_base_images_the_report_says_that_one_colour_alone_is_found(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "seated", lambda name, brief: PANELS["labels"]())
    result = audit(paint(asked(model, tmp_path, 20), noise, smooth), tmp_path / "run")
    seat = next(s for s in result["judges"] if s["role"] == "garbage detector")
    assert "20 base images are fewer than 300" in seat["note"]
    assert result["garbage"]["edited"]["rate"] == 0


def test_a_detector_of_regions_has_one_when_a_judge_of_features_sits_beside_it() -> None:
    alone = RegionPanel.of(Colours())
    assert not alone.sees
    beside = replace(alone, eyes=Colours())
    assert beside.sees
    base = np.stack([smooth(Item(shot)) for shot in shots(300)])
    own = OwnGarbage("v", lambda: iter([base]), beside.seen)
    guarded = beside.guarded(own, "fitted")
    assert guarded.versions.garbage == "v" != beside.versions.garbage
    assert guarded.broken(np.stack([noise(Item(shot)) for shot in shots(20)])).all()
    assert guarded.broken(base).mean() < 0.05


def test_pictures_without_finite_features_do_not_stop_the_fit() -> None:
    base = np.stack([smooth(Item(shot)) for shot in shots(300)])

    def look(images: np.ndarray) -> np.ndarray:
        seen = Colours().features(images)
        seen[0] = np.nan
        return seen

    own = OwnGarbage("v", lambda: iter(np.split(base, 10)), look)
    some = np.stack([noise(Item(shot)) for shot in shots(8)])
    assert own.flags(some, Colours().features(some)).all()
    few = OwnGarbage("v", lambda: iter([base[:100]]), Colours().features)
    assert not few.flags(some, Colours().features(some)).any()
