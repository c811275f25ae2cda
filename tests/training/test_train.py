"""The training loop: trained tensors over an untouched base, exact resume, what moves. Ids are the KSCU sheet's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from conftest import all_bits
from efface.errors import BadRequest, Cancelled, EffaceError, NothingChanged, WrongFile
from efface.model import Model
from efface.model.devices import Team
from efface.patch import Dense, LowRank, Patch
from efface.training.loop import Net, train
from efface.work import Work
from tiny_families import REFERENCE, make_pipe

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn2."
SITES = tuple(BLOCK + n for n in ("to_q", "to_k", "to_v", "to_out.0", "to_out.0.bias"))
CONVS = ("conv_in", "conv_out", "mid_block.resnets.0.conv1", "time_embedding.linear_1")


class Away:
    """Sends the prediction for "dog" away from the base's, at latents that wander with the trained network."""

    def __init__(self, model: Model, work: Work, fail_at: int = -1, factor: float = 1.0) -> None:
        self.text = model.network.context(["dog"])
        self.shape, self.work, self.fail_at, self.factor = (1, *model.card.latent), work, fail_at, factor
        self.latent: Tensor | None = None

    def terms(self, net: Net, index: int) -> dict[str, Tensor]:
        if index == self.fail_at:
            raise RuntimeError("inside")
        if self.latent is None or index % 3 == 0:
            self.latent = torch.randn(self.shape, generator=self.work.rng(f"noise {index}")).to(net.dtype)
        t, rows = torch.tensor(300), self.text.to(net.device, net.dtype)
        target = -net.reference(self.latent, t, rows)
        said = net.predict(self.latent, t, rows)
        return {"one": self.factor * (said - target).square().mean(), "two": 0.1 * said.mean()}

    def after(self, net: Net, index: int) -> None:
        assert self.latent is not None
        self.latent = self.latent - 0.1 * net.predict(
            self.latent, torch.tensor(300), self.text.to(net.device, net.dtype)
        )

    def where(self, index: int) -> str:
        return f"place {index}"

    def state(self) -> dict[str, Tensor]:
        return {} if self.latent is None else {"latent": self.latent}

    def load(self, state: dict[str, Tensor]) -> None:
        self.latent = state.get("latent")


class Run:
    """A net, its objective and optimiser over a fresh model."""

    def __init__(
        self, model: Model, work: Work | None = None, sites: tuple[str, ...] = SITES, lr: float = 1e-3, **more: Any
    ) -> None:
        self.work = work or Work(5)
        self.objective = Away(model, self.work, more.pop("fail_at", -1), more.pop("factor", 1.0))
        chosen = tuple(s for s in sites if not (more.get("rank") and s.endswith(".bias")))
        self.net = Net(model, chosen, rng=self.work.rng, **more)
        self.optimiser = torch.optim.Adam(self.net.parameters, lr=lr)
        self.losses: list[float] = []

    def go(self, updates: int = 5, about: dict[str, Any] | None = None, **more: Any) -> Run:
        for update in train(self.net, self.objective, self.optimiser, updates, self.work, about or {}, **more):
            self.losses.append(update.loss)
        return self

    @property
    def bits(self) -> dict[str, bytes]:
        return {n: p.detach().contiguous().numpy().tobytes() for n, p in self.net.trained.items()}


@pytest.fixture(scope="module")
def model() -> Model:
    return efface.load(make_pipe())


@pytest.fixture(scope="module")
def wide() -> Model:
    return efface.load(make_pipe(dtype=torch.float64))


# --- gradients by term -----------------------------------------------------------------------------------------------


def test_the_sum_of_the_terms_gradients_is_the_gradient_of_their_sum(wide: Model) -> None:
    plain = Run(wide).go(3)
    seen: list[set[str]] = []

    def summed(by_term: dict[str, Any]) -> list[Tensor]:
        seen.append(set(by_term))
        return [torch.stack(list(parts)).sum(0) for parts in zip(*by_term.values(), strict=True)]

    by_term = Run(wide).go(3, combine=summed)
    assert seen == [{"one", "two"}] * 3
    assert by_term.losses == pytest.approx(plain.losses, rel=1e-9)
    for name, parameter in plain.net.trained.items():
        assert float((by_term.net.trained[name] - parameter).norm()) <= 1e-6 * float(parameter.norm())


