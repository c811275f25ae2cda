"""KSCU: what the sheet asks of the method file. Numbers are ids of the sheet."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface.erasure import plan
from efface.errors import BadRequest, Cancelled, EffaceWarning, NothingChanged, WrongFile
from efface.evidence.gather import gather
from efface.methods._augmentation import mixed_texts, ten_texts
from efface.methods.kscu import KSCU, PRESETS
from efface.model import Model
from efface.model.card import Card
from efface.model.config import Config
from efface.model.text import Context
from efface.numerics import schedules
from efface.patch import Dense, LowRank, Patch
from efface.registry import changed, choose, find, flat, resolve
from efface.request import Concept, Request
from efface.training.loop import Net, train
from efface.training.trajectories import predictions
from efface.work import Work
from tiny_families import SD_UNETS, config_of, make_pipe

# A run of seconds: two passes of two steps and a bit, so that a jump, an advance and an augmented update occur.
SHORT: dict[str, Any] = {"updates": 5, "updates_several": "each", "steps": 5, "first_step": 3, "augment": 0.2}


@pytest.fixture(scope="module")
def model() -> Model:
    return efface.load(make_pipe())


@pytest.fixture(scope="module")
def wide() -> Model:
    return efface.load(make_pipe(dtype=torch.float64))


def erase(model: Model, *concepts: Any, keep: tuple[str, ...] = (), work: Work | None = None, **settings: Any) -> Patch:
    settings = {"preset": "code", "scope": "xattn", "learning_rate": 1e-3} | SHORT | settings
    return efface.erase(model, concepts or ("dog",), keep, "kscu", work=work, **settings)


def deltas(patch: Patch) -> dict[str, Tensor]:
    dense = {e.site: e.change for e in patch.edits if isinstance(e, Dense)}
    return dense | {e.site: e.up @ e.down for e in patch.edits if isinstance(e, LowRank)}


def distance(a: Patch, b: Patch) -> float:
    one, two = deltas(a), deltas(b)
    assert one.keys() == two.keys()
    total = sum(float(d.square().sum()) for d in two.values())
    return (sum(float((one[s] - two[s]).square().sum()) for s in one) / total) ** 0.5


class Started:
    """A run taken apart: its net and objective, nothing trained yet."""

    def __init__(self, model: Model, *concepts: Any, keep: tuple[str, ...] = (), **settings: Any) -> None:
        settings = {"preset": "code", "scope": "xattn", "learning_rate": 1e-3} | SHORT | settings
        made = plan(model, concepts or ("dog",), keep, "kscu", **settings)
        self.method: KSCU = made.method
        self.work = Work(made.request.seed)
        self.net = Net(model, made.method.sites(model.card))
        evidence = gather(model, made.needs, self.work)
        self.steps = self.method.objective(model, evidence, made.request, self.net, self.work)
        self.table = self.steps.table
        self.optimiser = torch.optim.Adam(self.net.parameters, lr=self.method.optimiser.learning_rate)

    def go(self) -> list[tuple[float, Tensor | None]]:
        """Loss of every update and the latent after it."""
        updates = train(self.net, self.steps, self.optimiser, len(self.table), self.work, {})
        return [(u.loss, self.steps.latent) for u in updates]

    def gradients(self, index: int = 0) -> Tensor:
        with self.net:
            loss = torch.stack(list(self.steps.terms(self.net, index).values())).sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.net.parameters)])


# --- presets and scopes ----------------------------------------------------------------------------------------------


def resolved(model: Model, kind: str, n: int = 1, preset: str = "code") -> KSCU:
    request = Request(tuple(Concept(f"name {i}", kind) for i in range(n)), preset=preset)
    return resolve(choose("kscu", {}), request, model.card)


@pytest.mark.parametrize(
    ("preset", "kind", "n", "wanted"),
    [
        ("code", "object", 1, (750, 14, "noxattn")),
        ("code", "object", 10, (750, 14, "noxattn")),
        ("code", "style", 1, (500, 24, "xattn")),
        ("code", "person", 1, (200, 40, "xattn")),
        ("code", "person", 3, (750, 40, "xattn")),
        ("code", "sensitive", 1, (750, 14, "noxattn")),
        ("code-2025", "object", 1, (750, 15, "noxattn")),
        ("code-2025", "person", 1, (200, 40, "xattn")),
        ("efface", "object", 3, (2250, 14, "noxattn")),
        ("efface", "style", 3, (1500, 24, "xattn")),
        ("efface", "person", 3, (600, 40, "xattn")),
    ],
)
def test_budget_start_and_scope_follow_the_task(
    preset: str, kind: str, n: int, wanted: tuple[int, int, str], model: Model
) -> None:
    """3.7-4, 3.7-22."""
    found = resolved(model, kind, n, preset)
    assert (found.schedule.total(n), found.schedule.first_step, found.optimiser.scope) == wanted


def test_presets_hold_the_constants_of_both_releases(model: Model) -> None:
    """3.7-5."""
    new, old, paper = (resolved(model, "object", 1, p) for p in ("code", "code-2025", "paper"))
    losses = [(m.loss.rule, m.loss.slope, m.loss.empty_weight) for m in (new, old)]
    assert losses == [("time", 2e-5, 1e-4), ("index", 1e-4, 2e-5)]
    assert [m.trajectory.start for m in (new, old)] == ["walk", "fresh"]
    assert [m.schedule.cap for m in (new, old)] == ["nine-tenths", 49]
    assert {m.optimiser.learning_rate for m in (new, old, paper)} == {1e-5}
    assert {m.loss.negative_guidance for m in (new, old, paper)} == {1.0}
    assert {m.trajectory.guidance for m in (new, old, paper)} == {3.0}
    assert (new.pool.augment, old.pool.augment, paper.pool.augment) == (0.05, 0.0, 0.05)
    assert {m.optimiser.weights for m in (new, old, paper)} == {"float32"}


def test_the_world_trains_at_most_200_updates_a_concept_from_step_6_and_10_of_20(model: Model) -> None:
    things, styles = (resolved(model, kind, 1, "world") for kind in ("object", "style"))
    assert [(m.schedule.steps, m.schedule.first_step) for m in (things, styles)] == [(20, 6), (20, 10)]
    assert max(things.schedule.total(1), styles.schedule.total(1), things.schedule.total(10) / 10) <= 200
    assert all(None not in flat(preset).values() for preset in PRESETS.values())


@pytest.fixture(scope="module")
def sd1() -> Card:
    """Stable Diffusion 1.x from configurations alone."""
    unet = config_of("unet") | {
        "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "norm_num_groups": 32,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    } | SD_UNETS["1.x"]  # fmt: skip
    text = config_of("text_encoder") | {"max_position_embeddings": 77}
    scheduler = {"_class_name": "PNDMScheduler"}
    files = {"unet": unet, "text_encoder": text, "vae": config_of("vae"), "scheduler": scheduler}
    configs = {name: Config(name, values) for name, values in files.items()}
    return find("families", "stable-diffusion")().card("sd1", configs, Config("efface.json"))


def scoped(scope: str, rank: int = 0) -> KSCU:
    return changed(KSCU(), {"scope": scope, "rank": rank})


def test_scopes_part_the_modules_of_stable_diffusion(sd1: Card) -> None:
    """3.7-10."""

    def size(name: str) -> int:
        return prod(sd1.site(name).shape)

    found = {s: scoped(s).sites(sd1) for s in ("xattn", "noxattn", "selfattn")}
    modules = {s: [n for n in names if not n.endswith(".bias")] for s, names in found.items()}
    assert {s: len(m) for s, m in modules.items()} == {"xattn": 64, "noxattn": 218, "selfattn": 64}
    assert sum(map(size, found["xattn"])) == 43_962_560
    assert sum(map(size, found["noxattn"])) == 815_358_084
    assert not set(found["xattn"]) & set(found["noxattn"])
    assert {*modules["xattn"], *modules["noxattn"]} == {s.name for s in sd1.sites}
    assert not [n for n in scoped("xattn", 4).sites(sd1) if n.endswith(".bias")]


@pytest.mark.parametrize("scope", ["xattn", "noxattn", "selfattn"])
def test_only_tensors_of_the_scope_change(scope: str, model: Model) -> None:
    """3.7-10; norms and the text encoder are no sites at all."""
    patch = erase(model, scope=scope, updates=2)
    allowed = set(scoped(scope).sites(model.card))
    assert set(patch.sites) <= allowed
    assert len(patch.sites) > 0.8 * len(allowed)
    assert any(s.endswith(".bias") for s in patch.sites)


# --- trajectory and rows ---------------------------------------------------------------------------------------------


def ddim(z: Tensor, e: Tensor, t: int, stride: int, levels: Tensor) -> Tensor:
    now, then = levels[t], levels[t - stride] if t >= stride else levels[0]
    start = (z - (1 - now).sqrt() * e) / now.sqrt()
    return then.sqrt() * start + (1 - then).sqrt() * e


def test_latents_are_ddim_steps_of_the_network_just_updated(wide: Model) -> None:
    """3.7-12: a jump is full steps from the noise of seed + update; an advance uses the weights after the update."""
    run = Started(wide, steps=10, first_step=7, updates=4, augment=0, guidance=2.0)
    levels = run.steps.path.scheduler.alphas_cumprod.double()
    times, stride = run.steps.path.times.tolist(), 100
    rows = Context.cat([run.steps.rows["dog"], run.steps.rows[""]])

    def step(z: Tensor, i: int) -> Tensor:
        with torch.no_grad(), run.net:
            c, u = run.net.predict(z.repeat(2, 1, 1, 1), torch.tensor(times[i]), rows).chunk(2)
        return ddim(z, u + 2.0 * (c - u), times[i], stride, levels)

    z = torch.randn(1, *wide.card.latent, generator=torch.Generator().manual_seed(0)).double()
    for i in range(7):
        z = step(z, i)
    assert [(e.step, e.visit) for e in run.table] == [(7, 0), (8, 0), (9, 0), (7, 1)]
    for update in train(run.net, run.steps, run.optimiser, 4, run.work, {}):
        if update.index < 2:
            z = step(z, 7 + update.index)
            assert run.steps.latent is not None
            torch.testing.assert_close(run.steps.latent, z, rtol=1e-6, atol=1e-6)  # the library's levels are float32
    assert run.steps.latent is None


@pytest.mark.parametrize("advance", ["exact", "lagged"])
@pytest.mark.parametrize("trajectory", ["walk", pytest.param("fresh", marks=pytest.mark.slow)])
def test_counted_rows_are_those_of_the_table(advance: str, trajectory: str, model: Model) -> None:
    """3.7-13: rows that went through the network in a real run."""
    settings = {"updates": 9, "steps": 6, "first_step": 3, "loops": 2, "augment": 0.3}
    numbers = erase(model, advance=advance, trajectory=trajectory, **settings).recipe["numbers"]
    table = schedules.key_steps(9, 6, 3, 2)
    wanted = schedules.forward_rows(
        table, fresh=trajectory == "fresh", lagged=advance == "lagged", augmented=schedules.augmented_from(9, 0.3)
    )
    assert numbers["rows"]["frozen"] + numbers["rows"]["tuned"] == wanted
    assert numbers["rows"]["backward"] == 2 * 9
    assert numbers["rows_per_update"] == pytest.approx(wanted / 9, abs=1e-3)


class Counting:
    """Stands for the denoiser's prediction: by the text's number, no arithmetic worth the name."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.rows = denoiser, 0

    def __call__(self, x: Tensor, time: Tensor, context: Context) -> Tensor:
        self.rows += len(x)
        return context.tensors["rows"][:, 1, :1, None, None] + 0 * x + self.denoiser.conv_out.bias.sum()


