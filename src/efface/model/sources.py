"""Sources: where a model's configurations, tensors and parts come from: a diffusers folder or a pipeline in memory."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from efface.errors import Unavailable, WrongFile, nearest
from efface.model.config import Config, bounded, sentences
from efface.model.family import Family, Part
from efface.model.reach import refuse_adapters, unwrapped
from efface.model.recognise import family_of_index
from efface.untrusted import plain_name, refuse_code, short
from efface.untrusted.documents import read_json

__all__ = ["Folder", "Pipeline", "locate"]

_RENAMED = Version(version("diffusers")) >= Version("0.42")


class Pipeline:
    """The user's own diffusers pipeline; its parts are used as they are."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self.pipe, self._family = pipe, family
        origin = Path(str(getattr(pipe.config, "_name_or_path", "") or ""))
        self._folder = Folder(origin) if (origin / "model_index.json").exists() else None

    @property
    def name(self) -> str:
        """The folder that the pipeline was loaded from, by the bundled name where it is one; else its hub id."""
        if self._folder:
            return _known_as(self._folder.path)
        origin = str(getattr(self.pipe.config, "_name_or_path", "") or "")
        return origin if re.fullmatch(r"[\w.-]+/[\w.-]+", origin) else "pipeline"

    def has(self, name: str) -> bool:
        """Whether it has a part of the family."""
        return getattr(self.pipe, name, None) is not None

    def part(self, name: str, device: torch.device, dtype: torch.dtype) -> Any:
        part = unwrapped(getattr(self.pipe, name, None))
        if isinstance(part, torch.nn.Module) and name != self._family.parts[0].name:
            refuse_adapters(part, name)  # those of the denoiser matter at the edited layers alone
        return part

    def configs(self) -> dict[str, Config]:
        parts = (p.name for p in self._family.parts if p.weighed and self.has(p.name))
        found = {name: _config_of(unwrapped(getattr(self.pipe, name))) for name in parts}
        found["scheduler"] = dict(self.pipe.scheduler.config) | {"_class_name": type(self.pipe.scheduler).__name__}
        found["index"] = dict(self.pipe.config)
        return {name: Config(f"the pipeline's {name}", values) for name, values in found.items()}

    def tensor(self, part: str, keys: Sequence[str]) -> torch.Tensor:
        raise WrongFile("a pipeline's weights are in memory")

    def json(self, name: str) -> dict[str, Any]:
        """What the pipeline's folder says, so that a model means the same as a folder and as a pipeline."""
        return self._folder.json(name) if self._folder else {}

    @property
    def facts(self) -> Config:
        """What the model says of itself in `efface.json`."""
        return self._folder.facts if self._folder else Config("efface.json")


def _config_of(module: Any) -> dict[str, Any]:
    """Of a part of diffusers or transformers."""
    return module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)


def _known_as(path: Path) -> str:
    from efface import world

    bundled = (n for n in world.models() if world.folder(n).resolve() == path.resolve())
    return next(bundled, path.name)


