"""The flow: Python, the command line, the user's own pipeline and plain diffusers agree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import efface
from conftest import Cli, all_bits, bits
from efface.audit import concepts_for
from efface.errors import BadRequest, EffaceError, OutputExists, WrongBase, WrongFile
from efface.model import Model
from efface.patch import Dense, Gate, Guard, Patch
from efface.patch.merge import merge
from efface.request import Concept, Request
from tiny_families import MakePipe, make_pipe

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


# --- one patch, whatever the way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["uce", "scapre"])
def test_python_and_command_line_give_the_same_bytes(method: str, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    said = cli("erase", "mini", "-c", "cat", "-c", "noto style=", "--keep", "dog", "--method", method, "--seed", 4,
               "--set", "lam=0.2", "--device", "cpu", "-o", out)  # fmt: skip
    assert said.code == 0, said.err
    patch = efface.erase(efface.load("mini", "cpu"), ["cat", "noto style="], ["dog"], method, seed=4, lam=0.2)
    assert out.read_bytes() == patch.to_bytes()
    beside = json.loads((tmp_path / "p.safetensors.json").read_text())
    assert beside["seconds"] > 0
    assert not any(word in json.dumps(patch.header()) for word in ("seconds", "time", "date"))


def test_a_concept_file_gives_the_bytes_of_the_same_concepts(cli: Cli, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "c.toml").write_text('[[concepts]]\nname="dog"\nanchor="cat"\n[[concepts]]\nname="noto style"\n')
    (tmp_path / "keep.txt").write_text("a house\n")
    one, two = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    first = cli(
        "erase", tiny_folder, "--concepts", tmp_path / "c.toml", "--keep-file", tmp_path / "keep.txt", "-o", one
    )
    second = cli("erase", tiny_folder, "-c", "dog=cat", "-c", "noto style", "--keep", "a house", "-o", two)
    assert first.code == second.code == 0
    assert one.read_bytes() == two.read_bytes()


def test_kinds_come_from_the_models_list_then_from_the_name(tiny_folder: Path, tmp_path: Path) -> None:
    folder = with_list(tiny_folder, tmp_path, [row("noto", "style"), row("dog")])
    made = efface.plan(folder, ["noto", "dog", "cubist style", "scene:a street"])
    assert [c.kind for c in made.request.concepts] == ["style", "object", "style", "scene"]
    assert "noto (style)" in made.lines()[0]


def test_a_concept_longer_than_the_window_is_refused_before_any_weight_is_read(tiny: Model) -> None:
    for concepts, keep in ((["dog " * 30], []), (["dog=" + "cat " * 30], []), (["dog"], ["cat " * 30])):
        with pytest.raises(BadRequest, match="tokens, but tiny reads 22"):
            efface.erase(tiny, concepts, keep)
    assert not tiny.network.opened


@pytest.mark.parametrize("beside", [{"keep": ["cat"]}, {"seed": 3}, {"preset": "paper"}])
def test_what_stands_beside_a_request_and_would_be_ignored_is_refused(beside: dict[str, Any], tiny: Model) -> None:
    with pytest.raises(BadRequest, match="Request holds"):
        efface.erase(tiny, Request.build("dog"), **beside)


def test_a_work_of_another_seed_than_the_recipe_would_state_is_refused(tiny: Model) -> None:
    with pytest.raises(BadRequest, match="seed is 5, that of the work 0"):
        efface.erase(tiny, "dog", seed=5, work=efface.Work())
    assert efface.erase(tiny, "dog", seed=5, work=efface.Work(5)).recipe["request"]["seed"] == 5


def test_an_audit_of_named_concepts_knows_what_the_patch_keeps(tiny: Model) -> None:
    asked = [Concept("dog", keep=("wolf",)), Concept("cat")]
    patch = efface.erase(tiny, asked, keep=["fox", "bear"], seed=4, preset="paper", method="uce")
    found = concepts_for(["cat", "Bear"], patch)
    assert [c.name for c in found.concepts] == ["cat", "Bear"]
    assert (found.keep, found.seed, found.preset) == (("fox", "wolf"), 4, "paper")
    assert concepts_for([], patch).kept_texts == ("fox", "bear", "wolf")
    assert concepts_for(["cat"], None).keep == ()


# --- warnings ------------------------------------------------------------------------------------------------------


def row(name: str, kind: str = "object", rate: float | None = 0.9) -> dict[str, object]:
    return {"name": name, "kind": kind, "category": "", "half": "tune", "base_rate": rate, "n": 24, "qualified": True}


def with_list(folder: Path, into: Path, concepts: list[dict[str, object]]) -> Path:
    """A copy of a model folder (linked) with a concept list beside it."""
    copy = into / "listed"
    copy.mkdir()
    for entry in folder.iterdir():
        (copy / entry.name).symlink_to(entry)
    (copy / "concepts.json").write_text(json.dumps({"concepts": concepts}))
    return copy


def test_a_target_that_the_base_hardly_draws_or_does_not_list_warns(tiny_folder: Path, tmp_path: Path) -> None:
    folder = with_list(tiny_folder, tmp_path, [row("dog", rate=0.3), row("cat"), row("fox", rate=None)])
    with pytest.warns(efface.EffaceWarning) as caught:
        efface.erase(folder, ["dog", "cat", "fox", "zebra"])
    said = [str(w.message) for w in caught if issubclass(w.category, efface.EffaceWarning)]
    assert len(said) == 2
    assert "'dog'" in said[0]
    assert "30%" in said[0]
    assert "NA" in said[0]
    assert "'zebra'" in said[1]


def test_known_targets_and_models_without_a_list_do_not_warn(tiny_folder: Path, tmp_path: Path) -> None:
    folder = with_list(tiny_folder, tmp_path, [row("Dog"), row("noto", "style")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", efface.EffaceWarning)
        efface.erase(folder, ["dog", "noto style"])
        efface.erase(tiny_folder, ["zebra"])


def test_the_command_line_prints_the_warning_and_repeats_it_in_json(
    cli: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = with_list(tiny_folder, tmp_path, [row("dog", rate=0.3)])
    said = cli("erase", folder, "-c", "dog", "-o", tmp_path / "p.safetensors", "--json")
    assert said.code == 0
    assert "warning: " in said.err
    assert len(said.json()["warnings"]) == 1


# --- the user's own pipeline -----------------------------------------------------------------------------------------


def test_a_pipeline_is_erased_from_and_given_back_bit_equal(tiny_pipe: MakePipe) -> None:
    pipe = tiny_pipe()
    before = bits(pipe.unet)

    def drawn() -> np.ndarray:
        generator = torch.Generator().manual_seed(0)
        return pipe("a dog", generator=generator, num_inference_steps=2, output_type="np").images

    picture = drawn()
    patch = efface.erase(pipe, ["dog", "noto style"], keep=["cat"], method="scapre")
    assert bits(pipe.unet) == before
    patch.apply_(pipe)
    assert np.abs(drawn() - picture).max() > 0.01
    patch.undo_(pipe)
    assert bits(pipe.unet) == before
    assert (drawn() == picture).all()
    with pytest.raises(WrongBase, match="no copies"):
        patch.undo_(pipe)


def test_pipeline_and_folder_give_the_same_edits(tiny_pipe: MakePipe, tiny_folder: Path) -> None:
    one, two = (efface.erase(target, ["dog"]) for target in (tiny_pipe(), tiny_folder))
    for a, b in zip(one.edits, two.edits, strict=True):
        assert all(t.equal(b.tensors()[n]) for n, t in a.tensors().items())
    assert one.base["parts"] == two.base["parts"]


def test_a_model_gives_a_plain_pipeline_with_the_patches_in_force(tiny: Model) -> None:
    patch = efface.erase(tiny, ["dog"])
    with patch.applied(tiny):
        pipe = tiny.pipeline()
        assert type(pipe).__name__ == "StableDiffusionPipeline"
        assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
        site = patch.sites[0]
        expected = patch.weight(site, tiny.base_weight(site))
        assert pipe.unet.get_submodule(site).weight.equal(expected)


@pytest.mark.parametrize("gated", [False, True])
def test_no_pipeline_is_given_that_would_leave_out_a_guard_or_a_gate(gated: bool, tiny: Model) -> None:
    site = tiny.card.select("cross.v")[0]
    acting = (
        Dense(site.name, torch.ones(site.shape), Gate(("dog",))) if gated else Guard("negative-prompt", {"text": ""})
    )
    with Patch((acting,)).applied(tiny), pytest.raises(BadRequest, match=r"model\.generate"):
        tiny.pipeline()
    assert tiny.pipeline().unet is tiny.part("unet")


def test_load_returns_a_model_as_it_is_and_finds_the_pipelines_own_patches(tiny_pipe: MakePipe) -> None:
    pipe = tiny_pipe()
    model = efface.load(pipe)
    assert efface.load(model) is model
    patch = efface.erase(pipe, ["dog"])
    patch.apply_(pipe)
    assert efface.load(pipe).in_force == patch.content_hash


PLAIN = """
import sys, torch, hashlib
from diffusers import StableDiffusionPipeline
for folder in sys.argv[1:]:
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    print(image.size[0], type(pipe.scheduler).__name__, hashlib.sha256(image.tobytes()).hexdigest())
assert not any(m.partition(".")[0] == "efface" for m in sys.modules), "efface was imported"
"""


@pytest.mark.slow
def test_diffusers_alone_loads_mini_and_what_apply_wrote(cli: Cli, tmp_path: Path) -> None:
    """No code of ours is imported in that process."""
    from efface.world import folder

    patch, out = tmp_path / "p.safetensors", tmp_path / "merged"
    assert cli("erase", "mini", "-c", "cat", "-o", patch).code == 0
    assert cli("apply", "mini", patch, "-o", out).code == 0
    env = {k: v for k, v in os.environ.items() if not k.startswith("EFFACE")}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder("mini")), str(out)],
        capture_output=True, text=True, timeout=300, env=env, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    base, edited = (line.split() for line in done.stdout.splitlines())
    assert base[:2] == edited[:2] == ["64", "DPMSolverMultistepScheduler"]
    assert base[2] != edited[2]


# --- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_a_merged_folder_holds_the_weights_of_the_applied_patch_and_no_other_byte_changes(
    half: bool, tiny_folder: Path, tiny_half: Path, tmp_path: Path
) -> None:
    folder = tiny_half if half else tiny_folder
    patch = efface.erase(tiny_folder, ["dog", "noto style"])
    merge(efface.load(folder, "cpu"), patch, tmp_path / "out")
    base, found = load_file(folder / UNET), load_file(tmp_path / "out" / UNET)
    assert {n for n in base if not base[n].equal(found[n])} == {f"{s}.weight" for s in patch.sites}
    model = efface.load(make_pipe(dtype=torch.float16 if half else None))
    with patch.applied(model):
        assert all(found[f"{s}.weight"].equal(model.weight(s)) for s in patch.sites)
    assert (tmp_path / "out" / UNET).stat().st_size == (folder / UNET).stat().st_size
    for file in (f for f in folder.rglob("*") if f.is_file() and f.relative_to(folder) != UNET):
        assert (tmp_path / "out" / file.relative_to(folder)).read_bytes() == file.read_bytes()
    assert efface.load(tmp_path / "out").identity


def test_a_merge_that_is_refused_leaves_nothing(tiny_folder: Path, tiny: Model, tmp_path: Path) -> None:
    patch = efface.erase(tiny_folder, ["dog"])
    site = tiny.card.site(patch.sites[0])
    change = torch.ones(site.shape)
    gated = Patch((Dense(site.name, change, Gate(("dog",))),))
    misfit = Patch((patch.edits[0], Dense(site.name, torch.ones(3, 3))))
    (tmp_path / "there").mkdir()
    for wrong, out, error in (
        (gated, "out", BadRequest),
        (misfit, "out", EffaceError),
        (patch, "there", OutputExists),
        (Patch(patch.edits, {}, {"name": "x", "parts": {patch.sites[0]: "0"}}), "out", WrongBase),
    ):
        with pytest.raises(error):
            merge(tiny, wrong, tmp_path / out)
    assert [f.name for f in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(WrongFile, match="in memory"):
        merge(efface.load(make_pipe()), patch, tmp_path / "out")


def test_merging_twice_with_overwrite_gives_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    patch, model = efface.erase(tiny_folder, ["dog"]), efface.load(tiny_folder)
    merge(model, patch, tmp_path / "out")
    first = (tmp_path / "out" / UNET).read_bytes()
    merge(model, patch, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / UNET).read_bytes() == first
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_a_merged_folder_holds_no_unedited_copy_of_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    """Variants, pickles and whole checkpoints stay behind; parts that Efface does not open come along as they are."""
    patch, folder = efface.erase(tiny_folder, ["dog"]), tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    for name in ("diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"):
        shutil.copyfile(folder / UNET, folder / "unet" / name)
    for name in ("whole.safetensors", "whole.ckpt", "notes.bin"):
        shutil.copyfile(folder / UNET, folder / name)
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("feature_extractor", "safety_checker"):
        index[name] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index | {"requires_safety_checker": True}))
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    merge(efface.load(folder, "cpu"), patch, tmp_path / "out")
    files = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {f for f in files if not f.endswith((".json", ".txt"))} == {
        str(UNET), "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert {f.name for f in (tmp_path / "out").iterdir() if f.suffix} == {"model_index.json", "efface-patch.json"}
    assert (tmp_path / "out" / "feature_extractor" / "preprocessor_config.json").exists()
    found = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert found["safety_checker"] == [None, None]  # the folder has none, so plain diffusers must not look for it
    assert found["requires_safety_checker"] is False
    assert found["feature_extractor"] == index["feature_extractor"]


def test_overwrite_replaces_what_apply_wrote_and_nothing_else(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, model = efface.erase(tiny_folder, ["dog"]), efface.load(tiny_folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(WrongFile, match="not made by this command"):
            merge(model, patch, tmp_path / name, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    merge(model, patch, tmp_path / "empty", overwrite=True)
    (tmp_path / "upper" / "lower").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "upper" / "lower")
    for name in (".", ".."):
        with pytest.raises(BadRequest, match="no name for a new folder"):
            merge(model, patch, Path(name), overwrite=True)


def test_planning_and_erasing_leave_the_loaded_model_bit_equal(tiny: Model) -> None:
    before = all_bits(tiny)
    efface.plan(tiny, ["dog"])
    efface.erase(tiny, ["dog"])
    assert all_bits(tiny) == before