@pytest.mark.parametrize(
    ("kind", "n", "preset", "advance", "least", "most"),
    [
        pytest.param("object", 1, "code", "exact", 6.8, 7.0, marks=pytest.mark.slow),
        pytest.param("style", 1, "code", "exact", 7.8, 8.0, marks=pytest.mark.slow),
        pytest.param("object", 1, "code", "lagged", 4.8, 5.0, marks=pytest.mark.slow),
        ("style", 1, "code", "lagged", 5.9, 6.1),
        pytest.param("person", 1, "code", "exact", 14.7, 14.8, marks=pytest.mark.slow),
        pytest.param("person", 3, "code", "exact", 15.3, 15.4, marks=pytest.mark.slow),
        pytest.param("object", 1, "code-2025", "exact", 68.8, 68.9, marks=pytest.mark.slow),
    ],
)
def test_rows_an_update_of_the_full_default_runs(
    kind: str, n: int, preset: str, advance: str, least: float, most: float, model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """3.7-13: the whole published run on a network that only counts."""
    names = ("a dog", "a cat", "a fox")[:n]
    made = plan(model, [Concept(c, kind) for c in names], (), "kscu", preset, advance=advance)
    request, work = made.request, Work(0)
    net = Net(model, ("conv_out.bias",))
    counting = Counting(model.network.denoiser)
    monkeypatch.setattr(model.network, "predict", counting)
    steps = made.method.objective(model, gather(model, made.needs, work), request, net, work)
    steps.path.next = lambda z, *_: z
    optimiser = torch.optim.SGD(net.parameters, lr=0.0)
    for _ in train(net, steps, optimiser, len(steps.table), work, {}):
        pass
    assert counting.rows == net.counts.forward
    assert least <= counting.rows / len(steps.table) <= most


def test_paired_rows_are_single_rows(wide: Model) -> None:
    """3.7-20."""
    run = Started(wide)
    z = torch.randn(1, *wide.card.latent, dtype=torch.float64)
    c, u = run.steps.rows["dog"], run.steps.rows[""]
    with torch.no_grad(), run.net:
        pair = predictions(run.net.predict, z, torch.tensor(300), c, u)
        for found, rows in zip(pair, (c, u), strict=True):
            torch.testing.assert_close(found, run.net.predict(z, torch.tensor(300), rows), rtol=1e-12, atol=1e-12)


def test_the_lagged_advance_differs_by_one_optimiser_step(wide: Model) -> None:
    """3.7-21: equal without learning; half the rate, half the difference."""

    def latent(advance: str, rate: float) -> Tensor:
        run = Started(wide, advance=advance, learning_rate=1e-3, augment=0)
        run.optimiser.param_groups[0]["lr"] = rate
        found = run.go()[0][1]
        assert found is not None
        return found

    assert latent("lagged", 0.0).allclose(latent("exact", 0.0), 1e-12, 1e-12)
    whole, half = (float((latent("lagged", r) - latent("exact", r)).norm()) for r in (1e-5, 5e-6))
    assert whole / half == pytest.approx(2, rel=0.1)


# --- the loss --------------------------------------------------------------------------------------------------------


def test_the_first_loss_has_its_closed_form(wide: Model) -> None:
    """3.7-6."""
    run = Started(wide, negative_guidance=2.0, slope=1e-3, empty_weight=0.5)
    said: list[Tensor] = []
    keep = run.net.reference
    run.net.reference = lambda *a: said.append(keep(*a)) or said[-1]  # type: ignore[method-assign]
    with run.net:
        loss = torch.stack(list(run.steps.terms(run.net, 0).values())).sum()
    n, p = said[-1].chunk(2)
    dynamic = (1000 - int(run.steps.path.times[3])) * 1e-3
    wanted = (9 + 0.5 * dynamic**2) * (p - n).square().mean()
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-9, atol=0)


