"""ESD: the target, where latents come from, what is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface.errors import BadRequest, EffaceWarning
from efface.evidence.gather import gather
from efface.methods.esd import ESD, Erasing, Latents, target
from efface.model import Model
from efface.request import Request
from efface.training.loop import Net
from efface.work import Work
from tiny_families import make_pipe

SHORT = Latents(steps=4, walks=2)


@pytest.fixture
def model() -> Model:
    return efface.load(make_pipe())


def prepared(model: Model, method: ESD, *concepts: str) -> tuple[Net, Erasing]:
    request, work = Request.build(concepts or ("dog",)).settle({}), Work(0)
    evidence = gather(model, method.ask(request, model.card), work)
    net = Net(model, method.sites(model.card), rank=method.rank, rng=work.rng)
    return net, Erasing(method, model, evidence, request, net, work)


def patch_of(model: Model, **settings: Any) -> efface.Patch:
    return efface.erase(model, ["dog"], method="esd", **{"updates": 2, "steps": 4, **settings})


# --- the target ------------------------------------------------------------------------------------------------------


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_the_carrier_that_is_the_concept_gives_the_papers_target() -> None:
    """2.1-P1, 2.1-P2."""
    c, u = rand(2, 4, 8, 8), rand(2, 4, 8, 8)
    for eta in (0.0, 1.0, 2.5):
        assert torch.allclose(target(c, u, c, eta), u - eta * (c - u), rtol=1e-12)
    assert torch.allclose(target(c, u, c, 0.0), u, rtol=1e-12)
    assert torch.equal(target(c, u, c, -1.0), c)
    assert not torch.allclose(target(c, u, rand(2, 4, 8, 8), 1.0), u - (c - u))


def test_with_eta_minus_one_there_is_nothing_to_learn(model: Model) -> None:
    """2.1-P1: the target is what the network says already."""
    for eta, nothing in ((-1.0, True), (1.0, False)):
        net, steps = prepared(model, ESD(eta=eta, latents=SHORT))
        with net:
            loss = float(steps.terms(net, 0)["concept"].detach())
        assert (loss < 1e-12) is nothing


def test_what_is_trained_is_conditioned_on_the_carrier(model: Model) -> None:
    """2.1-P2."""
    net, steps = prepared(model, ESD(carrier="cat", latents=SHORT))
    seen: list[Any] = []
    keep = net.predict
    net.predict = lambda *a: seen.append(a[2]) or keep(*a)  # type: ignore[method-assign]
    with net:
        steps.terms(net, 0)
    (context,) = seen
    assert torch.equal(context.tensors["rows"], steps.rows["cat"].tensors["rows"])


# --- latents ---------------------------------------------------------------------------------------------------------


def test_a_walk_gives_the_latents_of_fresh_ways_and_every_step_once(model: Model) -> None:
    """2.1-P5."""
    net, steps = prepared(model, ESD(latents=SHORT))
    spots = [steps.spot(i) for i in range(16)]
    assert Counter((s.noise, s.step) for s in spots) == Counter({(s.noise, s.step): 1 for s in spots})
    assert Counter(s.step for s in spots) == dict.fromkeys(range(4), 4)
    with net:
        for spot in spots[:4]:
            walked = steps.latent(net, spot)
            noise = torch.randn((1, *model.card.latent), generator=Work(0).rng(spot.noise))
            fresh = steps.walked(net.reference, noise, steps.rows["dog"], spot.step)[-1]
            assert torch.equal(walked, fresh)


def test_frozen_latents_do_not_hang_on_what_was_learnt_and_own_ones_do(model: Model) -> None:
    for drawn_by in ("frozen", "own"):
        net, steps = prepared(model, ESD(latents=Latents(drawn_by=drawn_by, steps=4)))
        with net:
            spot = replace_step(steps, 2)
            before = steps.latent(net, spot)
            with torch.no_grad():
                for parameter in net.parameters:
                    parameter.mul_(1.5)
            assert torch.equal(before, steps.latent(net, spot)) is (drawn_by == "frozen")


def replace_step(steps: Erasing, step: int) -> Any:
    return steps.spot(0)._replace(step=step)


def test_the_network_reads_scaled_latents() -> None:
    """2.1-P7: a scheduler that scales its input is not forgotten."""
    model = efface.load(make_pipe(scheduler="ancestral"))
    net, steps = prepared(model, ESD(latents=Latents(steps=4, sampler="model")))
    with net:
        found = steps.walked(net.reference, torch.randn(1, *model.card.latent), steps.rows["dog"], 0)[0]
    scheduler = steps.scheduler()
    assert float(scheduler.init_noise_sigma) > 1.5
    assert float(found.std()) < 1.5


def test_times_of_bins_lie_in_the_bin_of_the_step(model: Model) -> None:
    net, steps = prepared(model, ESD(latents=Latents(steps=50, time="bins")))
    assert net.sites
    for index in range(40):
        spot = steps.spot(index)
        assert 20 * (49 - spot.step) <= int(steps.time(index, spot)) < 20 * (50 - spot.step)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "wanted"), [("x", True), ("x-strict", True), ("u", False)])
def test_scopes_part_cross_attention_from_the_rest(scope: Any, wanted: bool, model: Model) -> None:
    sites = ESD(scope=scope).sites(model.card)
    assert {"attn2" in s for s in sites} == {wanted}
    assert len(sites) == len(set(sites))
    strict = {s.rsplit(".", 1)[1] for s in ESD(scope="x-strict").sites(model.card)}
    assert strict == {"to_k", "to_v"}


def test_the_first_update_moves_what_is_trained_by_the_learning_rate_and_nothing_else(model: Model) -> None:
    """2.1-P4."""
    patch = patch_of(model, updates=1, scope="x-strict", learning_rate=1e-4)
    assert set(patch.sites) <= set(ESD(scope="x-strict").sites(model.card))
    moved = torch.cat([e.tensors()["change"].flatten() for e in patch.edits]).abs()
    assert float(moved.max()) <= 1.01e-4
    assert float((moved > 0.99e-4).double().mean()) > 0.5


def test_training_lowers_the_loss_it_is_trained_for(model: Model) -> None:
    method = ESD(scope="x", updates=30, learning_rate=1e-3, latents=SHORT)
    patch = efface.erase(model, ["dog"], method="esd", scope="x", updates=30, learning_rate=1e-3, steps=4, walks=2)
    losses = []
    for edited in (False, True):
        net, steps = prepared(model, method)
        base = [steps.rows["dog"], steps.rows[""]]
        with net:
            z, t = steps.latent(net, steps.spot(0)), steps.time(0, steps.spot(0))
            c, u = (net.reference(z, t, row) for row in base)
        if edited:
            with patch.applied(model):
                said = model.network.predict(z, t, base[0])
        else:
            said = c
        losses.append(float((said - target(c, u, c, 1.0)).square().mean().detach()))
    assert losses[1] < 0.8 * losses[0]


def test_low_rank_and_bfloat16_are_choices(model: Model) -> None:
    assert {e.kind for e in patch_of(model, scope="x-strict", rank=2).edits} == {"low-rank"}
    with pytest.warns(EffaceWarning, match="bfloat16"):
        patch_of(model, scope="x-strict", weights="bfloat16", learning_rate=1e-2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"walks": 2, "drawn_by": "own"}, "walks"),
        ({"updates": 0}, "updates"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"guide": "dog"}, "guide"),
        ({"eta": -2.0}, "eta"),
    ],
)
def test_settings_that_contradict_are_refused_by_name(settings: dict[str, Any], said: str, model: Model) -> None:
    with pytest.raises(BadRequest, match=said):
        patch_of(model, **settings)


def test_an_anchor_takes_the_place_of_the_empty_text(model: Model) -> None:
    net, steps = prepared(model, ESD(latents=SHORT), "dog=cat")
    assert steps.pairs == [("dog", "cat")]
    other = replace(ESD(latents=SHORT), guide="cat")
    assert prepared(model, other)[1].pairs == [("dog", "cat")]
    assert net.sites
