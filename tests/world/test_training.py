"""Training and measuring the judge: resuming, thresholds, rates. Small made-up batches, no artwork."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from efface.errors import BadRequest
from efface.world import judged, styles
from efface.world import measure_judge as measured
from efface.world.measure_drawings import asked
from efface.world.train_judge import Batch, Cycle, Plan, Source, augment, rate_at, train


class Made:
    """Batches of noise with labels; like the real source, step k gives the same batch in every run."""

    def __init__(self, plan: Plan, killed_at: int | None = None) -> None:
        self.plan, self.killed_at = plan, killed_at

    def batch(self, step: int) -> Batch:
        if step == self.killed_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(6, 3, 64, 64, generator=generator) * 2 - 1
        objects = torch.zeros(6, len(judged()))
        objects[torch.arange(6), torch.arange(6) + step % 5] = 1
        shown = torch.eye(len(styles()))[:6]
        return Batch(images, objects, shown, torch.zeros(6, 2), torch.ones(6, dtype=torch.bool))


def made(steps: int) -> Plan:
    return Plan((Cycle(steps, 4e-3, 0.0, 1, 1.0),), save_every=2)


def run(home: Path, killed_at: int | None = None) -> dict[str, torch.Tensor]:
    plan = made(6)
    net = train(cast(Source, Made(plan, killed_at)), home, log=lambda line: None)
    return {k: v.clone() for k, v in net.state_dict().items()}


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed_at=5)
    assert (tmp_path / "killed" / "checkpoint.safetensors").is_file()
    again = run(tmp_path / "killed")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    fresh = train(cast(Source, Made(made(4))), tmp_path / "short", log=lambda line: None)
    assert any(not torch.equal(whole[k], v) for k, v in fresh.state_dict().items())


def test_rate_warms_up_and_falls() -> None:
    plan = Plan((Cycle(1000, 1e-3, 0.0, 1, 1.0), Cycle(10, 5e-4, 0.0, 1, 1.0)))
    rates = [rate_at(k, plan) for k in range(1000)]
    assert rates[0] < 1e-4
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    peak = int(np.argmax(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rate_at(k, plan) for k in range(1000, 1010)) == pytest.approx(5e-4)


def test_augmentation_repeats_and_stays_near() -> None:
    x = torch.full((8, 3, 64, 64), 0.5)
    x[:, :, 20:44, 20:44] = 0.9
    first = augment(x, torch.Generator().manual_seed(0))
    assert torch.equal(first, augment(x, torch.Generator().manual_seed(0)))
    assert 0.01 < (first - x).abs().mean() < 0.1
    assert 0 <= first.min() <= first.max() <= 1


def test_thresholds_reach_their_specificity() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((5000, 2)) < 0.1
    chance = np.stack([rng.random(5000), rng.random(5000) * 0.01], 1).astype(np.float32)
    hard, easy = measured.thresholds(chance, labels)
    assert easy == measured.FLOOR
    false = (chance[~labels[:, 0], 0] >= np.float32(hard)).mean()
    assert 0.008 <= false <= 0.01


def test_temperature_recovers_a_known_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(20000, generator=generator) * 2
    labels = torch.rand(20000, generator=generator) < torch.sigmoid(true)
    assert measured.temperature(true * 3, labels) == pytest.approx(3, rel=0.08)


def test_share_is_clopper_pearson() -> None:
    assert measured.share(0, 20) == {"rate": 0.0, "n": 20, "interval": [0.0, 0.1684]}
    assert measured.share(190, 200)["interval"] == [0.91, 0.9758]
    assert measured.share(0, 0)["rate"] is None


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
    assert measured.counts(hits, labels) == {"tp": [1, 2], "n_pos": [2, 2], "tn": [1, 2], "n_neg": [2, 2]}
    assert measured.worst_neighbours(hits, labels, ["dog", "cat"]) == {"dog": ["cat", 1, 2]}


def test_summary_of_a_perfect_and_of_a_silent_judge() -> None:
    labels = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 0]], bool)  # two objects, two styles
    shown = measured.Shown(torch.zeros(3, 64, 64, 3), torch.from_numpy(labels), torch.tensor([False, False, True]))
    right: dict[str, Any] = measured.summary(labels.astype(np.float32), labels, shown, 2)
    assert right["object argmax"]["rate"] == right["style argmax"]["rate"] == 1
    assert right["both objects of two"] == measured.share(1, 1)
    silent = measured.summary(1 - labels.astype(np.float32), np.zeros_like(labels), shown, 2)
    assert silent["object argmax"]["rate"] == silent["object sensitivity"]["rate"] == 0
    assert silent["object specificity"]["rate"] == 1


def test_reliability_of_honest_chances() -> None:
    rng = np.random.default_rng(1)
    chance = rng.random((4000, 5)).astype(np.float32)
    labels = rng.random((4000, 5)) < chance
    assert measured.reliability(chance, labels)["ece"] < 0.02
    assert measured.reliability(1 - chance, labels)["ece"] > 0.4
