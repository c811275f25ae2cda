"""What is in force is said and never doubled; a pipeline that is wrapped, offloaded or cast gives the same patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import efface
from conftest import Cli
from efface.errors import BadRequest, WrongBase
from efface.model import Model
from tiny_families import MakePipe

ASKED = {"concepts": ["dog"], "keep": ["cat"], "method": "uce"}


def test_a_patch_in_force_is_not_applied_again(tiny_pipe: MakePipe) -> None:
    """A cell of a notebook that is run twice."""
    pipe = tiny_pipe()
    patch, other = efface.erase(pipe, **ASKED), efface.erase(pipe, ["cat"], keep=["dog"], method="uce")
    key = f"{patch.sites[0]}.weight"
    base = pipe.unet.state_dict()[key].clone()
    patch.apply_(pipe)
    once = pipe.unet.state_dict()[key].clone()
    with pytest.raises(BadRequest, match="in force already; undo it first"):
        patch.apply_(pipe)
    assert pipe.unet.state_dict()[key].equal(once)
    other.apply_(pipe)
    assert not pipe.unet.state_dict()[key].equal(once)
    other.undo_(pipe)
    patch.undo_(pipe)
    assert pipe.unet.state_dict()[key].equal(base)


def test_a_patch_that_was_made_over_another_says_so_and_needs_it(tiny: Model) -> None:
    first = efface.erase(tiny, **ASKED)
    with first.applied(tiny):
        second = efface.erase(tiny, ["cat"], method="uce")
    assert second.recipe["over"] == [first.content_hash]
    assert "over" not in first.recipe
    with pytest.raises(WrongBase, match=first.content_hash), second.applied(tiny):
        pass
    with first.applied(tiny), second.applied(tiny):
        assert tiny.in_force == f"{first.content_hash}+{second.content_hash}"


def test_autocast_around_the_call_changes_no_byte(tiny: Model) -> None:
    plain, drawn = efface.erase(tiny, **ASKED), tiny.sample(["a dog"], [0], steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert efface.erase(tiny, **ASKED).to_bytes() == plain.to_bytes()
        assert np.array_equal(tiny.sample(["a dog"], [0], steps=2), drawn)


def test_layers_that_are_offloaded_one_by_one_erase_and_draw_the_same(tiny_pipe: MakePipe) -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe, plain = tiny_pipe(), efface.load(tiny_pipe())
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        accelerate.cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    offloaded = efface.load(pipe)
    assert offloaded.device == torch.device("cpu")
    patch = efface.erase(offloaded, **ASKED)
    assert patch.content_hash == efface.erase(plain, **ASKED).content_hash
    with patch.applied(offloaded), patch.applied(plain):
        assert np.array_equal(offloaded.sample(["a dog"], [0], steps=2), plain.sample(["a dog"], [0], steps=2))


def test_a_layer_whose_forward_was_replaced_is_refused(tiny_pipe: MakePipe) -> None:
    """As adapters of other programs hang themselves in."""
    pipe = tiny_pipe()
    patch = efface.erase(pipe, **ASKED)
    layer = pipe.unet.get_submodule(patch.sites[0])
    own = layer.forward
    layer.forward = lambda x: own(x) * 2
    for act in (lambda: patch.apply_(pipe), lambda: efface.erase(pipe, **ASKED)):
        with pytest.raises(BadRequest, match=r"forward of .* was replaced"):
            act()


def test_pixels_are_the_pipelines_with_a_scheduler_that_takes_eta(tiny_pipe: MakePipe) -> None:
    """TCDScheduler's own eta is 0.3, and the pipeline hands it 0."""
    from diffusers import TCDScheduler

    pipe = tiny_pipe()
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    model = efface.load(pipe)
    height, width = model.card.size
    how = {"num_inference_steps": 4, "guidance_scale": 4.0, "height": height, "width": width, "output_type": "np"}
    theirs = pipe("a dog", generator=torch.Generator().manual_seed(3), **how).images[0]
    ours = model.sample(["a dog"], [3], steps=4, guidance=4.0)[0] / 255
    assert np.abs(theirs - ours).max() < 2 / 255


def test_a_prompt_that_is_too_long_is_refused_before_any_is_drawn(tiny_folder: Path, cli: Cli, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join([*(f"a dog {n}" for n in range(17)), "on and on " * 40]) + "\n")
    said = cli("generate", tiny_folder, "--prompts", prompts, "--steps", 1, "-o", tmp_path / "out")
    assert said.code == 2
    assert "prompt 18" in said.err
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("*.png"))
