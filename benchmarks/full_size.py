"""What `erase` and `apply` cost at full size: time and memory, on networks of the real shapes with random weights.

A diffusers folder of each model is written from its configuration: random float16 weights, in shards of 1 GB, with the
bundled model's tokenizer. Then the commands that a reader would type run one after the other, each in a process of its
own, and the whole process is measured: imports, text encoders, solving, writing. Nothing is drawn. The random weights
say nothing of pictures; shapes, bytes and operations are the real ones.

Memory is the largest resident size of the process, pages of mapped weight files included (Linux). `--write` puts the
figures into full_size.json and the README; `--check` compares both. 20 GB of memory, 15 GB of disk and 15 minutes on
two cores are enough for both models. `--quick` is a check that it runs: small widths, figures that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from safetensors.torch import save_file

from efface import world

HERE = Path(__file__).parent
DATA, README = HERE / "full_size.json", HERE.parent / "README.md"
BETWEEN = re.compile(r"(<!-- full size -->\n).*?(<!-- end of full size -->)", re.DOTALL)
SHARD = 1_000_000_000  # bytes
METHODS = ("uce", "scapre")

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_TOKENS = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_VAE = {
    "block_out_channels": (128, 256, 512, 512), "latent_channels": 4, "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@dataclass(frozen=True)
class Shape:
    """A model by the configurations of its parts.

    parts: folder -> library, class and configuration. tokenizers: folders that hold one.
    """

    title: str
    pipeline: str
    parts: Mapping[str, tuple[str, str, Mapping[str, Any]]]
    tokenizers: tuple[str, ...] = ("tokenizer",)
    scheduler: str = "PNDMScheduler"


SD15 = Shape(
    "Stable Diffusion 1.5",
    "StableDiffusionPipeline",
    {
        "unet": ("diffusers", "UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768}),
        "text_encoder": ("transformers", "CLIPTextModel", {**_TOKENS, **_CLIP_L, "projection_dim": 768}),
        "vae": ("diffusers", "AutoencoderKL", {**_VAE, "sample_size": 512, "scaling_factor": 0.18215}),
    },
)
SDXL = Shape(
    "SDXL",
    "StableDiffusionXLPipeline",
    {
        "unet": (
            "diffusers",
            "UNet2DConditionModel",
            {
                "sample_size": 128, "cross_attention_dim": 2048, "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
                "use_linear_projection": True, "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "text_encoder": ("transformers", "CLIPTextModel", {**_TOKENS, **_CLIP_L, "projection_dim": 768}),
        "text_encoder_2": (
            "transformers",
            "CLIPTextModelWithProjection",
            {**_TOKENS, **_CLIP_G, "projection_dim": 1280, "hidden_act": "gelu"},
        ),
        "vae": ("diffusers", "AutoencoderKL", {**_VAE, "sample_size": 1024, "scaling_factor": 0.13025}),
    },
    ("tokenizer", "tokenizer_2"),
    "EulerDiscreteScheduler",
)  # fmt: skip
SHAPES = {"sd15": SD15, "sdxl": SDXL}


@dataclass(frozen=True)
class Cost:
    """One command: what it did, seconds that passed and that processors worked, its memory, bytes that it wrote."""

    model: str
    command: str
    seconds: float
    busy: float
    gigabytes: float
    written: int

    def line(self) -> str:
        size = f"{self.written / 1e9:.1f} GB" if self.written >= 1e9 else f"{self.written / 1e6:.1f} MB"
        spent = f"{self.seconds:.0f} s | {self.busy:.0f} s"
        return f"| {self.model} | {self.command} | {spent} | {self.gigabytes:.1f} GB | {size} |"


# --- a folder of random weights ---------------------------------------------------------------------------------------


def build(shape: Shape, folder: Path) -> int:
    """Write the folder; returns the bytes of its weights."""
    folder.mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": shape.pipeline, "scheduler": ["diffusers", shape.scheduler]}
    for name, (library, kind, config) in shape.parts.items():
        index[name] = [library, kind]
        _part(folder / name, kind, config)
    for name in shape.tokenizers:
        index[name] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(world.folder("mini") / "tokenizer", folder / name)
        _edit(folder / name / "tokenizer_config.json", model_max_length=77)
    (folder / "scheduler").mkdir()
    _edit(folder / "scheduler" / "scheduler_config.json", _class_name=shape.scheduler, **_NOISE)
    _edit(folder / "model_index.json", **index)
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors"))


def _part(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    """A part's configuration, and random weights in its shapes: the network itself is never in memory."""
    with torch.device("meta"):
        network = _network(kind, config)
    folder.mkdir()
    stored = network.config.to_dict() if hasattr(network.config, "to_dict") else dict(network.config)
    if "architectures" in stored:
        stored["architectures"] = [kind]
    _edit(folder / "config.json", **stored)
    stem = "diffusion_pytorch_model" if hasattr(network, "config_name") else "model"
    shards = list(_shards(network.state_dict()))
    places: dict[str, str] = {}
    for k, names in enumerate(shards, 1):
        file = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{k:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: _random(n, tuple(network.state_dict()[n].shape)) for n in names}, folder / file)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        _edit(folder / f"{stem}.safetensors.index.json", metadata={"total_size": 0}, weight_map=places)


def _network(kind: str, config: Mapping[str, Any]) -> Any:
    import diffusers
    import transformers

    if hasattr(diffusers, kind):
        return getattr(diffusers, kind)(**config)
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**config))


