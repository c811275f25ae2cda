"""What is special to one family: padding, missing encoders, sizes, precision, and shapes at full size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface
from efface.erasure import plan
from efface.errors import Unavailable, WrongFile
from efface.evidence.gather import gather
from efface.families._flow import shift
from efface.families.flux import Flux
from efface.families.sd3 import StableDiffusion3
from efface.families.sdxl import StableDiffusionXL
from efface.model import Model
from efface.model.card import Card
from efface.model.config import Config
from efface.patch import Operator, Patch
from efface.work import Work
from tiny_families import FAMILIES, sdxl

REQUEST: dict[str, Any] = {"concepts": ["dog=cat"], "keep": ["red house"]}


def model(row: str) -> Model:
    return efface.load(FAMILIES[row].build())


def operators(patch: Patch) -> dict[str, torch.Tensor]:
    """S of every door (d, d)."""
    edits = [e for e in patch.edits if isinstance(e, Operator)]
    return {e.stream: e.left.double() @ e.right.double().T for e in edits}


# --- SD 3: two streams through one door ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["uce", "scapre"])
def test_padded_columns_are_not_solved_for(method: str) -> None:
    """Without T5 every row is zero beyond CLIP's width: the weight's columns there stay bit-equal."""
    tiny = model("sd3 without T5")
    width = tiny.card.stream("clip").width
    patch = efface.erase(tiny, method=method, **REQUEST)
    S = operators(patch)["text"]
    assert width < len(S)
    assert S[:width, :width].abs().max() > 1e-3
    assert S[width:].abs().max() <= 1e-12
    assert S[:, width:].abs().max() <= 1e-12
    (site,) = tiny.card.through(tiny.card.doors[0])
    old = tiny.weight(site.name)
    new = patch.weight(site.name, old)
    assert new[:, width:].equal(old[:, width:])
    assert not new[:, :width].equal(old[:, :width])


def test_beyond_the_width_of_clip_the_equation_is_that_of_t5_alone() -> None:
    tiny = model("sd3")
    made = plan(tiny, ["dog=cat"], ["red house"], "uce")
    evidence, door = gather(tiny, made.needs, Work()), tiny.card.doors[0]
    width = tiny.card.stream("clip").width
    alone = {n: dataclasses.replace(door, streams=(n,)) for n in door.streams}
    both = made.method.constraints(evidence, made.request, door).rows
    t5 = made.method.constraints(evidence, made.request, alone["t5"]).rows
    clip = made.method.constraints(evidence, made.request, alone["clip"]).rows
    assert not clip[:, width:].any()
    torch.testing.assert_close((both.T @ both)[width:], (t5.T @ t5)[width:])
    assert not torch.allclose((both.T @ both)[:width, :width], (t5.T @ t5)[:width, :width])


def test_streams_say_what_the_pipeline_feeds() -> None:
    pipe = FAMILIES["sd3"].build()
    tiny = efface.load(pipe)
    wanted, _, vectors, _ = pipe.encode_prompt("a dog", None, None, do_classifier_free_guidance=False)
    context = tiny.network.context(["a dog"]).tensors
    torch.testing.assert_close(context["rows"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(context["pooled"], vectors, rtol=1e-4, atol=1e-5)
    assert [s.name for s in tiny.card.streams] == ["clip", "t5", "pooled"]
    assert tiny.sizes("a red house")[1] == 255
    assert model("sd3 without T5").sizes("a red house") == (3, 22)


# --- SDXL ------------------------------------------------------------------------------------------------------------


def test_the_blank_side_is_part_of_what_a_model_is() -> None:
    """Zeros or the empty text draw different pictures, so they are different cards."""
    zeros, text = model("sdxl").card, model("sdxl with an empty text").card
    assert (zeros.blank, text.blank) == ("zeros", "text")
    assert zeros.hash != text.hash
    assert dataclasses.replace(zeros, blank="text").hash == text.hash


def test_a_vae_that_overflows_in_half_precision_is_widened_for_as_long_as_it_decodes() -> None:
    pipe = FAMILIES["sdxl"].build().to(torch.float16)
    tiny = efface.load(pipe)
    assert (tiny.dtype, pipe.vae.config.force_upcast) == (torch.float16, True)
    x = torch.randn(1, *tiny.card.latent, generator=torch.Generator().manual_seed(0)).half()
    before = {k: v.clone() for k, v in pipe.vae.state_dict().items()}
    with torch.inference_mode():
        found = tiny.network.decode(x)
        wide = pipe.vae.float().decode(x.float() / pipe.vae.config.scaling_factor).sample
    pipe.vae.half()
    torch.testing.assert_close(found, wide, rtol=1e-4, atol=1e-4)
    assert pipe.vae.dtype == torch.float16
    assert all(v.equal(before[k]) for k, v in pipe.vae.state_dict().items())


@pytest.mark.slow
def test_half_precision_draws_as_the_pipeline_does() -> None:
    pipe = FAMILIES["sdxl"].build().to(torch.float16)
    tiny = efface.load(pipe)
    height, width = tiny.card.size
    generator = [torch.Generator().manual_seed(3)]
    how = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": height, "width": width}
    wanted = np.asarray(pipe(["a dog"], generator=generator, output_type="pil", **how).images[0])
    found = tiny.sample(["a dog"], [3], steps=3, guidance=5.0)[0]
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_latents_with_a_mean_and_a_spread_are_decoded_with_them() -> None:
    """As in Playground 2.5, whose parts are those of SDXL."""
    pipe = FAMILIES["sdxl"].build()
    mean, spread = [0.5, -0.25, 0.0, 1.0], [1.5, 2.0, 0.5, 1.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=spread)
    tiny = efface.load(pipe)
    x = torch.randn(1, *tiny.card.latent, generator=torch.Generator().manual_seed(0))
    moved = x * torch.tensor(spread).view(1, 4, 1, 1) / pipe.vae.config.scaling_factor
    with torch.inference_mode():
        wanted = pipe.vae.decode(moved + torch.tensor(mean).view(1, 4, 1, 1)).sample
        torch.testing.assert_close(tiny.network.decode(x), wanted)


def test_a_denoiser_that_is_told_the_guidance_or_something_else_is_refused() -> None:
    pipe = sdxl()
    pipe.unet.register_to_config(time_cond_proj_dim=16)
    with pytest.raises(Unavailable, match="told the guidance"):
        efface.load(pipe)
    pipe.unet.register_to_config(time_cond_proj_dim=None, addition_embed_type="image")
    with pytest.raises(Unavailable, match="told 'image'"):
        efface.load(pipe)


# --- FLUX ------------------------------------------------------------------------------------------------------------


def test_without_a_word_of_its_own_it_draws_what_its_pipeline_draws_by_default() -> None:
    pipe = FAMILIES["flux dev"].build()
    card = efface.load(pipe).card
    side = pipe.default_sample_size * pipe.vae_scale_factor
    assert card.size == (side, side)
    assert (card.steps, card.guidance, card.blank) == (28, 3.5, "nothing")
    schnell = model("flux schnell").card
    assert (schnell.steps, schnell.guidance) == (4, 0.0)


@pytest.mark.parametrize("size", [[32, 64], 64])
def test_a_model_may_say_how_large_it_draws(size: Any, tmp_path: Path) -> None:
    folder = FAMILIES["flux dev"].save(tmp_path / "m")
    (folder / "efface.json").write_text(json.dumps({"size": size, "steps": 2, "guidance": 2.0}))
    tiny = efface.load(folder, "cpu")
    height, width = size if isinstance(size, list) else (size, size)
    assert tiny.sample(["a dog"], [0]).shape == (1, height, width, 3)
    assert (tiny.card.steps, tiny.card.guidance) == (2, 2.0)


@pytest.mark.parametrize("facts", [{"size": [32]}, {"size": "large"}, {"size": [0, 32]}, {"size": [2, 2]}, [], 7,
                                   {"steps": "many"}, {"guidance": True}, {"captions": 3}])  # fmt: skip
def test_facts_of_the_wrong_kind_are_refused_in_one_sentence(facts: Any, tmp_path: Path) -> None:
    folder = FAMILIES["flux dev"].save(tmp_path / "m")
    (folder / "efface.json").write_text(json.dumps(facts))
    with pytest.raises(WrongFile, match=r"efface\.json") as caught:
        efface.load(folder, "cpu")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("key", "value"), [("in_channels", "many"), ("in_channels", None), ("num_layers", "x")])
def test_a_configuration_of_the_wrong_kind_is_refused_in_one_sentence(key: str, value: Any, tmp_path: Path) -> None:
    folder = FAMILIES["flux dev"].save(tmp_path / "m")
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(WrongFile, match=r"transformer.config\.json") as caught:
        efface.load(folder, "cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_a_transformer_that_takes_a_picture_is_refused() -> None:
    pipe = FAMILIES["flux dev"].build()
    pipe.transformer.register_to_config(in_channels=24, out_channels=16)
    with pytest.raises(Unavailable, match="takes 24 channels and gives 16"):
        efface.load(pipe)


def test_noise_levels_move_with_the_picture_as_in_the_pipeline() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for positions in (64, 256, 1024, 4096):
        assert shift(scheduler, positions) == pytest.approx(calculate_shift(positions), rel=1e-12)


def test_every_call_with_context_knows_a_guidance() -> None:
    """Training asks the network outside the sampler: what is not told is the card's."""
    dev, schnell = model("flux dev"), model("flux schnell")
    assert dev.network.context(["a dog"]).tensors["guidance"].tolist() == [dev.card.guidance]
    assert "guidance" not in schnell.network.context(["a dog"]).tensors


