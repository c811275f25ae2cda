"""ScaPre: what the sheet asks of the method file. Numbers are ids of the sheet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import efface
from conftest import make_pipe
from efface.errors import BadRequest
from efface.methods.scapre import SENTENCES, ScaPre, _stored
from efface.model import Model
from efface.patch import Dense, LowRank, Patch
from efface.run import plan

PRESETS = ("code", "efface", "world")


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
    empty, dog = encoded[""].rows[1].double(), encoded["dog"].rows[encoded["dog"].count - 2].double()
    rows = dog if preset == "code" else torch.stack([dog, *_sentence_rows(model)]).T
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
    texts = [form.format("dog") for form, _ in SENTENCES[""][1:]]
    return [e.rows[e.count - 2].double() for e in model.encode(texts)]


def test_our_preset_moves_the_empty_text_less_than_the_released_one(model: Model) -> None:
    def worst(preset: str) -> float:
        sites = erase(model, "dog", preset=preset).recipe["numbers"]["sites"].values()
        return max(s["empty_text_change"] for s in sites)

    assert worst("efface") < 0.5 * worst("code")


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("mask", ("off", "code", "population")),
        ("normalise", ("zscore", "max", "unit")),
        ("rows", ("tail", "last", "content-to-end")),
        ("target", ("mask", "interpolate")),
        ("geometry", ("rows", "none")),
        ("concept_gram", (True, False)),
        ("decouple", (True, False)),
        ("spectral", (True, False)),
        ("keep_scale", (0.0, 1.0)),
        ("expand", ("none", "sentence")),
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
    }.get(setting, {})
    concepts = ("dog", "noto style") if setting in ("balance", "companions") else ()
    found = [deltas(model, erase(model, *concepts, **{**base, setting: v})) for v in values]
    for i, one in enumerate(found):
        for two in found[i + 1 :]:
            assert distance(one, two) > 1e-5  # float32 storage is 1e-7


def test_kept_texts_hold_their_outputs_better_with_a_weight_of_their_own(model: Model) -> None:
    kept = model.encode(["a red house"])[0]
    rows = kept.rows[1 : kept.count].double().T

    def moved(scale: float) -> float:
        found = deltas(model, erase(model, "dog", keep=("a red house",), preset="efface", keep_scale=scale))
        return sum(float((d @ rows).norm()) for d in found.values())

    assert moved(30.0) < 0.5 * moved(0.01)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_low_rank_storage_equals_the_dense_change(rank: int) -> None:
    g = torch.Generator().manual_seed(rank)
    delta = torch.randn(64, rank, generator=g).double() @ torch.randn(rank, 48, generator=g).double()
    edit = _stored("a", delta)
    assert isinstance(edit, LowRank)
    assert edit.up.shape[1] == rank
    assert float((edit.delta("a", delta) - delta).norm() / delta.norm()) <= 1e-5
    assert sum(t.numel() for t in edit.tensors().values()) < delta.numel()


def test_a_change_of_full_rank_is_stored_dense_in_float32() -> None:
    delta = torch.randn(64, 48, generator=torch.Generator().manual_seed(0)).double()
    edit = _stored("a", delta)
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
    bare = plan(model, ["dog=wolf"], ["a house"], preset="code").needs.texts
    assert set(bare) == {"", "dog", "wolf", "a house"}


def test_fields_are_none_until_a_preset_decides() -> None:
    assert all(getattr(ScaPre(), f) is None for f in ScaPre.__dataclass_fields__)
