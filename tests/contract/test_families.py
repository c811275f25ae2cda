"""What every family promises, one row each: the pixels of its pipeline, one model however it is loaded, and erasure.

Nothing here knows an architecture beyond the table of tiny pipelines; sites, doors and streams are asked of the card.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface
from conftest import Cli, all_bits
from efface import registry
from efface.errors import BadRequest, EffaceError, Unavailable, WrongFile
from efface.families.stable_diffusion import StableDiffusion
from efface.model import Model
from efface.model.places import PLACES
from efface.model.recognise import family_of_index, family_of_pipeline
from efface.patch import Guard, Patch
from nudge import nudges
from tiny_families import FAMILIES, Tiny

PROMPTS, SEEDS = ["a dog", "a red house", "a cat in noto style"], [0, 5, 9]
LONG = "a red house and " * 12  # more than CLIP's window here
TARGET, ANCHOR, KEPT = "dog", "cat", "red house"
METHODS = ("uce", "scapre")


def rows(*names: str) -> Any:
    """The table; all but the smallest case of each family are slow."""
    chosen = [n for n in FAMILIES if not names or n in names]
    return pytest.mark.parametrize(
        "row", [pytest.param(n, marks=() if FAMILIES[n].fast else pytest.mark.slow) for n in chosen]
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of the tiny pipelines, each made when it is asked for. Tests read them and never write to them."""
    yield tmp_path_factory.mktemp("families")
    _folder.cache_clear()
    _pipeline.cache_clear()
    _patch.cache_clear()


@cache
def _folder(row: str, home: Path) -> Path:
    return FAMILIES[row].save(home / row.replace(" ", "-"))


@cache
def _pipeline(row: str, home: Path) -> Any:
    return FAMILIES[row].open(_folder(row, home))


@cache
def _patch(row: str, method: str, home: Path) -> Patch:
    return efface.erase(_model(row, home), [f"{TARGET}={ANCHOR}"], [KEPT], method)


def _model(row: str, home: Path) -> Model:
    return efface.load(_folder(row, home), device="cpu")


def drawn_by(pipe: Any, model: Model, prompts: list[str], **more: Any) -> np.ndarray:
    """The pipeline's own images (n, h, w, 3) uint8, in the card's size."""
    height, width = model.card.size
    generators = [torch.Generator().manual_seed(s) for s in SEEDS[: len(prompts)]]
    images = pipe(prompts, generator=generators, height=height, width=width, output_type="pil", **more).images
    return np.stack([np.asarray(i) for i in images])


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- drawing ---------------------------------------------------------------------------------------------------------


@rows()
def test_the_pixels_are_those_of_the_pipeline_with_and_without_guidance(row: str, home: Path) -> None:
    pipe = _pipeline(row, home)
    model, found = efface.load(pipe), []
    for guidance in (5.0, 1.0):
        wanted = drawn_by(pipe, model, PROMPTS, num_inference_steps=3, guidance_scale=guidance)
        found.append(model.sample(PROMPTS, SEEDS, steps=3, guidance=guidance))
        assert distance(found[-1], wanted) <= 1
    assert (distance(*found) > 1) == FAMILIES[row].told
    assert distance(model.sample(PROMPTS[:1], [1], steps=3), found[0][:1]) > 1


@rows()
def test_another_prompt_moves_some_pixel_by_a_tenth_of_the_range(row: str, home: Path) -> None:
    """Without this, pixels would agree whatever the text path did."""
    one, two = _model(row, home).sample(PROMPTS[:2], [1, 1], steps=3)
    assert distance(one, two) >= 0.1 * 255


@rows()
def test_the_batch_makes_no_difference(row: str, home: Path) -> None:
    model = _model(row, home)
    whole = model.sample(PROMPTS, SEEDS, steps=2)
    assert distance(model.sample(PROMPTS[::-1], SEEDS[::-1], steps=2, batch=2)[::-1], whole) <= 1
    assert distance(model.sample(PROMPTS[:1], SEEDS[:1], steps=2), whole[:1]) <= 1


@rows()
def test_a_text_beyond_the_smaller_window_is_drawn_as_by_the_pipeline_or_refused(row: str, home: Path) -> None:
    pipe = _pipeline(row, home)
    model = efface.load(pipe)
    assert model.sizes("")[0] == 0
    if FAMILIES[row].reads_on:
        wanted = drawn_by(pipe, model, [LONG], num_inference_steps=2)
        assert distance(model.sample([LONG], SEEDS[:1], steps=2), wanted) <= 1
        return
    with pytest.raises(BadRequest, match=rf"the model reads {model.sizes('')[1]}"):
        model.sample([LONG], [0], steps=1)


