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
from typing import Any, ClassVar, Literal

import numpy as np

from efface.errors import Unavailable
from efface.judges import Perceptual
from efface.metrics import Cell, Item, Row, Scored, Table, mean_cell
from efface.numerics import pictures

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """measure: which distance. lpips: the loaded judge; without it LPIPS is NA and says how to get one."""

    measure: Literal["psnr", "ssim", "lpips", "features", "latents"] = "ssim"
    lpips: Perceptual | None = None
    direction: ClassVar[str] = "same"
    of_pairs: ClassVar[bool] = True
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The judge's, unchanged."""
        return item.features

    def score(self, item: Item) -> Scored:
        """value: dB (psnr), similarity (ssim) or distance; identical images have no PSNR: `ok` without a value.

        NA without the base's image, features or latents.
        """
        if self.measure == "latents":
            return _relative("latent", item.latent, item.base_latent)
        if self.measure == "features":
            return _relative("feature vector", _unit(item.features), _unit(item.base_features))
        if item.base is None:
            return Scored("na", reason="the base's image at this prompt and seed is missing")
        if item.base.shape != item.image.shape:
            return Scored("error", reason=f"the base's image is {item.base.shape}, this one {item.image.shape}")
        if self.measure == "lpips":
            return self._lpips(item.image, item.base)
        x, y = item.image / 255.0, item.base / 255.0
        value = pictures.psnr(x, y) if self.measure == "psnr" else pictures.ssim(x, y)
        return Scored(detail={"identical": True}) if isinf(value) else Scored(value=value)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """The mean of each role with its interval over prompts, and how many pairs were identical."""
        table = Table.of(rows)
        cells = []
        for role in sorted({str(r.get("role", "")) for r in table}):
            part = table.where(lambda r, role=role: r.get("role", "") == role)
            ok, na, error = part.states()
            values = part.numbers()
            some = ok & np.isfinite(values)
            same = int((ok & ~some).sum())
            counts: dict[str, Any] = {"n_na": int(na.sum()), "n_error": int(error.sum())}
            cell = mean_cell(
                f"{self.measure}.{role}", values[some], part.codes("prompt")[1][some], side="edited", **counts
            )
            if cell.state == "na" and same:
                cell = replace(cell, reason=f"all {same} pairs are identical", n=same)
            left_out = f"{same} identical pairs left out" if same and some.any() else ""
            cells.append(replace(cell, note="; ".join(t for t in (cell.note, left_out) if t)))
        return cells

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