def _shards(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """Names of the floating tensors, as many together as fit into one shard of float16."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        if names and size + 2 * tensor.numel() > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += 2 * tensor.numel()
    yield names


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms are one, biases zero, the rest normal with unit gain."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.float16)
    fan = 1
    for size in shape[1:]:
        fan *= size
    spread = 0.02 if "embedding" in name else fan**-0.5
    return (torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode()))) * spread).half()


def _edit(file: Path, **values: Any) -> None:
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(json.dumps(before | values, indent=1, default=list), encoding="utf-8")


def quick(shape: Shape) -> Shape:
    """The same with narrow networks."""
    encoder = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoders = [name for name in shape.parts if name.startswith("text_encoder")]
    unet = shape.parts["unet"][2]
    narrow: dict[str, dict[str, Any]] = {n: {**encoder, "projection_dim": 32} for n in encoders}
    narrow["vae"] = {"block_out_channels": (32,) * 4}
    narrow["unet"] = {"block_out_channels": (32,) * len(unet.get("block_out_channels", "1234"))}
    usual = {
        "cross_attention_dim": 32 * len(encoders), "attention_head_dim": 4, "transformer_layers_per_block": 1,
        "projection_class_embeddings_input_dim": 6 * 256 + 32,
    }  # fmt: skip
    narrow["unet"] |= {k: v for k, v in usual.items() if k in unet}
    parts = {n: (library, kind, {**config, **narrow[n]}) for n, (library, kind, config) in shape.parts.items()}
    return Shape(shape.title, shape.pipeline, parts, shape.tokenizers, shape.scheduler)


# --- what the commands cost -------------------------------------------------------------------------------------------


def measured(title: str, said: str, arguments: list[str], out: Path) -> Cost:
    """Run one command in a process of its own. Raises RuntimeError with its last words when it fails."""
    command = [sys.executable, "-c", "from efface.cli import main; main()", *arguments]
    with tempfile.TemporaryFile() as words:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=words, stderr=words)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        if status:
            words.seek(0)
            last = words.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(last[-1] if last else f"exit status {status}")
    files = [out] if out.is_file() else [f for f in out.rglob("*") if f.is_file()]
    written = sum(f.stat().st_size for f in files)
    return Cost(title, said, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9, written)


def costs(shape: Shape, folder: Path, concepts: int, kept: int) -> Iterator[Cost]:
    """Every command on one model; ends at the first that fails and says why."""
    weights = build(shape, folder / "model")
    print(f"{shape.title}: {weights / 1e9:.2f} GB of random float16 weights", flush=True)
    names = [o.name for o in world.objects() if o.picked]
    (folder / "keep.txt").write_text("\n".join(names[concepts : concepts + kept]), encoding="utf-8")
    asked = [part for n in names[:concepts] for part in ("-c", n)]
    common = ["--keep-file", str(folder / "keep.txt"), "--device", "cpu", "--quiet"]
    try:
        for method in METHODS:
            out = folder / f"{method}.safetensors"
            said = f"`efface erase --method {method}`, {concepts} concepts, {kept} kept"
            arguments = ["erase", str(folder / "model"), *asked, *common, "--method", method, "-o", str(out)]
            yield measured(shape.title, said, arguments, out)
        merged = ["apply", str(folder / "model"), str(folder / f"{METHODS[-1]}.safetensors"), "-o"]
        yield measured(shape.title, "`efface apply`", [*merged, str(folder / "merged")], folder / "merged")
    except RuntimeError as error:
        print(f"{shape.title}: {error}", flush=True)


def table(rows: list[Cost]) -> str:
    """The README's table."""
    if not rows:
        return "Not measured yet: `python benchmarks/full_size.py --write` fills this table.\n"
    head = "| model | command | time | of processors | largest memory | written |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(row.line() for row in rows)]) + "\n"


def stored() -> list[Cost]:
    return [Cost(**row) for row in json.loads(DATA.read_text(encoding="utf-8"))["rows"]] if DATA.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"{' and '.join(SHAPES)}; default: both")
    parser.add_argument("--concepts", type=int, default=10)
    parser.add_argument("--keep", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="Where the folders lie while it runs; default: temporary.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write", action="store_true", help="Into full_size.json and the README.")
    parser.add_argument("--check", action="store_true", help="Whether the README's table is that of full_size.json.")
    options = parser.parse_args()
    if options.check:
        text = README.read_text(encoding="utf-8")
        sys.exit(0 if filled(text, stored()) == text else "README.md is stale; run python benchmarks/full_size.py")
    rows = []
    for name in options.models or SHAPES:
        shape = quick(SHAPES[name]) if options.quick else SHAPES[name]
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for cost in costs(shape, Path(folder), options.concepts, options.keep):
                rows.append(cost)
                print(cost.line(), flush=True)
    if options.write and not options.quick:
        write(rows)


def write(rows: list[Cost]) -> None:
    """Rows of models that were not run now stay as they are."""
    kept = [row for row in stored() if row.model not in {r.model for r in rows}]
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    rows = sorted([*kept, *rows], key=lambda r: [s.title for s in SHAPES.values()].index(r.model))
    DATA.write_text(json.dumps(machine | {"rows": [asdict(r) for r in rows]}, indent=1) + "\n", encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8"), rows), encoding="utf-8")


def filled(text: str, rows: list[Cost]) -> str:
    return BETWEEN.sub(lambda m: f"{m[1]}{table(rows)}{m[2]}", text)


if __name__ == "__main__":
    main()
