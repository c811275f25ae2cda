"""FIA (docs/methods/fia.md)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from conftest import ROOT, all_bits
from efface.erasure import plan
from efface.errors import BadRequest, EffaceError, EffaceWarning, NothingChanged, UnknownName, WrongFile
from efface.evidence.gather import gather
from efface.files import cache_folder
from efface.methods.fia import FIA, PRESETS
from efface.model import Model
from efface.numerics.saliency import column_norms, cosine_energy
from efface.patch import Mask, Patch
from efface.prompts import load
from efface.registry import choose, resolve
from efface.request import Request
from efface.work import Work
from efface.world import objects
from tiny_families import MakePipe

# Few prompts and steps: the laws do not depend on how many.
SMALL: dict[str, Any] = {"prompts": 3, "saliency_steps": 2, "inference_steps": 4, "r2": 0.05}
FIFTY = {"saliency_steps": 10, "inference_steps": 50}
TEN = ["dog", "cat", "house", "car", "tree", "bird", "boat", "lamp", "fish", "bell"]
# A network as small as they get, for tests that count calls.
LEAST: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2}


def fia(model: Any, concepts: Any = "dog", preset: str = "efface", **settings: Any) -> Patch:
    return efface.erase(model, concepts, method="fia", preset=preset, **(SMALL | settings))


def masks(patch: Patch) -> dict[str, torch.Tensor]:
    return {e.site: e.unpack() for e in patch.edits if isinstance(e, Mask)}


def same(a: Patch, b: Patch) -> bool:
    one, two = masks(a), masks(b)
    return one.keys() == two.keys() and all(one[s].equal(two[s]) for s in one)


def jaccard(a: Patch, b: Patch) -> float:
    one, two = masks(a), masks(b)
    both = sum(int((one[s] & two[s]).sum()) for s in one.keys() & two.keys())
    either = sum(int(m.sum()) for m in (*one.values(), *two.values())) - both
    return both / either


@contextmanager
def rows_of_calls(model: Model) -> Iterator[list[int]]:
    """Rows of every call of the denoiser; two rows are one guided evaluation."""
    calls: list[int] = []
    handle = model.part("unet").register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    yield calls
    handle.remove()


def evaluations(model: Model, *arguments: Any, **settings: Any) -> float:
    with rows_of_calls(model) as calls:
        fia(model, *arguments, **settings)
    return sum(calls) / 2


# --- the edit --------------------------------------------------------------------------------------------------------


def test_marked_weights_become_zero_and_nothing_else_changes(tiny: Model) -> None:
    """2.9-20."""
    before = {s.name: tiny.weight(s.name).clone() for s in tiny.card.select("ff.out")}
    bits = all_bits(tiny)
    patch = fia(tiny)
    assert set(patch.sites) <= set(before)
    assert all_bits(tiny) == bits
    with patch.applied(tiny):
        for site, mask in masks(patch).items():
            weight = tiny.weight(site)
            assert mask.any()
            assert not weight[mask].any()
            assert weight[~mask].equal(before[site][~mask])
            X = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
            module = tiny.part("unet").get_submodule(site)
            torch.testing.assert_close(module(X) - module.bias, X @ (before[site] * ~mask).T)
            assert patch.weight(site, weight).equal(weight)  # twice is once
    assert all_bits(tiny) == bits


def test_one_concept_alone_is_pruned_whole_and_the_released_rule_refuses(tiny: Model) -> None:
    """2.9-16."""
    patch = fia(tiny)
    numbers = patch.recipe["numbers"]
    assert numbers["concepts"]["dog"]["selected"] == sum(int(m.sum()) for m in masks(patch).values())
    assert numbers["concepts"]["dog"]["shared"] == 0
    assert numbers["repaired"] is True
    assert same(patch, fia(tiny, alpha=1.0))
    with pytest.raises(NothingChanged, match="counting=exact"):
        fia(tiny, counting="code")


def test_what_many_masks_hold_stays(tiny: Model) -> None:
    """2.9-15. In the whole pipeline; concept masks are those of the concepts alone."""
    single = [masks(fia(tiny, c)) for c in ("dog", "cat", "house")]
    joint = fia(tiny, ["dog", "cat", "house"], alpha=0.6)
    assert joint.recipe["numbers"]["spared_from"] == 2
    for site in {s for m in single for s in m}:
        s = sum(m[site].int() for m in single if site in m)
        assert masks(joint)[site].equal(s == 1)  # pyright: ignore[reportArgumentType]
    loose = fia(tiny, ["dog", "cat", "house"], alpha=1.0)
    assert all(bool((masks(joint)[s] <= masks(loose)[s]).all()) for s in masks(joint))
    every = fia(tiny, ["dog", "cat", "house"], alpha="off")
    assert all(bool((masks(loose)[s] <= masks(every)[s]).all()) for s in masks(loose))
    shared = [c["shared"] for c in joint.recipe["numbers"]["concepts"].values()]
    assert max(shared) > 0


def test_a_concept_added_and_removed_leaves_the_first_patch(tiny: Model) -> None:
    """2.9-21. Its evidence is kept, so adding draws the new concept only."""
    first = fia(tiny)
    drawn = evaluations(tiny, ["dog", "cat"])
    assert drawn == SMALL["prompts"] * SMALL["saliency_steps"]
    assert fia(tiny).to_bytes() == first.to_bytes()


def test_a_hard_concept_takes_another_share(tiny: Model) -> None:
    plain, hard = fia(tiny), fia(tiny, hard="cat; Dog", r2_hard=0.12)
    assert all(bool((masks(plain)[s] <= masks(hard)[s]).all()) for s in masks(plain))
    assert hard.recipe["numbers"]["pruned"] > 1.5 * plain.recipe["numbers"]["pruned"]
    assert same(plain, fia(tiny, hard="cat", r2_hard=0.12))


def test_a_hard_concept_is_known_by_every_name_it_has(tiny: Model) -> None:
    def shares(*concepts: Any, preset: str = "code", **settings: Any) -> list[float]:
        made = plan(tiny, concepts, method="fia", preset=preset, **settings)
        assert isinstance(made.method, FIA)
        return list(made.method.selection.ratios(made.request).values())

    painters = [c["name"] for c in load("artists-5")["classes"]]
    assert "Vincent van Gogh" in painters
    for preset in ("code", "paper"):
        own = {n: shares(efface.Concept(n, "style"), preset=preset) for n in (*painters, "Van Gogh", "Van Gogh style")}
        assert {n for n, r2 in own.items() if r2 == [0.03]} == {"Vincent van Gogh", "Van Gogh", "Van Gogh style"}
    assert shares(efface.Concept("a hound", synonyms=("dog",)), "cat", hard="Dog") == [0.03, 0.007]


@pytest.mark.parametrize("score", ["cosine", "norm"])
def test_one_base_prompt_has_no_spread(score: str, tiny: Model) -> None:
    """2.9-7: then the concept has to exceed that prompt alone."""
    patch = fia(tiny, prompts=1, base="plain", score=score)
    assert masks(patch)
    assert same(patch, fia(tiny, prompts=1, base="plain", score=score, keep_steps=True))


def test_much_pruning_is_told(tiny: Model) -> None:
    with pytest.warns(EffaceWarning, match="lower r2"):
        assert fia(tiny, r2=1.0).recipe["numbers"]["pruned"] > 0.1


def test_other_sites_can_be_pruned(tiny: Model) -> None:
    patch = fia(tiny, sites="cross.v+ff.in")
    assert {tiny.card.site(s).role for s in patch.sites} == {"cross.v", "ff.in"}


# --- what is looked at -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("halves", ["pooled", "cond"])
def test_statistics_are_those_of_single_runs(halves: str, tiny_pipe: MakePipe) -> None:
    """2.9-2, 2.9-5, 2.9-6. Prompts in lock-step, outputs without bias, mean plus deviation over prompts."""
    model = efface.load(tiny_pipe(dtype=torch.float64))
    site = model.card.select("ff.out")[-1].name
    module = model.part("unet").get_submodule(site)
    module.bias.data += 2.0
    weight, X = model.weight(site), []
    made = {
        s: plan(model, "dog", method="fia", preset="efface", score=s, halves=halves, **SMALL)
        for s in ("cosine", "norm")
    }
    prompts = made["norm"].needs.group("base 0").prompts
    for prompt in prompts:
        seen: list[torch.Tensor] = []
        handle = module.register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0]))
        model.observe([prompt], [0], {}, 1, steps=4, guidance=7.5)
        handle.remove()
        X.append(seen[0][1:] if halves == "cond" else seen[0])
    rows = [x.reshape(-1, x.shape[-1]) for x in X]
    level = torch.stack([cosine_energy(x, x @ weight.T) for x in rows])
    norms = torch.stack([column_norms(x, False) for x in rows])
    for score, values in (("cosine", level), ("norm", norms)):
        needs = made[score].needs
        state = gather(model, needs, Work()).state(needs.statistics[0], "base 0", site, 0)
        found = state["level"] if score == "cosine" else state["mean"] + (state["m2"] / state["count"]).sqrt()
        torch.testing.assert_close(found, values.mean(0) + values.std(0, correction=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("score", ["cosine", pytest.param("norm", marks=pytest.mark.slow)])
def test_lock_step_gives_the_masks_of_single_runs(
    score: str, tiny_pipe: MakePipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.9-5."""

    def solved(batch: int, dtype: torch.dtype, cache: str) -> Patch:
        monkeypatch.setattr("efface.model.sampler.BATCH", batch)
        return fia(
            efface.load(tiny_pipe(dtype=dtype)),
            ["dog", "cat"],
            score=score,
            keep_steps=True,
            prompts=5,
            cache=Path(cache),
        )

    folder = cache_folder()
    for dtype in (torch.float64, torch.float32):
        one, many = (solved(b, dtype, str(folder / f"{dtype}-{b}")) for b in (1, 16))
        if dtype == torch.float64:
            assert same(one, many)
        assert jaccard(one, many) >= 0.995
        folders = [folder / f"{dtype}-{b}" for b in (1, 16)]
        names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*.safetensors")) for f in folders]
        assert names[0] == names[1]
        for name in names[0]:
            a, b = (_tensors(f / name) for f in folders)
            for key in set(a) & {"mean", "level"}:
                assert float((a[key] - b[key]).norm()) <= 1e-5 * float(b[key].norm())


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


