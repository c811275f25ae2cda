"""How each judge is trained: cycles, and how many pictures of each kind make a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from efface.judges import selection
from efface.judges import world as reporting
from efface.worldmaking.augmentation import augment, augment_other
from efface.worldmaking.sittings import Phase

__all__ = ["CALIBRATES", "MEASURES", "PLANS", "SECONDS", "Cycle", "Plan"]

CALIBRATES, MEASURES = 2, 3  # pools of redrawn scenes; those before teach


@dataclass(frozen=True)
class Cycle:
    """One fall of the learning rate, with the pictures it trains on."""

    phase: Phase
    two: float  # share of crisp scenes with two objects
    pools: int  # softened scenes of every sprite
    style: float  # weight of the style terms
    # Pools of scenes that `mini` and `micro` drew anew: they take half of the softened ones' places, and what they
    # did not finish drawing and noisy scenes half of the broken ones'.
    redrawn: int = 0

    def __post_init__(self) -> None:
        if self.redrawn > CALIBRATES:
            raise ValueError(f"pools from {CALIBRATES} on calibrate and measure; redrawn is at most {CALIBRATES}")


@dataclass(frozen=True)
class Plan:
    """How one judge is trained. `crisp`, `soft`, `small`, `empty`, `broken` are pictures a batch."""

    judge: str
    cycles: tuple[Cycle, ...]
    seed: int
    crisp: int = 26
    soft: int = 18
    small: int = 8  # at half the size, each pixel doubled: what `micro` draws
    empty: int = 4
    broken: int = 8
    strangers: float = 0.08  # share of crisp scenes with an object that the judge must not name

    @property
    def anew(self) -> int:
        """Redrawn pictures a batch in a cycle that has them."""
        return self.soft // 2

    @property
    def net(self) -> Callable[[int, int], Any]:
        return {"reporting": reporting.Net, "selection": selection.Net}[self.judge]

    @property
    def layout(self) -> torch.memory_format:
        """Depth-wise convolutions in bfloat16 are a fifth slower with channels last; all others are faster."""
        return {"reporting": torch.channels_last, "selection": torch.contiguous_format}[self.judge]

    @property
    def augment(self) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
        return {"reporting": augment, "selection": augment_other}[self.judge]


# Single objects first; then pairs and styles, which are learnt late. The share of pairs is high: at 30 % the
# reporting judge named both objects of only 39 % of crisp two-object scenes, after two cycles of 81 %. Last what
# models draw: judges of scenes alone were blind to one clean drawing in ten.
PLANS = {
    "reporting": Plan(
        "reporting",
        (
            Cycle(Phase(3500, 64, 4e-3, 0.02, coarse=True), 0.3, 3, 1.0),
            Cycle(Phase(5000, 64, 3e-3, 0.02, coarse=True), 0.55, 5, 2.0),
            Cycle(Phase(6000, 64, 2e-3, 0.02, coarse=True), 0.85, 5, 2.0),
            Cycle(Phase(3000, 64, 1e-3, 0.02, coarse=True), 0.85, 5, 2.0, redrawn=2),
        ),
        seed=11,
    ),
    "selection": Plan(
        "selection",
        (
            Cycle(Phase(2500, 64, 2e-3, 0.05, coarse=True), 0.4, 3, 1.0),
            Cycle(Phase(3500, 64, 1.5e-3, 0.05, coarse=True), 0.5, 5, 2.0),
            Cycle(Phase(2000, 64, 8e-4, 0.05, coarse=True), 0.5, 5, 2.0, redrawn=2),
        ),
        seed=23,
    ),
}  # fmt: skip
SECONDS = {"reporting": 0.15, "selection": 0.25}  # of a step, on two free cores
