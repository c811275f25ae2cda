"""Edits and the patch file: what each kind of edit does to a weight, when, and what a file may hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import efface
from conftest import MakePipe, all_bits, make_pipe
from efface.errors import BadRequest, NothingChanged, OutputExists, UnknownName, WrongBase, WrongFile
from efface.model import Model
from efface.patch import Dense, Edit, Gate, Guard, LowRank, Mask, Operator, Patch, read_header


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W = rand(5, 4, seed=9)


# --- laws of the delta -----------------------------------------------------------------------------------------------


def test_operator_adds_w_times_s_at_every_named_site_and_nowhere_else() -> None:
    left, right = rand(4, 2, seed=1), rand(4, 2, seed=2)
    patch = Patch((Operator("text", left, right, ("a", "b")),))
    assert patch.sites == ("a", "b")
    for weight in (W, rand(7, 4)):
        torch.testing.assert_close(patch.weight("a", weight), weight @ (torch.eye(4).double() + left @ right.T))
    assert patch.weight("c", W).equal(W)


def test_low_rank_adds_up_times_down_also_to_a_kernel() -> None:
    up, down = rand(5, 2, seed=1), rand(2, 36, seed=2)
    kernel = rand(5, 4, 3, 3)
    found = Patch((LowRank("conv", up, down),)).weight("conv", kernel)
    torch.testing.assert_close(found, kernel + (up @ down).reshape(5, 4, 3, 3))


def test_dense_adds_its_change() -> None:
    change = rand(5, 4, seed=1).float()
    assert Patch((Dense("a", change),)).weight("a", W).equal(W + change.double())


def test_mask_sets_marked_entries_to_zero_and_keeps_the_others_bit_equal() -> None:
    mask = rand(5, 4, seed=1) > 0
    found = Patch((Mask.pack("a", mask),)).weight("a", W)
    assert found[mask].eq(0).all()
    assert found[~mask].equal(W[~mask])


@settings(max_examples=40, deadline=None)
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_pack_then_unpack_is_the_same_mask_in_an_eighth_of_the_bytes(shape: list[int], seed: int) -> None:
    mask = rand(*shape, seed=seed) > 0
    edit = Mask.pack("a", mask)
    assert edit.unpack().equal(mask)
    assert edit.bits.numel() == (mask.numel() + 7) // 8


def test_bits_are_row_major_with_the_first_entry_in_the_highest_bit() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    assert Mask.pack("a", mask).bits.tolist() == [0b10111001, 0b10000000]


def test_several_edits_of_a_site_act_one_after_the_other() -> None:
    operator = Operator("text", rand(4, 1, seed=1), rand(4, 1, seed=2), ("a",))
    mask = Mask.pack("a", rand(5, 4, seed=3) > 0)
    forth, back = Patch((operator, mask)), Patch((mask, operator))
    first = Patch((mask,)).weight("a", Patch((operator,)).weight("a", W))
    torch.testing.assert_close(forth.weight("a", W), first)
    assert not torch.allclose(forth.weight("a", W), back.weight("a", W))


def test_strength_scales_every_edit_and_composes() -> None:
    patch = Patch((Dense("a", rand(5, 4, seed=1).float()),))
    whole, part = (p.weight("a", W) - W for p in (patch, patch.scaled(0.5).scaled(0.5)))
    torch.testing.assert_close(part, whole / 4)


def test_a_weight_is_rounded_once_to_its_own_dtype() -> None:
    small = Patch((Dense("a", torch.full((1, 1), 2.0**-12)),) * 4)  # each alone is lost in float16
    assert float(small.weight("a", torch.ones(1, 1, dtype=torch.float16))) == 1 + 2.0**-10


# --- edits that say nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edits",
    [
        (),
        (Dense("a", torch.zeros(2, 2)),),
        (Operator("text", torch.zeros(2, 1), torch.ones(2, 1), ("a",)),),
        (Operator("text", torch.ones(2, 1), torch.ones(2, 1), ()),),
        (Mask.pack("a", torch.zeros(9, dtype=torch.bool)),),
        (LowRank("a", torch.zeros(2, 0), torch.zeros(0, 2)),),
    ],
)
def test_zero_edits_and_edits_without_site_raise(edits: tuple[Edit, ...]) -> None:
    with pytest.raises(NothingChanged):
        Patch(edits).check()


def test_a_number_that_is_not_finite_raises_and_names_the_site() -> None:
    with pytest.raises(WrongFile, match=r"'here'.*NaN"):
        Patch((Dense("here", torch.tensor([[float("inf")]])),)).check()


# --- gates -----------------------------------------------------------------------------------------------------------


def patch_of(edit: Edit | None = None, gate: Gate | None = None) -> Patch:
    """A visible edit of every value matrix of the tiny pipeline: all text goes to another direction."""
    card = efface.load(make_pipe()).card
    sites = tuple(s.name for s in card.select("cross.v"))
    return Patch((edit or Operator("text", 3 * rand(64, 1), rand(64, 1, seed=1), sites, gate),))


def draw(model: Model, prompts: list[str]) -> np.ndarray:
    """(n, h, w, 3)"""
    return np.stack([np.asarray(i, np.int16) for i in model.generate(prompts, seeds=[0], steps=2)])


def moved(a: np.ndarray, b: np.ndarray) -> list[bool]:
    """Which images differ by more than the rounding between batches."""
    return [bool(np.abs(x - y).max() > 1) for x, y in zip(a, b, strict=True)]


def test_a_gate_on_words_acts_on_prompts_that_hold_them_and_leaves_the_others(tiny: Model) -> None:
    prompts = ["a dog", "a Dog, running", "a dogma", "a cat"]
    base = draw(tiny, prompts)
    with patch_of().applied(tiny):
        edited = draw(tiny, prompts)
    assert all(moved(base, edited))
    before = all_bits(tiny)
    with patch_of(gate=Gate(("dog",))).applied(tiny):
        found = draw(tiny, prompts)
    assert not any(moved(found, np.concatenate([edited[:2], base[2:]])))
    assert all_bits(tiny) == before


def test_a_gate_on_similarity_opens_at_its_threshold(tiny: Model) -> None:
    def open_at(threshold: float) -> list[float]:
        return Gate(("a red dog",), "similar", threshold).strengths(tiny, ["a red dog", "a house"])

    assert open_at(0.9999) == [1, 0]
    assert open_at(-1) == [1, 1]
    assert open_at(1.1) == [0, 0]
    base = draw(tiny, ["a red dog", "a house"])
    with patch_of(gate=Gate(("a red dog",), "similar", 0.9999)).applied(tiny):
        found = draw(tiny, ["a red dog", "a house"])
    assert moved(found, base) == [True, False]


def test_a_gate_needs_a_known_rule() -> None:
    with pytest.raises(BadRequest, match="contains"):
        Gate(("dog",), "holds")


def test_a_gated_patch_is_refused_where_weights_alone_decide(tiny_pipe: MakePipe) -> None:
    with pytest.raises(BadRequest, match="by prompt"):
        patch_of(gate=Gate(("dog",))).apply_(tiny_pipe())


def test_a_gated_guard_acts_on_the_prompts_of_its_gate_alone(tiny: Model) -> None:
    prompts = ["a dog", "a zebra"]
    base = draw(tiny, prompts)
    with Patch((Guard("negative-prompt", {"text": "a red house"}),)).applied(tiny):
        always = draw(tiny, prompts)
    with Patch((Guard("negative-prompt", {"text": "a red house"}, gate=Gate(("zebra",))),)).applied(tiny):
        assert not any(moved(draw(tiny, prompts), np.stack([base[0], always[1]])))
    assert moved(base, always) == [True, True]


# --- guards ----------------------------------------------------------------------------------------------------------


def test_the_negative_prompt_guard_draws_what_the_pipeline_draws_with_one(tiny_pipe: MakePipe) -> None:
    pipe = tiny_pipe()
    model = efface.load(pipe)
    with Patch((Guard("negative-prompt", {"text": "a red house"}),)).applied(model):
        found = np.asarray(model.generate("a dog", seeds=[3], steps=3, guidance=5.0)[0])
    wanted = pipe(
        "a dog", negative_prompt="a red house", num_inference_steps=3, guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(3)], output_type="pil",
    ).images[0]  # fmt: skip
    assert np.abs(found.astype(int) - np.asarray(wanted)).max() <= 1
    plain = np.asarray(model.generate("a dog", seeds=[3], steps=3, guidance=5.0)[0])
    assert np.abs(found.astype(int) - plain).max() > 1


def test_a_guard_changes_no_weight_and_fades_out_with_strength(tiny: Model) -> None:
    base, before = draw(tiny, ["a dog"]), all_bits(tiny)
    guard = Patch((Guard("negative-prompt", {"text": "a red house"}),))
    with guard.scaled(0).applied(tiny):
        assert (draw(tiny, ["a dog"]) == base).all()
    with guard.applied(tiny):
        assert all_bits(tiny) == before
        assert moved(draw(tiny, ["a dog"]), base) == [True]


def test_an_unknown_guard_raises_when_it_would_act(tiny: Model) -> None:
    with (
        Patch((Guard("negative-promt", {}),)).applied(tiny),
        pytest.raises(UnknownName, match="negative-prompt"),
    ):
        tiny.generate("a dog", steps=1)


# --- base ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["uce", "scapre"])
def test_single_and_half_precision_copies_accept_the_same_patch(
    method: str, tiny_folder: Path, tiny_half: Path
) -> None:
    single, half = (efface.load(f, "cpu", "float32") for f in (tiny_folder, tiny_half))
    halved = efface.load(tiny_half, "cpu", "float16")
    patch = efface.erase(single, ["dog"], method=method)
    for model in (single, half, halved, efface.load(make_pipe(dtype=torch.float16))):
        before = all_bits(model)
        with patch.applied(model):
            assert all_bits(model) != before
        assert all_bits(model) == before


def test_the_fingerprint_is_the_same_from_disk_from_memory_and_under_a_patch(tiny: Model, tiny_half: Path) -> None:
    sites = [s.name for s in tiny.card.select("cross.k", "cross.v")]
    from_disk = tiny.fingerprint(sites)["parts"]
    assert not tiny.network.opened
    assert efface.load(make_pipe()).fingerprint(sites)["parts"] == from_disk
    assert efface.load(tiny_half, "cpu", "float16").fingerprint(sites)["parts"] == from_disk
    with patch_of().applied(tiny):
        assert tiny.fingerprint(sites)["parts"] == from_disk


def test_a_folder_in_bfloat16_accepts_the_patch_of_its_single_precision_copy(tiny_folder: Path) -> None:
    """The fingerprint is of the weights as they lie on disk; bfloat16 would round them otherwise."""
    patch, model = efface.erase(tiny_folder, ["dog"]), efface.load(tiny_folder, "cpu", "bfloat16")
    assert model.fingerprint(patch.sites)["parts"] == patch.base["parts"]
    with patch.applied(model):
        assert model.weight(patch.sites[0]).dtype == torch.bfloat16
        assert model.fingerprint(patch.sites)["parts"] == patch.base["parts"]
    with pytest.raises(WrongBase, match="not in bfloat16"):
        patch.apply_(make_pipe(dtype=torch.bfloat16))


def test_another_model_is_refused_with_one_number_changed_and_nothing_is_written(tiny_folder: Path) -> None:
    patch = efface.erase(tiny_folder, ["dog"])
    other = make_pipe()
    site = patch.sites[3]
    other.unet.get_submodule(site).weight.data[0, 0] += 0.5
    before = all_bits(efface.load(other))
    with pytest.raises(WrongBase, match=f"1 of .*{site}"):
        patch.apply_(other)
    assert all_bits(efface.load(other)) == before


def test_another_token_embedding_is_refused(tiny_folder: Path) -> None:
    patch, other = efface.erase(tiny_folder, ["dog"]), make_pipe()
    other.text_encoder.get_input_embeddings().weight.data[5, 5] += 0.5
    with pytest.raises(WrongBase, match="stream:text"):
        patch.apply_(other)


def test_a_model_without_the_site_is_refused(tiny_folder: Path) -> None:
    patch = efface.erase(tiny_folder, ["dog"])
    other = make_pipe(down_block_types=["DownBlock2D", "DownBlock2D"])
    with pytest.raises(WrongBase, match="does not have"):
        patch.apply_(other)


# --- the file --------------------------------------------------------------------------------------------------------


def all_kinds() -> Patch:
    """A patch with every kind of edit, gates and guards among them."""
    edits = (
        Operator("text", rand(64, 2).float(), rand(64, 2, seed=1).float(), ("a", "b"), Gate(("dog",))),
        LowRank("a", rand(5, 2).float(), rand(2, 4).float()),
        Dense("b", rand(5, 4).float(), Gate(("cat",), "similar", 0.5)),
        Mask.pack("c", rand(5, 4) > 0),
        Guard("negative-prompt", {"text": "dog"}, {"rows": rand(3, 4).float()}, ("a",)),
    )
    parts = {"a": "0", "b": "0", "c": "0", "stream:text": "0"}
    return Patch(edits, {"method": "none"}, {"name": "tiny", "parts": parts}, 0.5)


def test_every_kind_of_edit_survives_the_file(tmp_path: Path) -> None:
    patch = all_kinds()
    found = Patch.load(patch.save(tmp_path / "p.safetensors"))
    assert found.to_bytes() == patch.to_bytes()
    assert found.header() == patch.header() == read_header(tmp_path / "p.safetensors")
    assert [type(e) for e in found.edits] == [type(e) for e in patch.edits]
    assert [e.gate for e in found.edits] == [e.gate for e in patch.edits]
    for one, two in zip(found.edits, patch.edits, strict=True):
        assert all(t.equal(two.tensors()[n]) for n, t in one.tensors().items())


def test_the_same_patch_is_the_same_bytes_and_another_number_is_another_hash() -> None:
    assert all_kinds().to_bytes() == all_kinds().to_bytes()
    assert all_kinds().hash == all_kinds().hash != all_kinds().scaled(0.5).hash


def test_the_content_hash_covers_what_acts_and_neither_recipe_nor_base() -> None:
    """Two patches that change the same pixels have one content hash; a bit, a gate, a rule or a strength makes two."""
    patch = all_kinds()
    told = replace(patch, recipe={"method": "another"}, base={"name": "another", "parts": {}})
    assert told.content_hash == patch.content_hash
    assert told.hash != patch.hash
    change, gate = torch.zeros(2, 3), Gate(("dog",))
    one = Patch((Dense("a", change), Guard("negative", {"texts": ["dog"], "weight": 1.0})))
    others = [
        replace(one, edits=(Dense("a", torch.nextafter(change, torch.ones(()))), one.edits[1])),
        replace(one, edits=(Dense("b", change), one.edits[1])),
        replace(one, edits=(Dense("a", change, gate), one.edits[1])),
        replace(one, edits=(Dense("a", change, Gate(("dog",), "similar", 0.5)), one.edits[1])),
        replace(one, edits=(one.edits[0], Guard("negative", {"texts": ["dog"], "weight": 2.0}))),
        replace(one, edits=one.edits[::-1]),
        one.scaled(0.5),
    ]
    assert len({p.content_hash for p in (one, *others)}) == 8


def test_a_patch_is_never_written_over_unasked(tmp_path: Path) -> None:
    file = all_kinds().save(tmp_path / "p.safetensors")
    with pytest.raises(OutputExists):
        patch_of().save(file, overwrite=False)
    assert file.read_bytes() == all_kinds().to_bytes()
    assert list(tmp_path.glob("*")) == [file]


def _header(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])


def _with(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with its own header (inside the safetensors metadata) changed."""
    size = int.from_bytes(data[:8], "little")
    outer = _header(data)
    inner = json.loads(outer["__metadata__"]["efface"])
    change(inner)
    outer["__metadata__"]["efface"] = json.dumps(inner)
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _outer(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with the safetensors header changed."""
    size = int.from_bytes(data[:8], "little")
    outer = _header(data)
    change(outer)
    text = json.dumps(outer).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _nan(data: bytes) -> bytes:
    start = 8 + int.from_bytes(data[:8], "little") + _header(data)["0002.change"]["data_offsets"][0]
    return data[:start] + np.float32("nan").tobytes() + data[start + 4 :]


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda d: b"",
    "seven bytes": lambda d: d[:7],
    "cut in the header": lambda d: d[:60],
    "cut in the tensors": lambda d: d[:-9],
    "header length lies, too long": lambda d: (2**62).to_bytes(8, "little") + d[8:],
    "header length lies, too short": lambda d: (20).to_bytes(8, "little") + d[8:],
    "not json": lambda d: d[:8] + b"!" * int.from_bytes(d[:8], "little") + d[8:],
    "json, but a list": lambda d: (2).to_bytes(8, "little") + b"[]",
    "a pickle": lambda d: b"\x80\x04\x95" + d,
    "a picture": lambda d: b"\x89PNG\r\n\x1a\n" + d,
    "another safetensors file": lambda d: _outer(d, lambda h: h.pop("__metadata__")),
    "wrong format": lambda d: _with(d, lambda h: h.update(format="efface-patch/9")),
    "no edits": lambda d: _with(d, lambda h: h.pop("edits")),
    "edits are a number": lambda d: _with(d, lambda h: h.update(edits=7)),
    "an edit is a number": lambda d: _with(d, lambda h: h.update(edits=[7])),
    "unknown kind": lambda d: _with(d, lambda h: h["edits"][0].update(kind="lora")),
    "unknown rule of a gate": lambda d: _with(d, lambda h: h["edits"][0].update(gate={"texts": [], "rule": "x"})),
    "recipe is a list": lambda d: _with(d, lambda h: h.update(recipe=[])),
    "base is a number": lambda d: _with(d, lambda h: h.update(base=1)),
    "strength is a word": lambda d: _with(d, lambda h: h.update(strength="much")),
    "strength is infinite": lambda d: _with(d, lambda h: h.update(strength=float("inf"))),
    "strength is beyond all numbers": lambda d: _with(d, lambda h: h.update(strength=10**400)),
    "an edit names no site": lambda d: _with(d, lambda h: h["edits"][1].update(sites=[])),
    "mask of infinite size": lambda d: _with(d, lambda h: h["edits"][3].update(shape=[float("inf")])),
    "nested without end": lambda d: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "more edits than tensors": lambda d: _with(d, lambda h: h["edits"].append(h["edits"][0])),
    "tensor without file": lambda d: _outer(d, lambda h: h["0000.left"].update(data_offsets=[0, 10**9])),
    "shape lies": lambda d: _outer(d, lambda h: h["0000.left"].update(shape=[10**6, 10**6])),
    "shapes do not meet": lambda d: _outer(d, lambda h: h["0000.left"].update(shape=[32, 2])),
    "dtype lies": lambda d: _outer(d, lambda h: h["0000.left"].update(dtype="F64")),
    "mask of another size": lambda d: _with(d, lambda h: h["edits"][3].update(shape=[9, 9])),
    "mask with a negative size": lambda d: _with(d, lambda h: h["edits"][3].update(shape=[-5, -4])),
    "holds NaN": _nan,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_two_lines_that_name_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(HOSTILE[name](all_kinds().to_bytes()))
    with pytest.raises((WrongFile, BadRequest), match=r"p\.safetensors") as caught:
        Patch.load(file)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("kind", ["operator", "low-rank", "dense", "mask"])
def test_an_edit_of_another_shape_than_its_site_is_refused_and_nothing_is_written(kind: str, tiny: Model) -> None:
    site = tiny.card.select("cross.k")[-1]
    o, d = site.shape
    edit: Edit = {
        "operator": Operator("text", torch.ones(d + 1, 1), torch.ones(d + 1, 1), (site.name,)),
        "low-rank": LowRank(site.name, torch.ones(o + 1, 1), torch.ones(1, d)),
        "dense": Dense(site.name, torch.ones(d + 1, o)),
        "mask": Mask.pack(site.name, torch.ones(o + 1, d, dtype=torch.bool)),
    }[kind]
    good = Dense(tiny.card.select("cross.k")[0].name, torch.ones(tiny.card.select("cross.k")[0].shape))
    before = all_bits(tiny)
    with pytest.raises((WrongFile, WrongBase, BadRequest), match=site.name):
        Patch((good, edit)).apply_(tiny)
    assert all_bits(tiny) == before
    assert not tiny.in_force


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongFile, match="no file"):
        Patch.load(tmp_path / "none.safetensors")
    with pytest.raises(WrongFile, match="folder"):
        Patch.load(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(WrongFile, match=r"p\.safetensors cannot be read: Permission denied"):
        Patch.load(tmp_path / "p.safetensors")