@pytest.mark.parametrize("score", ["cosine", "norm"])
def test_stopping_after_the_last_step_gives_the_same_bits(
    score: str, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2.9-18."""
    monkeypatch.setattr("efface.model.sampler.BATCH", 2)
    with rows_of_calls(tiny) as calls:
        short = fia(tiny, score=score, cache=tmp_path / "short")
    assert calls == [4, 4, 2, 2] * 2  # two batches of two prompts and one, two steps each, for base and concept
    observe = Model.observe

    def whole(self: Model, prompts: Any, seeds: Any, taps: Any, calls: int, **more: Any) -> None:
        assert calls == 2
        observe(self, prompts, seeds, taps, more["steps"], **more)

    monkeypatch.setattr(Model, "observe", whole)
    with rows_of_calls(tiny) as calls:
        full = fia(tiny, score=score, cache=tmp_path / "full")
    assert len(calls) == 2 * 8
    assert full.to_bytes() == short.to_bytes()
    files = [sorted(f for f in (tmp_path / c).rglob("*.safetensors")) for c in ("short", "full")]
    assert files[0]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_the_second_timestep_of_pndm_is_seen_twice(tiny_pipe: MakePipe) -> None:
    """2.9-18."""
    numbers = fia(tiny_pipe(scheduler="pndm"), saliency_steps=3, inference_steps=8).recipe["numbers"]
    assert numbers["sampler"] == "PNDMScheduler"
    assert numbers["timesteps"][1] == numbers["timesteps"][2] < numbers["timesteps"][0]


@pytest.mark.parametrize("score", ["cosine", "norm"])
def test_the_base_is_drawn_once_for_all_concepts_and_requests(score: str, tiny: Model, tmp_path: Path) -> None:
    """2.9-19."""
    names, P, T = ["dog", "cat", "house"], SMALL["prompts"], SMALL["saliency_steps"]
    assert evaluations(tiny, names, score=score) == (3 * P + P) * T
    alone = [fia(tiny, n, score=score, cache=tmp_path / n) for n in names]
    assert all(same(fia(tiny, n, score=score), a) for n, a in zip(names, alone, strict=True))
    assert evaluations(tiny, names, score=score, alpha=1.0) == 0
    assert evaluations(tiny, names, score=score, r2=0.02) == 0
    assert evaluations(tiny, names, score=score, r1=0.1) == (0 if score == "norm" else 3 * P * T)
    assert evaluations(tiny, "bird", score=score) == P * T


def test_kept_steps_give_the_same_patch_and_another_r1_without_drawing(tiny: Model) -> None:
    """2.9-19."""
    folded, kept = fia(tiny, ["dog", "cat"]), fia(tiny, ["dog", "cat"], keep_steps=True)
    assert same(folded, kept)
    assert evaluations(tiny, ["dog", "cat"], keep_steps=True, r1=0.2) == 0
    assert same(fia(tiny, ["dog", "cat"], keep_steps=True, r1=0.2), fia(tiny, ["dog", "cat"], r1=0.2))


# What the released code runs for one concept of 30 pairs: 60 prompts through 50 steps of PNDM, 51 calls each.
PUBLISHED = 60 * 51


@pytest.fixture
def least(tiny_pipe: MakePipe) -> Model:
    """A network that costs little, with the sampler of SD 1.x."""
    model = efface.load(tiny_pipe(scheduler="pndm", **LEAST))
    scheduler = model.network.scheduler()
    scheduler.set_timesteps(50)
    assert len(scheduler.timesteps) == 51
    return model


@pytest.mark.slow
def test_evaluations_of_one_concept_and_of_ten_with_five_pairs(least: Model) -> None:
    """One evaluation is a guided call for one prompt, both halves; at equal prompts, then with the paper's pairs."""
    one = evaluations(least, "dog", "code", alpha="off", prompts=30, **FIFTY)
    assert one == 600
    assert PUBLISHED / one >= 5
    five = evaluations(least, TEN, "paper", alpha="off", prompts=5, **FIFTY)
    assert five == 10 * 55
    assert 10 * PUBLISHED / five >= 50


@pytest.mark.slow
def test_evaluations_of_ten_concepts_at_equal_prompts(least: Model) -> None:
    ten = evaluations(least, TEN, "code", alpha="off", prompts=30, **FIFTY)
    assert ten == 10 * 330
    assert 10 * PUBLISHED / ten >= 9


def test_ten_concepts_at_once_cost_what_they_cost_one_by_one(tiny_pipe: MakePipe) -> None:
    model = efface.load(tiny_pipe(**LEAST))
    assert evaluations(model, TEN, alpha="off") == (10 + 1) * SMALL["prompts"] * SMALL["saliency_steps"]


# --- prompts ---------------------------------------------------------------------------------------------------------


def groups(concepts: Any, preset: str, model: Any = "mini", **settings: Any) -> dict[str, tuple[str, ...]]:
    return {g.name: g.prompts for g in plan(model, concepts, method="fia", preset=preset, **settings).needs.prompts}


def test_places_take_two_forms_in_turn_and_the_base_leaves_the_concept_out() -> None:
    found = groups(["dog", "Van Gogh style"], "code")
    assert found["of dog"][:2] == ("a dog in a garden", "a dog near the kitchen")
    assert len(found["of dog"]) == len(set(found["of dog"])) == 30
    bases = [found[n] for n in ("base 0", "base 1")]
    assert any(b[:2] == ("a garden", "a kitchen") for b in bases)
    assert found["of Van Gogh style"][0] == "a house in the style of Van Gogh"
    assert any(b[0] == "a house" for b in bases)
    assert not any("dog" in p for b in bases for p in b if p != "a dog")
    assert len(groups(["dog", "cat", "house"], "paper")) == 4  # one base for three concepts


def test_world_prompts_put_three_objects_of_other_categories_into_the_same_sentences() -> None:
    found = groups("lion", "world", prompts=2, base="objects")
    assert found["of lion"] == ("a lion on a red background", "a lion in noto style")
    assert found["base 0"][::2] == tuple(f"a {o} on a red background" for o in ("bus", "banana", "horse"))
    assert found["base 0"][1::2] == tuple(f"a {o} in noto style" for o in ("bus", "banana", "horse"))
    assert not any("bus" in p for p in groups("taxi", "world", base="objects")["base 0"])  # a vehicle too
    assert not any("banana" in p for p in groups(["lion", "banana"], "world", base="objects")["base 0"])
    most = ["lion", "bus", "banana", "horse", "camera", "castle", "rose", "key", "star"]
    stand_in = groups(most, "world", prompts=1, base="objects")
    assert all(len(stand_in[f"base {i}"]) == 3 for i in range(sum(k.startswith("base") for k in stand_in)))
    assert not {f"a {name} on a red background" for name in most} & {t for k, v in stand_in.items()
                                                                       if k.startswith("base") for t in v}  # fmt: skip
    with pytest.raises(BadRequest, match="'base' of FIA"):
        groups([o.name for o in objects() if o.picked], "world", prompts=1, base="objects")
    style = groups("noto style", "world", prompts=2)
    assert style["of noto style"] == ("a bus in noto style", "a banana in noto style")
    assert style["base 0"] == ("a bus", "a banana")
    assert groups("french fries", "world", prompts=1)["of french fries"] == ("french fries on a red background",)


def test_a_model_that_knows_sentences_without_an_object_takes_them_as_base() -> None:
    found = groups("lion", "world", "micro", prompts=2, base="auto")
    assert found["base 0"] == ("a red background", "a picture in noto style")
    assert groups("lion", "world", "micro", prompts=2, base="objects")["base 0"][0] == "a bus on a red background"


def test_synonyms_are_drawn_too_and_a_neutral_word_can_be_the_base() -> None:
    found = groups([efface.Concept("dog", synonyms=("puppy",))], "efface", prompts=2, base="neutral")
    assert found["of dog"] == (
        "a dog in a garden",
        "a dog near the kitchen",
        "a puppy in a garden",
        "a puppy near the kitchen",
    )
    assert found["base 0"] == ("a thing in a garden", "a thing near the kitchen")


def test_every_kind_has_sentences() -> None:
    for kind, first in (("person", "a king in a garden"), ("scene", "a dog at a king")):
        assert groups(f"{kind}:a king", "efface")["of a king"][0] == first


def test_presets_by_kind_hold_the_published_settings() -> None:
    card = efface.load("mini").card

    def settled(preset: str, *concepts: str) -> FIA:
        return resolve(choose("fia", {}), Request.build(concepts, preset=preset).settle({}), card)

    objects, styles = settled("paper", "dog"), settled("paper", "x style")
    selected = objects.selection
    assert (objects.score.r1, selected.r2, selected.alpha, selected.r2_hard) == (0.05, 0.007, 0.6, 0.03)
    selected = styles.selection
    assert (selected.r2, selected.alpha, selected.hard) == (0.02, 0.8, "Van Gogh; Vincent van Gogh")
    assert (objects.score.kind, objects.score.scale) == ("cosine", "raw")
    assert (objects.selection.counting, objects.sentences.prompts) == ("exact", 5)
    world = [settled("world", *c) for c in (["dog"], ["x style"], ["dog", "x style"])]
    bases = [(w.sentences.base, w.selection.alpha) for w in world]
    assert bases == [("objects", 0.6), ("plain", 0.8), ("objects", 0.6)]
    assert {(w.drawing.saliency_steps, w.drawing.inference_steps) for w in world} == {(4, 20)}
    code = settled("code", "dog")
    assert (code.score.kind, code.score.row_normalise, code.score.scale) == ("norm", True, "max")
    assert (code.selection.counting, code.sentences.prompts) == ("code", 30)
    assert settled("code", "dog", "x style").selection.r2 == 0.01
    assert {p.partition("/")[0] for p in PRESETS} == {"paper", "code", "efface", "world"}


# --- a user's own pairs ----------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        file = tmp_path / "pairs.csv"
        file.write_text(text)
        return str(file)

    return write


def test_sensitive_concepts_take_complete_pairs_of_the_users_own_and_nothing_else(
    pairs: Callable[[str], str], tiny: Model
) -> None:
    """A bomb stands in: nothing of the kind is shipped."""
    for preset in ("paper", "code", "efface", "world"):
        with pytest.raises(BadRequest, match="pairs"):
            plan(tiny, "sensitive:bomb", method="fia", preset=preset)
    file = pairs('concept,base\na bomb on a table,a ball on a table\n"a bomb, large",a ball\n')
    found = groups("sensitive:bomb", "efface", tiny, pairs=file)
    assert found == {"base 0": ("a ball on a table", "a ball"), "of bomb": ("a bomb on a table", "a bomb, large")}
    assert fia(tiny, "sensitive:bomb", pairs=file).sites
    both = groups(["sensitive:bomb", "dog"], "efface", tiny, pairs=file)
    assert both["of dog"][0] == "a dog in a garden"


def test_pairs_can_be_named_for_any_concept(pairs: Callable[[str], str], tiny: Model) -> None:
    file = pairs("name,concept,base\nDog,a dog runs,a field\n")
    assert groups(["dog", "cat"], "efface", tiny, pairs=file)["of dog"] == ("a dog runs",)
    with pytest.raises(BadRequest, match="pairs"):
        plan(tiny, "sensitive:bomb", method="fia", preset="efface", pairs=file)


@pytest.mark.parametrize(
    ("text", "named"),
    [("", "no pair"), ("concept,base\n", "no pair"), ("concept,base\na bomb,\n", "line 2"), ("a,b\nx,y\n", "line 2"),
     ("concept,base\na {x},b\n", "template")],
)  # fmt: skip
def test_a_damaged_file_of_pairs_is_refused(text: str, named: str, pairs: Callable[[str], str]) -> None:
    """2.9-23."""
    with pytest.raises(WrongFile, match=named):
        plan("mini", "sensitive:bomb", method="fia", pairs=pairs(text))


def test_a_missing_file_of_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongFile, match="no file"):
        plan("mini", "sensitive:bomb", method="fia", pairs=str(tmp_path / "none.csv"))