def test_the_empty_term_is_inert_at_its_default_weight_and_felt_when_raised(wide: Model) -> None:
    """3.7-9."""
    one, two, strong = (Started(wide, empty_weight=w, slope=s) for w, s in ((1e-4, 2e-5), (2e-4, 2e-5), (0.5, 1e-3)))
    base = one.gradients()
    assert float((two.gradients() - base).norm() / base.norm()) < 1e-4
    assert float((strong.gradients() - base).norm() / base.norm()) > 1e-2


def test_a_model_that_ignores_the_text_has_nothing_to_unlearn() -> None:
    """3.7-7: p = n."""
    pipe = make_pipe()
    for site in efface.load(pipe).card.select("cross.v"):
        pipe.unet.get_submodule(site.name).weight.data.zero_()
    with pytest.raises(NothingChanged, match="same for 'dog'"):
        erase(efface.load(pipe))


def test_an_anchor_replaces_the_empty_text(wide: Model) -> None:
    """3.7-24."""
    same = [erase(wide, c, updates=3).edits for c in ("dog", "dog=")]
    assert all(a.tensors()["change"].equal(b.tensors()["change"]) for a, b in zip(*same, strict=True))
    towards = erase(wide, "dog=cat", updates=3)
    assert distance(towards, erase(wide, "dog", updates=3)) > 1e-2
    run = Started(wide, "dog=cat", negative_guidance=0.0, empty_weight=0.0)
    said: list[Tensor] = []
    keep = run.net.reference
    run.net.reference = lambda *a: said.append(keep(*a)) or said[-1]  # type: ignore[method-assign]
    with run.net:
        loss = run.steps.terms(run.net, 0)["concept"]
    _, p, q = said[-1].chunk(3)
    torch.testing.assert_close(loss.detach(), (p - q).square().mean(), rtol=1e-9, atol=0)
    with pytest.raises(BadRequest, match=r"'dog'.*anchor"):
        erase(wide, "dog=Dog")
    with pytest.raises(BadRequest, match="'guide' of 'dog'"):  # before cat is trained
        plan(wide, ["cat", "dog"], (), "kscu", preset="code", guide="dog")
    with pytest.raises(BadRequest, match="the anchor of 'dog'"):
        plan(wide, [Concept("dog", anchor="hound", synonyms=("hound",))], (), "kscu", preset="code")


