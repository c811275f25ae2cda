"""Cells: one number with what it rests on. Tables and metrics count here, by one set of rules for NA and ERROR.

Several seeds of one prompt are alike, so with several prompts an interval is the one of `numerics.clusters`; one prompt
alone, or one image a prompt, has Wilson's for a rate. Unknown is NA, failed is ERROR; neither is ever a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from efface.numerics import clusters, intervals
from efface.numerics.shares import ERRORS_AT_MOST, KNOWN_AT_LEAST, SURE_AT_LEAST

__all__ = [
    "NAMED", "Cell", "Left", "Luck", "Unknown", "by_prompt", "failed", "loss_cell", "mean_cell", "noted", "rate_cell",
    "set_interval", "unknown",
]  # fmt: skip

NAMED = ("target", "style", "synonym", "implicit", "two-object")
"""Roles whose prompts ask for the target: what the base does not draw there is no success of an edit."""
ONE_PROMPT = "one prompt: says nothing about other wording"
FEW_PROMPTS = "few prompts: take the interval with care"


@dataclass(frozen=True)
class Cell:
    """One number of a table. `ok`: value, usually with ends and counts; `na`, `error`: the reason and no number."""

    name: str
    """What was counted."""
    concept: str = ""
    """Of which concept; empty for all together."""
    side: str = ""
    """Of which side; empty for a difference of sides."""
    state: str = "ok"
    """ok, na or error."""
    value: float | None = None
    """Rates are fractions."""
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    """Upper end."""
    hits: int | None = None
    """Images that are hits; of a loss, those lost less those won."""
    n: int = 0
    """Images or pairs that were scored."""
    clusters: int = 0
    """Distinct prompts behind it."""
    n_na: int = 0
    """Images or pairs that are NA."""
    n_error: int = 0
    """Images or pairs that failed."""
    note: str = ""
    """What to bear in mind."""
    reason: str = ""
    """Why there is no number."""


class Left(NamedTuple):
    """What is not counted, and how often."""

    na: int = 0
    error: int = 0

    @classmethod
    def of(cls, na: np.ndarray, error: np.ndarray) -> Left:
        """From bool (n,) each."""
        return cls(int(na.sum()), int(error.sum()))


class Luck(NamedTuple):
    """How prompts are resampled for an interval."""

    seed: int = 0
    draws: int = 2_000

    @property
    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


PLAIN = Luck()
NOTHING = Left()

# --- rules of NA and ERROR -------------------------------------------------------------------------------------------


class Unknown(NamedTuple):
    """What the base's own rate says of a target."""

    out: bool
    """Whether its rate is left out: a low one proves nothing."""
    words: str
    """What to say; empty for a target that the base draws well."""


def unknown(hits: int, n: int, low: float | None, high: float | None) -> Unknown:
    """Of a target that the base shows in `hits` of n images, with the 95 % interval of that rate.

    It counts where the whole interval lies at one half or above: a point just over it proves as little as one just
    under it.
    """
    if low is None or high is None:
        low, high = intervals.wilson(hits, n)
    said = f"the base shows it in {hits} of {n}"
    if high < KNOWN_AT_LEAST:
        return Unknown(True, f"not known to this model: {said}")
    if low < KNOWN_AT_LEAST:
        ends = f"[{100 * low:.1f}, {100 * high:.1f}] %"
        return Unknown(True, f"cannot be told at this n whether this model knows it: {said}, {ends}; draw more images")
    return Unknown(False, f"{said.replace('in ', 'in only ', 1)}" if hits / n < SURE_AT_LEAST else "")


def failed(errors: int, whole: int) -> bool:
    """Whether too many of the whole failed for the others to stand for them."""
    return errors > ERRORS_AT_MOST * whole


def _blank(name: str, sizes: np.ndarray, left: Left, concept: str, side: str) -> Cell | None:
    """NA without a scored row, ERROR with too many failed ones, None where there is something to say."""
    n = int(np.sum(sizes))
    whole = n + left.na + left.error
    if failed(left.error, whole):
        state, reason = "error", f"{left.error} of {whole} rows failed"
    elif not n:
        state, reason = "na", f"nothing was scored ({left.na} NA)"
    else:
        return None
    return Cell(name, concept, side, state, n=n, clusters=len(sizes), n_na=left.na, n_error=left.error, reason=reason)


def noted(*words: str) -> str:
    """Notes put together, empty ones left out."""
    return "; ".join(w for w in words if w)


# --- counting --------------------------------------------------------------------------------------------------------


