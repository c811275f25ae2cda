"""In-prompt retention: of "a dog and a cat" with the dog erased, is the cat still there?

Prompts that name a target and something else (a style, a background, a second object). HUB, arXiv 2410.05664, calls
the same idea selective alignment. Needs a judge that may say several things of one image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from efface.metrics import Cell, Item, Row, Scored, Table, by_prompt, loss_cell, presence, rate_cell
from efface.numerics.clusters import resamples

__all__ = ["InPrompt"]


@dataclass(frozen=True)
class InPrompt:
    """multi_label: whether the judge may find several things; a softmax judge names one, so its answer here is NA.

    Rows of both sides in pairs, in roles `rest`; `concept` is the rest of the prompt, `hit` whether it is there.
    Whether the erased concept still is, `target_hit` says, or the rows of the same image in roles `target`; where
    neither does, the row is NA.
    """

    multi_label: bool = True
    rest: tuple[str, ...] = ("in-prompt", "beside")
    target: tuple[str, ...] = ("target", "style", "two-object")
    draws: int = 2_000
    direction: ClassVar[str] = "up"
    of_pairs: ClassVar[bool] = False
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The judge's, unchanged."""
        return item.features

    def score(self, item: Item) -> Scored:
        """Is the rest of the prompt there? NA for a judge of one label."""
        return presence(item) if self.multi_label else Scored("na", reason=_SOFTMAX)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """The rest on both sides, the loss in pairs, and P(rest | edited, target absent) / P(rest | base)."""
        names = ("rest.base", "rest.edited", "rest.loss", "rest.target absent", "retention")
        table = self._with_targets(Table.of(rows))
        if not self.multi_label or not len(table):
            return [
                Cell(n, state="na", reason=_SOFTMAX if len(table) else "no such prompt in this suite") for n in names
            ]
        base, edited = table.pairs()
        fine = base.states()[0] & edited.states()[0]
        failed = int((base.states()[2] | edited.states()[2]).sum())
        counts: dict[str, Any] = {"n_na": int((~fine).sum()) - failed, "n_error": failed}
        b, e = base.flags("hit")[fine], edited.flags("hit")[fine]
        gone = ~edited.flags("target_hit")[fine]
        one, prompts = np.zeros(int(fine.sum()), np.int64), base.codes("prompt")[1][fine]
        sizes, at_base, at_edited, lost, won, absent, left = by_prompt(
            one, prompts, 1, b, e, b & ~e, e & ~b, gone, e & gone
        )[0]
        some = absent > 0
        return [
            rate_cell(names[0], at_base, sizes, side="base", **counts),
            rate_cell(names[1], at_edited, sizes, side="edited", **counts),
            loss_cell(names[2], lost, won, sizes, **counts),
            rate_cell(names[3], left[some], absent[some], side="edited", **counts),
            self._retention(names[4], (sizes, at_base, absent, left), counts),
        ]

    def _with_targets(self, table: Table) -> Table:
        """The rows of the rest, each with `target_hit`."""
        there: dict[tuple[Any, ...], bool] = {}
        for r in table:
            if r.get("role") in self.target and r.get("state") == "ok":
                there[_image(r)] = there.get(_image(r), False) or bool(r.get("hit"))

        def told(row: Row) -> Row:
            if row.get("target_hit") is not None or row.get("state") != "ok":
                return row
            known = there.get(_image(row))
            return {**row, "state": "na"} if known is None else {**row, "target_hit": known}

        return Table([told(r) for r in table if r.get("role") in self.rest], ordered=True)

    def _retention(self, name: str, sums: tuple[np.ndarray, ...], counts: dict[str, Any]) -> Cell:
        """The ratio of two rates over the same prompts, its interval from resampled prompts."""
        sizes, at_base, absent, left = sums
        if not sizes.size or not at_base.sum() or not absent.sum():
            why = "the base never shows the rest" if sizes.size and not at_base.sum() else "the target never left"
            return Cell(name, state="na", reason=why if sizes.size else "nothing was scored", **counts)
        value = float((left.sum() / absent.sum()) / (at_base.sum() / sizes.sum()))
        weights = resamples(len(sizes), np.random.default_rng(0), self.draws)
        n, k, m, j = (weights @ s for s in (sizes, at_base, absent, left))
        good = (k > 0) & (m > 0)
        ends = np.quantile((j[good] / m[good]) / (k[good] / n[good]), [0.025, 0.975]) if len(sizes) > 1 else None
        low, high = (None, None) if ends is None else (float(ends[0]), float(ends[1]))
        note = "one prompt: no interval" if ends is None else ""
        return Cell(name, side="edited", value=value, low=low, high=high, hits=int(left.sum()), n=int(absent.sum()),
                    clusters=len(sizes), note=note, **counts)  # fmt: skip


def _image(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(k) for k in ("side", "prompt", "seed", "guidance", "draw"))


_SOFTMAX = "needs a judge that may find several things in one image; this one names a single label"
