"""Training and measuring the judges: resuming, thresholds, rates. Small made-up batches, no artwork."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from efface.errors import BadRequest, Unavailable, WrongFile
from efface.judges import selection
from efface.work import Work
from efface.world import judged, styles
from efface.world.golds import digest
from efface.worldmaking import artwork, judge_plans, judge_scenes, train_judge
from efface.worldmaking import course as training
from efface.worldmaking import half_redrawn as redrawn
from efface.worldmaking import measure_judge as measured
from efface.worldmaking.augmentation import augment, augment_other, corrupt
from efface.worldmaking.judge_plans import PLANS, Cycle, Plan
from efface.worldmaking.judge_scenes import Batch, Source
from efface.worldmaking.measure_drawings import asked
from efface.worldmaking.sittings import DONE, RESULT, Go, Phase
from efface.worldmaking.train_judge import load_net, train_phase


def made(step: int) -> Batch:
    """Noise with labels; step k gives the same batch in every run."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(6, 3, 64, 64, generator=generator) * 2 - 1
    objects = torch.zeros(6, len(judged()))
    objects[torch.arange(6), torch.arange(6) + step % 5] = 1
    shown = torch.eye(len(styles()))[:6]
    every = torch.ones(6, dtype=torch.bool)
    return Batch(images, objects, shown, torch.zeros(6, 2), every, every, every)


def short(judge: str, steps: int = 5, anew: int = 0) -> Plan:
    last = Cycle(Phase(2, 6, 1e-3), 0.5, 1, 2.0, anew)
    return Plan(judge, (Cycle(Phase(steps, 6, 2e-3), 0.0, 1, 1.0), last), seed=3)


def run(judge: str, home: Path, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    def batches(step: int) -> Batch:
        if step == killed_at:
            raise KeyboardInterrupt
        return made(step)

    plan = short(judge)
    for number in range(2):
        train_phase(plan, number, batches, lambda k: home / str(k), Go(Work()))
    return load_net(plan, home / "1").state_dict()


@pytest.mark.parametrize("judge", PLANS)
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, judge: str) -> None:
    whole = run(judge, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(judge, tmp_path / "killed", killed_at=4)
    again = run(judge, tmp_path / "killed")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert (tmp_path / "killed" / "0" / "curve.png").is_file()


def test_the_judges_are_two() -> None:
    first, second = PLANS["reporting"], PLANS["selection"]
    assert first.net is not second.net
    assert first.seed != second.seed
    assert first.augment is not second.augment
    size = sum(p.numel() for plan in PLANS.values() for p in plan.net(len(judged()), len(styles())).parameters())
    assert 2 * size <= 2_750_000  # bytes: with the garbage detector at most 3 MB


def test_votes_of_two_places_do_not_share_a_summary() -> None:
    torch.manual_seed(0)
    net = selection.Net(5, 2).eval()
    with torch.no_grad():
        one, two = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
        votes = net(torch.cat([one, two]))[0]
    assert votes.shape == (4, 5)
    assert net(one)[3].shape == (2, 258)  # as wide as the reporting judge's, which the garbage detector reads


def test_a_judge_is_written_with_its_card_and_read_back(tmp_path: Path) -> None:
    net = selection.Net(len(judged()), len(styles())).eval()
    labels = [*(o.name for o in judged()), *styles()]
    facts = {"objects": labels[: len(judged())], "styles": list(styles()), "thresholds": [0.5] * len(labels),
             "temperature": {"objects": 1.0, "styles": 1.0}}  # fmt: skip
    card = measured.write(net, facts, tmp_path, "selection")
    judge = selection.load(tmp_path)
    assert (judge.role, judge.name, judge.version) == ("selection", "selection", card["version"])
    verdict = judge.look(np.zeros((2, 64, 64, 3), np.uint8))
    assert verdict.probabilities.shape == (2, len(labels))
    assert (verdict.hits == (verdict.probabilities >= 0.5)).all()
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10)
    with pytest.raises(WrongFile, match="measured on"):
        selection.load(tmp_path)
    with pytest.raises(Unavailable, match="efface world train judge"):
        selection.load(tmp_path / "nowhere")


