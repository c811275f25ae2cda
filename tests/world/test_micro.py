"""What the bundled `micro` draws, and what the methods do to it: real pictures, the reporting judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import efface
from efface import world
from efface.judges import world as judges
from efface.sampler import sample
from efface.world.sizes import MICRO

TARGETS, KEEP = ("cat", "airplane"), ("dog", "lion", "rocket", "sailboat", "bicycle", "owl", "key", "pizza")
OTHERS = ("elephant", "penguin", "butterfly", "banana", "cactus", "doughnut", "guitar", "violin", "umbrella", "crown")
METHODS: dict[str, dict[str, Any]] = {"uce": {}, "scapre": {}, "fia": {}, "kscu": {}}


@pytest.fixture(scope="module")
def judge() -> judges.WorldJudge:
    return judges.load()


@pytest.fixture(scope="module")
def micro() -> efface.Model:
    return efface.load("micro", device="cpu")


def seen(judge: judges.WorldJudge, model: efface.Model, asked: list[tuple[str, str, int]]) -> np.ndarray:
    """bool (n,): is the label of each (prompt, label, seed) seen in the drawing?"""
    pictures = sample(model, [prompt for prompt, _, _ in asked], [seed for _, _, seed in asked])
    labels = [*judge.objects, *judge.styles]
    return judge.look(pictures).hits[np.arange(len(asked)), [labels.index(label) for _, label, _ in asked]]


def plain(names: tuple[str, ...], seeds: range) -> list[tuple[str, str, int]]:
    return [(f"a {name}", name, seed) for seed in seeds for name in names]


def test_it_draws_what_it_is_asked_for(judge: judges.WorldJudge, micro: efface.Model) -> None:
    assert seen(judge, micro, plain(MICRO.objects, range(900, 902))).mean() >= 0.85
    styled = [(f"a {MICRO.objects[k]} in {s} style", s, 900 + k) for k in range(0, 24, 2) for s in MICRO.styles]
    assert seen(judge, micro, styled).mean() >= 0.75


@pytest.mark.parametrize("method", METHODS)
def test_methods_suppress_the_targets_and_keep_others(
    method: str, judge: judges.WorldJudge, micro: efface.Model
) -> None:
    targets, others = plain(TARGETS, range(900, 908)), plain(OTHERS, range(900, 902))
    patch = efface.erase(micro, TARGETS, KEEP, method, **METHODS[method])
    before = seen(judge, micro, targets), seen(judge, micro, others)
    with patch.applied(micro):
        after = seen(judge, micro, targets), seen(judge, micro, others)
    assert before[0].mean() >= 0.8
    assert after[0].mean() <= before[0].mean() - 0.3
    assert after[1].mean() >= before[1].mean() - 0.3


def test_its_files_are_safetensors_within_their_size(micro: efface.Model) -> None:
    files = [f for f in micro.folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 4e6
    assert {f.suffix for f in files if f.stat().st_size > 200_000} == {".safetensors"}
    assert set(world.models()) >= {"mini", "micro"}