# --- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [({"r1": 0.0}, BadRequest, "'r1'"), ({"r1": 1.5}, BadRequest, "'r1'"), ({"r2": 0.0}, BadRequest, "'r2'"),
     ({"r2": 1.01}, BadRequest, "'r2'"), ({"r2": float("nan")}, BadRequest, "'r2'"),
     ({"alpha": 1.5}, BadRequest, "'alpha'"),
     ({"alpha": -0.1}, BadRequest, "'alpha'"), ({"r2_hard": 2.0}, BadRequest, "'r2_hard'"),
     ({"saliency_steps": 51}, BadRequest, "'saliency_steps'.*at most 50"),
     ({"saliency_steps": 0}, BadRequest, "'saliency_steps'"),
     ({"prompts": 0}, BadRequest, "'prompts'"), ({"prompts": 31}, BadRequest, "'prompts'.*at most 30"),
     ({"sites": "ff.nothing"}, UnknownName, "ff.nothing"), ({"score": "other"}, BadRequest, "'score'"),
     ({"guidance": 0.0}, BadRequest, "'guidance'")],
)  # fmt: skip
def test_bad_settings_are_named_before_anything_is_drawn(
    settings: dict[str, Any], error: type[EffaceError], named: str, tiny: Model, cache: Path
) -> None:
    """2.9-23."""
    with pytest.raises(error, match=named):
        efface.erase(tiny, "dog", method="fia", preset="efface", **settings)
    assert not tiny.network.opened
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("score", ["cosine", "norm"])
def test_nothing_is_selected_where_the_concept_draws_like_its_base(score: str, tiny_pipe: MakePipe) -> None:
    """2.9-7. A network that does not read the text."""
    pipe = tiny_pipe()
    for site in efface.load(pipe).card.select("cross.k", "cross.v"):
        pipe.unet.get_submodule(site.name).weight.data.zero_()
    with pytest.raises(NothingChanged, match="nothing is selected for 'dog'"):
        fia(pipe, score=score)