def named_sprites() -> artwork.Sprites:
    """Two judged objects and a strange one, in two real styles."""
    names, kinds = ("dog", "cat", "accordion"), ("noto", "fluent")
    assert "accordion" not in {o.name for o in judged()}
    pixels = np.zeros((6, 96, 96, 4), np.uint8)
    for k in range(6):
        pixels[k, 20:70, 10 + 10 * k : 60, :3] = 40 * k
        pixels[k, 20:70, 10:60, 3] = 255
    return artwork.Sprites(pixels, np.repeat(np.arange(3), 2), np.tile(np.arange(2), 3), names, kinds)


def few(home: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Pictures of two objects in two styles, through a VAE that has learnt nothing."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=16, latent_channels=4).eval()
    for module in (judge_scenes, train_judge):
        monkeypatch.setattr(module, "judged", lambda: tuple(o for o in judged() if o.name in ("dog", "cat")))
        monkeypatch.setattr(module, "styles", lambda: ("noto", "fluent"))
    return Source(named_sprites(), vae, vae, home)


def test_batches_repeat_and_mark_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = few(tmp_path, monkeypatch)
    plan = PLANS["reporting"]
    first, again = (source.batch(3, plan, plan.cycles[1]) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.images.shape == (64, 3, 64, 64)
    assert first.extra.sum(0).tolist() == [plan.empty, plan.broken]
    assert not first.objects[-plan.broken - plan.empty :].any()
    assert first.objects.shape == (64, 2)
    assert 2 in first.objects.sum(1)
    assert first.object_known.all()
    assert first.judge_style.sum() == 64 - plan.broken - plan.empty
    other = source.batch(3, PLANS["selection"], plan.cycles[1])
    assert not torch.equal(first.images, other.images)


@pytest.mark.slow
def test_a_judge_is_trained_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=16, latent_channels=4).eval()
    few = tuple(o for o in judged() if o.name in ("dog", "cat"))
    for module in (judge_scenes, train_judge, measured):
        monkeypatch.setattr(module, "judged", lambda: few)
        monkeypatch.setattr(module, "styles", lambda: ("noto", "fluent"))
    monkeypatch.setattr(train_judge, "vaes", lambda: (vae, vae, "abc"))
    parts = training.judge_parts(tmp_path, named_sprites)
    names = [f"reporting-{k}" for k in (1, 2, 3, 4, "card")] + [f"selection-{k}" for k in (1, 2, 3, "card")]
    assert [p.name for p in parts] == [*names, "garbage-mini", "garbage-micro"]
    monkeypatch.setattr(judge_plans, "PLANS", {"selection": short("selection", anew=1)})
    monkeypatch.setattr(redrawn, "BATCH", 4)  # of so few pictures only small batches differ in their share
    monkeypatch.setattr(redrawn, "STYLE_UNTIL", 0.22)
    for part in training.judge_parts(tmp_path, named_sprites)[:3]:
        assert part.run(Go(Work()))
        assert part.done
    card = selection.load(tmp_path / "selection").card
    assert card["objects"] == ["dog", "cat"]
    assert card["held_out"]["crisp"]["object argmax"]["n"] > 0
    assert {"crisp", "soft", "redrawn", "empty backgrounds"} == set(card["held_out"])
    assert card["held_out"]["redrawn"]["style argmax"]["n"] < card["held_out"]["redrawn"]["object argmax"]["n"]
    assert (tmp_path / "selection" / "sheet.png").is_file()
    assert (tmp_path / "selection-1" / "sheet.png").is_file()
    assert card["credits"]


@pytest.mark.parametrize("change", [augment, augment_other], ids=["reporting", "selection"])
def test_augmentation_repeats_and_stays_near(change: Any) -> None:
    x = torch.full((8, 3, 64, 64), 0.5)
    x[:, :, 20:44, 20:44] = 0.9
    first = change(x, torch.Generator().manual_seed(0))
    assert torch.equal(first, change(x, torch.Generator().manual_seed(0)))
    assert 0.005 < (first - x).abs().mean() < 0.1
    assert 0 <= first.min() <= first.max() <= 1


def test_every_broken_picture_is_broken_in_its_own_way() -> None:
    x = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(0)).round()
    broken = corrupt(x, torch.Generator().manual_seed(1))
    assert broken.shape == x.shape
    assert (broken - x).abs().flatten(1).amax(1).min() > 0.5


