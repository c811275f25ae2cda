"""The sampler: the pipeline's pixels, whatever the batch, and five places where rules act."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import efface
from efface.errors import BadRequest, Cancelled
from efface.model import Model
from efface.model import places as guards
from efface.work import Work
from nudge import Add, nudges
from tiny_families import MakePipe

PROMPTS, SEEDS = ["a dog", "a red house", "a cat in noto style"], [0, 5, 9]


def drawn_by(pipe: Any, prompts: list[str], seeds: list[int], **more: Any) -> np.ndarray:
    """The pipeline's own images (n, h, w, 3) uint8."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    images = pipe(prompts, generator=generators, output_type="pil", **more).images
    return np.stack([np.asarray(i) for i in images])


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", ["dpm", "pndm", "ddim", "ancestral"])
def test_the_pixels_are_those_of_the_pipeline(scheduler: str, guidance: float, tiny_pipe: MakePipe) -> None:
    pipe = tiny_pipe(scheduler=scheduler)
    wanted = drawn_by(pipe, PROMPTS, SEEDS, num_inference_steps=4, guidance_scale=guidance)
    model = efface.load(pipe)
    found = model.sample(PROMPTS, SEEDS, steps=4, guidance=guidance)
    assert distance(found, wanted) <= 1
    assert distance(model.sample(PROMPTS, [1, 2, 3], steps=4, guidance=guidance), wanted) > 1


def test_the_pixels_of_mini_are_those_of_its_pipeline(mini: Model) -> None:
    pipe = mini.pipeline()
    pipe.set_progress_bar_config(disable=True)
    wanted = drawn_by(pipe, PROMPTS[:1], [7], num_inference_steps=4, guidance_scale=4.0)
    assert distance(mini.sample(PROMPTS[:1], [7], steps=4), wanted) <= 1


def test_the_first_latents_are_those_of_the_pipeline_bit_by_bit_whatever_the_batch(tiny_pipe: MakePipe) -> None:
    pipe = tiny_pipe()
    model = efface.load(pipe)
    found, _ = model.network.noise(SEEDS)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    height, width = model.card.size
    args = (len(SEEDS), model.card.latent[0], height, width, model.dtype, model.device, generators)
    assert pipe.prepare_latents(*args).equal(found * pipe.scheduler.init_noise_sigma)
    for i, seed in enumerate(SEEDS):
        assert model.network.noise([seed])[0].equal(found[i : i + 1])


def test_batches_agree_within_one_level(tiny: Model) -> None:
    whole = tiny.sample(PROMPTS, SEEDS, steps=3)
    assert distance(tiny.sample(PROMPTS, SEEDS, steps=3, batch=1), whole) <= 1
    assert distance(tiny.sample(PROMPTS, SEEDS, steps=3, batch=2), whole) <= 1
    turned = tiny.sample(PROMPTS[::-1], SEEDS[::-1], steps=3)
    assert distance(turned[::-1], whole) <= 1


def test_the_same_call_gives_the_same_bits(tiny: Model) -> None:
    assert (tiny.sample(PROMPTS, SEEDS, steps=2) == tiny.sample(PROMPTS, SEEDS, steps=2)).all()


def test_generate_draws_prompt_by_prompt_with_every_seed(tiny: Model) -> None:
    images = tiny.generate(["a dog", "a cat"], seeds=[0, 4], steps=1)
    wanted = tiny.sample(["a dog", "a dog", "a cat", "a cat"], [0, 4, 0, 4], steps=1)
    assert (np.stack([np.asarray(i) for i in images]) == wanted).all()
    assert images[0].size == (64, 64)


def test_a_card_states_steps_and_guidance_that_hold_by_default(tiny: Model) -> None:
    tiny.card = replace(tiny.card, steps=2, guidance=3.0)
    assert (tiny.sample(PROMPTS, SEEDS) == tiny.sample(PROMPTS, SEEDS, steps=2, guidance=3.0)).all()
    assert distance(tiny.sample(PROMPTS, SEEDS), tiny.sample(PROMPTS, SEEDS, steps=2, guidance=9.0)) > 1


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_of_at_most_one_is_off_and_costs_one_row_an_image(guidance: float, tiny: Model) -> None:
    seen: list[int] = []
    tap = {tiny.card.select("cross.k")[0].name: lambda step, site, a, out: seen.append(len(a))}
    found = tiny.sample(PROMPTS, SEEDS, steps=2, guidance=guidance, taps=tap)
    assert seen == [3, 3]
    assert (found == tiny.sample(PROMPTS, SEEDS, steps=2, guidance=1.0)).all()


