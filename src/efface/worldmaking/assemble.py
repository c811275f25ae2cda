"""Trained parts to a model folder that plain diffusers loads, or to a gold: the U-Net alone beside its base."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from efface import world
from efface.errors import WrongFile
from efface.files import write_bytes
from efface.world.golds import digest, placed, staging_for
from efface.worldmaking.artwork import FAMILIES
from efface.worldmaking.lessons import Withheld
from efface.worldmaking.sittings import RESULT, read, write_json
from efface.worldmaking.sizes import Size
from efface.worldmaking.train_text import load_encoder
from efface.worldmaking.train_unet import SCHEDULE, unet
from efface.worldmaking.train_vae import finished_vae, load_vae

__all__ = ["write_gold", "write_model"]

STEPS, GUIDANCE = 20, 4.0
CAPTIONS = ["name", "style", "background", "templates", "synonym", "clue", "category", "two", "empty"]
SHARED = ("tokenizer/tokenizer.json", "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors")
CLASSES = {
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_model(size: Size, home: Path, part: Path, target: Path, withheld: Withheld | None = None) -> Path:
    """The whole model in `target`, float16, as it stands after the U-Net phase `part`; a former one is replaced.

    Raises WrongFile for a full disk.
    """
    with _whole_or_nothing(target) as staging:
        _write_parts(size, home, part, staging)
        _facts(size, staging, withheld or Withheld())
        return placed(staging, target)


def _write_parts(size: Size, home: Path, part: Path, staging: Path) -> None:
    text, drawing = load_encoder(size, home / "tokenizer", home / "text"), finished_vae(home)
    assert drawing is not None, "latents come before the U-Net, and a VAE before them"
    vae = load_vae(size, drawing)
    text.half().save_pretrained(staging / "text_encoder")
    vae.half().save_pretrained(staging / "vae")
    _unet(size, part).save_pretrained(staging / "unet")
    (staging / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copyfile(home / "tokenizer" / name, staging / "tokenizer" / name)
    schedule = {
        "_class_name": CLASSES["scheduler"][1], "_diffusers_version": _version(), **SCHEDULE,
        "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": True, "solver_order": 2,
        "solver_type": "midpoint", "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    }  # fmt: skip
    write_json(staging / "scheduler" / "scheduler_config.json", schedule)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": _version()}
    index |= CLASSES | {"feature_extractor": [None, None], "image_encoder": [None, None]}
    write_json(staging / "model_index.json", index | {"safety_checker": [None, None], "requires_safety_checker": False})


def write_gold(size: Size, whole: Path, target: Path, withheld: Withheld) -> Path:
    """A gold in `target`: of the model in `whole` the U-Net, the concept list and a card that names the base.

    The card holds the checksums of what the gold shares with its base. Raises WrongFile for a full disk.
    """
    with _whole_or_nothing(target) as staging:
        shutil.copytree(whole / "unet", staging / "unet")
        _facts(size, staging, withheld)
        write_json(staging / "gold.json", {
            "base": size.name, "withheld": {"objects": withheld.objects, "styles": withheld.styles},
            "shared": "tokenizer, text encoder and VAE are those of the base; the U-Net never saw what is withheld",
            "base_files_sha256": {name: digest(whole / name) for name in SHARED},
        })  # fmt: skip
        return placed(staging, target)


@contextmanager
def _whole_or_nothing(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`; nothing stays of it when the block fails."""
    staging = staging_for(target)
    try:
        yield staging
    except (OSError, SafetensorError) as error:
        raise WrongFile(f"cannot write {target} ({error}); free some space there, then run it again") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unet(size: Size, part: Path) -> Any:
    net = unet(size)
    weights, _ = read(part / RESULT)
    net.load_state_dict({k: v.float() for k, v in weights.items()})
    return net.to(torch.float16)


def _facts(size: Size, folder: Path, withheld: Withheld) -> None:
    """Defaults, a concept list without rates (`efface world check` measures them), and whose artwork it is."""
    facts = {"steps": STEPS, "guidance": GUIDANCE, "preset": "world", "captions": CAPTIONS}
    write_json(folder / "efface.json", facts)
    kept = [o for o in world.objects() if o.name in size.objects and o.name not in withheld.objects]
    rows = [{"name": o.name, "kind": "object", "category": o.category, "half": o.half} for o in kept]
    families = [s for s in size.styles if s not in withheld.styles]
    rows += [{"name": s, "kind": "style", "category": "style", "half": "report"} for s in families]
    unknown = {"base_rate": None, "n": 0, "qualified": False}
    write_json(folder / "concepts.json", {"judge": None, "concepts": [r | unknown for r in rows]})
    # a gold shares text encoder and VAE with its base, which saw every style
    credit = [f"- {f.style}: {f.author}, {f.licence}, {f.source}" for f in FAMILIES if f.style in size.styles]
    text = [
        f"# {size.name}: a small Stable Diffusion of the emoji world", "",
        f"{len(kept)} objects, {len(families)} styles, {size.pixels} x {size.pixels} pixels. {_loads(size, withheld)}",
        "", "Trained on scenes rendered from this artwork (rendered, scaled, shifted, turned, placed on colours):", "",
        *credit, "", "None of these authors endorses this model or what it draws.", "",
    ]  # fmt: skip
    write_bytes(folder / "README.md", "\n".join(text).encode())


def _loads(size: Size, withheld: Withheld) -> str:
    if not withheld:
        return "Loads in plain diffusers."
    names = ", ".join([*withheld.objects, *(f"{s} style" for s in withheld.styles)])
    return (
        f"A gold: its U-Net never saw {names}. Bundled as the U-Net alone; `efface.load` puts it together with the "
        f"other parts of {size.name}."
    )


def _version() -> str:
    import diffusers

    return diffusers.__version__