@rows()
def test_a_negative_prompt_acts_as_in_the_pipeline_or_is_refused(row: str, home: Path) -> None:
    pipe = _pipeline(row, home)
    model = efface.load(pipe)
    if not FAMILIES[row].guided:
        with pytest.raises(Unavailable, match="without an unconditional side"):
            efface.erase(model, [TARGET], method="negative-prompt")
        return
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "negative_prompt": ["a red house"]}
    with Patch((Guard("negative-prompt", {"text": "a red house"}),)).applied(model):
        found = model.sample(PROMPTS[:1], SEEDS[:1], steps=3, guidance=5.0)
    assert distance(found, drawn_by(pipe, model, PROMPTS[:1], **how)) <= 1


@rows()
@pytest.mark.parametrize("place", PLACES)
def test_a_rule_acts_at_its_place_or_the_place_is_refused(
    place: str, row: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the family, predictions and latents are (n, c, h, w), keys and values (r, L, o)."""
    model, (patch, rule) = _model(row, home), nudges(monkeypatch, PROMPTS[0])(place, 2.0)
    inside = place in ("key-value", "attention")
    with patch.applied(model):
        if inside and not FAMILIES[row].seats:
            with pytest.raises(Unavailable, match=f"{place!r}, which has no seat"):
                model.sample(PROMPTS[:1], [0], steps=2)
            return
        edited = model.sample(PROMPTS[:1], [0], steps=2)
    assert distance(edited, model.sample(PROMPTS[:1], [0], steps=2)) > 1
    sides = 2 if FAMILIES[row].guided else 1
    shapes = {call[2] for call in rule.calls}
    if inside:
        seats = model.network.family.seats(model.card, place)
        assert sorted(call[:2] for call in rule.calls) == sorted((i, s.told) for i in range(2) for s in seats)
        assert {(shape[0], len(shape)) for shape in shapes} == {(sides, 3)}
    else:
        assert len(rule.calls) == (1 if place == "prompt" else 2)
        assert shapes == {(1, *model.card.latent)} or place == "prompt"


# --- one model -------------------------------------------------------------------------------------------------------


@rows()
def test_a_folder_and_a_pipeline_are_the_same_model(row: str, home: Path) -> None:
    folder, pipe = _model(row, home), efface.load(_pipeline(row, home))
    assert folder.card == replace(pipe.card, name=folder.card.name)
    assert folder.card.family == FAMILIES[row].family
    found = folder.sample(PROMPTS[:1], SEEDS[:1], steps=2)
    assert distance(found, pipe.sample(PROMPTS[:1], SEEDS[:1], steps=2)) <= 1
    assert folder.identity == pipe.identity
    again = folder.pipeline()
    again.set_progress_bar_config(disable=True)
    wanted = drawn_by(again, folder, PROMPTS[:1], num_inference_steps=2, guidance_scale=folder.card.guidance)
    assert distance(found, wanted) <= 1


@rows()
def test_sites_are_the_same_from_pipeline_folder_and_configuration(row: str, home: Path) -> None:
    folder, pipe = _folder(row, home), FAMILIES[row].build()
    model = efface.load(pipe)
    family = family_of_pipeline(pipe)
    files = {p.name: folder / p.name / "config.json" for p in family.parts if p.weighed}
    files |= {"scheduler": folder / "scheduler" / "scheduler_config.json", "index": folder / "model_index.json"}
    configs = {n: dict(reversed(json.loads(f.read_text()).items())) for n, f in files.items() if f.exists()}
    card = family.card("x", configs, {})
    assert card.sites == model.card.sites == _model(row, home).card.sites
    assert [s.name for s in card.sites] == sorted(s.name for s in card.sites)
    state = model.network.denoiser.state_dict()
    assert {s.key: s.shape for s in card.sites}.items() <= {k: tuple(v.shape) for k, v in state.items()}.items()
    assert {f"{s.name}.bias" for s in card.sites if s.bias} <= set(state)
    for door in card.doors:
        assert {s.shape[1] for s in card.through(door)} == {door.width}


@rows()
def test_the_rows_at_the_doors_are_what_the_denoiser_reads_there(row: str, home: Path) -> None:
    """A closed form solves for these rows, so another layer, order or padding would be another equation."""
    model = _model(row, home)
    (encoded,) = model.encode(PROMPTS[:1])
    for door in model.card.doors:
        site, seen = model.card.through(door)[0].name, []
        tap = {site: lambda step, site, given, out, seen=seen: seen.append(given)}
        model.sample(PROMPTS[:1], [0], steps=1, guidance=1.0, taps=tap)
        wanted = torch.cat([e.rows for e in encoded.at(door)])
        found = seen[0].reshape(-1, door.width)
        torch.testing.assert_close(found[: len(wanted)], wanted, rtol=1e-4, atol=1e-5)
        assert not found[len(wanted) :].any()  # zeros in the place of a stream that is missing


@rows()
def test_spans_part_the_rows_of_every_stream(row: str, home: Path) -> None:
    model = _model(row, home)
    for text in ("", "a dog", LONG if FAMILIES[row].reads_on else "a red house"):
        for name, found in model.encode([text])[0].streams.items():
            stream, spans = model.card.stream(name), found.spans
            assert found.rows.shape == (stream.length, stream.width)
            parts = (spans.start, spans.content, spans.end, spans.padding)
            assert [i for first, stop in parts for i in range(first, stop)] == list(range(stream.length))


@rows()
def test_without_padding_causal_streams_end_with_the_last_content_row(row: str, home: Path) -> None:
    model = _model(row, home)
    (short,), (whole,) = model.encode(["a red house"], whole=False), model.encode(["a red house"])
    for name, found in short.streams.items():
        size = whole.streams[name].spans.content[1] if model.card.stream(name).causal else len(whole.streams[name].rows)
        assert len(found.rows) == size
        torch.testing.assert_close(found.rows, whole.streams[name].rows[:size], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.last, whole.streams[name].last, rtol=1e-4, atol=1e-5)


@rows()
def test_single_and_half_precision_copies_have_one_fingerprint(row: str, home: Path, tmp_path: Path) -> None:
    single, half = _model(row, home), FAMILIES[row].save(tmp_path / "half", torch.float16)
    names = [s.name for s in single.card.sites]
    parts = single.fingerprint(names)["parts"]
    assert {f"stream:{s.name}" for s in single.card.streams} <= set(parts)
    for dtype in ("float32", "float16"):
        assert efface.load(half, "cpu", dtype).fingerprint(names)["parts"] == parts
    assert efface.load(_pipeline(row, home)).fingerprint(names)["parts"] == parts


@rows()
def test_every_text_encoder_is_in_the_fingerprint(row: str, home: Path) -> None:
    pipe = FAMILIES[row].build()
    model = efface.load(pipe)
    before = model.fingerprint([])["parts"]
    encoders = [p for p in model.network.weighed if hasattr(model.part(p), "get_input_embeddings")]
    for part in encoders:
        weight = model.part(part).get_input_embeddings().weight
        weight.data[5] += 1.0
        assert model.fingerprint([])["parts"] != before
        weight.data[5] -= 1.0


@rows()
def test_scopes_name_weights_that_are_there(row: str, home: Path) -> None:
    card = _model(row, home).card
    scopes = registry.find("families", card.family)().scopes
    assert {"xattn", "noxattn", "ff-out"} <= set(scopes)
    for name, roles in scopes.items():
        assert [s for s in card.sites if s.role in roles], name
    assert not set(scopes["xattn"]) & set(scopes["noxattn"])


# --- erasing ---------------------------------------------------------------------------------------------------------


@rows()
@pytest.mark.parametrize("method", METHODS)
def test_after_it_the_target_is_near_its_anchor_and_kept_texts_stay(method: str, row: str, home: Path) -> None:
    """At every site: five times nearer than before, and a kept text moves at most a fifth as far."""
    model, patch = _model(row, home), _patch(row, method, home)
    target, anchor, kept = model.encode([TARGET, ANCHOR, KEPT])
    assert set(patch.sites) == {s.name for door in model.card.doors for s in model.card.through(door)}
    for door in model.card.doors:
        for site in model.card.through(door):
            old = model.weight(site.name).double()
            new = patch.weight(site.name, old)
            for c, g, k in zip(*(t.at(door) for t in (target, anchor, kept)), strict=True):
                c, g, k = (e.last.double() for e in (c, g, k))
                assert (new @ c - old @ g).norm() <= (old @ c - old @ g).norm() / 5, site.name
                assert (new @ k - old @ k).norm() <= (new @ c - old @ c).norm() / 5, site.name


@rows()
@pytest.mark.parametrize("method", METHODS)
def test_it_changes_the_weights_of_its_sites_alone_and_the_picture(method: str, row: str, home: Path) -> None:
    """Biases stay."""
    model, patch = _model(row, home), _patch(row, method, home)
    before = all_bits(model)
    picture = model.sample(PROMPTS[:1], [3], steps=2)
    with patch.applied(model):
        now, edited = all_bits(model), model.sample(PROMPTS[:1], [3], steps=2)
    denoiser = model.network.family.parts[0].name
    assert {k for k in now if now[k] != before[k]} == {f"{denoiser}.{model.card.site(s).key}" for s in patch.sites}
    assert distance(picture, edited) > 5
    assert all_bits(model) == before


@rows()
def test_it_merges_into_a_folder_that_draws_the_same_anywhere(row: str, home: Path, tmp_path: Path, cli: Cli) -> None:
    model, patch = _model(row, home), _patch(row, "uce", home)
    file, out = patch.save(tmp_path / "p.safetensors"), tmp_path / "merged"
    assert cli("apply", _folder(row, home), file, "-o", out).code == 0
    with patch.applied(model):
        wanted = model.sample(PROMPTS[:1], SEEDS[:1], steps=2)
    merged = efface.load(out, device="cpu")
    assert distance(merged.sample(PROMPTS[:1], SEEDS[:1], steps=2), wanted) <= 1
    pipe = FAMILIES[row].open(out)
    how = {"num_inference_steps": 2, "guidance_scale": model.card.guidance}
    assert distance(drawn_by(pipe, model, PROMPTS[:1], **how), wanted) <= 1


# --- which family ----------------------------------------------------------------------------------------------------


def _with_index(row: str, home: Path, out: Path, **changes: Any) -> Path:
    """A copy of a folder with another index."""
    shutil.copytree(_folder(row, home), out)
    index = json.loads((out / "model_index.json").read_text()) | changes
    (out / "model_index.json").write_text(json.dumps(index))
    return out


@rows()
def test_a_subclass_and_a_community_class_with_the_same_parts_are_known(row: str, home: Path, tmp_path: Path) -> None:
    pipe = _pipeline(row, home)
    child = type("Child", (type(pipe),), {})
    mine = child(**pipe.components)
    assert efface.load(mine).card.sites == efface.load(pipe).card.sites
    folder = _with_index(row, home, tmp_path / "community", _class_name="SomebodysPipeline")
    assert efface.load(folder, "cpu").card.family == FAMILIES[row].family


@rows()
def test_a_part_that_is_missing_is_named_by_its_family(row: str, home: Path, tmp_path: Path) -> None:
    family, pipe = _model(row, home).network.family, FAMILIES[row].build()
    for number, part in enumerate(p for p in family.parts if p.needed):
        folder, kept = _with_index(row, home, tmp_path / str(number), **{part.name: [None, None]}), pipe.components
        setattr(pipe, part.name, None)
        for target in (folder, pipe):
            with pytest.raises(Unavailable, match=f"lacks its part {part.name}, which {family.name} needs"):
                efface.load(target)
        setattr(pipe, part.name, kept[part.name])


@rows()
def test_a_part_of_another_class_is_refused(row: str, home: Path, tmp_path: Path) -> None:
    denoiser = _model(row, home).network.family.parts[0].name
    folder = _with_index(row, home, tmp_path / "other", **{denoiser: ["diffusers", "AutoencoderKL"]})
    with pytest.raises(WrongFile, match=rf"part {denoiser} is of class .*expected diffusers\."):
        efface.load(folder)


def test_a_pipeline_of_no_known_family_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WuerstchenPipeline"}))

    class Somebodys:
        config: dict[str, Any] = {}  # noqa: RUF012

    for target, name in ((tmp_path, "WuerstchenPipeline"), (Somebodys(), "Somebodys")):
        with pytest.raises(Unavailable, match=f"'{name}' are not supported") as caught:
            efface.load(target)
        assert _one_sentence(caught.value)


class Twin(StableDiffusion):
    """A second family that answers to the same pipelines."""

    name = "twin"


def test_two_families_that_claim_one_folder_are_both_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = EntryPoint("twin", f"{__name__}:Twin", "efface.families")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    community = _with_index("stable-diffusion", home, tmp_path / "community", _class_name="SomebodysPipeline")
    for folder in (_folder("stable-diffusion", home), community):
        with pytest.raises(Unavailable, match=r"claimed by 2 families \(stable-diffusion, twin\)") as caught:
            efface.load(folder)
        assert _one_sentence(caught.value)


def test_more_parts_win_over_fewer() -> None:
    """A model with two encoders also has the first one's parts."""
    two = {p.name: list(p.classes[0]) for p in registry.find("families", "sdxl").parts}
    assert family_of_index({"_class_name": "Unknown", **two}, "x").name == "sdxl"
    one = {p.name: list(p.classes[0]) for p in StableDiffusion.parts}
    assert family_of_index({"_class_name": "Unknown", **one}, "x").name == "stable-diffusion"


def _one_sentence(error: EffaceError) -> bool:
    return len(str(error).splitlines()) == 1 and not str(error).endswith(".")


def test_every_family_has_a_row_of_the_fast_tier() -> None:
    assert {t.family for t in FAMILIES.values() if t.fast} == set(registry.names("families"))
    assert all(isinstance(t, Tiny) for t in FAMILIES.values())
