"""ScaPre: what the sheet asks of the method file. Numbers are ids of the sheet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface import prompts
from efface.erasure import plan
from efface.errors import BadRequest, EffaceWarning, UnknownName, WrongFile
from efface.evidence.gather import gather
from efface.methods._sentences import KeptSentences
from efface.methods._systems import stored
from efface.methods.scapre import PRESETS as VALUES
from efface.methods.scapre import LargeScale, Paper, RollBack, ScaPre, System
from efface.model import Model
from efface.model.text import Encoded
from efface.numerics.spectral import Gate, Shared, penalised
from efface.patch import Dense, LowRank, Operator, Patch
from efface.registry import flat
from efface.work import Work
from tiny_families import make_pipe

PRESETS = ("code", "roll-back", "paper", "efface", "world")


@pytest.fixture(scope="module")
def model() -> Model:
    return efface.load(make_pipe())


def erase(model: Model, *concepts: str, keep: tuple[str, ...] = ("a house",), **settings: Any) -> Patch:
    settings = {"preset": "code"} | settings
    return efface.erase(model, concepts or ("dog", "cat"), keep, "scapre", **settings)


def deltas(model: Model, patch: Patch) -> dict[str, torch.Tensor]:
    return {s: patch.weight(s, model.weight(s).double()) - model.weight(s).double() for s in patch.sites}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[s] - b[s]).norm() / b[s].norm()) for s in a)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_erases_nothing_raises_and_names_the_field(scale: float, preset: str, model: Model) -> None:
    """1.11-6."""
    with pytest.raises(BadRequest, match="erase_scale"):
        erase(model, erase_scale=scale, preset=preset)


@pytest.mark.parametrize("lam", [0.0, -0.5])
def test_a_ridge_that_is_not_positive_raises_and_names_the_field(lam: float, model: Model) -> None:
    with pytest.raises(BadRequest, match="lam"):
        erase(model, lam=lam)


@pytest.mark.parametrize("preset", PRESETS)
def test_order_of_concepts_does_not_matter_because_draws_follow_their_names(preset: str, model: Model) -> None:
    """1.11-23; deltas are stored in float32."""
    concepts = ("dog", "a red house", "noto style")
    one = deltas(model, erase(model, *concepts, keep=("cat",), preset=preset))
    two = deltas(model, erase(model, *concepts[::-1], keep=("cat",), preset=preset))
    assert distance(one, two) <= 1e-6


def test_another_seed_draws_other_masks_in_the_code_preset_and_none_in_ours(model: Model) -> None:
    code = [deltas(model, erase(model, preset="code", seed=s)) for s in (0, 1)]
    ours = [deltas(model, erase(model, preset="efface", seed=s)) for s in (0, 1)]
    assert distance(*code) > 1e-6
    assert distance(*ours) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_a_site_is_edited_alike_whatever_the_other_sites_hold(preset: str) -> None:
    """1.11-24."""
    pipe = make_pipe()
    before = erase(efface.load(pipe), preset=preset)
    changed = before.sites[0]
    pipe.unet.get_submodule(changed).weight.data.mul_(1.5).add_(0.01)
    after = erase(efface.load(pipe), preset=preset)
    for one, two in zip(before.edits, after.edits, strict=True):
        same = all(t.equal(two.tensors()[n]) for n, t in one.tensors().items())
        assert same == (one.sites != (changed,))


def test_only_keys_and_values_of_cross_attention_are_named(model: Model) -> None:
    """1.11-27."""
    assert erase(model).sites == tuple(s.name for s in model.card.select("cross.k", "cross.v"))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_recipe_says_what_is_left_of_the_concepts_and_how_far_the_empty_text_moved(
    preset: str, model: Model
) -> None:
    patch = erase(model, "dog", keep=("a house",), preset=preset)
    encoded = {e.text: e for e in model.encode(["", "dog"])}
    empty, dog = encoded[""].main.rows[1].double(), encoded["dog"].main.last.double()
    rows = dog if preset not in ("efface", "world") else torch.stack([dog, *_sentence_rows(model)]).T
    for site, delta in deltas(model, patch).items():
        numbers, weight = patch.recipe["numbers"]["sites"][site], model.weight(site).double()
        new = weight + delta
        wanted = {
            "empty_text_change": (delta @ empty).norm() / (weight @ empty).norm(),
            "relative_change": delta.norm() / weight.norm(),
            "concept_output": (new @ rows).norm() / (weight @ rows).norm(),
        }
        assert {k: numbers[k] for k in wanted} == pytest.approx({k: float(v) for k, v in wanted.items()}, rel=1e-4)
        assert 0 <= numbers["saturation"] <= 1
    assert patch.recipe["numbers"]["shared"]["condition"] > 1


def _sentence_rows(model: Model) -> list[torch.Tensor]:
    texts = [w.filled("dog") for w in prompts.wordings("sentences", "object")[1:]]
    return [e.main.last.double() for e in model.encode(texts)]


def test_residual_condition_effective_rank_and_stored_rank_are_in_the_recipe(model: Model) -> None:
    """1.11-1."""
    for preset in PRESETS:
        numbers = erase(model, "dog", preset=preset).recipe["numbers"]
        assert 0 < numbers["shared"]["effective_rank"] <= 64
        for site in numbers["sites"].values():
            assert site["residual"] <= 1e-9
            assert site["condition"] <= numbers["shared"]["condition"]
            assert 0 < site["effective_rank"] <= 64
            assert 0 < site["target_error"] < 2
            assert site["empty_padding_change"] > 0
    off = erase(model, "dog", preset="code", mask="off", mu=0.1)
    ranks = {e.site: e.up.shape[1] for e in off.edits if isinstance(e, LowRank)}
    assert ranks == {k: v["rank"] for k, v in off.recipe["numbers"]["sites"].items() if "rank" in v}


def test_our_preset_moves_the_empty_text_less_than_the_released_one(model: Model) -> None:
    def worst(preset: str) -> float:
        sites = erase(model, "dog", preset=preset).recipe["numbers"]["sites"].values()
        return max(s["empty_text_change"] for s in sites)

    assert worst("efface") < 0.5 * worst("code")


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("preset", ("code", "roll-back", "paper")),
        ("technique", ("replace", "tensor")),
        ("anchored", (True, False)),
        ("empty_scale", (0.0, 1.0)),
        ("mask", ("off", "code", "rowwise", "population")),
        ("negatives", ("empty", "keep", "guide")),
        ("draws", (5, 9)),
        ("redraw", (True, False)),
        ("samples", (20, 30)),
        ("bins", (20, 10)),
        ("decoupler", ("span", "rows", "off")),
        ("gate", ("code", "paper", "shared")),
        ("temperature", (1.0, 50.0)),
        ("exponent", (1.0, 2.0)),
        ("residual_scale", (0.0, 0.3, "erase_scale")),
        ("iterations", (1, 3)),
        ("bures", (0.0, 0.3)),
        ("truncate", (1e-4, 0.5)),
        ("floor", (0.1, 0.8, 1.0)),
        ("blend", (False, True)),
        ("normalise", ("zscore", "max", "unit")),
        ("rows", ("tail", "last", "content", "content-to-end")),
        ("target", ("mask", "interpolate", "full", "zero")),
        ("geometry", ("rows", "bures", "roll-back", "none")),
        ("concept_gram", (True, False)),
        ("spectral", (True, False)),
        ("keep_scale", (0.0, 1.0)),
        ("expand", ("none", "code", "sentence")),
        ("guide", ("", "a man")),
        ("mu", ("entropy", 0.1, 0.5)),
        ("anchor", ("guide", "nearest")),
        ("relative", (True, False)),
        ("balance", (True, False)),
        ("companions", (0, 1)),
    ],
)
def test_every_setting_does_something(setting: str, values: tuple[Any, ...], model: Model) -> None:
    base: dict[str, Any] = {
        "normalise": {"mask": "population", "power": 1.0, "sigma": 3.0},
        "balance": {"preset": "efface"},
        "companions": {"preset": "efface"},
        "preset": {"spectral": True, "mu": 0.3},
        "anchored": {"preset": "paper"},
        "empty_scale": {"preset": "efface"},
        "keep_scale": {"preset": "efface"},
        "anchor": {"preset": "efface"},
        "relative": {"preset": "efface"},
        "redraw": {"sigma": 3.0},
        "draws": {"sigma": 3.0},
        "mask": {"sigma": 3.0},
        "negatives": {"mask": "population", "sigma": 3.0, "normalise": "unit", "power": 1.0},
        "gate": {"spectral": True, "mu": 0.3},
        "temperature": {"spectral": True, "mu": 3.0},
        "exponent": {"spectral": True, "mu": 0.3},
        "residual_scale": {"preset": "roll-back-similar", "geometry": "none"},
        "bures": {"geometry": "bures"},
        "truncate": {"preset": "paper"},
        "geometry": {"bures": 0.3},
        "floor": {"preset": "roll-back"},
    }.get(setting, {})
    concepts = {
        "balance": ("dog", "noto style"), "companions": ("dog", "noto style"), "negatives": ("dog=wolf", "a red cat"),
        "preset": ("dog", "cat", "fire engine"),
    }.get(setting, ())  # fmt: skip
    found = [deltas(model, erase(model, *concepts, **{**base, setting: v})) for v in values]
    for i, one in enumerate(found):
        for two in found[i + 1 :]:
            assert distance(one, two) > 1e-5  # float32 storage is 1e-7


def test_kept_texts_hold_their_outputs_better_with_a_weight_of_their_own(model: Model) -> None:
    kept = model.encode(["a red house"])[0].main
    rows = kept.rows[kept.spans.content[0] : kept.spans.end[1]].double().T

    def moved(scale: float) -> float:
        found = deltas(model, erase(model, "dog", keep=("a red house",), preset="efface", keep_scale=scale))
        return sum(float((d @ rows).norm()) for d in found.values())

    assert moved(30.0) < 0.5 * moved(0.01)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_low_rank_storage_equals_the_dense_change(rank: int) -> None:
    g = torch.Generator().manual_seed(rank)
    delta = torch.randn(64, rank, generator=g).double() @ torch.randn(rank, 48, generator=g).double()
    edit = stored("a", delta)
    assert isinstance(edit, LowRank)
    assert edit.up.shape[1] == rank
    assert float((edit.delta("a", delta) - delta).norm() / delta.norm()) <= 1e-5
    assert sum(t.numel() for t in edit.tensors().values()) < delta.numel()


def test_a_change_of_full_rank_is_stored_dense_in_float32() -> None:
    delta = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).double()
    edit = stored("a", delta)
    assert isinstance(edit, Dense)
    assert edit.change.dtype == torch.float32
    assert edit.change.equal(delta.float())


def test_sentences_stand_around_names_synonyms_anchors_and_kept_texts(model: Model) -> None:
    texts = plan(model, ["dog=wolf", "noto style"], preset="efface", companions=0).needs.texts
    assert {"", "dog", "a dog", "wolf", "a wolf", "noto style", "in noto style", "a picture"} <= set(texts)
    assert "in noto style style" not in texts
    assert len(texts) == len(set(texts))
    kept = plan(model, ["noto style"], ["house"], preset="efface").needs.texts
    assert {"house", "a house", "a house in noto style"} <= set(kept)
    assert "in noto style" not in kept  # alone a style would take along what stays
    released = plan(model, ["dog=wolf", "noto style"], ["house"], preset="code", expand="code").needs.texts
    forms = {kind: prompts.wordings("released", kind) for kind in ("style", "object")}
    assert set(released) == {
        "", "dog", "wolf", "noto style", *(w.filled("noto") for w in forms["style"]),
        *(w.filled(name) for w in forms["object"] for name in ("dog", "wolf")),
    }  # fmt: skip
    bare = {
        n: plan(model, ["dog=wolf"], ["a house"], preset="code", negatives=n).needs.texts for n in ("empty", "keep")
    }
    assert set(bare["empty"]) == {"", "dog", "wolf"}  # kept texts have no part in the released equation
    assert set(bare["keep"]) == {"", "dog", "wolf", "a house"}


def test_a_style_goes_to_the_bare_name_of_its_anchor_in_every_sentence(model: Model) -> None:
    def texts(*keep: str, **settings: Any) -> set[str]:
        return set(plan(model, ["noto style=flat style"], keep, **settings).needs.texts)

    taken_away = texts("cat", preset="efface")
    assert {"a cat in noto style", "a cat in flat style"} <= taken_away
    alone = texts(preset="efface")
    assert {"noto style", "flat style", "in flat style", "a picture in flat style"} <= alone
    released = texts(preset="code", expand="code")
    assert {"noto style", "flat style", "painting by noto", "painting by flat"} <= released
    assert not [t for t in taken_away | alone | released if "style style" in t or t.endswith("by flat style")]


def test_with_the_released_templates_an_object_still_goes_to_the_closest_kept_text(model: Model) -> None:
    patch = erase(model, "dog", keep=("wolf", "a house"), preset="efface", expand="code")
    anchors = [
        erase(model, f"dog={k}", keep=("wolf", "a house"), preset="efface", expand="code") for k in ("wolf", "a house")
    ]
    assert patch.content_hash in {a.content_hash for a in anchors}


def test_a_person_is_never_sent_to_another_kept_name(model: Model) -> None:
    kept = ("noto", "a house")
    for expand in ("code", "sentence"):
        patch = erase(model, "person:flat", keep=kept, preset="efface", expand=expand)
        sent = [erase(model, f"person:flat={k}", keep=kept, preset="efface", expand=expand) for k in kept]
        assert patch.content_hash not in {a.content_hash for a in sent}


def test_which_kept_things_accompany_a_style_does_not_hang_on_any_order(model: Model) -> None:
    """1.11-23 with more kept things than companions, some of them named by the concepts."""
    things, more = [f"thing {i}" for i in range(30)], [f"object {i}" for i in range(15)]
    styles = [efface.Concept(f"{s} style", keep=tuple(more[i::2])) for i, s in enumerate(("ink", "oil"))]
    one, two = (
        plan(model, styles[::step], things[::step], preset="efface", companions=32).needs.texts for step in (1, -1)
    )
    assert len([t for t in one if t.endswith(" in ink style")]) == 32
    assert set(one) == set(two)
    kept = things[:7]  # five draws a channel, each from another kept text
    draws: dict[str, Any] = {"preset": "code", "negatives": "keep", "sigma": 3.0}
    assert distance(*(deltas(model, erase(model, "dog", keep=tuple(kept[::s]), **draws)) for s in (1, -1))) <= 1e-6


def test_a_setting_that_the_form_of_the_preset_does_not_have_is_one_sentence(model: Model) -> None:
    foreign: tuple[tuple[str, dict[str, Any]], ...] = (
        ("efface", {"power": 2}), ("efface", {"mask": "code"}), ("roll-back", {"decoupler": "span"}),
        ("code", {"anchored": False}), ("paper", {"keep_scale": 1.0}),
    )  # fmt: skip
    misspelt: dict[str, Any] = {"mask.powr": 2}
    for preset, setting in foreign:
        said = rf"unknown setting of scapre \(preset {preset}\) '{next(iter(setting))}'"
        with pytest.raises(UnknownName, match=said):
            erase(model, preset=preset, **setting)
    with pytest.raises(UnknownName, match=r"setting of scapre 'mask\.powr'; did you mean 'mask\.power'"):
        efface.erase(model, "dog", **misspelt)


# --- the forms -------------------------------------------------------------------------------------------------------


def context(model: Model, *concepts: str, keep: tuple[str, ...] = (), **settings: Any) -> System:
    made = plan(model, concepts, keep, **settings)
    (door,) = model.card.doors
    return System(made.method, gather(model, made.needs, Work()), made.request, door, Work())


def weights(model: Model) -> dict[str, Tensor]:
    return {s.name: model.weight(s.name).double() for s in model.card.select("cross.k", "cross.v")}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("decoupler", ["rows", "span"])
def test_the_papers_form_solves_its_anchored_sylvester_equation(decoupler: str, model: Model) -> None:
    """1.11-20."""
    c = context(model, "dog", "cat=a man", "a king", preset="paper", sigma=3.0, bures=0.0, decoupler=decoupler)
    gate, eye = Gate(kind="paper"), torch.eye(64, dtype=torch.float64)
    X, which = c.rows.pairs.context, list(c.rows.pairs.which)
    U, penalty = penalised(c.rows.concepts, gate)
    A = 0.5 * eye + c.rows.pairs.stacked().T @ c.rows.pairs.stacked() + (U * penalty) @ U.T
    V = torch.einsum("ktd,kte->de", c.rows.pairs.guide[which], X)  # sum of X*_k^T X_k
    for name, W0 in weights(model).items():
        W, alpha = c.site(W0, name).weight, c.channels.masks(W0, name, "target").values.amax(1)
        assert float(alpha.max()) == 1
        assert float(alpha.min()) < 0.9
        left = alpha[:, None] * (W if decoupler == "rows" else W @ c.shared.span @ c.shared.span.T)
        assert relative(left + W @ A, 0.5 * W0 + W0 @ V) <= 1e-9
        assert relative(2 * left + W @ A, 0.5 * W0 + W0 @ V) > 1e-5


def test_without_decoupler_the_papers_form_is_the_ridge(model: Model) -> None:
    """1.11-20: alpha = 0."""
    ridge: dict[str, Any] = {"decoupler": "off", "spectral": False, "bures": 0.0}
    assert distance(
        deltas(model, efface.erase(model, "dog", (), "scapre", "paper", **ridge)),
        deltas(model, efface.erase(model, "dog", (), "uce", "paper", preserve_scale=1e-12)),
    ) <= 1e-5  # fmt: skip


def test_the_printed_equation_with_zero_targets_is_refused(model: Model) -> None:
    """1.11-20."""
    with pytest.raises(BadRequest, match="'anchored'"):
        erase(model, preset="paper", anchored=False, target="zero")
    assert erase(model, preset="paper", anchored=False).edits
    assert erase(model, preset="paper", target="zero").edits


def test_the_papers_target_is_unmasked_and_its_full_step_goes_part_of_the_way_back(model: Model) -> None:
    """1.11-12, 1.11-18."""
    far, near = (deltas(model, erase(model, preset="paper", bures=t)) for t in (0.0, 0.3))
    assert sum(float(d.norm()) for d in near.values()) < sum(float(d.norm()) for d in far.values())
    saturated = erase(model, preset="paper", sigma=1e-9)
    assert {s["saturation"] for s in saturated.recipe["numbers"]["sites"].values()} == {1.0}
    loud = erase(model, preset="paper", sigma=3.0)
    assert max(s["saturation"] for s in loud.recipe["numbers"]["sites"].values()) < 0.9


def test_the_roll_back_gives_a_share_of_every_row_back(model: Model) -> None:
    """1.11-14."""
    whole, part = (deltas(model, erase(model, preset="roll-back", floor=f)) for f in (1.0, 0.5))
    for site, delta in part.items():
        share = (delta * whole[site]).sum(1) / whole[site].square().sum(1)  # (o,)
        assert relative(delta, share[:, None] * whole[site]) <= 1e-5  # float32
        assert float(share.min()) >= 0.5 - 1e-5
        assert float(share.max()) <= 1 + 1e-5
        assert float(share.max()) < 0.99  # entropies are not one


@pytest.mark.parametrize("preset", ["code", "code-similar", "roll-back", "roll-back-similar", "paper"])
def test_a_huge_ridge_returns_the_original_in_every_form(preset: str, model: Model) -> None:
    """1.11-5."""
    for lam, stays in ((1e10, True), (0.5, False)):
        # the paper's full step leaves weak directions out, those of the original too
        c = context(model, "dog", "cat", preset=preset, lam=lam, truncate=1e-12)
        assert all((relative(c.site(W0, name).weight, W0) <= 1e-6) == stays for name, W0 in weights(model).items())


@pytest.mark.parametrize("preset", ["roll-back", "code", "paper"])
def test_constant_masks_give_one_operator_for_all_sites(
    preset: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.11-24."""
    settings = {"preset": preset, "mask": "off", "mu": 0.0, "geometry": "roll-back", "floor": 1.0, "spectral": True}
    one = erase(model, **settings)
    assert [type(e) for e in one.edits] == [Operator]
    c = context(model, "dog", "cat", keep=("a house",), **settings)
    P = c.site(torch.eye(64, dtype=torch.float64), "").weight
    for name, W0 in weights(model).items():
        assert relative(c.site(W0, name).weight, W0 @ P) <= 1e-10
    monkeypatch.setattr(ScaPre, "linear", False)
    many = erase(model, **settings)
    assert len(many.edits) == len(many.sites)
    assert distance(deltas(model, one), deltas(model, many)) <= 1e-5
    masked = erase(model, **{**settings, "mask": "code"})
    assert len(masked.edits) == len(masked.sites)