def test_nan_in_the_evidence_is_refused_before_training(wide: Model) -> None:
    made = plan(wide, ["cat", "dog"], (), "kscu", preset="code", **SHORT)
    evidence = gather(wide, made.needs, Work(0))
    with torch.inference_mode():
        evidence.texts["dog"].main.rows[0, 0] = torch.nan
    with pytest.raises(WrongFile, match="NaN or infinity of 'dog'"):
        made.method.solve(wide, evidence, made.request, Work(0))


def test_the_cap_stays_below_nine_tenths_but_in_the_first_release() -> None:
    at: dict[str, Any] = {"steps": 50, "first_step": 40, "cap": 48, "loops": 1}
    tables = {pool: changed(KSCU(), at | {"pool": pool}).table(400, 1) for pool in ("concept", "mixed")}
    assert max(e.step for e in tables["concept"] if e.visit > 20) == 49
    first = {pool: [e.step for e in table][-10:] for pool, table in tables.items()}
    assert (min(first["concept"]), min(first["mixed"])) == (44, 48)


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(BadRequest, match="float32"):
        erase(efface.load(make_pipe(dtype=torch.float16)))


def test_a_kept_text_moves_less_with_a_weight_of_its_own(model: Model) -> None:
    def moved(weight: float) -> float:
        patch = erase(model, keep=("a red house",), keep_weight=weight, updates=8)
        z = torch.randn(1, *model.card.latent, generator=torch.Generator().manual_seed(1))
        net, t, context = model.network, torch.tensor(200), model.network.context(["a red house"])
        with torch.no_grad():
            before = net.predict(z, t, context)
            with patch.applied(model):
                return float((net.predict(z, t, context) - before).norm())

    assert moved(30.0) < 0.7 * moved(0.0)


