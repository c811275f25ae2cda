"""The garbage detector of a run whose judge has none: fitted on the run's own base pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from efface.files import key_of
from efface.gallery.shot import Shot
from efface.judges._own_garbage import FEWEST, MOST, OwnGarbage
from efface.runs.folder import Folder

if TYPE_CHECKING:
    from efface.gallery.gallery import Gallery
    from efface.judges.panel import Panel
    from efface.runs.spec import RunPlan

__all__ = ["guarded"]

ONE_COLOUR = "only images of one colour are found"
PIXELS = 256 * 64 * 64  # of the pictures that are looked at together


def guarded(panel: Panel, plan: RunPlan, folder: Folder) -> Panel:
    """The panel with a detector of the run's own, where its judge has features and no detector beside it.

    Nothing is drawn or looked at here: the detector is fitted when the first picture is judged, and by then the base's
    are there.
    """
    if not panel.sees or panel.why:
        return panel
    shots = list(dict.fromkeys(i.shot for i in plan.items))
    if plan.hidden:
        return panel.guarded(None, f"none, for the base's images are not stored: {ONE_COLOUR}")
    if len(shots) < FEWEST:
        return panel.guarded(None, f"none, for {len(shots)} base images are fewer than {FEWEST}: {ONE_COLOUR}")
    base = next(g for g in folder.galleries(plan) if g.side.name == "base")
    chosen = [shots[k] for k in np.unique(np.linspace(0, len(shots) - 1, min(MOST, len(shots))).round().astype(int))]
    eyes = panel.eyes.version if panel.eyes else ""
    version = key_of(judge=panel.versions.judge, eyes=eyes, images=base.keys(chosen))[:12]
    own = OwnGarbage(version, lambda: _batches(base, chosen), panel.seen)
    return panel.guarded(own, f"fitted on {len(chosen)} base images of this run; statistics only")


def _batches(gallery: Gallery, shots: Sequence[Shot]) -> Iterator[np.ndarray]:
    held = gallery.held(shots)
    height, width = gallery.side.model.card.size
    chunk = max(8, PIXELS // (height * width))
    for start in range(0, len(held), chunk):
        yield gallery.pixels(held[start : start + chunk])