class Folder:
    """A diffusers folder with safetensors files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "model_index.json").exists():
            raise WrongFile(f"{path} is no diffusers folder: it lacks model_index.json; save_pretrained makes one")
        self.index = self.json("model_index.json")
        for name in self.parts:
            plain_name(name, path / "model_index.json")
        self._parts: dict[str, tuple[Part, tuple[str, str]]] = {}

    def json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        if not file.exists():
            return {}
        found = read_json(file, "fetch the model again", numbers=False)
        if not isinstance(found, dict):
            raise WrongFile(f"{file} is no table; fetch the model again")
        return found

    def allow(self, parts: Iterable[Part]) -> None:
        """Let these parts be opened, each as one of these classes. Raises WrongFile for a part of another class.

        A configuration that asks for code of its own is refused too.
        """
        for part in parts:
            named = self.index.get(part.name)
            if isinstance(named, list) and len(named) == 2 and all(n is None or isinstance(n, str) for n in named):
                named = (named[0], named[1])
            if named in (None, (None, None)) and not part.needed:
                continue
            if named not in part.classes:
                known = " or ".join(".".join(c) for c in part.classes)
                raise WrongFile(
                    f"{self.path}: part {part.name} is of class {short(named)}, expected {known}; use another folder"
                )
            refuse_code(self.path / part.name)
            self._parts[part.name] = (part, named)

    def configs(self) -> dict[str, Config]:
        """The configuration of each weighed part, of the scheduler and of the whole. Raises WrongFile."""
        files = {name: f"{name}/config.json" for name, (part, _) in self._parts.items() if part.weighed}
        files["scheduler"] = "scheduler/scheduler_config.json"
        found = {name: bounded(Config(str(self.path / file), self.json(file))) for name, file in files.items()}
        for name, config in found.items():
            if not config.values:
                raise WrongFile(f"{self.path} is no complete diffusers folder: it lacks the configuration of {name}")
        found["scheduler"] = self._scheduled(found["scheduler"])
        return found | {"index": Config(str(self.path / "model_index.json"), self.index)}

    def _scheduled(self, scheduler: Config) -> Config:
        """With the class that the index names, which is the one that the pipeline takes.

        What claims to be no scheduler at all stays, for the family to refuse.
        """
        named, own = self.index.get("scheduler"), str(scheduler.values.get("_class_name", "Scheduler"))
        if not (isinstance(named, list) and len(named) == 2 and named[1] and own.endswith("Scheduler")):
            return scheduler
        return Config(scheduler.where, {**scheduler.values, "_class_name": named[1]})

    @property
    def facts(self) -> Config:
        """What the model says of itself in `efface.json`."""
        return bounded(Config(str(self.path / "efface.json"), self.json("efface.json")))

    def has(self, name: str) -> bool:
        """Whether it has a part of the family that may be opened."""
        return name in self._parts

    @property
    def weighed(self) -> tuple[str, ...]:
        """The parts whose weights are read."""
        return tuple(name for name, (part, _) in self._parts.items() if part.weighed)

    @property
    def parts(self) -> dict[str, bool]:
        """Every part that the index names, and whether its folder is there."""
        named = (n for n, of in self.index.items() if isinstance(of, list) and any(of))
        return {n: (self.path / n).is_dir() for n in named}

    def weights(self, part: str) -> list[Path]:
        """The weight files of a part: those without a variant (`fp16`, `non_ema`) in their names, else of one variant.

        Raises WrongFile.
        """
        folder = self.path / part
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            found.setdefault(_variant(file), []).append(file)
        if not found:
            if [*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]:
                raise WrongFile(
                    f"{folder} holds pickled weights, which can run code; convert them to safetensors first"
                )
            raise WrongFile(f"{folder} holds no .safetensors weights; fetch the model again")
        return found[min(found, key=lambda v: (v != "", v != "fp16", v))]

    def tensor(self, part: str, keys: Sequence[str]) -> torch.Tensor:
        """One tensor by the first of its names that exists (library versions name text encoders differently)."""
        from safetensors import SafetensorError, safe_open

        try:
            for file in self.weights(part):
                with safe_open(file, "pt") as opened:
                    for key in keys:
                        if key in opened.keys():  # noqa: SIM118 (not a dict)
                            return opened.get_tensor(key)
        except SafetensorError as error:
            raise WrongFile(f"{self.path / part} holds a damaged file ({error}); fetch the model again") from None
        raise WrongFile(f"{self.path / part} lacks the tensor {keys[0]}; fetch the model again")

    def part(self, name: str, device: torch.device, dtype: torch.dtype) -> Any:
        import importlib

        if not self.has(name):
            return None
        part, (library, known) = self._parts[name]
        cls = getattr(importlib.import_module(library), known)  # one of the family's own, by `allow`
        if not part.weighed:
            with sentences(self.path / name):
                return cls.from_pretrained(self.path / name, trust_remote_code=False, local_files_only=True)
        variant = _variant(self.weights(name)[0])
        return _ready(_read(cls, self.path / name, dtype, variant), device)


def _variant(file: Path) -> str:
    """`fp16` of `model.fp16.safetensors` and of its shards, "" of `model.safetensors`."""
    return re.sub(r"-\d+-of-\d+", "", file.stem).partition(".")[2]


def _read(cls: Any, path: Path, dtype: torch.dtype, variant: str) -> torch.nn.Module:
    ours: dict[str, Any] = {"dtype": dtype}
    if cls.__module__.startswith("diffusers"):
        # it renamed the argument and warns about the old name; it also warns when accelerate is not there to be used
        ours = {"dtype" if _RENAMED else "torch_dtype": dtype}
        ours["low_cpu_mem_usage"] = importlib.util.find_spec("accelerate") is not None
    else:
        ours |= {"trust_remote_code": False, "local_files_only": True}
    with sentences(path):
        module = cls.from_pretrained(path, use_safetensors=True, variant=variant or None, **ours)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WrongFile(f"{path} holds NaN or infinity at {name}; use an undamaged copy of the model")
    return module


def _ready(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    module = module.eval().requires_grad_(False).to(device)
    # Convolutions on CPU are about a tenth faster with channels last; the numbers are the same.
    return module.to(memory_format=torch.channels_last) if device.type == "cpu" else module  # pyright: ignore


# --- where they lie ---------------------------------------------------------------------------------------------------


def locate(target: str, offline: bool) -> tuple[Path, str]:
    """Where the folder of a bundled name, folder or hub id is, and its name. Raises WrongFile, Unavailable."""
    from efface import world

    if target in world.models():
        return world.folder(target), target
    path = Path(target)
    if path.is_dir():
        return path, path.name
    if path.is_file():
        if path.suffix in (".ckpt", ".pt", ".pth", ".bin", ".pkl"):
            raise WrongFile(f"{path} is a pickle, which can run code; convert it to a diffusers folder first")
        raise WrongFile(f"{path} is {_single(path)}")
    if target.count("/") == 1 and not target.startswith((".", "/", "~")):
        return _fetch(target, offline), target
    close = nearest(target, world.models())
    hint = f"did you mean {close[0]!r}?" if close else f"bundled models are {', '.join(world.models())}"
    raise WrongFile(f"there is no model {target!r}: neither a bundled name, a folder nor a hub id; {hint}")


def _single(path: Path) -> str:
    """What a single file is, by the names of its tensors, and what to do with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as opened:
            keys = list(opened.keys())
    except (SafetensorError, OSError):
        keys = []
    if any(".lora_" in key or ".lokr_" in key or ".hada_" in key for key in keys):
        return "an adapter (LoRA), no model; fuse it into its base, then save_pretrained(FOLDER)"
    whole = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")
    if keys and not any(key.startswith(whole) for key in keys):
        return (
            f"a part of a model, {len(keys)} tensors without a text encoder; load them into the base pipeline, "
            "then save_pretrained(FOLDER)"
        )
    return (
        "a single file; save it as a folder first: from_single_file(...) of its diffusers pipeline, "
        "then save_pretrained(FOLDER)"
    )


