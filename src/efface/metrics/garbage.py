"""Garbage rate: shown, replaced and garbage, three outcomes that sum to one, beside every forgetting rate.

A judge of presence gives noise a perfect score. Headline efficacy is therefore the share that is *replaced* by a
proper picture of something else; garbage is never counted as erased.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from efface.metrics import Cell, Item, Row, Scored, Table, by_prompt, presence, rate_cell
from efface.numerics.intervals import wilson

__all__ = ["GarbageRate"]


@dataclass(frozen=True)
class GarbageRate:
    """red: share of garbage that makes a cell red when the interval's lower end exceeds it. one_label: share of one
    answer over prompts of several concepts that raises the alarm of a collapsed model.
    """

    red: float = 0.10
    one_label: float = 0.5
    direction: ClassVar[str] = "down"
    of_pairs: ClassVar[bool] = False
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The judge's: what distances between sets are taken of."""
        return item.features

    def score(self, item: Item) -> Scored:
        """hit: the concept is shown; value: 1 for garbage. NA when the judge has no such label."""
        found, detail = presence(item), {"garbage": item.garbage}
        if found.state != "ok":
            return replace(found, detail=detail)
        return Scored(hit=found.hit, value=float(item.garbage), detail=detail)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """For each role and side: shares shown, replaced, garbage (of the same images), and the two alarms as notes.

        Rows with `seen`, the judge's likeliest label, also tell what took the concept's place (five labels), and are
        looked through for one label that takes over.
        """
        table, cells = Table.of(rows), []
        groups, codes = table.codes("role", "side")
        for k in sorted(range(len(groups)), key=lambda k: groups[k]):
            role, side = groups[k]
            part = Table([r for r, c in zip(table, codes, strict=True) if c == k], ordered=True)
            cells += self._outcomes(str(role), str(side), part)
        return cells

    def _outcomes(self, role: str, side: str, table: Table) -> list[Cell]:
        ok, na, error = table.states()
        bad, hit = table.flags("garbage") & ok, table.flags("hit") & ok
        shares = (("shown", hit & ~bad), ("replaced", ok & ~hit & ~bad), ("garbage", bad))
        parts = by_prompt(
            np.zeros(int(ok.sum()), np.int64), table.codes("prompt")[1][ok], 1, *(s[ok] for _, s in shares)
        )
        counts: dict[str, Any] = {"n_na": int(na.sum()), "n_error": int(error.sum())}
        sizes, *sums = parts[0]
        cells = [
            rate_cell(f"{role}.{n}", h, sizes, side=side, **counts) for (n, _), h in zip(shares, sums, strict=True)
        ]
        seen = table.where(lambda r: r.get("state") == "ok" and not r.get("hit") and not r.get("garbage"))
        return [*cells[:2], self._alarmed(cells[2], table), *_substitutes(f"{role}.seen instead", side, seen)]

    def _alarmed(self, cell: Cell, table: Table) -> Cell:
        said = [cell.note] if cell.note else []
        if cell.low is not None and cell.low > self.red:
            said.append(f"red: more than {self.red:.0%} garbage")
        seen = [str(r["seen"]) for r in table if r.get("seen") is not None and r.get("state") == "ok"]
        concepts = {r.get("concept") for r in table}
        if seen and len(concepts) > 1:
            names, n = np.unique(seen, return_counts=True)
            if n.max() > self.one_label * len(seen):
                said.append(f"one label takes {n.max()} of {len(seen)}: {names[n.argmax()]}")
        return replace(cell, note="; ".join(said))


def _substitutes(name: str, side: str, table: Table) -> list[Cell]:
    """The five labels most seen in images that were replaced, with their shares: was the anchor reached?"""
    seen = [str(r["seen"]) for r in table if r.get("seen") is not None]
    common = sorted(Counter(seen).items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    prompts = len({r.get("prompt") for r in table if r.get("seen") is not None})
    return [
        Cell(name, concept=label, side=side, value=k / len(seen), low=ends.low, high=ends.high, hits=k, n=len(seen),
             clusters=prompts)
        for label, k in common for ends in (wilson(k, len(seen)),)
    ]  # fmt: skip


PLUGIN = GarbageRate