@pytest.mark.parametrize("row", ["sd3", "flux dev"])
@pytest.mark.parametrize("method", ["kscu", "esd"])
def test_methods_that_walk_another_scheduler_refuse_a_flow(method: str, row: str) -> None:
    with pytest.raises(Unavailable, match="predicts a flow, which DDIMScheduler cannot walk"):
        efface.erase(model(row), method=method, **REQUEST)


# --- full size, from configurations alone ----------------------------------------------------------------------------

CLIP_L = {"hidden_size": 768, "max_position_embeddings": 77, "projection_dim": 768}
CLIP_G = {"hidden_size": 1280, "max_position_embeddings": 77, "projection_dim": 1280}
VAE = {"block_out_channels": [128, 256, 512, 512]}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SDXL_UNET = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def card(family: Any, **files: dict[str, Any]) -> Card:
    return family.card("full", {n: Config(n, values) for n, values in files.items()}, Config("efface.json"))


def doors(found: Card) -> dict[str, list[tuple[int, ...]]]:
    return {d.name: sorted({s.shape for s in found.through(d)}) for d in found.doors}


def test_sdxl_has_seventy_keys_and_seventy_values_of_width_2048() -> None:
    """1.P-4, without weights."""
    euler = {"_class_name": "EulerDiscreteScheduler"}
    found = card(
        StableDiffusionXL(), unet=SDXL_UNET, text_encoder=CLIP_L, text_encoder_2=CLIP_G, vae=VAE, scheduler=euler,
        index={"force_zeros_for_empty_prompt": True},
    )  # fmt: skip
    for role in ("cross.k", "cross.v"):
        shapes = [s.shape for s in found.select(role)]
        assert shapes.count((640, 2048)) == 10
        assert shapes.count((1280, 2048)) == 60
    assert len(found.through(found.doors[0])) == 140
    assert [s.shape for s in found.select("pooled.in")] == [(1280, 2816)]
    assert (found.size, found.latent) == ((1024, 1024), (4, 128, 128))


