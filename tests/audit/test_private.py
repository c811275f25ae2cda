"""Suites over the user's own files, end to end: what is private stays private, detectors count, captions are scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import efface
from efface import audit as audits
from efface.audit import Audit, audit
from efface.errors import BadRequest
from efface.gallery.drawing import Shard, Side
from efface.gallery.images import Images
from efface.judges.panel import Brief, Panel, RegionPanel, TextPanel
from efface.metrics._run import configured
from efface.report.sheets import picture_source
from efface.request import Request
from efface.runs.folder import status
from efface.scores.records import Records
from efface.suites._kept import kept_items
from tiny_world import make_world, zero_patch

PROMPTS = [f"a rare word number {k}" for k in range(20)]


class Bright:
    """A detector that finds light: a region scored by the mean of the image."""

    name, version, labels = "bright", "1", ("light", "dark")
    card: dict[str, Any] = {"role": "reporting"}  # noqa: RUF012

    def boxes(self, images: np.ndarray) -> list[tuple[tuple[str, float], ...]]:
        return [(("light", float(i.mean()) / 255), ("dark", 0.3)) for i in images]


class Tower:
    """An image and text judge: the mean colour against the length of the text."""

    name, version = "tower", "1"
    card: dict[str, Any] = {"role": "reporting"}  # noqa: RUF012

    def images(self, images: np.ndarray) -> np.ndarray:
        return images.mean((1, 2)) + 1.0

    def texts(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray([[len(t), 1.0, 1.0] for t in texts]), np.zeros(len(texts), bool)


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> efface.Model:
    return efface.load(make_world(tiny_folder, tmp_path_factory.mktemp("world") / "w"), "cpu")


def asked(model: efface.Model, suite: str, file: Path, **more: Any) -> Audit:
    request = Request.build(["object:cat"])
    return Audit(
        model, request, suite, zero_patch(model), settings=(("file", str(file)), *more.pop("settings", ())), **more
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.csv"
    rows = [f"{p},{k},{1 + k % 2}.0" for k, p in enumerate(PROMPTS)]
    file.write_text("prompt,evaluation_seed,evaluation_guidance\n" + "\n".join(rows) + "\n")
    return file


def use(judge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def seated(name: str, brief: Brief) -> Panel:
        return RegionPanel.of(judge, brief) if isinstance(judge, Bright) else TextPanel.of(judge)

    monkeypatch.setattr(audits, "seated", seated)


def everything(folder: Path) -> str:
    return "".join(f.read_bytes().decode("latin-1") for f in folder.rglob("*") if f.is_file() and f.suffix != ".png")


def test_a_private_suite_stores_neither_images_nor_words(
    model: efface.Model, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Bright(), monkeypatch)
    out = tmp_path / "run"
    given = asked(model, "i2p", table, settings=(("counts", "light"), ("threshold", "0.4"), ("kept", "0")))
    result = audit(given, out, metrics=configured(["detections"]))
    assert list(Images(out / "images").keys()) == list(Images(tmp_path / "cache" / "images").keys()) == []
    assert "rare word" not in everything(out)
    rows = list(Records(out / "records.jsonl"))
    assert len(rows) == 40
    assert {r.shot.guidance for r in rows} == {1.0, 2.0}
    row = rows[0]
    assert row.boxes is not None
    assert row.hits == (("sensitive",) if dict(row.boxes)["light"] >= 0.4 else ())
    assert result["images"] == "not stored"
    sensitive = next(t for t in result["tables"] if t["role"] == "sensitive")["rows"][0]
    assert sensitive["base"]["n"] == 20
    assert [s["images"] for s in result["sweeps"]] == [20, 20]
    boxes = [c for c in result["metrics"] if (c["name"], c["concept"]) == ("detections", ">= 0.3")]  # from the records
    assert [(c["side"], c["state"], c["n"]) for c in boxes] == [("base", "ok", 20), ("edited", "ok", 20)]
    assert all(c["value"] >= 20 for c in boxes)
    assert status(out).state == "finished"
    before = (out / "records.jsonl").read_bytes()
    again = audit(asked(model, "i2p", table, settings=(("counts", "light"), ("threshold", "0.4"), ("kept", "0"))), out)
    assert again["cost"]["base images drawn"] == again["cost"]["edited images drawn"] == 0
    assert (out / "records.jsonl").read_bytes() == before
    assert json.loads((out / "spec.json").read_text())["settings"]


def scribbled(side: Side, shards: Sequence[Shard], sampling: object, place: Images, *_: object) -> None:
    """Light scribbles by the base, black by the edited model."""
    for row in (r for shard in shards for r in shard):
        some = np.random.default_rng(row.seed).integers(100, 256, (64, 64, 3), dtype=np.uint8)
        place.put(row.key, some if side.name == "base" else np.zeros_like(some))


@pytest.mark.parametrize("suite", ["i2p", "ring-a-bell"])
def test_a_model_that_draws_nothing_does_not_pass_where_unsafe_content_is_counted(
    suite: str, model: efface.Model, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No region is found in its pictures: what it does to sentences that name nothing erased tells."""
    use(Bright(), monkeypatch)
    monkeypatch.setattr("efface.gallery.gallery.drawn", scribbled)
    out = tmp_path / "run"
    counts = (("counts", "light"), ("threshold", "0.3"), ("kept", "12"))
    result = audit(asked(model, suite, table, settings=counts), out)
    assert result["verdict"]["state"] == "fail"
    assert "garbage in place of" in result["flags"][0]
    tables = {t["role"]: t["rows"][0] for t in result["tables"]}
    assert tables["sensitive"]["edited"]["hits"] == 0
    quality = tables["quality"]
    assert (quality["state"], quality["garbage"]["hits"], quality["garbage"]["n"]) == ("na", 12, 12)
    cells = {(c["name"], c["side"], c["concept"]): c for c in result["metrics"]}
    assert cells["ssim.quality", "edited", ""]["value"] < 0.6
    assert cells["images with detections", "base", ">= 0.3"]["n"] == 20  # kept prompts are not among them
    assert len(list(Images(out / "images").keys())) == 24  # and theirs are the pictures that are stored
    assert result["images"] == "not stored, but those of kept prompts"
    assert "rare word" not in everything(out)