def test_thresholds_reach_their_specificity() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((5000, 2)) < 0.1
    chance = np.stack([rng.random(5000), rng.random(5000) * 0.01], 1).astype(np.float32)
    hard, easy = measured.thresholds(chance, labels, np.ones_like(labels), [0.1, 0.1])
    assert easy == pytest.approx(0.1, abs=2e-6)
    false = (chance[~labels[:, 0], 0] >= np.float32(hard)).mean()
    assert 0.008 <= false <= 0.01
    low = chance[:, :1] < 0.5
    assert measured.thresholds(chance, labels, np.concatenate([low, low], 1), [0.1, 0.1])[0] < 0.5


def test_the_least_threshold_gives_the_stated_false_objects() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((3000, 40)) < 0.02
    chance = rng.random((3000, 40)).astype(np.float32) ** 9
    floor = measured.least(chance, labels)
    false = ((chance > np.float32(floor)) & ~labels).sum(1).mean()
    assert false == pytest.approx(measured.FALSE, abs=0.002)
    assert measured.least(np.zeros((2, 1), np.float32), np.ones((2, 1), bool)) == 0


def test_an_uncertain_style_teaches_nothing() -> None:
    net = PLANS["reporting"].net(len(judged()), len(styles())).eval()
    batch, none = made(0), torch.zeros(6, dtype=torch.bool)
    first = torch.tensor([True] + [False] * 5)  # a softmax over no picture at all has no mean
    pairs = []
    for case in (batch, replace(batch, judge_style=first, style_known=none)):
        other = replace(case, styles=case.styles.clone())
        other.styles[1:] = other.styles[1:].flip(1)
        pairs.append((train_judge.loss(net, case, 1.0), train_judge.loss(net, other, 1.0)))
    assert not torch.isclose(*pairs[0])
    assert torch.isclose(*pairs[1])


def test_of_a_stopped_drawing_no_object_is_asked() -> None:
    net = PLANS["reporting"].net(len(judged()), len(styles())).eval()
    batch = replace(made(0), objects=torch.zeros(6, len(judged())))
    gone = replace(batch, object_known=torch.zeros(6, dtype=torch.bool))
    flags = F.binary_cross_entropy_with_logits(net(batch.images)[0], batch.objects, reduction="none").sum(1).mean()
    assert torch.isclose(train_judge.loss(net, batch, 1.0) - train_judge.loss(net, gone, 1.0), flags, rtol=1e-4)


def test_redrawn_noisy_and_stopped_pictures_are_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = few(tmp_path, monkeypatch)
    plan = PLANS["reporting"]
    drawn = source.stage.draw(12, torch.Generator().manual_seed(0), rows=source.rows[:1].repeat(12), two=0.0)
    sure = redrawn.Redrawn(drawn, torch.arange(12) < 6)
    source._redrawn = {0: (sure, sure), 1: (sure, sure)}
    source.__dict__["stopped"] = drawn
    batch = source.batch(5, plan, plan.cycles[-1])
    assert batch.images.shape == (64, 3, 64, 64)
    scenes = 64 - plan.broken - plan.empty
    assert batch.style_known[: scenes - plan.anew].all()
    known = batch.style_known[scenes - plan.anew : scenes]
    assert known.any()
    assert not known.all()
    assert torch.equal(batch.judge_style[scenes - plan.anew : scenes], known)
    assert (batch.objects[scenes - plan.anew : scenes].sum(1) == 1).all()
    assert not batch.judge_style[scenes:].any()
    broken, noisy, stopped = batch.objects[-8:-4], batch.objects[-4:-2], batch.objects[-2:]
    assert not broken.any()
    assert noisy.any()
    assert not stopped.any()
    assert batch.object_known.tolist() == [True] * 62 + [False] * 2
    assert batch.style_known[-8:].tolist() == [True] * 4 + [False] * 4
    assert batch.extra[-8:].tolist() == [[0.0, 1.0]] * 8


