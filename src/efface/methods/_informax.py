"""The Informax masks of ScaPre: which channels tell a concept from neutral text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import BadRequest
from efface.methods import require
from efface.numerics import information
from efface.work import seed_of

__all__ = ["Channels", "Entropy", "Informax", "Masks"]


@dataclass(frozen=True)
class Informax:
    """How the mutual information of a channel with a concept is measured, and made a mask."""

    information: Literal["code", "rowwise", "population", "off"] = "code"
    """From full draws as released, from scalar draws of the same law or in the limit of many draws (both ours), or no
    mask at all."""
    normalise: Literal["zscore", "max", "unit"] = "zscore"
    """By the score over the channels (code), by the largest of the matrix (paper), or by ln 2 (ours)."""
    power: float = 5.0
    """Exponent of the mask."""
    sigma: float = 0.01
    """Noise of the samples, also of those of the entropy factor."""
    negatives: Literal["empty", "keep", "guide"] = "empty"
    """Neutral text: the empty one (code), the kept texts, or each concept's anchor (both ours)."""
    draws: int = 5
    """Noisy copies a side."""
    redraw: bool = True
    """Whether the decoupler has a second, independent set of masks, as released."""

    def __post_init__(self) -> None:
        require(self, "power", "sigma", "draws", above=0)


@dataclass(frozen=True)
class Entropy:
    """The entropy factor of a row's activations on noisy concepts, and the pull that follows from it."""

    mu: float | Literal["entropy"] = "entropy"
    """Strength of the pull to the old weight: a number, or by site from the entropy factor."""
    samples: int = 20
    """Samples a concept."""
    bins: int = 20
    """Of the histogram."""

    def __post_init__(self) -> None:
        require(self, "samples", "bins", above=0)
        require(self, "mu", least=0)
        if self.bins == 1:
            raise BadRequest("setting 'bins' of Entropy must be at least 2: one bin holds everything")


class Masks(NamedTuple):
    """One value a channel and concept."""

    values: Tensor  # (o, m)
    information: Tensor | None  # (o, m) that they come from
    """None without masks."""

    @property
    def numbers(self) -> dict[str, float]:
        """For the recipe."""
        found = self.information
        saturation = 0.0 if found is None else round(information.saturation(found), 4)
        return {"saturation": saturation, "information_values": 0 if found is None else len(found.unique(sorted=False))}


class Channels:
    """Masks and entropies of one site after another.

    Draws are standard normal numbers keyed by site, concept and purpose, so the order of concepts does not matter.
    """

    def __init__(
        self, mask: Informax, entropy: Entropy, names: tuple[str, ...], concepts: Tensor, neutral: Tensor, seed: int
    ) -> None:
        self.mask, self.entropy, self.names, self.seed = mask, entropy, names, seed
        self.concepts, self.neutral = concepts, neutral  # (m, d), and (d,), (r, d) or (m, 1, d)

    def masks(self, weight: Tensor, site: str, purpose: str) -> Masks:
        """Of one weight (o, d)."""
        draws, mask = None, self.mask
        if mask.information == "off":
            return Masks(torch.ones(len(weight), len(self.concepts), dtype=torch.float64), None)
        rowwise = mask.information == "rowwise"
        if mask.information != "population":
            size = (len(weight), mask.draws) if rowwise else (mask.draws, weight.shape[1])
            draws = [self.draws(site, purpose, side, *size) for side in ("positive", "negative")]
        found = information.information(weight, self.concepts, self.neutral, mask.sigma, draws, rowwise=rowwise)
        return Masks(information.normalise(found, mask.normalise, power=mask.power), found)

    def entropies(self, weight: Tensor, site: str) -> Tensor:
        """The entropy factor (o,) of one weight (o, d)."""
        draws = self.draws(site, "entropy", "", self.entropy.samples, weight.shape[1])
        return information.entropy_factor(weight, self.concepts, draws, self.mask.sigma, self.entropy.bins)

    def draws(self, site: str, purpose: str, side: str, *size: int) -> Tensor:
        """Standard normal (m, *size), float32 as released."""
        n = min(len(self.names), torch.get_num_threads())
        out = torch.empty(len(self.names), *size)

        def fill(first: int) -> None:
            for line, name in zip(out[first::n], self.names[first::n], strict=True):
                line.normal_(generator=torch.Generator().manual_seed(seed_of(self.seed, site, name, purpose, side)))

        with ThreadPoolExecutor(n) as pool:  # a generator runs on one core, and drawing is much of the whole edit
            list(pool.map(fill, range(n)))
        return out.double()