def test_a_term_can_be_left_out_of_the_gradient(wide: Model) -> None:
    plain = Run(wide).go(3)
    alone = Run(wide).go(3, combine=lambda by_term: by_term["one"])
    assert alone.losses[0] == plain.losses[0]
    assert alone.bits != plain.bits


# --- the base stays as it is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_at_every_yield_after_an_exception_and_after_a_cancel_the_model_is_as_before(rank: int, model: Model) -> None:
    """3.7-11."""
    before, owned = all_bits(model), dict(model.part("unet").named_parameters())
    hooks = sum(len(m._forward_hooks) for m in model.part("unet").modules())

    def same() -> bool:
        now = dict(model.part("unet").named_parameters())
        left = sum(len(m._forward_hooks) for m in model.part("unet").modules())
        return all_bits(model) == before and all(now[k] is p for k, p in owned.items()) and left == hooks

    run = Run(model, rank=rank)
    for _ in train(run.net, run.objective, run.optimiser, 2, run.work, {}):
        assert same()
    with pytest.raises(RuntimeError, match="inside"):
        Run(model, rank=rank, fail_at=1).go()
    assert same()
    work = Work()
    work.cancel()
    with pytest.raises(Cancelled):
        Run(model, work, rank=rank).go()
    assert same()
    assert Run(model, rank=rank).go(2).net.moved() > 0  # else the test would pass on nothing


@pytest.mark.parametrize("rank", [0, 2])
def test_the_reference_is_the_untouched_network_bit_for_bit_and_costs_no_second_one(rank: int, model: Model) -> None:
    """3.7-11."""
    run = Run(model, rank=rank).go(2)
    z, t, rows = torch.randn(2, *model.card.latent), torch.tensor(500), run.objective.text.take([0, 0])
    with torch.no_grad():
        wanted = model.network.predict(z, t, rows)
        with run.net:
            trained = run.net.predict(z, t, rows)
            assert run.net.reference(z, t, rows).equal(wanted)
            assert run.net.predict(z, t, rows).equal(trained)
    assert not trained.equal(wanted)
    assert sum(p.numel() for p in run.net.parameters) < 0.05 * sum(p.numel() for p in model.part("unet").parameters())


def test_the_users_own_parameters_get_no_gradient_and_its_mode_comes_back() -> None:
    pipe = make_pipe()
    pipe.unet.requires_grad_(True).train()
    Run(efface.load(pipe)).go(1)
    assert pipe.unet.training
    assert all(p.grad is None and p.requires_grad for p in pipe.unet.parameters())


def test_only_inside_does_a_network_predict(model: Model) -> None:
    run = Run(model)
    with pytest.raises(EffaceError, match="with net"):
        run.net.predict(torch.zeros(1, *model.card.latent), torch.tensor(1), run.objective.text)


# --- what moves ------------------------------------------------------------------------------------------------------


def test_the_first_adam_step_is_the_learning_rate_against_the_sign(wide: Model) -> None:
    """3.7-16."""
    run = Run(wide, lr=1e-5)
    with run.net:
        loss = torch.stack(list(run.objective.terms(run.net, 0).values())).sum()
        gradients = torch.autograd.grad(loss, run.net.parameters)
    run.go(1)
    for (site, parameter), g in zip(run.net.trained.items(), gradients, strict=True):
        change = (parameter.detach() - wide.weight(site)).abs()
        torch.testing.assert_close(change, 1e-5 * g.abs() / (g.abs() + 1e-8), rtol=1e-9, atol=1e-15)