@pytest.mark.parametrize(
    ("prompts", "seeds", "more", "named"),
    [
        (["a"], [1, 2], {}, "1 prompts and 2 seeds"),
        (["a"], [1], {"steps": 0}, "steps.*0"),
        (["dog " * 50], [1], {"steps": 1}, "tokens"),
    ],
)
def test_a_wrong_call_names_what_is_wrong(
    prompts: list[str], seeds: list[int], more: dict[str, int], named: str, tiny: Model
) -> None:
    with pytest.raises(BadRequest, match=named):
        tiny.sample(prompts, seeds, **more)  # pyright: ignore[reportArgumentType]


def test_a_cancelled_work_stops_it_and_leaves_no_hook(tiny: Model) -> None:
    work, steps = Work(), []

    def tap(step: guards.Step, *_: object) -> None:
        steps.append(step.index)
        work.cancel()

    site = tiny.card.select("cross.k")[0].name
    with pytest.raises(Cancelled):
        tiny.sample(PROMPTS, SEEDS, steps=5, taps={site: tap}, work=work)
    assert steps == [0]
    assert not tiny.part("unet").get_submodule(site)._forward_hooks


# --- the five places -------------------------------------------------------------------------------------------------


@pytest.fixture
def nudge(monkeypatch: pytest.MonkeyPatch) -> Add:
    return nudges(monkeypatch, PROMPTS[0])


def _where(model: Model, place: str) -> list[str]:
    """Sites at which a place acts at every step."""
    keys = [s.name for s in model.card.select("cross.k")]
    both = [s.name for s in model.card.select("cross.k", "cross.v")]
    blocks = [k.removesuffix(".to_k") for k in keys]
    return {"key-value": both, "attention": blocks, "prediction": [""], "latent": [""]}[place]


def test_there_are_five_places() -> None:
    assert guards.PLACES == ("prompt", "key-value", "attention", "prediction", "latent")


@pytest.mark.parametrize("place", guards.PLACES)
def test_a_rule_acts_once_at_its_place_and_is_gone_afterwards(place: str, nudge: Add, tiny: Model) -> None:
    base = tiny.sample(PROMPTS, SEEDS, steps=3)
    patch, rule = nudge(place, 2.0)
    with patch.applied(tiny):
        edited = tiny.sample(PROMPTS, SEEDS, steps=3)
    assert distance(edited, base) > 1
    assert (tiny.sample(PROMPTS, SEEDS, steps=3) == base).all()
    if place == "prompt":
        assert rule.calls == [(-1, "", (6, 24, 64))]
        return
    sites = _where(tiny, place)
    assert sorted(c[:2] for c in rule.calls) == sorted((i, s) for i in range(3) for s in sites)
    shapes = {c[2] for c in rule.calls if not c[1]}
    assert shapes == ({(3, *tiny.card.latent)} if sites == [""] else set())
    assert {c[2][0] for c in rule.calls} == ({3} if sites == [""] else {6})


@pytest.mark.parametrize("place", guards.PLACES)
def test_a_rule_that_adds_nothing_changes_no_pixel(place: str, nudge: Add, tiny: Model) -> None:
    base = tiny.sample(PROMPTS, SEEDS, steps=2)
    patch, rule = nudge(place, 0.0)
    with patch.applied(tiny):
        assert (tiny.sample(PROMPTS, SEEDS, steps=2) == base).all()
    assert rule.calls


def test_rules_act_in_the_order_of_application(nudge: Add, tiny: Model) -> None:
    """The latent rule sees what the prediction rule made of the step."""
    (one, first), (two, second) = nudge("prediction", 1.0), nudge("latent", 1.0)
    with one.applied(tiny), two.applied(tiny):
        tiny.sample(PROMPTS, SEEDS, steps=2)
    assert len(first.calls) == len(second.calls) == 2