def by_prompt(groups: np.ndarray, prompts: np.ndarray, count: int, *columns: np.ndarray) -> list[list[np.ndarray]]:
    """For each of `count` groups: images a prompt, then the sums of each column a prompt, all (g,).

    groups, prompts: int (n,); a group without a row has empty arrays.
    """
    width = int(prompts.max(initial=0)) + 1
    places, at = np.unique(groups * width + prompts, return_inverse=True)
    ones = np.ones(len(groups))
    sums = [np.bincount(at, weights=c.astype(np.float64), minlength=len(places)) for c in (ones, *columns)]
    cuts = np.searchsorted(places // width, np.arange(count + 1))
    return [[s[a:b] for s in sums] for a, b in pairwise(cuts)]


def rate_cell(
    name: str, hits: np.ndarray, sizes: np.ndarray, left: Left = NOTHING, concept: str = "", side: str = "",
    luck: Luck = PLAIN,
) -> Cell:  # fmt: skip
    """A rate from hits and images a prompt (g,): Wilson for one prompt or one image each, else over prompts."""
    if (blank := _blank(name, sizes, left, concept, side)) is not None:
        return blank
    n, k = int(sizes.sum()), int(hits.sum())
    if clusters.grouped(sizes):
        found = clusters.cluster_rate(hits, sizes, luck.generator, luck.draws)
        low, high, note = found.low, found.high, FEW_PROMPTS if found.few else ""
    else:
        low, high = intervals.wilson(k, n)
        note = _alone(sizes, n)
    return Cell(name, concept, side, "ok", k / n, low, high, k, n, len(sizes), left.na, left.error, note)


def loss_cell(
    name: str, lost: np.ndarray, won: np.ndarray, sizes: np.ndarray, left: Left = NOTHING, concept: str = "",
    side: str = "", luck: Luck = PLAIN, both: int | None = None,
) -> Cell:  # fmt: skip
    """Base rate minus edited rate of pairs (g,) a prompt that only the base hits, only the edited model hits, all.

    One prompt or one pair each: Tango's interval, or Newcombe's where it is known how many pairs are `both` hit. Else
    over prompts.
    """
    if (blank := _blank(name, sizes, left, concept, side)) is not None:
        return blank
    n, b, c = int(sizes.sum()), int(lost.sum()), int(won.sum())
    if clusters.grouped(sizes):
        found = clusters.cluster_paired_difference(lost, won, sizes, luck.generator, luck.draws)
        low, high, note = found.low, found.high, FEW_PROMPTS if found.few else ""
    else:
        whole = intervals.tango(b, c, n) if both is None else intervals.paired_difference(both, b, c, n - both - b - c)
        low, high, note = whole.low, whole.high, _alone(sizes, n)
    return Cell(name, concept, side, "ok", (b - c) / n, low, high, b - c, n, len(sizes), left.na, left.error, note)


def mean_cell(
    name: str, values: np.ndarray, prompts: np.ndarray, left: Left = NOTHING, side: str = "", luck: Luck = PLAIN
) -> Cell:
    """The mean of values (n,) with its interval over prompts (n,); one prompt: over its images."""
    if len(np.unique(prompts)) < 2:
        prompts = np.arange(len(values))
    codes = np.unique(prompts, return_inverse=True)[1]
    sizes, sums, squares = by_prompt(np.zeros(len(values), np.int64), codes, 1, values, values**2)[0]
    if (blank := _blank(name, sizes, left, "", side)) is not None:
        return blank
    found = clusters.cluster_mean(sums, squares, sizes, luck.generator, luck.draws)
    note = FEW_PROMPTS if found.few else ""
    counts = (None, len(values), len(sizes), left.na, left.error)
    return Cell(name, "", side, "ok", found.estimate, found.low, found.high, *counts, note)


def _alone(sizes: np.ndarray, n: int) -> str:
    return ONE_PROMPT if len(sizes) == 1 and n > 1 else ""


def set_interval(
    measure: Callable[[np.ndarray], float], prompts: np.ndarray, level: float = 0.95, parts: int = 20
) -> tuple[float, float] | None:
    """Interval of a set metric over prompts by the jackknife that leaves out one of at most 20 parts of the prompts.

    measure: from the numbers of the rows that are in to the metric; prompts: int (n,). None with fewer than two
    prompts. Drawing with replacement would repeat images, which all distances between sets mistake for likeness.
    """
    names, place = np.unique(prompts, return_inverse=True)
    count = min(parts, len(names))
    if count < 2:
        return None
    part = place % count
    left = np.asarray([measure(np.flatnonzero(part != k)) for k in range(count)])
    error = float(np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum()))
    value, reach = measure(np.arange(len(prompts))), float(student.ppf(0.5 + level / 2, count - 1)) * error
    return value - reach, value + reach