def test_float32_masters_move_every_weight_and_bfloat16_weights_lose_most() -> None:
    """3.7-15: the trap of half-precision training. Weights as large as a trained network's, updates of 1e-5."""
    pipe = make_pipe()
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(0.3).add_(0.02 * torch.sign(module.weight.data))
    half = efface.load(pipe.to(torch.bfloat16))
    weights = tuple(s for s in SITES if not s.endswith("bias"))
    good = Run(half, sites=weights, lr=1e-5).go(5)
    bad = Run(half, sites=weights, lr=1e-5, dtype=torch.bfloat16).go(5)
    assert {p.dtype for p in good.net.parameters} == {torch.float32}
    for parameter in good.net.parameters:
        moments = good.optimiser.state[parameter]
        assert moments["exp_avg"].dtype == torch.float32
        felt = moments["exp_avg_sq"].sqrt() > 1e-6  # eps is 1e-8: below it an Adam step is no full step
        start = next(half.weight(s).float() for s, p in good.net.trained.items() if p is parameter)
        assert felt.any()
        assert bool((parameter.detach() != start)[felt].all())
    assert good.net.moved() > 0.95
    assert bad.net.moved() < 0.5


def test_a_loss_that_is_not_finite_stops_and_says_where(model: Model) -> None:
    with pytest.raises(EffaceError, match=r"nan at update 0 \(place 0\)"):
        Run(model, factor=float("nan")).go()


def test_a_damaged_weight_is_refused() -> None:
    pipe = make_pipe()
    pipe.unet.get_submodule(SITES[0]).weight.data[0, 0] = float("inf")
    with pytest.raises(WrongFile, match="NaN or infinity"):
        Net(efface.load(pipe), SITES)


def test_no_site_and_no_movement_are_refused(model: Model) -> None:
    with pytest.raises(BadRequest, match="no site"):
        Net(model, ())
    with pytest.raises(BadRequest, match=r"to_out\.0\.bias is a bias"):
        Net(model, SITES, rank=2)
    with pytest.raises(NothingChanged, match="moved no weight"):
        Run(model, lr=0.0).go(1).net.edits()


# --- the result ------------------------------------------------------------------------------------------------------


def test_the_patch_holds_the_trained_weights(model: Model) -> None:
    """3.7-23."""
    run = Run(model).go(2)
    patch = Patch(run.net.edits())
    assert all(isinstance(e, Dense) for e in patch.edits)
    assert patch.sites == tuple(sorted(SITES))
    for site in SITES:
        found, wanted = patch.weight(site, model.weight(site)), run.net.trained[site].detach()
        torch.testing.assert_close(found, wanted, rtol=2e-7, atol=1e-9)


def test_adapters_on_matrices_and_kernels_are_their_low_rank_patch(wide: Model) -> None:
    """3.7-23: the network with adapters and the network with the patch predict the same; strength 0 is the base."""
    sites = (*(s for s in SITES if not s.endswith("bias")), *CONVS)
    run = Run(wide, sites=sites, rank=3).go(3)
    patch = Patch(run.net.edits())
    assert {type(e) for e in patch.edits} == {LowRank}
    assert set(patch.sites) == set(sites)
    z, t, rows = torch.randn(1, *wide.card.latent, dtype=torch.float64), torch.tensor(200), run.objective.text
    with torch.no_grad():
        with run.net:
            wanted, base = run.net.predict(z, t, rows), run.net.reference(z, t, rows)
        with patch.applied(wide):
            found = wide.network.predict(z, t, rows)
        with patch.scaled(0).applied(wide):
            assert wide.network.predict(z, t, rows).equal(base)
    # the patch keeps float32 factors
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert float((wanted - base).norm()) > 1e-3 * float(base.norm())


