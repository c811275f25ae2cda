"""The geometry alignment of ScaPre: an edited weight moves back towards the old one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from efface.methods import require
from efface.numerics import geometry

__all__ = ["Geometry"]


@dataclass(frozen=True)
class Geometry:
    """The step back towards the old weight, after the equation."""

    step: Literal["rows", "bures", "roll-back", "none"] = "rows"
    """Row by row (code), along the Bures geodesic (paper), a share by entropy (code), or none."""
    iterations: int = 1
    """Of the step by rows."""
    bures: float = 0.0
    """Length of the Bures step; 0 is no step."""
    truncate: float = 1e-4
    """Singular values below this share of the largest are left out of the Bures step (ours)."""
    floor: float = 0.8
    """Smallest share of the edit that the roll-back leaves; 1 is no roll-back."""
    blend: bool = False
    """The released mix of energy and angle, which no published command uses."""

    def __post_init__(self) -> None:
        require(self, "iterations", above=0)
        require(self, "bures", "truncate", "floor", least=0, most=1)

    @property
    def still(self) -> bool:
        """Whether no weight moves."""
        steps = {"none": True, "rows": False, "bures": not self.bures, "roll-back": self.floor == 1}
        return steps[self.step] and not self.blend

    @property
    def by_entropy(self) -> bool:
        """Whether the entropy factor of the rows is looked at."""
        return self.blend or (self.step == "roll-back" and self.floor != 1)

    def moved(self, new: Tensor, weight: Tensor, lam: float, mu: float, entropy: Tensor | None) -> Tensor:
        """The edited weight (o, d) after the step; entropy (o,) where it is looked at."""
        if self.step == "rows":
            p, q = geometry.row_prox(new, weight, lam + mu, mu, self.iterations)
            new = geometry.combine(p, new, q, weight)
        elif self.step == "bures" and self.bures:
            new = geometry.bures_step(new, weight, self.bures, self.truncate)
        elif self.step == "roll-back" and entropy is not None:
            new = geometry.entropy_rollback(new, weight, entropy, self.floor)
        if self.blend and entropy is not None:
            new = geometry.energy_angle_blend(new, weight, (1 - entropy).clamp(0, 1))
        return new