def test_pools_that_calibrate_do_not_teach() -> None:
    with pytest.raises(ValueError, match="calibrate"):
        Cycle(Phase(1, 1, 1e-3), 0.0, 1, 1.0, redrawn=3)


def test_a_card_of_other_weights_is_not_done(tmp_path: Path) -> None:
    part = measured.measured_part(PLANS["selection"], tmp_path / "trained", tmp_path / "card", lambda: None)  # type: ignore[arg-type,return-value]
    for folder, file, text in (("trained", RESULT, "weights"), ("card", DONE, '{"made from": "other"}')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text(text)
    assert not part.done
    (tmp_path / "card" / DONE).write_text(json.dumps({"made from": digest(tmp_path / "trained" / RESULT)}))
    assert part.done


def test_temperature_recovers_a_known_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20000, generator=generator) * 2
    labels = torch.rand(20000, generator=generator) < torch.sigmoid(true)
    assert measured.temperature(true * 3, labels) == pytest.approx(3, rel=0.08)


def test_share_is_clopper_pearson() -> None:
    assert measured.share(0, 20) == {"rate": 0.0, "n": 20, "interval": [0.0, 0.1684]}
    assert measured.share(190, 200)["interval"] == [0.91, 0.9758]
    assert measured.share(0, 0)["rate"] is None


def test_a_judge_does_not_go_on_with_scenes_through_another_vae(tmp_path: Path) -> None:
    train_judge.same_scenes(tmp_path, "scenes-a")
    train_judge.same_scenes(tmp_path, "scenes-a")
    with pytest.raises(WrongFile, match="other models"):
        train_judge.same_scenes(tmp_path, "scenes-b")


def test_prompts_of_drawings_are_read() -> None:
    assert asked("a hot dog") == ("hot dog", None)
    assert asked("a hot dog in noto style") == ("hot dog", "noto")
    with pytest.raises(BadRequest, match="two dogs"):
        asked("two dogs")
    with pytest.raises(BadRequest, match="a dog in red"):
        asked("a dog in red")


def test_counts_and_neighbours() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    hits = np.array([[1, 0], [0, 0], [1, 1], [0, 1]], bool)
    every = np.ones_like(labels)
    assert measured.counts(hits, labels, every) == {"tp": [1, 2], "n_pos": [2, 2], "tn": [1, 2], "n_neg": [2, 2]}
    every[0, 0] = False
    assert measured.counts(hits, labels, every) == {"tp": [0, 2], "n_pos": [1, 2], "tn": [1, 2], "n_neg": [2, 2]}
    assert measured.worst_neighbours(hits, labels, ["dog", "cat"]) == {"dog": ["cat", 1, 2]}


def test_summary_of_a_perfect_and_of_a_silent_judge() -> None:
    labels = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 0]], bool)  # two objects, two styles
    two, every = torch.tensor([False, False, True]), torch.ones(3, dtype=torch.bool)
    shown = measured.Shown(torch.zeros(3, 64, 64, 3), torch.from_numpy(labels), two, every)
    right: dict[str, Any] = measured.summary(labels.astype(np.float32), labels, shown, 2)
    assert right["object argmax"]["rate"] == right["style argmax"]["rate"] == 1
    assert right["both objects of two"] == measured.share(1, 1)
    silent = measured.summary(1 - labels.astype(np.float32), np.zeros_like(labels), shown, 2)
    assert silent["object argmax"]["rate"] == silent["object sensitivity"]["rate"] == 0
    assert silent["object specificity"]["rate"] == 1
    doubtful = measured.Shown(shown.images, shown.labels, two, torch.tensor([True, False, True]))
    some = measured.summary(labels.astype(np.float32), labels, doubtful, 2)
    assert some["style argmax"] == some["style sensitivity"] == measured.share(2, 2)
    assert some["object sensitivity"]["n"] == 4


def test_reliability_of_honest_chances() -> None:
    rng = np.random.default_rng(1)
    chance = rng.random((4000, 5)).astype(np.float32)
    labels = rng.random((4000, 5)) < chance
    every = np.ones_like(labels)
    assert measured.reliability(chance, labels, every)["ece"] < 0.02
    assert measured.reliability(1 - chance, labels, every)["ece"] > 0.4
