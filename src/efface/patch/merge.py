"""Merging without a model in memory: copy what the model is made of, overwrite the byte ranges of the edited sites.

The same dtype and shape mean the same offsets, so every other byte stays as it was by construction. Other copies of
the weights that lie in the folder (variants, pickles, whole checkpoints) are not edited and so stay behind.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from efface.errors import BadRequest, WrongFile
from efface.files import new_folder, write_bytes
from efface.model.sources import Folder
from efface.untrusted import contained
from efface.untrusted.documents import parsed_json

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Patch

__all__ = ["merge"]

MARK = "efface-patch.json"  # says which patch is in a merged folder, and that Efface wrote it
_TEXTS = (".json", ".md", ".txt")

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def merge(model: Model, patch: Patch, out: Path, overwrite: bool = False) -> int:
    """Write a diffusers folder with the patch in its weights; returns the number of changed weights.

    Each weight keeps its dtype and is rounded once. A part that the index names and the folder lacks (the safety
    checker of a fetched model) is taken out of the index. An output is overwritten if it came from here or is empty.
    Raises OutputExists, WrongBase, BadRequest for a patch that acts by prompt, WrongFile.
    """
    if patch.by_prompt:
        raise BadRequest("this patch acts by prompt, which a checkpoint cannot hold; use efface generate --patch")
    source = Folder(model.folder)
    with new_folder(out, overwrite, lambda there: (there / MARK).is_file()) as made:
        patch.verify(model)
        _copy(source, model.network.weighed, made)
        done = _rewrite(made / model.network.weighed[0], model, patch)
        header = json.dumps({"patch": patch.hash, "recipe": patch.recipe}, indent=1).encode()
        write_bytes(made / MARK, header)
    return done


def _copy(source: Folder, weighed: Sequence[str], made: Path) -> None:
    """Texts, the parts that are read with one copy of their weights, and every other part of the index as it is."""
    for file in source.path.iterdir():
        if file.is_file() and (file.suffix in _TEXTS or file.stem in ("LICENSE", "NOTICE")):
            shutil.copyfile(contained(file, source.path), made / file.name)
    for part, there in source.parts.items():
        if part in weighed:
            (made / part).mkdir()
            for file in (*(source.path / part).glob("*.json"), *source.weights(part)):
                shutil.copyfile(contained(file, source.path), made / part / file.name)
        elif there:
            _copy_part(source.path, part, made)
    if absent := [part for part, there in source.parts.items() if not there]:
        index = source.index | {part: [None, None] for part in absent}
        if "safety_checker" in absent:
            index["requires_safety_checker"] = False
        write_bytes(made / "model_index.json", json.dumps(index, indent=2).encode())


def _copy_part(root: Path, part: str, made: Path) -> None:
    """Every file of a part as it is. Raises WrongFile for a link that leaves the model's folder."""
    for place, folders, files in os.walk(contained(root / part, root)):
        inside = made / Path(place).relative_to(root)
        inside.mkdir()
        for name in (*folders, *files):
            contained(Path(place) / name, root)
        for name in files:
            shutil.copyfile(Path(place) / name, inside / name)


def _rewrite(folder: Path, model: Model, patch: Patch) -> int:
    wanted = {model.card.site(s).key: s for s in patch.sites}
    found: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("r+b") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = parsed_json(stream.read(size), file, "fetch the model again")
            assert isinstance(header, dict)  # the library read it before
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
    dtype = _DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise WrongFile(f"{site} is stored as {entry['dtype']}, which is not edited; use a copy in float16 or float32")
    stream.seek(start + begin)
    old = torch.frombuffer(bytearray(stream.read(end - begin)), dtype=dtype).reshape(entry["shape"])
    new = patch.weight(site, old).contiguous()
    stream.seek(start + begin)
    stream.write(new.view(torch.uint8).numpy().tobytes())
