"""The promises of every method (docs/adding-a-method.md). One row a method and preset, also for new ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from conftest import all_bits
from efface import registry
from efface.erasure import plan
from efface.errors import BadRequest, Cancelled, EffaceError, NothingChanged, UnknownName, WrongBase, WrongFile
from efface.model import Model
from efface.patch import Guard, Patch
from efface.request import Concept
from efface.work import Work
from tiny_families import MakePipe, make_pipe

CONCEPTS = ("dog", "noto style", "person:a king=a man")
KEEP = ("cat", "a red house")


@dataclass(frozen=True)
class Row:
    """One method with one preset."""

    method: str
    preset: str

    def __str__(self) -> str:
        return f"{self.method}-{self.preset}"

    def erase(self, model: Any, concepts: Any = CONCEPTS, keep: Any = KEEP, **more: Any) -> Patch:
        return efface.erase(model, concepts, keep, self.method, self.preset, **{**self.budget, **more})

    @property
    def budget(self) -> dict[str, Any]:
        """How much a method trains or draws (settings of these names) is cut, everything else is the preset's."""
        names = [path.rpartition(".")[2] for path in registry.flat(self.values)]
        cut = {name: 2 for name in names if name.startswith(("updates", "prompts", "saliency_steps"))}
        return cut | ({"latents.steps": 10} if self.method == "esd" else {})

    @property
    def values(self) -> Any:
        """The preset."""
        return registry.presets_of(registry.find("methods", self.method))[self.preset]


def _rows() -> list[Row]:
    found = []
    for name in registry.names("methods"):
        presets = registry.presets_of(registry.find("methods", name))
        found += [Row(name, preset) for preset in sorted({p.partition("/")[0] for p in presets})]
    return found


ROWS = _rows()
METHODS = registry.names("methods")
every_row = pytest.mark.parametrize("row", ROWS, ids=str)
GUARDS = ("negative-prompt",)  # they change no weight
every_weight_row = pytest.mark.parametrize("row", [r for r in ROWS if r.method not in GUARDS], ids=str)
every_method = pytest.mark.parametrize("method", METHODS)


def _slow_if(long: bool) -> Any:
    return pytest.mark.slow if long else ()


def _at_length(rows: list[Row]) -> Any:
    marked = [pytest.param(r, marks=_slow_if(bool(r.budget)), id=str(r)) for r in rows]
    return pytest.mark.parametrize("row", marked)


every_row_at_length = _at_length(ROWS)
"""Of laws that solve several times: rows that train or draw are slow; their own files hold the fast ones."""
every_weight_row_at_length = _at_length([r for r in ROWS if r.method not in GUARDS])


@cache
def _patch(row: Row) -> Patch:
    """The patch of a row for `make_pipe()`, solved once."""
    return row.erase(make_pipe())


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {k for k in before if before[k] != after[k]}


def test_the_table_holds_both_methods_with_all_their_presets() -> None:
    assert {str(r) for r in ROWS} >= {"uce-paper", "uce-code", "uce-efface", "uce-world"}
    assert {str(r) for r in ROWS} >= {"scapre-code", "scapre-efface", "scapre-world"}


# --- asking --------------------------------------------------------------------------------------------------------


