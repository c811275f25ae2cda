"""The bundled judge and garbage detector on a few stored pictures; no artwork, no network."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from efface import world
from efface.errors import BadRequest, Unavailable, WrongFile
from efface.judges import Verdict, garbage, sized
from efface.judges import world as world_judge
from efface.judges.world import WorldJudge
from efface.worldmaking.corruptions import HELD_OUT, NOISY, SEEN
from efface.worldmaking.measure_judge import FLOOR
from efface.worldmaking.scenes import to_uint8


@cache
def judge() -> WorldJudge:
    return world_judge.load()


@cache
def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scenes uint8 (60, 64, 64, 3), 12 of them with two objects; labels (60, labels); drawings."""
    with np.load(Path(__file__).parents[1] / "pictures.npz", allow_pickle=False) as kept:
        labels = np.unpackbits(kept["labels"], axis=1)[:, : int(kept["width"])].astype(bool)
        return kept["scenes"], labels, kept["drawn"]


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.folder("judge"), tmp_path / "judge"))


def accuracy(images: np.ndarray) -> tuple[float, float]:
    """Share of single-object scenes with the right object and the right style."""
    _, labels, _ = pictures()
    chance, m = judge().look(images[:48]).probabilities, len(judge().objects)
    objects = chance[:, :m].argmax(1) == labels[:48, :m].argmax(1)
    return float(objects.mean()), float((chance[:, m:].argmax(1) == labels[:48, m:].argmax(1)).mean())


def test_labels_are_objects_then_styles() -> None:
    assert judge().objects == tuple(o.name for o in world.judged())
    assert judge().styles == world.styles()
    verdict = judge().look(pictures()[0][:3])
    assert verdict.probabilities.shape == verdict.hits.shape == (3, 151)
    assert verdict.probabilities.dtype == verdict.features.dtype == np.float32
    assert verdict.hits.dtype == bool


def test_stored_scenes_are_judged_right() -> None:
    right, style = accuracy(pictures()[0])
    assert right >= 0.95
    assert style >= 0.9


def test_two_objects_are_both_seen() -> None:
    images, labels, _ = pictures()
    m = len(judge().objects)
    hits, shown = judge().look(images[48:]).hits[:, :m], labels[48:, :m]
    assert (shown.sum(1) == 2).all()
    assert (hits & shown).sum() / shown.sum() >= 0.85


def test_a_picture_alone_and_in_a_batch_agree() -> None:
    images = pictures()[0]
    together = judge().look(images)
    alone = np.concatenate([judge().look(image[None]).probabilities for image in images[:9]])
    assert np.abs(together.probabilities[:9] - alone).max() <= 1e-5
    shifted = judge().look(images[::-1]).probabilities[::-1]
    assert np.abs(shifted - together.probabilities).max() <= 1e-5


def test_swapped_colours_are_worse() -> None:
    images = pictures()[0]
    assert accuracy(images[..., ::-1].copy())[0] < accuracy(images)[0] - 0.1


def test_hits_follow_the_thresholds_of_the_card() -> None:
    verdict = judge().look(pictures()[0])
    edges = np.asarray(judge().card["thresholds"], np.float32)
    assert np.array_equal(verdict.hits, verdict.probabilities >= edges)
    floors = judge().card["calibration"]["least_threshold_of_an_object"], FLOOR
    m = len(judge().objects)
    assert (edges[:m] >= np.float32(floors[0])).all()
    assert (edges[m:] >= np.float32(floors[1])).all()


def test_temperature_changes_no_ranking() -> None:
    images, m = pictures()[0], len(judge().objects)
    logits, chance = judge().logits(images)[0].numpy(), judge().look(images).probabilities
    assert np.array_equal(logits[:, :m].argmax(1), chance[:, :m].argmax(1))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((1, 48, 48, 3), np.uint8),
        np.zeros((1, 64, 32, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
    ],
)
def test_other_pictures_are_refused(images: np.ndarray) -> None:
    with pytest.raises(BadRequest, match="uint8"):
        judge().look(images)


def test_small_pictures_are_judged_with_every_pixel_doubled() -> None:
    small = pictures()[0][:4, ::2, ::2]
    large = sized(small)
    assert large.shape == (4, 64, 64, 3)
    assert (large[:, ::2, ::2] == small).all()
    assert (large[:, 1::2, 1::2] == small).all()
    assert (sized(large) == large).all()
    verdict, detector = judge().look(small), garbage.load(judge())
    assert (verdict.probabilities == judge().look(large).probabilities).all()
    assert (detector.p_values(small, verdict) == detector.p_values(large, verdict)).all()


def test_no_pictures_give_an_empty_verdict() -> None:
    verdict = judge().look(np.zeros((0, 64, 64, 3), np.uint8))
    assert verdict.hits.shape == (0, 151)


def test_card_holds_every_field() -> None:
    card = judge().card
    for field in (
        *("name", "role", "architecture", "licence", "weights_sha256", "objects", "styles", "multi_label"),
        *("thresholds", "threshold_rule", "temperature", "preprocessing", "calibration", "known_failures"),
    ):
        assert field in card, field
    for kind in ("crisp", "soft"):
        rates, table = card["held_out"][kind], card["per_label"][kind]
        assert len(table["tp"]) == len(table["n_neg"]) == 151
        assert min(table["n_pos"]) >= 5
        low, high = rates["object argmax"]["interval"]
        assert low <= rates["object argmax"]["rate"] <= high
        assert rates["object specificity"]["rate"] >= 0.985
    assert card["held_out"]["crisp"]["object argmax"]["rate"] >= 0.98
    assert card["held_out"]["crisp"]["style argmax"]["rate"] >= 0.92