def test_sd3_and_flux_have_two_doors_of_one_site_each() -> None:
    sd3 = card(
        StableDiffusion3(), transformer={"sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24,
        "num_attention_heads": 24, "caption_projection_dim": 1536, "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 192, "out_channels": 16}, text_encoder=CLIP_L,
        text_encoder_2=CLIP_G, text_encoder_3={}, vae=VAE, scheduler=FLOW,
    )  # fmt: skip
    assert doors(sd3) == {"text": [(1536, 4096)], "pooled": [(1536, 2048)]}
    assert [(s.name, s.width, s.length) for s in sd3.streams] == [
        ("clip", 2048, 77), ("t5", 4096, 256), ("pooled", 2048, 1),
    ]  # fmt: skip
    assert (sd3.size, sd3.steps, sd3.guidance) == ((1024, 1024), 28, 7.0)
    flux = card(
        Flux(), transformer={"in_channels": 64, "patch_size": 1, "joint_attention_dim": 4096, "num_layers": 19,
        "num_single_layers": 38, "pooled_projection_dim": 768, "guidance_embeds": True}, text_encoder=CLIP_L,
        text_encoder_2={}, vae=VAE, scheduler=FLOW,
    )  # fmt: skip
    assert doors(flux) == {"text": [(3072, 4096)], "pooled": [(3072, 768)]}
    assert (flux.size, flux.latent) == ((1024, 1024), (16, 128, 128))
    assert all(s.bias for d in flux.doors for s in flux.through(d))
