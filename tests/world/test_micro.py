"""What the bundled `micro` and its golds draw, and what the methods do to it: real pictures, the reporting judge."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import efface
from efface import world
from efface.judges import world as judges
from efface.worldmaking.sizes import MICRO

GOLDS = ("micro-without-airplane-bomb-octopus-umbrella", "micro-without-monochrome_style")
TARGETS, KEEP = ("cat", "airplane"), ("dog", "lion", "rocket", "sailboat", "bicycle", "owl", "key", "pizza")
OTHERS = ("elephant", "penguin", "butterfly", "banana", "cactus", "doughnut", "guitar", "violin", "umbrella", "crown")
METHODS: dict[str, dict[str, Any]] = {"uce": {}, "scapre": {}, "fia": {"r2": 0.1}, "kscu": {}}


@pytest.fixture(scope="module")
def judge() -> judges.WorldJudge:
    return judges.load()


@pytest.fixture(scope="module")
def micro() -> efface.Model:
    return efface.load("micro", device="cpu")


def seen(judge: judges.WorldJudge, model: efface.Model, asked: list[tuple[str, str, int]]) -> np.ndarray:
    """bool (n,): is the label of each (prompt, label, seed) seen in the drawing?"""
    pictures = model.sample([prompt for prompt, _, _ in asked], [seed for _, _, seed in asked])
    labels = [*judge.objects, *judge.styles]
    return judge.look(pictures).hits[np.arange(len(asked)), [labels.index(label) for _, label, _ in asked]]


def plain(names: tuple[str, ...], seeds: range) -> list[tuple[str, str, int]]:
    return [(f"a {name}", name, seed) for seed in seeds for name in names]


def test_it_draws_what_it_is_asked_for(judge: judges.WorldJudge, micro: efface.Model) -> None:
    assert seen(judge, micro, plain(MICRO.objects, range(900, 902))).mean() >= 0.85
    styled = [(f"a {MICRO.objects[k]} in {s} style", s, 900 + k) for k in range(0, 24, 2) for s in MICRO.styles]
    assert seen(judge, micro, styled).mean() >= 0.75


@pytest.mark.parametrize("name", [pytest.param(GOLDS[0], marks=pytest.mark.slow), GOLDS[1]])
def test_a_gold_does_not_draw_what_it_never_saw(name: str, judge: judges.WorldJudge, micro: efface.Model) -> None:
    gold = efface.load(name, device="cpu")
    withheld = json.loads((gold.folder / "gold.json").read_text())["withheld"]
    asked = plain(tuple(withheld["objects"]), range(900, 906))
    asked += [(f"a {thing} in {s} style", s, 900) for s in withheld["styles"] for thing in MICRO.objects]
    assert seen(judge, micro, asked).mean() >= 0.75
    assert seen(judge, gold, asked).mean() <= 0.15
    kept = tuple(o for o in MICRO.objects if o not in withheld["objects"])
    assert seen(judge, gold, plain(kept, range(900, 901))).mean() >= 0.8


@pytest.mark.parametrize("method", [pytest.param(m, marks=pytest.mark.slow if m != "uce" else ()) for m in METHODS])
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


@pytest.mark.parametrize("name", ["micro", *GOLDS])
def test_plain_diffusers_draws_the_same(name: str) -> None:
    from diffusers import StableDiffusionPipeline

    model = efface.load(name, device="cpu")
    ours = model.sample(["a guitar"], [3], batch=1)[0]
    pipe = StableDiffusionPipeline.from_pretrained(model.folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    drawn = pipe("a guitar", num_inference_steps=model.card.steps, guidance_scale=model.card.guidance,
                 generator=generator, output_type="np").images[0]  # fmt: skip
    assert np.abs(drawn * 255 - ours).max() <= 1.01


def test_weights_are_safetensors_within_their_sizes() -> None:
    from efface.world import _HERE

    limits = {"micro": 4e6, **dict.fromkeys(GOLDS, 2e6)}
    for name, most in limits.items():
        files = [f for f in (_HERE / name).rglob("*") if f.is_file()]
        assert sum(f.stat().st_size for f in files) <= most, name
        assert {f.suffix for f in files if f.stat().st_size > 200_000} <= {".safetensors"}
    assert set(world.models()) >= {"mini", "micro", *GOLDS}
