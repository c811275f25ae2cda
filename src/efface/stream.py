"""Merging without a model in memory: copy the folder, overwrite the byte ranges of the edited sites.

The same dtype and shape mean the same offsets, so every other byte stays as it was by construction.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from efface.errors import BadRequest, OutputExists, WrongFile
from efface.registry import find
from efface.store import write_bytes

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Patch

__all__ = ["merge"]

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge(model: Model, patch: Patch, out: Path, overwrite: bool = False) -> int:
    """Write a diffusers folder with the patch in its weights; returns the number of changed weights.

    Each weight keeps its dtype and is rounded once. Raises OutputExists, WrongBase, BadRequest for a patch that
    acts by prompt, WrongFile.
    """
    if patch.by_prompt:
        raise BadRequest("this patch acts by prompt, which a checkpoint cannot hold; use efface generate --patch")
    if out.exists() and not overwrite:
        raise OutputExists(out)
    model.verify(patch)
    part = find("families", model.card.family).denoiser
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(model.folder, temporary)
        done = _rewrite(temporary / part, model, patch)
        header = json.dumps({"patch": patch.hash, "recipe": patch.recipe}, indent=1).encode()
        write_bytes(temporary / "efface-patch.json", header)
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        os.replace(temporary, out)
    except OSError as error:
        raise WrongFile(f"cannot write {out}: {error.strerror or error}; choose another place") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def _rewrite(folder: Path, model: Model, patch: Patch) -> int:
    wanted = {model.card.site(s).key: s for s in patch.sites}
    found: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        file.chmod(0o644)
        with file.open("r+b") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            for key in sorted(wanted.keys() & header.keys()):
                _rewrite_tensor(stream, 8 + size, header[key], wanted[key], patch)
                found.add(key)
            stream.flush()
            os.fsync(stream.fileno())
    if missing := sorted(wanted.keys() - found):
        raise WrongFile(f"{folder} lacks the tensor {missing[0]}; fetch the model again")
    return len(found)


def _rewrite_tensor(stream: BinaryIO, start: int, entry: dict[str, list[int]], site: str, patch: Patch) -> None:
    begin, end = entry["data_offsets"]
    dtype = _DTYPES[str(entry["dtype"])]
    stream.seek(start + begin)
    old = torch.frombuffer(bytearray(stream.read(end - begin)), dtype=dtype).reshape(entry["shape"])
    new = patch.weight(site, old).contiguous()
    stream.seek(start + begin)
    stream.write(new.view(torch.uint8).numpy().tobytes())
