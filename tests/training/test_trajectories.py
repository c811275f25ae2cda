"""Latents for training, and which weights are trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import efface
from efface.errors import BadRequest
from efface.model import Model
from efface.model.text import Context
from efface.training.scopes import sites_of
from efface.training.trajectories import Trajectories, predictions
from tiny_families import make_pipe


@pytest.fixture(scope="module")
def model() -> Model:
    return efface.load(make_pipe(dtype=torch.float64))


def ask(z: Tensor, t: Tensor, context: Context) -> Tensor:
    """Stands for a network: its answer depends on everything it is asked."""
    return 0.1 * z * context.tensors["rows"].mean((1, 2))[:, None, None, None] + 1e-4 * t


def drawn(model: Model) -> tuple[Tensor, Context, Context]:
    """Noise (2, c, h, w), a text and the empty text, one row each."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *model.card.latent, generator=g, dtype=torch.float64)
    text, empty = torch.randn(2, 1, 24, 8, generator=g, dtype=torch.float64)
    return noise, Context({"rows": text}), Context({"rows": empty})


def test_fresh_latents_are_those_of_walking_from_the_noise(model: Model) -> None:
    path, (z, text, empty) = Trajectories(model, 10, 3.0), drawn(model)
    fresh = path.fresh(ask, z, 4, text, empty)
    for step in range(4):
        z = path.walk(ask, z, step, text, empty)
    assert fresh.equal(z)
    assert not fresh.requires_grad
    assert path.fresh(ask, z, 0, text, empty).equal(z)


def test_a_step_with_given_predictions_is_a_guided_one(model: Model) -> None:
    path, (z, text, empty) = Trajectories(model, 10, 3.0), drawn(model)
    said, nothing = predictions(ask, z, path.times[2], text, empty)
    assert path.next(z, 2, said, nothing).equal(path.walk(ask, z, 2, text, empty))
    unguided = Trajectories(model, 10, 1.0)
    torch.testing.assert_close(unguided.next(z, 2, said, nothing), unguided.next(z, 2, said, 0 * said + said))
    assert not path.next(z, 2, said, nothing).equal(unguided.next(z, 2, said, nothing))


def test_noised_latents_and_noise_give_the_latents_back(model: Model) -> None:
    path, (noise, _, _) = Trajectories(model, 10, 1.0), drawn(model)
    clean = torch.randn(noise.shape, dtype=noise.dtype, generator=torch.Generator().manual_seed(1))
    for step in (0, 5, 9):
        kept = path.scheduler.alphas_cumprod.double()[path.times[step]]
        found = (path.noised(clean, noise, step) - (1 - kept).sqrt() * noise) / kept.sqrt()
        torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)  # the library's levels are float32
    late, early = (float((path.noised(clean, noise, s) - clean).norm()) for s in (9, 0))
    assert late < 0.5 * early


def test_more_steps_than_noise_levels_are_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match=r"'steps'.*1000 noise levels"):
        Trajectories(model, 2000, 1.0)


def test_scopes_are_read_from_roles(model: Model) -> None:
    roles = {s.name: s.role for s in model.card.sites}
    found = {scope: sites_of(model.card, scope, biases=False) for scope in ("xattn", "noxattn", "selfattn")}
    assert {roles[n].partition(".")[0] for n in found["xattn"]} == {"cross"}
    assert {roles[n].partition(".")[0] for n in found["selfattn"]} == {"self"}
    assert sorted((*found["xattn"], *found["noxattn"])) == sorted(roles)
    beside = sites_of(model.card, "xattn", biases=True)
    assert {n.removesuffix(".bias") for n in beside} == set(found["xattn"])
    assert any(n.endswith(".bias") for n in beside)
