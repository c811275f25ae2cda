"""How far an edited image is from the base's at the same prompt and seed: PSNR, SSIM, LPIPS, features, latents.

Wang et al. 2004 (SSIM); Zhang et al. 2018, arXiv 1801.03924 (LPIPS). On kept prompts small distances are good; on
targets a large one is no success by itself, noise is far too: the roles stand in separate cells, never in a difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import isinf
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from efface.errors import Unavailable
from efface.gallery.shot import KEPT, TARGETS
from efface.judges import Perceptual
from efface.metrics import Metric, Scored, Specimen
from efface.numerics import pictures
from efface.scores.cells import Cell, Left, mean_cell, noted
from efface.scores.readings import Reading, Readings

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs(Metric):
    """One distance of an edited image to the base's."""

    measure: Literal["psnr", "ssim", "lpips", "features", "latents"] = "ssim"
    """Which distance."""
    lpips: Perceptual | None = None
    """The loaded judge; without it LPIPS is NA and says how to get one."""
    direction: ClassVar[str] = "same"
    of_pairs: ClassVar[bool] = True

    def score(self, specimen: Specimen) -> Scored:
        """value: dB (psnr), similarity (ssim) or distance; identical images have no PSNR: `ok` without a value.

        NA without the base's image, features or latents.
        """
        if self.measure == "latents":
            return _relative("latent", specimen.latent, specimen.base_latent)
        if self.measure == "features":
            return _relative("feature vector", _unit(specimen.features), _unit(specimen.base_features))
        if specimen.base is None:
            return Scored("na", reason="the base's image at this prompt and seed is missing")
        if specimen.base.shape != specimen.image.shape:
            said = f"the base's image is {specimen.base.shape}, this one {specimen.image.shape}"
            return Scored("error", reason=said)
        if self.measure == "lpips":
            return self._lpips(specimen.image, specimen.base)
        x, y = specimen.image / 255.0, specimen.base / 255.0
        value = pictures.psnr(x, y) if self.measure == "psnr" else pictures.ssim(x, y)
        return Scored(detail={"identical": True}) if isinf(value) else Scored(value=value)

    def aggregate(self, rows: Iterable[Reading]) -> list[Cell]:
        """The mean of each role with its interval over prompts, and how many pairs were identical.

        Of LPIPS also what papers call LPIPS_e (of what was erased) and LPIPS_u (of what was kept), never one less the
        other.
        """
        rows = Readings.of(rows)
        cells = [self._mean(f"{self.measure}.{role}", part) for role, part in rows.roles().items()]
        named = (("LPIPS_e", TARGETS), ("LPIPS_u", KEPT)) if self.measure == "lpips" else ()
        parts = [(name, rows.where(lambda r, roles=roles: r.role in roles)) for name, roles in named]
        return [*cells, *(self._mean(name, part) for name, part in parts if len(part))]

    def _mean(self, name: str, rows: Readings) -> Cell:
        ok, na, error = rows.states()
        values = rows.values()
        some = ok & np.isfinite(values)
        same = int((ok & ~some).sum())
        cell = mean_cell(name, values[some], rows.prompts()[some], Left.of(na, error), side="edited")
        if cell.state == "na" and same:
            cell = replace(cell, reason=f"all {same} pairs are identical", n=same)
        left_out = f"{same} identical pairs left out" if same and some.any() else ""
        return replace(cell, note=noted(cell.note, left_out))

    def _lpips(self, image: np.ndarray, base: np.ndarray) -> Scored:
        try:
            judge = self.lpips or _lpips()
        except Unavailable as error:
            return Scored("na", reason=str(error))
        return Scored(value=float(judge.distances(image[None], base[None])[0]))


def _lpips() -> Perceptual:
    from efface.files import cache_folder

    return _loaded(cache_folder() / "lpips")


@cache
def _loaded(folder: Path) -> Perceptual:
    """Read and hashed once, not once an image."""
    from efface.judges.lpips import load

    return load(folder)


def _unit(vector: np.ndarray | None) -> np.ndarray | None:
    return None if vector is None else np.asarray(vector, np.float64) / max(float(np.linalg.norm(vector)), 1e-12)


def _relative(what: str, x: np.ndarray | None, y: np.ndarray | None) -> Scored:
    """|x - y| / |y|."""
    if x is None or y is None:
        return Scored("na", reason=f"the {what} of this image or of the base's was not kept")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or not np.isfinite(x).all():
        return Scored("error", reason=f"a {what} of shape {x.shape} that is finite was expected as in {y.shape}")
    return Scored(value=float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-12)))


PLUGIN = Pairs