@pytest.mark.parametrize("preset", PRESETS)
def test_keys_or_values_alone_are_edited_as_among_both(preset: str, model: Model) -> None:
    """1.11-24."""
    both = erase(model, preset=preset)
    for projections, role in (("keys", "cross.k"), ("values", "cross.v")):
        part = erase(model, preset=preset, projections=projections)
        assert part.sites == tuple(s.name for s in model.card.select(role))
        for site in part.sites:
            weight = model.weight(site).double()
            assert torch.equal(part.weight(site, weight), both.weight(site, weight))


def test_every_preset_by_task_holds_the_published_flags(model: Model) -> None:
    def resolved(preset: str, *concepts: str, **more: Any) -> dict[str, Any]:
        return flat(plan(model, concepts or ("dog",), preset=preset, **more).method)

    def differ(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in one.items() if v != two[k]}

    fifty, ten = resolved("code"), resolved("roll-back")
    assert [fifty[k] for k in ("erase_scale", "mask.power", "geometry.iterations", "spectral.on")] == [3, 5, 1, False]
    flags = ("erase_scale", "mask.power", "geometry.floor", "spectral.on", "texts.guide")
    assert [ten[k] for k in flags] == [1, 2, 0.8, False, ""]
    changed = {"erase_scale": 2, "mask.power": 8, "spectral.on": True, "entropy.samples": 30}
    assert differ(resolved("code-similar"), fifty) == changed
    assert differ(resolved("roll-back-similar"), ten) == {"geometry.floor": 1, "spectral.on": True}
    assert differ(resolved("roll-back", "noto style"), ten) == {"geometry.floor": 0.5, "texts.guide": "art"}
    assert resolved("code", "noto style") == fifty
    forms = {"code": LargeScale, "roll-back": RollBack, "paper": Paper, "efface": KeptSentences, "world": KeptSentences}
    assert {p: type(v) for p, v in VALUES.items() if p in forms} == forms