def test_kept_sentences_that_name_a_target_are_left_out() -> None:
    every = kept_items(Request.build(["object:zebra"]), 50)
    assert len(every) == len(set(every)) == 50
    assert {i.seed for i in every} == {0, 1}
    left = kept_items(Request.build(["cat", "dogs", "person:somebody", "sunflower"]), 50)
    gone = {i.prompt for i in every} - {i.prompt for i in left}
    assert gone == {"a cat asleep on a sofa", "a dog running on grass", "a field of sunflowers"}
    assert all(i.harmless for i in left)
    assert kept_items(Request.build(["cat"]), 0) == ()
    with pytest.raises(BadRequest, match="kept"):
        kept_items(Request.build(["cat"]), -1)


def test_stored_on_request_they_are_blurred_on_the_page(
    model: efface.Model, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Bright(), monkeypatch)
    out = tmp_path / "run"
    audit(
        asked(
            model, "ring-a-bell", table, store_images=True, settings=(("label", "cat"), ("counts", ""), ("kept", "0"))
        ),
        out,
    )
    images = Images(out / "images")
    assert len(list(images.keys())) == 40
    assert list(Images(tmp_path / "cache" / "images").keys()) == []
    assert "rare word" not in everything(out)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    images.put("f" * 32, noise)
    picture_source(images, private=True)("f" * 32)
    (tmp_path / "b.png").write_bytes(picture_source(images, private=True)("f" * 32))
    from PIL import Image

    blurred = np.asarray(Image.open(tmp_path / "b.png")).astype(int)
    assert np.abs(np.diff(blurred, axis=0)).mean() < 0.1 * np.abs(np.diff(noise.astype(int), axis=0)).mean()
    assert picture_source(images, private=False)("f" * 32) == images.png("f" * 32)


def test_captions_are_scored_and_never_counted(
    model: efface.Model, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Tower(), monkeypatch)
    result = audit(asked(model, "coco-30k", table), tmp_path / "run", metrics=configured(["pairs"]))
    quality = next(t for t in result["tables"] if t["role"] == "quality")["rows"][0]
    assert (quality["state"], quality["base"]) == ("na", None)
    cells = {(c["name"], c["side"]): c for c in result["metrics"]}
    assert cells["CLIP.quality", "base"]["n"] == cells["CLIP.quality", "edited"]["n"] == 20
    assert cells["CLIP_coco", "edited"]["value"] == cells["CLIP.quality", "edited"]["value"]
    assert cells["ssim.quality", "edited"]["n"] == 20  # this judge is not asked to classify
    rows = [r for r in Records(tmp_path / "run" / "records.jsonl") if r.side == "base"]
    mean = sum(r.values["caption"] for r in rows) / 20
    assert cells["CLIP.quality", "base"]["value"] == pytest.approx(mean)


def test_prompts_longer_than_the_model_reads_are_cut_at_a_word_and_counted(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "long.txt"
    file.write_text("word " * 200 + "\nshort soup\n")
    _, _, plan = asked(model, "ring-a-bell", file, settings=(("headerless", "true"),)).outline()
    window = model.card.streams[0].length
    assert plan.items[1].prompt == "short soup"
    assert window - 3 < model.sizes(plan.items[0].prompt)[0] + 2 <= window
    assert "1 prompts, longer than the model reads" in plan.not_measured[-1]


@pytest.mark.parametrize(
    ("prompt", "words"), [("soup" * 200, ""), ("\u6f22\u5b57" * 90, ""), ("a cat, " + "soup" * 200, "a cat, ")]
)
def test_a_prompt_without_spaces_is_cut_inside_and_never_empty(
    model: efface.Model, tmp_path: Path, prompt: str, words: str
) -> None:
    """Token soup, Chinese: what is drawn is the start of the prompt, as the tokenizer would keep it."""
    file = tmp_path / "long.txt"
    file.write_text(prompt + "\n")
    _, _, plan = asked(model, "ring-a-bell", file, settings=(("headerless", "true"),)).outline()
    kept, window = plan.items[0].prompt, model.card.streams[0].length
    assert prompt.startswith(kept)
    assert len(kept) > len(words)
    assert kept.startswith(words)
    assert window - 3 < model.sizes(kept)[0] + 2 <= window
    assert "1 prompts, longer than the model reads" in plan.not_measured[-2]
    assert plan.not_measured[-1].startswith("1 of them inside a run of characters without a space")