def test_version_hangs_on_every_decision() -> None:
    card = judge().card
    for field in ("weights_sha256", "thresholds", "temperature", "preprocessing"):
        assert world_judge.version(card | {field: "other"}) != judge().version
    assert world_judge.version(card | {"known_failures": []}) == judge().version


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(WrongFile, match="weights"):
        world_judge.load(folder)


def test_self_test_refuses_other_answers(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["self_test"][0], card["self_test"][2] = card["self_test"][2], card["self_test"][0]
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(WrongFile, match="probe"):
        world_judge.load(folder)


def test_missing_judge_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="efface world train judge"):
        world_judge.load(tmp_path)


# --- garbage ----------------------------------------------------------------------------------------------


def flagged(images: np.ndarray) -> float:
    return float(garbage.load(judge()).flags(images, judge().look(images)).mean())


def broken(name: str) -> np.ndarray:
    drawn = torch.from_numpy(pictures()[2]).permute(0, 3, 1, 2).float() / 255
    return to_uint8((SEEN | NOISY | HELD_OUT)[name](drawn, torch.Generator().manual_seed(1))).numpy()


def test_drawings_of_the_model_pass() -> None:
    assert flagged(pictures()[2]) <= 0.1


@pytest.mark.parametrize(
    ("name", "least"),
    [
        *(
            ("uniform noise", 1.0),
            ("smooth coloured noise", 1.0),
            ("image + 50 % noise", 1.0),
            ("image + 30 % noise", 0.95),
        ),
        *(
            ("constant colour", 1.0),
            ("black", 1.0),
            ("patches of 8 px shuffled", 0.8),
            ("patches of 4 px shuffled", 0.8),
        ),
    ],
)
def test_garbage_is_caught(name: str, least: float) -> None:
    assert flagged(broken(name)) >= least


def test_garbage_flags_do_not_hang_on_the_batch() -> None:
    images = np.concatenate([pictures()[2][:10], broken("uniform noise")[:10]])
    detector = garbage.load(judge())
    together = detector.flags(images, judge().look(images))
    alone = [bool(detector.flags(image[None], judge().look(image[None]))[0]) for image in images]
    assert together.tolist() == alone


def test_detector_belongs_to_its_judge(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    card = json.loads((folder / "garbage.json").read_text(encoding="utf-8"))
    (folder / "garbage.json").write_text(json.dumps(card | {"judge_version": "0" * 12}), encoding="utf-8")
    with pytest.raises(WrongFile, match="000000000000"):
        garbage.load(judge(), folder)


def test_detector_survives_saving(tmp_path: Path) -> None:
    detector, images = garbage.load(judge()), pictures()[2]
    garbage.save(detector, judge(), {}, tmp_path)
    again = garbage.load(judge(), tmp_path)
    assert again.version == detector.version
    verdict = judge().look(images)
    assert np.array_equal(again.p_values(images, verdict), detector.p_values(images, verdict))


def test_a_fresh_fit_survives_saving(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = np.clip(128 + 40 * rng.standard_normal((300, 64, 64, 3)), 0, 255).astype(np.uint8)
    features = rng.standard_normal((300, 258)).astype(np.float32)
    fresh = garbage.Garbage(garbage.fit(noise, features), judge().version)
    garbage.save(fresh, judge(), {}, tmp_path)
    verdict = Verdict(np.zeros((300, 151), np.float32), np.zeros((300, 151), bool), features)
    again = garbage.load(judge(), tmp_path)
    assert np.array_equal(again.p_values(noise, verdict), fresh.p_values(noise, verdict))
    assert again.version == fresh.version
    assert again.flags(noise, verdict).mean() < 0.1


def test_fitted_flag_rate_is_one_percent() -> None:
    """Conformal: on further pictures of the same kind the rate is about 1 %, whatever the statistics are."""
    rng = np.random.default_rng(0)

    def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
        strength = rng.uniform(10, 60, (n, 1, 1, 1))
        images = np.clip(128 + strength * rng.standard_normal((n, 16, 16, 3)), 0, 255).astype(np.uint8)
        return images, rng.standard_normal((n, 40)).astype(np.float32)

    reference = garbage.fit(*sample(2000))
    images, features = sample(4000)
    score = garbage.score(reference, garbage.statistics(reference, images, features))
    p = (1 + (reference.scores[None] >= score[:, None]).sum(1)) / (1 + len(reference.scores))
    assert 0.002 <= (p <= garbage.RATE).mean() <= 0.022


def test_too_few_base_pictures_are_refused() -> None:
    with pytest.raises(BadRequest, match="300"):
        garbage.fit(np.zeros((50, 64, 64, 3), np.uint8), np.zeros((50, 258), np.float32))


def test_pixel_statistics_of_known_pictures() -> None:
    stripes = np.zeros((1, 8, 8, 3), np.uint8)
    stripes[:, :, ::2] = 255
    variation, length, _ = garbage.pixel_statistics(stripes)[0]
    assert variation == pytest.approx(1.0)
    assert length == pytest.approx(-(4 / 7 * np.log2(4 / 7) + 3 / 7 * np.log2(3 / 7)))
    assert garbage.pixel_statistics(np.full((1, 8, 8, 3), 7, np.uint8))[0, :2].tolist() == [0, 0]
    assert garbage.constant(np.full((1, 8, 8, 3), 7, np.uint8)).tolist() == [True]
    assert garbage.constant(stripes).tolist() == [False]