@pytest.mark.parametrize("rank", [0, 2])
def test_recomputed_activations_give_the_same_gradients(rank: int, wide: Model) -> None:
    runs = [Run(wide, rank=rank, checkpointing=c, sites=SITES[:4]).go(2) for c in (False, True)]
    for one, two in zip(runs[0].net.parameters, runs[1].net.parameters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    assert not wide.part("unet").is_gradient_checkpointing
    assert runs[1].net.moved() > 0


def test_rows_are_counted_by_kind(model: Model) -> None:
    counts = Run(model).go(4).net.counts
    assert (counts.frozen, counts.tuned, counts.backward, counts.forward) == (4, 8, 4, 12)


# --- cancel and resume -----------------------------------------------------------------------------------------------


class StopsAt(Work):
    """Is cancelled before update n."""

    def __init__(self, n: int, folder: Path | None) -> None:
        super().__init__(5, folder)
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.cancel()
        super().check()


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("stops", [(0,), (1,), (3,), (5,), (1, 2)])
def test_stopped_anywhere_and_resumed_the_bytes_are_those_of_the_whole_run(
    stops: tuple[int, ...], rank: int, model: Model, tmp_path: Path, whole: Callable[[int], Run]
) -> None:
    """3.7-17: weights, losses and latents, from the file alone."""
    wanted, losses = whole(rank), []
    for stop in stops:
        run = Run(model, StopsAt(stop, tmp_path), rank=rank)
        with pytest.raises(Cancelled):
            run.go(6)
        losses += run.losses
    run = Run(model, Work(5, tmp_path), rank=rank).go(6)
    assert losses + run.losses == wanted.losses
    assert run.bits == wanted.bits
    assert run.net.counts == wanted.net.counts
    assert run.objective.latent is not None
    assert wanted.objective.latent is not None
    assert run.objective.latent.equal(wanted.objective.latent)


@pytest.fixture(scope="module")
def whole(model: Model) -> Callable[[int], Run]:
    found = {rank: Run(model, rank=rank).go(6) for rank in (0, 2)}
    return found.__getitem__


def test_killed_between_checkpoints_the_last_one_is_taken(
    model: Model, tmp_path: Path, whole: Callable[[int], Run]
) -> None:
    """3.7-17: no farewell is said; the state of update 4 is on disk and two updates are made again."""
    run = Run(model, Work(5, tmp_path))
    steps = train(run.net, run.objective, run.optimiser, 6, run.work, {}, every=2)
    for _ in range(5):
        next(steps)
    steps.close()
    again = Run(model, Work(5, tmp_path)).go(6)
    assert again.losses == whole(0).losses[4:]
    assert again.bits == whole(0).bits


def test_the_state_of_another_run_is_refused_by_the_field(model: Model, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        Run(model, StopsAt(1, tmp_path)).go(3, {"learning_rate": 1e-3, "seed": 5})
    with pytest.raises(BadRequest, match=r"'learning_rate' is 0\.001, not 0\.002"):
        Run(model, Work(5, tmp_path)).go(3, {"learning_rate": 2e-3, "seed": 5})
    with pytest.raises(BadRequest, match="'kept'"):
        Run(model, Work(5, tmp_path)).go(3, {"learning_rate": 1e-3, "seed": 5, "kept": []})


# --- several processes -----------------------------------------------------------------------------------------------


def test_a_batch_is_shared_evenly_or_refused() -> None:
    assert [Team(4, r).share(8) for r in range(4)] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    assert Team(1, 0).share(3) == slice(0, 3)
    with pytest.raises(BadRequest, match=r"batch 1 .* 2 processes"):
        Team(2, 0).share(1)
    alone = torch.ones(2)
    assert Team(1, 0).mean(alone) is alone


class Exchange:
    """In place of accelerate, for two threads that stand for two processes."""

    def __init__(self) -> None:
        self.parts: list[Tensor | None] = [None, None]
        self.barrier = threading.Barrier(2, timeout=120)
        self.local = threading.local()

    def team(self) -> Team:
        made = Team(2, self.local.rank)
        made.__dict__["_accelerator"] = self
        return made

    def both(self, run: Callable[[int], Any]) -> list[Any]:
        """What run(rank) answers in each of the two."""

        def one(rank: int) -> Any:
            self.local.rank = rank
            return run(rank)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))

    def gather(self, tensor: Tensor) -> Tensor:
        self.parts[self.local.rank] = tensor
        self.barrier.wait()
        found = torch.cat([p for p in self.parts if p is not None])
        self.barrier.wait()
        return found

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return self.gather(tensor[None]).mean(0)