@every_row
def test_ask_needs_no_weights(row: Row, tiny_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    made = plan(bare, CONCEPTS, KEEP, row.method, row.preset)
    assert made.needs.texts or made.needs.prompts or row.method in GUARDS
    with pytest.raises(WrongFile):
        made.model.part("unet")


@every_row
def test_ask_is_pure(row: Row, tiny: Model) -> None:
    first = plan(tiny, CONCEPTS, KEEP, row.method, row.preset)
    assert first.method.ask(first.request, tiny.card) == first.needs
    assert first.method == row.values


@every_row_at_length
def test_kept_texts_that_change_nothing_are_said(row: Row, tiny: Model) -> None:
    """The plan says so exactly where the edits with them and without them are the same."""
    said = any("does not read kept texts" in w for w in plan(tiny, CONCEPTS, KEEP, row.method, row.preset).warnings)
    assert not any("kept texts" in w for w in plan(tiny, CONCEPTS, (), row.method, row.preset).warnings)
    without = row.erase(make_pipe(), keep=())
    assert said == (_patch(row).content_hash == without.content_hash)


def test_a_keep_list_of_a_concept_that_is_not_read_is_said_too(tiny: Model) -> None:
    own = [Concept("dog", keep=("cat",))]
    with pytest.warns(efface.EffaceWarning, match=r"those of this request \(1\) change nothing"):
        efface.erase(tiny, own, method="scapre", preset="code")
    for negatives in ("keep", "empty"):
        found = plan(tiny, own, method="scapre", preset="code", negatives=negatives).warnings
        assert bool(found) == (negatives == "empty")
    assert plan(tiny, own, method="kscu", preset="code").warnings
    assert not plan(tiny, own, method="kscu", preset="code", keep_weight=1.0).warnings


@every_method
def test_every_preset_decides_every_setting(method: str) -> None:
    for preset in registry.presets_of(registry.find("methods", method)).values():
        assert None not in registry.flat(preset).values()
        assert len(dataclasses.fields(preset)) <= (12 if method == "scapre" else 16)


@every_method
def test_a_setting_is_written_by_its_path_or_by_its_own_name(method: str) -> None:
    for preset in registry.presets_of(registry.find("methods", method)).values():
        values = registry.flat(preset)
        assert registry.changed(preset, values) == preset
        assert registry.changed(preset, dataclasses.asdict(preset)) == preset
        ways = registry.spellings(type(preset))
        assert set(values) <= set(ways)
        assert {path[-1] for path in ways.values()} <= set(ways)  # no name stands twice in this project's methods


@every_row_at_length
def test_the_denoiser_is_opened_only_where_the_method_says_so(row: Row, tiny: Model) -> None:
    needs = plan(tiny, CONCEPTS, KEEP, row.method, row.preset).needs
    row.erase(tiny)
    assert tiny.network.opened == (needs.denoiser or bool(needs.statistics))


# --- solving -------------------------------------------------------------------------------------------------------


@every_row_at_length
def test_the_model_is_bit_equal_after_solve(row: Row) -> None:
    model = efface.load(make_pipe())
    before = all_bits(model)
    row.erase(model)
    assert all_bits(model) == before


@every_weight_row
def test_the_model_is_bit_equal_after_a_failing_solve(row: Row) -> None:
    pipe = make_pipe()
    model = efface.load(pipe)
    last = model.card.select("cross.v")[-1]
    pipe.unet.get_submodule(last.name).weight.data[0, 0] = float("nan")
    before = all_bits(model)
    with pytest.raises(WrongFile, match="NaN"):
        row.erase(model)
    assert all_bits(model) == before


class StopsAt(Work):
    """Is cancelled at its n-th check."""

    def __init__(self, n: int, seed: int = 0) -> None:
        super().__init__(seed)
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.cancel()
        super().check()


class Counts(Work):
    """Counts its checks."""

    checks = 0

    def check(self) -> None:
        self.checks += 1
        super().check()


@every_row_at_length
def test_cancelled_anywhere_and_resumed_the_patch_is_the_same(row: Row, tmp_path: Path) -> None:
    """Each with a cache of its own: what is in the cache is not drawn again, so a second run has fewer checks."""
    model = efface.load(make_pipe())
    before = all_bits(model)
    whole = Counts()
    wanted = row.erase(model, work=whole, cache=tmp_path / "whole").to_bytes()
    assert wanted == _patch(row).to_bytes()
    for stop in sorted({1, (whole.checks + 1) // 2, whole.checks}):
        with pytest.raises(Cancelled):
            row.erase(model, work=StopsAt(stop), cache=tmp_path / str(stop))
        assert all_bits(model) == before
    stopped = StopsAt((whole.checks + 1) // 2)
    with pytest.raises(Cancelled):
        row.erase(model, work=stopped, cache=tmp_path / "stopped")
    stopped.cancelled, stopped.left = False, 10**9
    assert row.erase(model, work=stopped, cache=tmp_path / "stopped").to_bytes() == wanted


@every_row_at_length
def test_same_seed_same_bytes(row: Row, tiny_folder: Path) -> None:
    one, two = (row.erase(efface.load(tiny_folder, "cpu"), seed=3) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()


@every_row
def test_every_number_is_finite(row: Row) -> None:
    patch = _patch(row)
    assert all(bool(torch.isfinite(t).all()) for e in patch.edits for t in e.tensors().values())
    json.dumps(patch.header(), allow_nan=False)


@every_row
def test_only_the_named_sites_change_and_each_of_them_does(row: Row) -> None:
    model = efface.load(make_pipe())
    before = all_bits(model)
    with _patch(row).applied(model):
        inside = changed(before, all_bits(model))
    assert inside == {f"unet.{model.card.site(s).key}" for s in _patch(row).sites}
    assert inside or any(isinstance(e, Guard) for e in _patch(row).edits)


@every_row
def test_the_base_is_fingerprinted_at_every_named_site_and_at_the_token_embedding(row: Row) -> None:
    parts = _patch(row).base["parts"]
    assert set(parts) == {*_patch(row).sites, "stream:text"}


@every_row
def test_strength_zero_is_the_identity(row: Row) -> None:
    model = efface.load(make_pipe())
    before, picture = all_bits(model), model.generate("a dog", steps=1)[0].tobytes()
    with _patch(row).scaled(0).applied(model):
        assert all_bits(model) == before
        assert model.generate("a dog", steps=1)[0].tobytes() == picture


@every_row
def test_half_the_strength_moves_half_the_way(row: Row) -> None:
    if len(_patch(row).edits) > len(_patch(row).sites) or _patch(row).by_prompt:
        pytest.skip("several edits a site do not add up linearly")
    model = efface.load(make_pipe())
    for site in _patch(row).sites:
        base = model.weight(site).double()
        half, whole = (_patch(row).scaled(f).weight(site, base) - base for f in (0.5, 1.0))
        torch.testing.assert_close(half, whole / 2, rtol=1e-9, atol=1e-12)


# --- applying ------------------------------------------------------------------------------------------------------


@every_row
def test_apply_then_undo_is_exact_also_nested_and_also_after_an_exception(row: Row) -> None:
    pipe = make_pipe()
    model = efface.load(pipe)
    before, patch = all_bits(model), _patch(row)
    half = patch.scaled(0.5)  # first the half: what is pruned cannot be pruned again
    half.apply_(model)
    once = all_bits(model)
    with pytest.raises(RuntimeError, match="inside"), patch.applied(model):  # noqa: PT012
        assert patch.by_prompt or all_bits(model) != once
        raise RuntimeError("inside")
    assert all_bits(model) == once
    half.undo_(model)
    assert all_bits(model) == before


@every_row
def test_undo_in_the_wrong_order_or_without_copies_raises_and_changes_nothing(row: Row) -> None:
    model, patch = efface.load(make_pipe()), _patch(row)
    with pytest.raises(WrongBase, match="no copies"):
        patch.undo_(model)
    second = patch.scaled(0.5)
    patch.apply_(model)
    second.apply_(model)
    both = all_bits(model)
    with pytest.raises(WrongBase, match="another patch"):
        patch.undo_(model)
    assert all_bits(model) == both


@every_row
def test_save_then_load_is_exact(row: Row, tmp_path: Path) -> None:
    patch = _patch(row)
    found = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    assert found.to_bytes() == patch.to_bytes()
    assert (found.recipe, found.base, found.strength) == (patch.recipe, patch.base, patch.strength)
    model = efface.load(make_pipe())
    for site in patch.sites:
        weight = model.weight(site)
        assert found.weight(site, weight).equal(patch.weight(site, weight))


@every_row_at_length
def test_the_recipe_repeats_the_patch(row: Row) -> None:
    recipe = json.loads(json.dumps(_patch(row).recipe))
    known = {f.name for f in dataclasses.fields(row.values)}
    assert set(recipe["settings"]) == known
    again = efface.erase(
        make_pipe(), CONCEPTS, recipe["request"]["keep"], recipe["method"], recipe["preset"],
        recipe["request"]["seed"], **recipe["settings"],
    )  # fmt: skip
    assert again.to_bytes() == _patch(row).to_bytes()


@every_row_at_length
def test_order_of_concepts_and_of_kept_texts_does_not_matter(row: Row) -> None:
    model = efface.load(make_pipe())
    turned = row.erase(model, CONCEPTS[::-1], KEEP[::-1])
    assert turned.sites == _patch(row).sites
    for site in turned.sites:
        base = model.weight(site).double()
        one, two = _patch(row).weight(site, base), turned.weight(site, base)
        assert float((one - two).norm()) <= 1e-5 * float((one - base).norm()), site


# --- refusing ------------------------------------------------------------------------------------------------------


@every_weight_row_at_length
def test_an_edit_that_changes_nothing_raises(row: Row) -> None:
    pipe = make_pipe()
    for site in efface.load(pipe).card.select("cross.k", "cross.v"):
        pipe.unet.get_submodule(site.name).weight.data.zero_()
    with pytest.raises(NothingChanged):
        row.erase(pipe)


def _wrong(method: str) -> dict[str, tuple[type[EffaceError], str, Callable[[Any], Any]]]:
    """name -> (error, what the message has to name, call)."""
    field = dataclasses.fields(registry.find("methods", method))[0].name

    def call(concepts: Any = "dog", **more: Any) -> Callable[[Any], Any]:
        return lambda model: efface.erase(model, concepts, **{"method": method, **more})

    return {
        "unknown setting": (UnknownName, field, call(**{f"{field}x": 1})),
        "wrong value": (BadRequest, field, call(**{field: object()})),
        "unknown preset": (UnknownName, "wrold.*world", call(preset="wrold")),
        "no concept": (BadRequest, "no concept", call([])),
        "empty concept": (BadRequest, "empty", call(["  "])),
        "concept is its anchor": (BadRequest, "'dog'.*anchor", call(["dog=Dog"])),
        "concept kept": (BadRequest, "'Dog'.*kept", call(["dog"], keep=["Dog"])),
        "duplicate": (BadRequest, "'DOG'.*twice", call(["dog", "DOG"])),
        "too long": (BadRequest, "tokens", call(["dog " * 60])),
        "unknown kind": (UnknownName, "thing.*known", call(["thing:dog"])),
        "unknown method": (UnknownName, method, lambda m: efface.erase(m, "dog", method=f"{method}x")),
    }


@every_method
@pytest.mark.parametrize("case", list(_wrong("uce")))
def test_a_wrong_request_raises_and_names_the_field(method: str, case: str, tiny: Model) -> None:
    error, named, call = _wrong(method)[case]
    with pytest.raises(error, match=f"(?s){named}") as caught:
        call(tiny)
    assert len(str(caught.value).splitlines()) <= 2
    assert not tiny.network.opened


# --- the bundled model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=_slow_if(any(r.budget for r in ROWS if r.method == m))) for m in METHODS]
)
def test_the_promises_hold_on_mini(method: str, mini: Model, tmp_path: Path) -> None:
    before, row = all_bits(mini), Row(method, mini.card.preset)
    patch = row.erase(mini, ["cat", "noto style"], ["dog"])
    assert all_bits(mini) == before
    assert row.erase(mini, ["cat", "noto style"], ["dog"]).to_bytes() == patch.to_bytes()
    assert row.erase(mini, ["noto style", "cat"], ["dog"]).sites == patch.sites
    found = Patch.load(patch.save(tmp_path / "patch.safetensors"))
    with found.applied(mini):
        assert changed(before, all_bits(mini)) == {f"unet.{mini.card.site(s).key}" for s in patch.sites}
    assert all_bits(mini) == before
    with patch.scaled(0).applied(mini):
        assert all_bits(mini) == before


def test_two_pipelines_of_one_seed_are_one_model(tiny_pipe: MakePipe, tiny: Model) -> None:
    """What the tests above rely on."""
    assert efface.load(tiny_pipe()).identity == tiny.identity
    assert efface.load(tiny_pipe(seed=1)).identity != tiny.identity