# --- saying and refusing ---------------------------------------------------------------------------------------------


def test_saturated_masks_are_counted_and_warned_of(model: Model) -> None:
    """1.11-12."""
    with pytest.warns(EffaceWarning, match="100.0% of the Informax masks are saturated"):
        patch = erase(model, sigma=1e-9)
    sites = patch.recipe["numbers"]["sites"].values()
    assert {(s["saturation"], s["information_values"]) for s in sites} <= {(1.0, 1), (1.0, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "scapre with preset code .* does not read kept texts", EffaceWarning)
        loud = erase(model, sigma=3.0)
        erase(model, mask="off")
    assert {s["information_values"] for s in loud.recipe["numbers"]["sites"].values()} <= set(range(2, 7))


def test_an_explicit_request_takes_complete_prompts_from_the_users_file_and_nothing_else(
    model: Model, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red house\n\na dog on a boat\n")
    for preset in PRESETS:
        made = plan(model, ["sensitive:dog"], preset=preset, prompt_file=str(file))
        assert set(made.needs.texts) == {"", "a red house", "a dog on a boat"}
    sensitive = plan(model, ["sensitive:dog"], preset="code", prompt_file=str(file)).method
    assert (sensitive.mask.information, sensitive.geometry.iterations) == ("off", 2)
    assert plan(model, ["dog"], preset="code").method.mask.information == "code"
    patch = efface.erase(model, ["sensitive:dog"], ["cat"], preset="code", prompt_file=str(file))
    assert patch.recipe["numbers"]["shared"]["concepts"] == 2
    cases: tuple[tuple[list[str], dict[str, Any], str], ...] = (
        (["sensitive:dog"], {"preset": "code"}, "prompt_file=FILE"),
        (["sensitive:dog", "sensitive:cat"], {"prompt_file": str(file)}, "one concept a request"),
        (["dog"], {"prompt_file": str(file)}, r"'prompt_file'.*sensitive"),
    )
    for concepts, settings, said in cases:
        with pytest.raises(BadRequest, match=said):
            plan(model, concepts, **settings)
    for concepts, keep in ((["sensitive:dog"], ["cat", "noto style"]), (["sensitive:dog", "noto style"], ["cat"])):
        with pytest.raises(BadRequest, match="product of two lists"):
            plan(model, concepts, keep, preset="efface", expand="sentence", prompt_file=str(file))
    file.write_text("a {} on a boat\n")
    with pytest.raises(BadRequest, match="place to fill in"):
        plan(model, ["sensitive:dog"], preset="code", prompt_file=str(file))
    file.write_text("# nothing\n")
    with pytest.raises(BadRequest, match="holds no prompt"):
        plan(model, ["sensitive:dog"], preset="code", prompt_file=str(file))
    with pytest.raises(WrongFile, match="no file"):
        plan(model, ["sensitive:dog"], preset="code", prompt_file=str(tmp_path / "none.txt"))


def test_a_guide_that_is_its_concept_is_refused_by_name(model: Model) -> None:
    """1.11-21."""
    with pytest.raises(BadRequest, match="'guide' is 'dog'"):
        erase(model, "dog", guide="dog")
    again = efface.Concept("dog", anchor="wolf", synonyms=("wolf",))
    for technique in ("replace", "tensor"):
        with pytest.raises(BadRequest, match="'wolf' means the same as 'wolf'"):
            efface.erase(model, [again], method="scapre", preset="code", technique=technique)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"floor": 1.5}, "floor"),
        ({"floor": -0.1}, "floor"),
        ({"bures": 2.0}, "bures"),
        ({"truncate": 1.5}, "truncate"),
        ({"bins": 1}, "bins"),
        ({"draws": 0}, "draws"),
        ({"sigma": float("nan")}, "sigma"),
        ({"erase_scale": float("inf")}, "erase_scale"),
        ({"geometry": "rollback"}, "geometry"),
        ({"decoupler": "rows", "spectral": True}, "decoupler"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, Any], said: str, model: Model) -> None:
    with pytest.raises(BadRequest, match=said):
        erase(model, **settings)


