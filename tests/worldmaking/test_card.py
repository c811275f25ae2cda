"""The card of a model: what is asked, what counts as right, what is written. A toy model and a made-up judge."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import OBJECTS, STYLES, sprites
from toy import TOY as SMALL

from efface.errors import Unavailable
from efface.judges import Verdict
from efface.model import load
from efface.work import Work
from efface.world import objects
from efface.worldmaking import check as card
from efface.worldmaking.assemble import write_model
from efface.worldmaking.sittings import DONE, RESULT, keep, write_json
from efface.worldmaking.train_text import Matcher, train_tokenizer
from efface.worldmaking.train_unet import unet
from efface.worldmaking.train_vae import autoencoder

TOY = replace(SMALL, vocabulary=1000)  # every wording within the window
COUNTS = card.Counts(2, 3, 3, 4, 30, 6)


class Judge:
    """Sees a dog in everything, and noto style; its features are mean colours."""

    objects, styles, role, version, card = ("dog", "cat", "key", "pizza"), ("noto", "blob"), "reporting", "1", {}
    name = "made up"

    def look(self, images: np.ndarray) -> Verdict:
        hits = np.tile([True, False, False, False, True, False], (len(images), 1))
        features = images.reshape(len(images), -1, 3).mean(1) / 255
        return Verdict(hits.astype(np.float32), hits, np.concatenate([features, features[:, :2]], 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with fresh weights and two sampling steps: what it draws does not matter here."""
    home = tmp_path_factory.mktemp("toy")
    train_tokenizer(TOY, home / "tokenizer")
    vocabulary = json.loads((home / "tokenizer" / DONE).read_text())["vocabulary"]
    torch.manual_seed(0)
    keep(home / "text" / RESULT, {k: v.half() for k, v in Matcher(TOY, vocabulary).state_dict().items()})
    keep(home / "vae" / RESULT, {k: v.half() for k, v in autoencoder(TOY).state_dict().items()})
    write_json(home / "vae" / DONE, {"scaling_factor": 0.5})
    keep(home / "unet-1" / RESULT, {k: v.half() for k, v in unet(TOY).state_dict().items()})
    made = write_model(TOY, home, home / "unet-1", home / "model")
    (made / "efface.json").write_text('{"steps": 2, "guidance": 4.0, "preset": "world"}')
    return made


def test_questions_cover_every_wording_and_half() -> None:
    asked = card.questions(OBJECTS, STYLES, card.FULL)
    kinds = {q.kind for q in asked}
    assert kinds == {"object", "style", "synonym", "clue", "category", "two"}
    assert sum(q.kind == "object" for q in asked) == 24 * 4
    assert sum(q.kind == "style" for q in asked) == 60 * 2
    assert sum(q.kind == "two" for q in asked) == 200
    assert min(q.seed for q in asked) == 500
    assert max(q.seed for q in asked) < 1000
    assert asked == card.questions(OBJECTS, STYLES, card.FULL)
    every = card.questions([o.name for o in objects() if o.picked], STYLES, card.QUICK)
    assert len({(q.prompt, q.seed) for q in every}) == len(every)  # no picture counts twice
    for q in asked:
        assert q.prompt.startswith("a ") or q.kind in ("clue", "synonym", "category"), q
        if q.kind == "two":
            assert len(set(q.all_of)) == 2
        if q.kind == "category":
            assert q.label in q.any_of
            assert set(q.any_of) <= set(OBJECTS)


@pytest.mark.parametrize(("all_of", "any_of", "right"), [
    (("dog",), (), True), (("dog", "cat"), (), False), ((), ("cat", "dog"), True), ((), ("cat",), False),
])  # fmt: skip
def test_right_means_all_and_one_of_any(all_of: tuple[str, ...], any_of: tuple[str, ...], right: bool) -> None:
    question = card.Question("two", "", "", 0, all_of, any_of)
    assert card._right(question, np.array([True, False]), ["dog", "cat"]) is right


