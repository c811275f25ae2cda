"""UCE: what its paper and its two scripts say, end to end on the reference pipeline. Numbers are ids of the sheet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import efface
from efface.erasure import plan, solve
from efface.errors import BadRequest, NothingChanged, WrongFile
from efface.evidence.gather import gather
from efface.methods.uce import UCE
from efface.model import Model
from efface.model.text import Encoded
from efface.patch import Dense, Operator, Patch
from efface.registry import choose, resolve
from efface.request import Concept, Request
from efface.work import Work
from tiny_families import REFERENCE, make_pipe

CASES = Path(REFERENCE).parent


@pytest.fixture(scope="module")
def reference() -> Model:
    return efface.load(REFERENCE, "cpu", "float32")


def erase(model: Any, *concepts: str | Concept, keep: tuple[str, ...] = (), **settings: Any) -> Patch:
    settings = {"preset": "code"} | settings
    return efface.erase(model, concepts, keep, "uce", **settings)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def asked(case: str) -> tuple[list[str], tuple[str, ...]]:
    """Concepts with their guides and the kept texts of a case."""
    parameters = json.loads((CASES / f"{case}.json").read_text())["parameters"]
    guides = zip(parameters["edit_concepts"], parameters["guide_concepts"], strict=True)
    return [f"{c}={g}" for c, g in guides], tuple(parameters["preserve_concepts"])


@pytest.mark.parametrize("case", ["uce/d2_three_to_blank_preserve5", "uce-2023/d1_dog_to_blank"])
def test_weights_are_those_of_the_authors_scripts_with_the_float32_encoder(case: str, reference: Model) -> None:
    """3.P-1."""
    facts = json.loads((CASES / f"{case}.json").read_text())
    concepts, keep, preset = (*asked(case), "code") if case.startswith("uce/") else (["dog="], (), "paper")
    patch = erase(reference, *concepts, keep=keep, preset=preset)
    wanted = {k.removeprefix("out/weight/"): v for k, v in load_file(CASES / f"{case}.safetensors").items()
              if k.startswith("out/weight/")}  # fmt: skip
    bound = 1e-4 if preset == "code" else facts["tolerance"]["end to end with the float32 text encoder"]["rtol"]
    assert {f"{s}.weight" for s in patch.sites} == set(wanted)
    for site in patch.sites:
        weight = reference.weight(site).double()
        assert relative(patch.weight(site, weight), wanted[f"{site}.weight"]) <= bound, site
        assert relative(weight, wanted[f"{site}.weight"]) > 0.01


def test_one_wrong_setting_misses_the_authors_weights(reference: Model) -> None:
    """3.P-1: the bound above can be missed."""
    case = "uce/d2_three_to_blank_preserve5"
    wanted, (concepts, keep) = load_file(CASES / f"{case}.safetensors"), asked(case)
    for wrong in ({"lam": 1.0}, {"erase_scale": 1.5}, {"keep": ()}, {"rows": "tail"}):
        patch = erase(reference, *concepts, **{"keep": keep, **wrong})
        site = patch.sites[0]
        found = patch.weight(site, reference.weight(site).double())
        assert relative(found, wanted[f"out/weight/{site}.weight"]) > 1e-4, wrong


# One word in two spellings of Unicode: two texts, the same tokens.
CAFE, CAFE_TOO = "caf\u00e9", "cafe\u0301"


def test_two_spellings_of_a_word_are_the_same_tokens(reference: Model) -> None:
    """What the two tests below rely on."""
    assert CAFE != CAFE_TOO
    one, two, other = (e.main.rows for e in reference.encode([CAFE, CAFE_TOO, "cafe"]))
    assert one.equal(two)
    assert not one.equal(other)


@pytest.mark.parametrize("preset", ["code", "paper"])
def test_an_anchor_that_means_the_same_raises(preset: str, reference: Model) -> None:
    """3.P-4: guide = concept gives S = 0."""
    with pytest.raises(NothingChanged, match="anchor"):
        erase(reference, Concept(CAFE, anchor=CAFE_TOO), preset=preset)


@pytest.mark.parametrize("rows", ["last", "tail", "content-to-end"])
def test_doubling_the_scale_equals_listing_every_text_twice(rows: str, reference: Model) -> None:
    """3.P-9."""
    once = erase(reference, f"{CAFE}=cat", keep=("a house",), rows=rows, erase_scale=2.0)
    twice = erase(reference, f"{CAFE}=cat", f"{CAFE_TOO}=cat", keep=("a house",), rows=rows, erase_scale=1.0)
    other = erase(reference, f"{CAFE}=cat", keep=("a house",), rows=rows, erase_scale=1.0)
    for site in once.sites:
        weight = reference.weight(site).double()
        one, two, three = (p.weight(site, weight) - weight for p in (once, twice, other))
        assert relative(one, two) <= 1e-6  # factors are stored in float32
        assert relative(one, three) > 1e-4


def test_only_keys_and_values_of_cross_attention_change_and_values_only_leaves_the_keys() -> None:
    """3.P-11."""
    model = efface.load(make_pipe())
    both, values = (erase(model, "dog", values_only=v) for v in (False, True))
    roles = {s.name: s.role for s in model.card.sites}
    assert {roles[s] for s in both.sites} == {"cross.k", "cross.v"}
    assert both.sites == tuple(s.name for s in model.card.select("cross.k", "cross.v"))
    keys = [s.name for s in model.card.select("cross.k")]
    before = [model.weight(k).clone() for k in keys]
    with values.applied(model):
        assert values.sites == tuple(s.name for s in model.card.select("cross.v"))
        assert all(model.weight(k).equal(w) for k, w in zip(keys, before, strict=True))


@pytest.mark.parametrize("setting", ["erase_scale", "lam", "preserve_scale"])
def test_a_setting_out_of_range_raises_and_is_named(setting: str, reference: Model) -> None:
    for value in (-1.0, float("nan"), float("inf")):
        wrong: dict[str, Any] = {setting: value}
        with pytest.raises(BadRequest, match=setting):
            erase(reference, "dog", **wrong)


def test_one_operator_serves_all_sites_and_the_tensor_technique_has_one_change_a_site(reference: Model) -> None:
    replace, tensor = erase(reference, "dog"), erase(reference, "dog", technique="tensor")
    assert [type(e) for e in replace.edits] == [Operator]
    assert {type(e) for e in tensor.edits} == {Dense}
    assert len(tensor.edits) == len(replace.sites)


def test_a_concept_goes_to_its_anchor_and_kept_texts_stay_as_the_ridge_goes_to_zero(reference: Model) -> None:
    """3.P-3, with one row a text."""
    patch = erase(reference, "dog=cat", keep=("a red house",), lam=1e-9)
    last = {t.text: t.main.last.double() for t in reference.encode(["dog", "cat", "a red house"])}
    for site in patch.sites:
        weight = reference.weight(site).double()
        new = patch.weight(site, weight)
        assert relative(new @ last["dog"], weight @ last["cat"]) <= 1e-4
        assert relative(new @ last["a red house"], weight @ last["a red house"]) <= 1e-4


def test_synonyms_are_erased_with_the_name(reference: Model) -> None:
    patch = erase(reference, Concept("dog", anchor="cat", synonyms=("puppy",)), lam=1e-9)
    last = {t.text: t.main.last.double() for t in reference.encode(["puppy", "cat"])}
    weight = reference.weight(patch.sites[0]).double()
    assert relative(patch.weight(patch.sites[0], weight) @ last["puppy"], weight @ last["cat"]) <= 1e-4


def test_a_style_goes_to_art_in_the_released_script_and_everything_else_to_nothing(reference: Model) -> None:
    for concept, wanted in (("noto style", "noto style=art"), ("dog", "dog=")):
        assert (
            erase(reference, concept)
            .edits[0]
            .tensors()["left"]
            .equal(erase(reference, wanted).edits[0].tensors()["left"])
        )


@pytest.mark.parametrize(("kept", "scale"), [(0, 1.0), (1, 0.5), (3, 0.25), (30, 0.1)])
def test_the_weight_of_kept_texts_follows_the_2023_rule(kept: int, scale: float, reference: Model) -> None:
    request = Request.build(["dog"], [f"house {i}" for i in range(kept)], preset="paper")
    for asked, wanted in (({}, scale), ({"preserve_scale": 0.7}, 0.7), ({"preserve_scale": 0.0}, 0.0)):
        method = resolve(choose("uce", asked), request, reference.card)
        assert isinstance(method, UCE)
        assert method.preserve(request) == wanted


def test_the_recipe_states_condition_residual_and_rank(reference: Model) -> None:
    numbers = erase(reference, "dog", "cat=").recipe["numbers"]
    assert set(numbers) == {"condition", "residual", "rank", "constraints", "solver"}
    assert numbers["rank"] == numbers["constraints"] == 2
    assert numbers["condition"] > 1
    assert numbers["residual"] < 1e-9


def test_more_rows_than_directions_are_stored_as_one_operator_of_the_texts_width(reference: Model) -> None:
    """Six texts of 23 rows a concept: two factors of as many columns would be larger than the operator itself."""
    made = plan(reference, ["dog=cat", "fire engine="], ["a house"], "uce", "efface")
    patch, width = solve(made), reference.card.streams[0].width
    (edit,), numbers = patch.edits, patch.recipe["numbers"]
    assert isinstance(edit, Operator)
    assert edit.left.shape == edit.right.shape == (width, numbers["rank"])
    assert numbers["rank"] <= width < numbers["constraints"]
    (door,) = reference.card.doors
    found = made.method.constraints(gather(reference, made.needs, Work()), made.request, door)
    rows, guides, weights, _, erased = found
    assert int(erased.sum()) > 2 * width
    weighed = weights[:, None] * rows
    system = rows.T @ weighed + 0.1 * torch.eye(width, dtype=torch.float64)
    wanted = torch.linalg.solve(system, weighed.T @ (guides - rows)).T
    assert relative(edit.left.double() @ edit.right.double().T, wanted) <= 1e-5


def test_templates_of_a_style_take_its_bare_name_and_that_of_its_anchor(reference: Model) -> None:
    texts = plan(reference, ["noto style=flat style"], ["cat"], "uce", "efface").needs.texts
    assert {"noto style", "flat style", "painting by noto", "painting by flat", "style of noto"} <= set(texts)
    assert not [t for t in texts if t.endswith("style") and t.count(" ") > 1]
    assert "photo of fire engine" in plan(reference, ["fire engine"], [], "uce", "efface").needs.texts


def test_a_sensitive_concept_takes_complete_prompts_from_the_users_file_and_no_template(
    reference: Model, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red house\n\na dog on a boat\n")
    for preset in ("code", "paper", "efface", "world"):
        made = plan(reference, ["sensitive:hazard", "dog"], [], "uce", preset, expand=False, prompt_file=str(file))
        assert set(made.needs.texts) == {"", "a red house", "a dog on a boat", "dog"}
        with pytest.raises(BadRequest, match="prompt_file=FILE"):
            plan(reference, ["sensitive:hazard"], [], "uce", preset)
        with pytest.raises(BadRequest, match="'prompt_file' of UCE"):
            plan(reference, ["dog"], [], "uce", preset, prompt_file=str(file))
    alone = plan(reference, ["sensitive:hazard"], [], "uce", "efface", prompt_file=str(file))
    assert set(alone.needs.texts) == {"", "a red house", "a dog on a boat"}
    assert solve(alone).edits


def test_what_the_numbers_cannot_solve_is_refused_with_a_cure(
    reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadRequest, match=r"zero target.*another anchor"):
        erase(reference, Concept(CAFE, anchor=CAFE_TOO), technique="tensor")
    with monkeypatch.context() as patched:
        patched.setattr("efface.numerics.ridge.RESIDUAL_LIMIT", -1.0)
        with pytest.raises(BadRequest, match="raise lam"):
            erase(reference, "dog")
    encode = Model.encode

    def broken(self: Model, texts: list[str], whole: bool = True) -> list[Encoded]:
        scale = {"cat": float("nan")}
        return [e.times(scale.get(e.text, 1.0)) for e in encode(self, texts, whole)]

    monkeypatch.setattr(Model, "encode", broken)
    for concept, keep in (("cat", ()), ("dog=cat", ()), ("dog", ("cat",))):
        with pytest.raises(WrongFile, match=r"NaN.*'cat'"):
            erase(reference, concept, keep=keep)
