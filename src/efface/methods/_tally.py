"""What masks of several concepts select, share and prune, for the recipe of FIA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from efface.errors import EffaceWarning, NothingChanged

__all__ = ["MaskTally"]

ALIKE = 1e-5  # a surplus of this share of the base's score is rounding: both were drawn alike
MUCH = 0.1  # of the weights looked at; more pruned than this is told


class MaskTally:
    """Counts for the recipe, and whether anything was found at all."""

    def __init__(self, names: Sequence[str], least: int) -> None:
        self.names, self.least = names, least
        self.surplus = dict.fromkeys(names, 0.0)
        self.selected = dict.fromkeys(names, 0)
        self.shared = dict.fromkeys(names, 0)
        self.sites: dict[str, dict[str, int]] = {}
        self.weights = self.pruned = 0

    def site(self, site: str, pruned: Tensor, agnostic: Tensor, chosen: dict[str, Tensor]) -> None:
        flat = agnostic.reshape(-1)
        for name, at in chosen.items():
            self.selected[name] += len(at)
            self.shared[name] += int(flat[at].sum())
        self.sites[site] = {"pruned": int(pruned.count_nonzero()), "agnostic": int(agnostic.count_nonzero())}
        self.weights += pruned.numel()
        self.pruned += self.sites[site]["pruned"]

    def check(self, model: str) -> None:
        """Raises NothingChanged; warns when much of the network goes."""
        for name in self.names:
            if not self.selected[name] or self.surplus[name] <= ALIKE:
                raise NothingChanged(
                    f"nothing is selected for {name!r}: {model} draws its prompts like their base prompts; "
                    "use another name or other prompts"
                )
        if not self.pruned:
            raise NothingChanged(
                f"every selected weight is in {self.least} or more masks and counts as shared by the concepts, so "
                "none is pruned; raise alpha or use counting=exact"
            )
        if self.pruned > MUCH * self.weights:
            share = f"{self.pruned / self.weights:.1%}"
            warnings.warn(f"{share} of the looked-at weights are pruned; lower r2", EffaceWarning, stacklevel=2)

    def numbers(self) -> dict[str, Any]:
        """Pruned share of all weights looked at, least number of masks that spares, counts by concept and by site."""
        concepts = {
            n: {"selected": self.selected[n], "shared": self.shared[n], "surplus": float(f"{self.surplus[n]:.4g}")}
            for n in sorted(self.names)
        }
        share = float(f"{self.pruned / self.weights:.6g}")
        return {"pruned": share, "spared_from": self.least, "concepts": concepts, "sites": self.sites}