# --- augmentation ----------------------------------------------------------------------------------------------------


def test_augmentation_changes_the_trained_input_and_nothing_else(wide: Model) -> None:
    """3.7-19: before it begins nothing differs; in it targets and latents are those of the plain run."""
    plain, late = Started(wide, augment=0, updates=2), Started(wide, augment=0.05, updates=2)
    assert late.steps.augmented == 1
    asked: dict[str, list[Tensor]] = {"plain": [], "late": []}
    for name, run in (("plain", plain), ("late", late)):
        keep = run.net.reference
        run.net.reference = lambda *a, name=name, keep=keep: asked[name].append(keep(*a)) or asked[name][-1]  # type: ignore[method-assign]
    one, two = plain.go(), late.go()
    assert one[0][0] == two[0][0]
    assert one[1][0] != two[1][0]
    assert all(a.equal(b) for a, b in zip(asked["plain"], asked["late"], strict=True))


def test_pools_hold_ten_texts_a_concept_or_two_hundred_in_all() -> None:
    """3.7-19."""
    dog, noto = Concept("dog", "object"), Concept("noto style", "style")
    ten = ten_texts(noto, ("noto style",), torch.Generator().manual_seed(0))
    assert len(ten) == 10
    assert all({"noto", "style"} <= set(t.split()) for t in ten)
    mixed = mixed_texts((dog, noto), (("dog",), ("noto style",)), torch.Generator().manual_seed(0))
    assert len(mixed) == 200
    assert sum(t in ("dog", "noto style") for t in mixed) >= 160
    assert len(set(mixed)) > 5
    own = (("dog", "hound"), ("noto style", "noto"))
    mixed = mixed_texts((dog, noto), own, torch.Generator().manual_seed(0))
    assert [mixed[:160].count(t) for t in ("dog", "hound", "noto style", "noto")] == [40] * 4


