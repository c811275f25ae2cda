"""Cards and sites: the same from a pipeline, a folder or configurations alone, and complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import BadRequest, Unavailable, UnknownName, WrongFile
from efface.families.stable_diffusion import StableDiffusion
from efface.model import Model
from efface.model.config import Config
from tiny_families import SD_UNETS, MakePipe, config_of, make_pipe


def test_sites_are_the_same_from_pipeline_folder_and_configuration(tiny: Model, tiny_pipe: MakePipe) -> None:
    """1.P-2."""
    pipe = tiny_pipe()
    configs = {p: config_of(p) for p in ("unet", "text_encoder", "vae")}
    configs["unet"] = dict(reversed(configs["unet"].items()))
    configs["scheduler"] = {"_class_name": "PNDMScheduler"}
    card = StableDiffusion().card("x", {n: Config(n, c) for n, c in configs.items()}, Config("efface.json"))
    assert card.sites == tiny.card.sites == efface.load(pipe).card.sites
    assert [s.name for s in card.sites] == sorted(s.name for s in card.sites)
    state = pipe.unet.state_dict()
    assert {s.key: s.shape for s in card.sites}.items() <= {k: tuple(v.shape) for k, v in state.items()}.items()


@pytest.mark.parametrize("version", SD_UNETS)
def test_stable_diffusion_has_sixteen_keys_and_values_of_the_text_width(version: str) -> None:
    """1.P-4, without weights."""
    text = {"max_position_embeddings": 77}
    configs = {"unet": {**config_of("unet"), **_defaults(), **SD_UNETS[version]}, "text_encoder": text,
               "vae": {"block_out_channels": [128, 256, 512, 512]},
               "scheduler": {"_class_name": "PNDMScheduler"}}  # fmt: skip
    card = StableDiffusion().card(version, {n: Config(n, c) for n, c in configs.items()}, Config("efface.json"))
    width = SD_UNETS[version]["cross_attention_dim"]
    for role in ("cross.k", "cross.v"):
        assert [s.shape[1] for s in card.select(role)] == [width] * 16
        assert {s.door for s in card.select(role)} == {"text"}
    assert (card.streams[0].width, card.streams[0].length, card.size) == (width, 77, (512, 512))
    assert {s.door for s in card.select("self.k", "self.v", "cross.q", "ff.in")} == {None}


def _defaults() -> dict[str, object]:
    import inspect

    from diffusers import UNet2DConditionModel

    given = inspect.signature(UNet2DConditionModel.__init__).parameters.values()
    return {p.name: p.default for p in given if p.default is not p.empty}


def test_the_tiny_and_the_bundled_model_have_as_many_keys_as_values_and_text_enters_nowhere_else(
    tiny: Model, mini: Model
) -> None:
    """1.P-4."""
    for model in (tiny, mini):
        keys, values = model.card.select("cross.k"), model.card.select("cross.v")
        assert len(keys) == len(values) > 0
        assert {s for s in model.card.sites if s.door} == {*keys, *values}
    assert len(tiny.card.select("cross.k")) == 4


def test_an_unknown_site_and_an_unknown_role_are_named_with_the_nearest(tiny: Model) -> None:
    name = tiny.card.select("cross.k")[0].name
    with pytest.raises(UnknownName, match=name):
        tiny.weight(name + "x")
    with pytest.raises(UnknownName, match=r"'cross\.k'"):
        tiny.card.select("cros.k")


def test_mini_states_its_preset_steps_and_guidance_and_others_are_efface(mini: Model, tiny: Model) -> None:
    assert (mini.card.preset, mini.card.steps, mini.card.guidance) == ("world", 20, 4.0)
    assert (tiny.card.preset, tiny.card.steps, tiny.card.guidance) == ("efface", 50, 7.5)
    schedule = mini.card.schedule_dict()
    assert schedule["_class_name"] == "DPMSolverMultistepScheduler"


def test_a_weight_is_read_from_disk_without_opening_the_denoiser(tiny: Model) -> None:
    site = tiny.card.select("cross.v")[0].name
    from_disk = tiny.weight(site)
    assert not tiny.network.opened
    tiny.part("unet")
    assert tiny.network.opened
    assert tiny.weight(site).equal(from_disk)


def test_a_part_of_another_library_is_not_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["os", "system"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(WrongFile, match=r"expected diffusers\.UNet2DConditionModel"):
        efface.load(folder, "cpu")


def test_a_unet_that_takes_more_than_latents_is_refused(tiny_pipe: MakePipe) -> None:
    """Those for inpainting have nine channels: every drawing would fail."""
    with pytest.raises(Unavailable, match="takes 9 channels and gives 4"):
        efface.load(tiny_pipe(in_channels=9))


@pytest.mark.parametrize("device", ["gpu", "cuda:one", "cuda:"])
def test_a_device_of_another_name_is_refused(device: str, tiny_folder: Path) -> None:
    with pytest.raises(UnknownName, match="device"):
        efface.load(tiny_folder, device)


def test_a_device_that_is_not_here_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(BadRequest, match="'cuda:99'"):
        efface.load(tiny_folder, "cuda:99")


# --- which of several files is read ----------------------------------------------------------------------------------


def with_variants(tiny_folder: Path, into: Path) -> Path:
    """A folder as hubs hold them: other weights, pickles and half precision beside the real ones."""
    folder = into / "model"
    shutil.copytree(tiny_folder, folder)
    make_pipe(1).save_pretrained(into / "other")
    other = into / "other" / "unet" / "diffusion_pytorch_model.safetensors"
    for name in ("non_ema.safetensors", "fp16.safetensors", "bin"):
        shutil.copyfile(other, folder / "unet" / f"diffusion_pytorch_model.{name}")
    for name in ("v1-5-pruned.safetensors", "v1-5-pruned.ckpt"):
        shutil.copyfile(other, folder / name)
    (folder / "LICENSE").write_text("licence")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"the user's own")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_closed_and_an_opened_denoiser_read_the_file_without_a_variant(tiny_folder: Path, tmp_path: Path) -> None:
    model, plain = efface.load(with_variants(tiny_folder, tmp_path), "cpu"), efface.load(tiny_folder, "cpu")
    site = plain.card.select("cross.v")[0].name
    assert model.weight(site).equal(plain.weight(site))
    assert model.fingerprint([site])["parts"] == plain.fingerprint([site])["parts"]
    model.part("unet")
    assert model.weight(site).equal(plain.weight(site))


def test_a_folder_with_half_precision_variants_only_is_read(tiny_half: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(tiny_half, folder)
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    model, plain = efface.load(folder, "cpu"), efface.load(tiny_half, "cpu")
    site = plain.card.select("cross.v")[0].name
    assert model.weight(site).equal(plain.weight(site))
    assert model.identity == plain.identity


@pytest.mark.parametrize("only_half", [False, True])
def test_of_a_hub_id_only_what_is_read_is_fetched(
    only_half: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    hub, local = with_variants(tiny_folder, tmp_path), tmp_path / "local"
    if only_half:
        (hub / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    names = [f.relative_to(hub).as_posix() for f in hub.rglob("*") if f.is_file()]

    def fetch(hub_id: str, allow_patterns: list[str], **more: Any) -> str:
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(hub / name, local / name)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    model = efface.load("some/model", "cpu")
    weights = {
        f.relative_to(local).as_posix() for f in local.rglob("*") if f.suffix in (".safetensors", ".bin", ".ckpt")
    }
    half = ".fp16" if only_half else ""
    assert weights == {
        f"unet/diffusion_pytorch_model{half}.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert torch.isfinite(model.weight(model.card.sites[0].name)).all()
    assert model.identity