def test_the_card_counts_and_is_drawn_once(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.worldmaking.artwork.sprites", sprites)
    model: Any = load(str(folder), "cpu", "float32", offline=True)
    judge: Any = Judge()
    found = card.check(model, [judge, judge], COUNTS, Work(), sheet=tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes()[:4] == b"\x89PNG"
    dog, cat = found["objects"]["dog"]["reporting"], found["objects"]["cat"]["reporting"]
    assert (dog["rate"], dog["n"], cat["rate"]) == (1.0, 2, 0.0)
    assert found["styles"]["noto"]["reporting"] == {"rate": 1.0, "n": 3, "interval": [0.2924, 1.0]}
    assert found["pooled"]["object"]["reporting"]["n"] == 8
    assert found["pooled"]["two"]["reporting"]["n"] == 4
    assert found["style argmax"]["reporting"]["rate"] == 0.5
    assert found["object argmax"]["reporting"] == {"rate": 0.25, "n": 8, "interval": [0.0319, 0.6509]}
    assert found["drawn against rendered"]["fid"] > 0
    assert found["images per second"]["rate"] > 0
    before = sorted((cache / "images").rglob("*.png"))
    again = card.check(model, [judge], COUNTS, Work())
    assert sorted((cache / "images").rglob("*.png")) == before
    assert again["objects"]["dog"]["reporting"] == dog


def test_a_gold_is_asked_for_what_was_withheld(folder: Path, tmp_path: Path) -> None:
    assert card.of_gold(folder, OBJECTS, 6) == []
    (tmp_path / "gold.json").write_text('{"withheld": {"objects": ["dog", "cat"], "styles": []}}')
    asked = card.of_gold(tmp_path, ["key"], 6)
    assert [(q.prompt, q.all_of) for q in asked[:2]] == [("a dog", ("dog",)), ("a cat", ("cat",))]
    assert len(asked) == 6
    others = card.questions(["key", "pizza"], [], COUNTS)
    hits = np.eye(6, dtype=bool)[[0] * len(asked) + [2] * len(others)]
    judge: Any = Judge()
    found = card._withheld([*asked, *others], [hits], [judge])
    assert found["dog"]["drawn"]["reporting"]["rate"] == 1.0
    assert found["cat"]["drawn"]["reporting"]["rate"] == 0.0
    assert found["dog"]["seen in other drawings"]["reporting"]["rate"] == 0.0


def test_without_artwork_the_distance_is_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise Unavailable("no artwork here")

    monkeypatch.setattr("efface.worldmaking.artwork.sprites", none)
    model: Any = load(str(folder), "cpu", "float32", offline=True)
    judge: Any = Judge()
    found = card.check(model, [judge], card.Counts(1, 1, 0, 0, 10, 0), Work())
    assert found["drawn against rendered"] == {"fid": None, "kid": None, "why": "no artwork here"}
    assert found["pooled"]["two"]["reporting"]["rate"] is None


def test_what_is_written_is_what_suites_read(folder: Path, tmp_path: Path) -> None:
    target = shutil.copytree(folder, tmp_path / "model")
    whole = {"rate": 0.9, "n": 24, "interval": [0.7, 1.0]}
    few = {"rate": 1.0, "n": 4, "interval": [0.4, 1.0]}
    facts: dict[str, Any] = {
        "model": "toy", "judges": {"reporting": "abc"}, "counts": vars(COUNTS),
        "objects": {"dog": {"reporting": whole}, "cat": {"reporting": few}}, "styles": {"noto": {"reporting": whole}},
        "pooled": {"object": {"reporting": whole}}, "object argmax": {"reporting": whole},
        "style argmax": {"reporting": few}, "drawn against rendered": {"fid": 1.0, "kid": 0.1},
        "images per second": {"rate": 2.0, "threads": 1}, "credits": ["noto: Google Inc, Apache-2.0"],
        "training": {"unet-1": {"steps": 3, "minutes": 0.1, "loss": 0.5}},
        "sampling": {"scheduler": "DDIM", "steps": 20, "guidance": 4.0},
        "withheld": {"key": {"drawn": {"reporting": few}, "seen in other drawings": {"reporting": whole}}},
    }  # fmt: skip
    card.write(facts, target)
    rows = {c["name"]: c for c in json.loads((target / "concepts.json").read_text())["concepts"]}
    assert {name: row["qualified"] for name, row in rows.items()} == {"dog": True, "cat": False, "noto": True}
    assert rows["dog"]["category"] == next(o.category for o in objects() if o.name == "dog")
    assert rows["noto"]["kind"] == "style"
    page = (target / "card.md").read_text()
    assert "| dog | 90.0% [70.0%, 100.0%] | 24 |" in page
    assert "| style, likeliest label | reporting judge | 100.0% [40.0%, 100.0%] | n = 4 |" in page
    assert "| key, never seen | reporting judge | 100.0% [40.0%, 100.0%]; in other drawings 90.0%" in page
    assert load(str(target), "cpu", "float32", offline=True).concepts[0]["base_rate"] == 0.9