def _fetch(hub_id: str, offline: bool) -> Path:
    """What is read of a model: its index first, which says the family, then one copy of its parts' weights.

    Half-precision variants are taken only where there is nothing else.
    """
    from huggingface_hub import snapshot_download

    five = "[0-9]" * 5

    def get(*wanted: str) -> Path:
        return Path(snapshot_download(hub_id, allow_patterns=list(wanted), local_files_only=offline))

    try:
        texts = ("*.json", "*.txt", "*.model", "LICENSE*")
        index = Folder(get("model_index.json")).index
        weighed = [p.name for p in family_of_index(index, hub_id).parts if p.weighed]
        stems = ("*model", "*model-" + five + "-of-" + five)
        folder = get(*texts, *(f"{part}/{stem}.safetensors" for part in weighed for stem in stems))
        bare = [part for part in weighed if not any((folder / part).glob("*.safetensors"))]
        return get(*texts, *(f"{part}/*.fp16*.safetensors" for part in bare)) if bare else folder
    except Unavailable:
        raise
    except Exception as error:
        how = "it is not in the local cache and --offline was given" if offline else type(error).__name__
        raise Unavailable(
            f"there is no folder {hub_id!r} here, and as a hub id it cannot be fetched ({how}); "
            "check the path, or download the model and pass its folder"
        ) from None