def test_nan_from_the_text_encoder_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Model.encode

    def broken(self: Model, texts: list[str], whole: bool = True) -> list[Encoded]:
        scale = {"dog": float("nan")}
        return [e.times(scale.get(e.text, 1.0)) for e in encode(self, texts, whole)]

    monkeypatch.setattr(Model, "encode", broken)
    for preset in PRESETS:
        with pytest.raises(WrongFile, match=r"NaN.*'dog'"):
            erase(model, "dog", "cat", preset=preset)


@pytest.mark.parametrize("residual", [1e-3, float("nan")])
def test_an_equation_that_rounding_spoils_is_refused(
    residual: float, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shared, "residual", lambda *_: residual)
    with pytest.raises(BadRequest, match="raise lam"):
        erase(model)


def test_kept_styles_are_kept_on_kept_things_and_weigh_as_one_sentence(model: Model) -> None:
    """Ours: things and styles of the keep list are combined; neither is the anchor or companion of the other kind."""
    made = plan(model, ["dog", "ink style"], ["wolf", "house", "oil style", "flat style"], preset="efface")
    assert isinstance(made.method, KeptSentences)
    kept = made.method.kept_texts(made.request)
    one = kept["a wolf"]
    assert {t: w for t, w in kept.items() if t.startswith("a wolf in")} == {
        "a wolf in oil style": one / 2, "a wolf in flat style": one / 2,
    }  # fmt: skip
    assert kept["a picture in oil style"] == kept["a picture of a house"] == one
    assert not {"a oil style", "a picture of a oil style", "a wolf in ink style"} & set(kept)
    assert "a wolf in ink style" in made.needs.texts
    assert not [t for t in made.needs.texts if "style in" in t]


def test_an_object_never_goes_to_a_kept_style(model: Model) -> None:
    only = erase(model, "dog", keep=("oil style",), preset="efface")
    blank = erase(model, "dog", keep=("oil style",), preset="efface", anchor="guide")
    assert only.content_hash == blank.content_hash
