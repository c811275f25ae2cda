"""What can go: pictures and temporary files that no run needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from efface.files import cache_folder, leftovers
from efface.gallery.images import Images
from efface.runs.folder import held, spec_of
from efface.runs.plan import plan_of
from efface.untrusted import refuse_links

__all__ = ["sweep", "sweep_cache"]

DAY, HOUR = 86400, 3600


def sweep(run: Path, dry: bool = False) -> list[Path]:
    """Delete what no reader of a run needs: files of killed writers, images outside its plan. Returns their paths.

    Raises WrongFile for a folder that is no run or that another process writes.
    """
    spec_of(run, "nothing was deleted")
    refuse_links(run)
    with held(run, "nothing was deleted"):
        plan, images = plan_of(run), Images(run / "images")
        kept = {key for _, key in plan.images} if plan else set(images.keys())
        gone = leftovers(run, 0) + [images.path(k) for k in sorted(images.keys()) if k not in kept]
        _delete(gone, dry)
    return gone


def sweep_cache(days: float | None, dry: bool = False) -> list[Path]:
    """Delete temporary files of killed writers and, with `days`, what none used so long: images that no run holds,
    saved states of erasures that were given up and that no process holds."""
    images, states = cache_folder() / "images", cache_folder() / "erase"
    gone = leftovers(images) if images.is_dir() else []
    if days is not None:
        limit = time.time() - max(DAY * days, HOUR)  # a run may have drawn it and not taken it yet
        gone += sorted(f for f in images.glob("??/*.png") if not f.name.startswith(".") and _unheld(f, limit))
        gone += sorted(f for f in _states(states) if f.stat().st_mtime < limit)
    _delete(gone, dry)
    return gone


def _delete(files: list[Path], dry: bool) -> None:
    for file in [] if dry else files:
        file.unlink(missing_ok=True)


def _unheld(file: Path, limit: float) -> bool:
    """Whether no run has a second name for an image, and nobody used it since."""
    stat = os.stat(file)
    return stat.st_nlink == 1 and max(stat.st_mtime, stat.st_atime) < limit


def _states(folder: Path) -> Iterator[Path]:
    """Saved states that no process holds just now."""
    return (f for place in folder.glob("*") if not _busy(place) for f in place.glob("[!.]*"))


def _busy(place: Path) -> bool:
    if not (place / ".lock").is_file():
        return False
    try:
        with FileLock(place / ".lock", timeout=0):
            return False
    except Timeout:
        return True
