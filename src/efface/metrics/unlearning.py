"""UA, IRA and CRA: unlearning, in-domain retaining and cross-domain retaining accuracy.

Zhang et al., "UnlearnCanvas", NeurIPS 2024, arXiv 2402.11846. Every image names a style and an object; one head of
the judge says the style, another the object. UA counts noise as success: it is printed with IRA, CRA and garbage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from efface.metrics import Cell, Item, Row, Scored, Table, by_prompt, rate_cell
from efface.numerics.intervals import mean_of_rates

__all__ = ["Unlearning"]


@dataclass(frozen=True)
class Unlearning:
    """target: the erased style or object, of that `kind`. scope: whether cross-domain accuracy skips target prompts
    ("exclude-target") or counts them too ("all", as the authors' script does).

    Rows carry `style` and `object` (what the prompt names) and `style_seen`, `object_seen` (the heads' argmax).
    """

    target: str = ""
    kind: Literal["style", "object"] = "style"
    scope: Literal["exclude-target", "all"] = "exclude-target"
    direction: ClassVar[str] = "up"
    of_pairs: ClassVar[bool] = False
    set_dependent: ClassVar[bool] = False

    def features(self, item: Item) -> np.ndarray | None:
        """The judge's, unchanged."""
        return item.features

    def score(self, item: Item) -> Scored:
        """hit: the likeliest of the head's probabilities is the concept. The other head's answer is a row's own."""
        if not item.probabilities or item.concept not in item.probabilities:
            return Scored("na", reason=f"the judge has no label {item.concept!r}")
        chance = item.probabilities
        seen = max(chance, key=lambda k: chance[k])
        detail = {self.kind: item.concept, f"{self.kind}_seen": seen}
        return Scored(hit=seen == item.concept, value=float(chance[item.concept]), detail=detail)

    def aggregate(self, rows: Iterable[Row]) -> list[Cell]:
        """UA, IRA and CRA of each side; IRA and CRA are means over the other styles (objects).

        A row without the four names is NA.
        """
        words = ("style", "object", "style_seen", "object_seen")
        whole = [r if all(r.get(w) for w in words) else {**r, "state": "na"} for r in Table.of(rows)]
        table, cells = Table(whole, ordered=True), []
        for side in sorted({str(r.get("side", "")) for r in table}):
            cells += self._side(side, table.where(lambda r, s=side: r.get("side", "") == s))
        return cells

    def _side(self, side: str, table: Table) -> list[Cell]:
        own, other = ("style", "object") if self.kind == "style" else ("object", "style")
        aimed = table.where(lambda r: r.get(own) == self.target)
        spared = table.where(lambda r: r.get(own) != self.target)
        ua = _rates("UA", side, aimed, own, missed=True)
        ira = _rates("IRA", side, spared, own)
        cra = _rates("CRA", side, spared if self.scope == "exclude-target" else table, other)
        return [_mean("UA", side, ua, "target"), _mean("IRA", side, ira, own), _mean("CRA", side, cra, other)]


def _rates(name: str, side: str, table: Table, head: str, missed: bool = False) -> list[Cell]:
    """One cell a named style (object): share of images in which the head says it, or does not."""
    names, wanted = table.codes(head)
    ok, na, error = table.states()
    seen = np.fromiter((r.get(f"{head}_seen") == r.get(head) for r in table), bool, len(table))
    parts = by_prompt(wanted[ok], table.codes("prompt")[1][ok], len(names), (seen ^ missed)[ok])
    counts = [np.bincount(wanted[m], minlength=len(names)) for m in (na, error)]
    return [
        rate_cell(
            name, hits, sizes, n_na=int(counts[0][k]), n_error=int(counts[1][k]), concept=str(names[k]), side=side
        )
        for k, (sizes, hits) in enumerate(parts)
    ]


def _mean(name: str, side: str, cells: list[Cell], over: str) -> Cell:
    good = [c for c in cells if c.state == "ok"]
    counts: dict[str, Any] = {"n_na": sum(c.n_na for c in cells), "n_error": sum(c.n_error for c in cells)}
    if any(c.state == "error" for c in cells):
        return Cell(
            name, side=side, state="error", reason=next(c.reason for c in cells if c.state == "error"), **counts
        )
    if not good:
        return Cell(name, side=side, state="na", reason=f"no image of this {over} was scored", **counts)
    rates = np.asarray([(c.value, c.low, c.high) for c in good], np.float64)
    value, low, high = mean_of_rates(rates)
    return Cell(
        name, side=side, value=value, low=low, high=high, hits=sum(c.hits or 0 for c in good),
        n=sum(c.n for c in good), clusters=sum(c.clusters for c in good), note=f"mean of {len(good)} ({over})",
        **counts,
    )  # fmt: skip
