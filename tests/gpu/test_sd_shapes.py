"""The methods at the shapes of Stable Diffusion 1.x, with random weights, on an accelerator (make test-gpu)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import efface
from efface import registry
from efface.model import Model
from tiny_families import REFERENCE, SD_UNETS, config_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def sd_pipe(dtype: torch.dtype) -> Any:
    """Random weights, drawn on the GPU; the tokenizer of the reference pipeline, a small decoder."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    text = {**config_of("text_encoder"), "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "projection_dim": 768}  # fmt: skip
    with torch.device("cuda"):
        unet = UNet2DConditionModel(**SD_UNETS["1.x"]).to(dtype)
        encoder = CLIPTextModel(CLIPTextConfig(**text)).to(dtype)
        vae = AutoencoderKL.from_config(config_of("vae")).to(dtype)
    schedule = json.loads((REFERENCE / "scheduler" / "scheduler_config.json").read_text())
    pipe = StableDiffusionPipeline(
        unet=unet, text_encoder=encoder, vae=vae,  # pyright: ignore[reportArgumentType]
        tokenizer=CLIPTokenizer.from_pretrained(REFERENCE / "tokenizer"),
        scheduler=DPMSolverMultistepScheduler.from_config(schedule),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # pyright: ignore
    )  # fmt: skip
    for module in (unet, encoder, vae):
        module.eval().requires_grad_(False)
    return pipe


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    yield efface.load(sd_pipe(getattr(torch, request.param)))
    torch.cuda.empty_cache()


def bits(model: Model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.part("unet").state_dict().items()}


@pytest.mark.parametrize("method", registry.names("methods"))
def test_erase_apply_and_undo_at_full_width(method: str, model: Model) -> None:
    before = bits(model)
    patch = efface.erase(model, ["dog", "noto style", "cat"], ["a house"], method)
    assert len(patch.sites) == 32
    assert all(bool(torch.isfinite(t).all()) for e in patch.edits for t in e.tensors().values())
    with patch.applied(model):
        inside = model.part("unet").state_dict()
        changed = {k for k in before if not before[k].equal(inside[k])}
        assert changed == {f"{s}.weight" for s in patch.sites}
        assert all(inside[k].dtype == model.dtype and inside[k].is_cuda for k in changed)
    assert all(v.equal(before[k]) for k, v in model.part("unet").state_dict().items())


@pytest.mark.parametrize("method", registry.names("methods"))
def test_the_same_request_gives_the_same_bytes(method: str, model: Model) -> None:
    one, two = (efface.erase(model, ["dog", "cat"], ["a house"], method) for _ in range(2))
    assert one.to_bytes() == two.to_bytes()


def test_it_draws(model: Model) -> None:
    if model.dtype is torch.bfloat16:
        pytest.skip("the random decoder is checked in float16")
    assert model.generate("a dog", steps=2)[0].size == (512, 512)