# --- several concepts, order, seeds ----------------------------------------------------------------------------------


def test_every_concept_gets_its_budget_and_the_order_stands_in_the_recipe(model: Model) -> None:
    """3.7-22."""
    numbers = erase(model, "fox", "a dog", updates=2).recipe["numbers"]
    assert numbers["updates"] == 4
    assert numbers["concepts"] == ["a dog", "fox"]
    given = erase(model, "fox", "a dog", updates=2, order="given").recipe["numbers"]
    assert given["concepts"] == ["fox", "a dog"]
    assert given["table"] != numbers["table"]
    with pytest.raises(BadRequest, match="twice"):
        erase(model, "fox", "Fox")


def test_synonyms_and_sentences_are_visited_in_turn(model: Model) -> None:
    run = Started(model, Concept("dog", "object", synonyms=("hound",)), expand="sentence", updates=9)
    wanted = ["dog", "hound", "a dog", "a hound", "a picture of a dog"]
    assert [run.steps.text(run.table[i]) for i in sorted(run.steps.starts)] == wanted


def test_same_seed_same_bytes_and_the_global_generator_is_left_alone(model: Model) -> None:
    """3.7-18."""
    before = torch.random.get_rng_state()
    one, two, other = (erase(model, seed=s, rank=2) for s in (1, 1, 2))
    assert torch.random.get_rng_state().equal(before)
    assert one.to_bytes() == two.to_bytes()
    assert distance(one, other) > 1e-3


class StopsAt(Work):
    def __init__(self, n: int) -> None:
        super().__init__(0)
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.cancel()
        super().check()


