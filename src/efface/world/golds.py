"""A bundled gold is the part that was trained and a card; its base's other parts make it whole, in the cache.

Which part that is, is seen in its folder. One that neither has is named when the model is loaded, by its family.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

from efface.errors import WrongFile
from efface.files import cache_folder, sweep_dead, temporary_of

__all__ = ["completed", "digest", "placed", "staging_for"]


def completed(gold: Path, base: Path) -> Path:
    """The folder of the whole model: trained part, concept list and card of `gold`, all else of `base`.

    Raises WrongFile when `base` is not the model that the gold was trained beside.
    """
    trained_with = json.loads((gold / "gold.json").read_text(encoding="utf-8")).get("base_files_sha256", {})
    for name, known in trained_with.items():
        if not (base / name).is_file() or digest(base / name) != known:
            raise WrongFile(f"{gold.name} was trained beside another {base.name}: its {name} differs; train it anew")
    every = sorted(p for folder in (gold, base) for p in folder.rglob("*") if p.is_file())
    target = cache_folder() / "golds" / f"{gold.name}-{digest(*every)[:12]}"
    if (target / "model_index.json").is_file():
        return target
    staging = staging_for(target)
    trained = [p.name for p in gold.iterdir() if p.is_dir()]
    own = shutil.ignore_patterns(*trained, "concepts.json", "card*")
    shutil.copytree(base, staging, dirs_exist_ok=True, ignore=own)
    shutil.copytree(gold, staging, dirs_exist_ok=True)
    return placed(staging, target)


def digest(*files: Path) -> str:
    """sha256 of the files one after the other."""
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def staging_for(target: Path) -> Path:
    """An empty folder beside `target`, of this process alone."""
    sweep_dead(target)
    staging = temporary_of(target)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def placed(staging: Path, target: Path) -> Path:
    """The finished folder in the place of `target`. Raises WrongFile where it cannot be written."""
    try:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if (target / "model_index.json").is_file() and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return target  # another process was faster with the same
        raise WrongFile(f"cannot write {target} ({error.strerror}); choose another place") from None
    return target