@pytest.mark.parametrize("settings", [{"score": "norm"}, {"keep_steps": True}, {}], ids=str)
def test_nan_in_the_evidence_is_refused(settings: dict[str, Any], tiny: Model, cache: Path) -> None:
    """2.9-23."""
    from safetensors.torch import load_file, save_file

    fia(tiny, **settings)
    for file in cache.rglob("*.safetensors"):
        state = load_file(file)
        for key in set(state) & {"mean", "level", "surplus"}:
            state[key] = torch.full_like(state[key], float("nan"))
        save_file(state, file)
    with pytest.raises(WrongFile, match="NaN"):
        fia(tiny, **settings)


def test_a_step_that_the_sampler_does_not_reach_is_refused(tiny: Model) -> None:
    """2.9-23."""
    from dataclasses import replace

    needs = plan(tiny, "dog", method="fia", preset="efface", **SMALL).needs
    beyond = replace(needs, statistics=(replace(needs.statistics[0], steps=(0, 4)),))
    with pytest.raises(BadRequest, match="step 4"):
        gather(tiny, beyond, Work())


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize(("score", "most"), [("cosine", 600), ("norm", 300)])
def test_memory_at_the_shapes_of_stable_diffusion(score: str, most: float) -> None:
    """2.9-24. Synthetic activations, one concept, ten steps, recording and solving; a process that did nothing else."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "fia_memory.py"), score], check=True, capture_output=True, text=True
    )
    assert float(ran.stdout) < most