@pytest.mark.parametrize(
    ("preset", "stops"), [pytest.param("code", (2, 3, 4, 5), marks=pytest.mark.slow), ("efface", (3,))]
)
def test_stopped_in_a_pass_at_a_jump_or_late_and_resumed_the_patch_is_the_same(
    preset: str, stops: tuple[int, ...], model: Model
) -> None:
    """3.7-17: updates 1 and 3 walk, 2 and 4 jump, 4 is augmented."""
    wanted = erase(model, preset=preset).to_bytes()
    for stop in stops:
        work = StopsAt(stop)
        with pytest.raises(Cancelled):
            erase(model, preset=preset, work=work)
        work.cancelled, work.left = False, 10**9
        assert erase(model, preset=preset, work=work).to_bytes() == wanted


def test_what_was_stopped_on_one_model_does_not_go_on_on_another(model: Model) -> None:
    """3.7-17: the state is bound to the weights that it was trained from."""
    pipe = make_pipe()
    with torch.no_grad():
        next(iter(pipe.unet.parameters())).mul_(1.5)
    other = efface.load(pipe)
    work = StopsAt(3)
    with pytest.raises(Cancelled):
        erase(model, preset="code", work=work)
    work.cancelled, work.left = False, 10**9
    with pytest.raises(BadRequest, match="'model'"):
        erase(other, preset="code", work=work)


# --- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "settings"),
    [
        ("first_step", {"steps": 20, "first_step": 20}),
        ("first_step", {"steps": 20, "first_step": 18}),
        ("first_step", {"steps": 20, "first_step": 6, "cap": 5}),
        ("loops", {"loops": 0}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("updates", {"updates": 0}),
        ("steps", {"steps": 2000}),
        ("scope", {"scope": "attn"}),
        ("augment", {"augment": 1.5}),
        ("prompt_file", {"prompt_file": "file.txt"}),
    ],
)
def test_a_wrong_setting_raises_by_name(named: str, settings: dict[str, Any], model: Model) -> None:
    """3.7-3."""
    with pytest.raises(BadRequest, match=named):
        erase(model, **settings)


def test_a_scope_without_a_module_is_refused() -> None:
    card = efface.load(make_pipe()).card
    from dataclasses import replace

    bare = replace(card, sites=tuple(s for s in card.sites if not s.role.startswith("self.")))
    with pytest.raises(BadRequest, match="no module of scope 'selfattn'"):
        scoped("selfattn").sites(bare)


def test_bfloat16_weights_are_an_explicit_switch_that_warns(model: Model) -> None:
    """3.7-15."""
    with pytest.warns(EffaceWarning, match="lose most updates"):
        found = erase(model, weights="bfloat16", learning_rate=1e-5, preset="code")
    assert found.recipe["numbers"]["moved"] < 0.5 < erase(model, learning_rate=1e-5).recipe["numbers"]["moved"]


def test_a_sensitive_concept_takes_complete_prompts_from_the_users_file(model: Model, tmp_path: Path) -> None:
    """The hazard category of the world stands in. No template, no augmentation: the file's lines as they are."""
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\na dagger on a table\nsomebody holds a bomb\n")
    hazard = Concept("hazard", "sensitive")
    settings = {**SHORT, "preset": "code", "expand": "sentence"}
    asked = plan(model, [hazard], (), "kscu", prompt_file=str(file), **settings).needs.texts
    assert set(asked) == {"", "a dagger on a table", "somebody holds a bomb"}
    run = Started(model, hazard, prompt_file=str(file), expand="sentence")
    run.go()
    assert set(run.steps.rows) == set(asked)
    missing: list[dict[str, Any]] = [{}, {"prompt_file": str(tmp_path / "missing.txt")}]
    for wrong in missing:
        with pytest.raises((BadRequest, WrongFile), match=r"own file|no file"):
            erase(model, hazard, **wrong)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(BadRequest, match="holds no prompt"):
        erase(model, hazard, prompt_file=str(tmp_path / "empty.txt"))
    with pytest.raises(BadRequest, match="one concept"):
        erase(model, hazard, Concept("more", "sensitive"), prompt_file=str(file))