class StopsBefore(Work):
    """Is cancelled before update n, once."""

    n = -1

    def progress(self, items: Any, label: str, total: int | None = None) -> Any:
        for item in super().progress(items, label, total):
            if label == "updates" and item == self.n:
                self.cancel()
                self.check()
            yield item


@pytest.mark.parametrize("kept", ["file", "memory"])
def test_two_processes_stopped_and_resumed_go_on_with_their_own_share(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.7-17: two trajectories of one batch, stopped between two steps of a pass."""
    exchange, folder = Exchange(), tmp_path if kept == "file" else None
    monkeypatch.setattr("efface.methods._key_steps.Team", exchange.team)
    models = [efface.load(make_pipe()) for _ in range(2)]
    settings: dict[str, Any] = {"method": "kscu", "preset": "code", "updates": 3, "steps": 6, "first_step": 3}
    settings |= {"scope": "xattn", "batch": 2, "learning_rate": 1e-3}

    def erased(rank: int, work: Work) -> dict[str, Tensor] | None:
        try:
            patch = efface.erase(models[rank], ["dog"], work=work, **settings)
        except Cancelled:
            return None
        return {e.site: e.change for e in patch.edits if isinstance(e, Dense)}

    whole = exchange.both(lambda rank: erased(rank, Work()))
    works = [StopsBefore(0, folder) for _ in range(2)]
    for work in works:
        work.n = 2
    assert exchange.both(lambda rank: erased(rank, works[rank])) == [None, None]
    for work in works:
        work.n, work.cancelled = -1, False
    for found in exchange.both(lambda rank: erased(rank, works[rank])):
        assert found.keys() == whole[0].keys()
        assert all(found[s].equal(w) for s, w in whole[0].items())
    assert all(whole[1][s].equal(w) for s, w in whole[0].items())
    monkeypatch.setattr("efface.methods._key_steps.Team", lambda: Team(1, 0))
    with pytest.raises(BadRequest, match="'processes' is 2, not 1"):
        erased(0, works[0])


def test_each_of_several_processes_computes_on_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(Team, "_accelerator", SimpleNamespace(device=torch.device("cuda", 1)))
    assert efface.load(REFERENCE, "cuda").device == torch.device("cuda")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert efface.load(REFERENCE, "cuda").device == torch.device("cuda", 1)
    assert efface.load(REFERENCE, "cuda:0").device == torch.device("cuda", 0)
    assert efface.load(REFERENCE, "cpu").device == torch.device("cpu")


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
import efface
from tiny_families import make_pipe
from safetensors.torch import save_file
patch = efface.erase(make_pipe(dtype=torch.float64), ["dog"], method="kscu", preset="code", updates=3, steps=6,
                     first_step=3, scope="xattn", batch=2, learning_rate=1e-3, augment=0)
import os
save_file({{e.site: e.change for e in patch.edits}}, {out!r} + os.environ.get("RANK", "0"))
"""


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path) -> None:
    """The same global batch, by accelerate over gloo; both hold the same weights."""
    pytest.importorskip("accelerate")
    from safetensors.torch import load_file

    found: dict[str, dict[str, Tensor]] = {}
    for world in (1, 2):
        code = SCRIPT.format(tests=str(Path(__file__).parent.parent), out=str(tmp_path / f"{world}-"))
        team = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ
                | {"WORLD_SIZE": str(world), "RANK": str(r), "LOCAL_RANK": str(r)}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541", "ACCELERATE_USE_CPU": "true"},
            )
            for r in range(world)
        ]
        assert [p.wait(600) for p in team] == [0] * world
        found |= {f"{world}-{r}": load_file(tmp_path / f"{world}-{r}") for r in range(world)}
    alone = found["1-0"]
    for name in ("2-0", "2-1"):
        assert found[name].keys() == alone.keys()
        for site, wanted in alone.items():
            torch.testing.assert_close(found[name][site], wanted, rtol=1e-5, atol=1e-9)
