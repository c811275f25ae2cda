"""Numbers in words: rounded honestly, with a true minus, and never more sure than they are."""

from __future__ import annotations

import math
from typing import TypeGuard

from efface.scores.cells import Cell
from efface.scores.tables import Loss, Rate

__all__ = ["cell_text", "known", "percent", "points"]


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number."""
    return value is not None and math.isfinite(value)


def percent(rate: Rate | None) -> str:
    """A rate in per cent, one decimal; never 0.0 or 100.0 unless it is none or all of them."""
    if rate is None or not known(rate.rate):
        return "NA"
    text = f"{100 * rate.rate:.1f}"
    if text == "0.0" and rate.hits > 0:
        return "<0.1"
    return ">99.9" if text == "100.0" and rate.hits < rate.n else text


def points(value: float | None, sign: bool = False) -> str:
    """A difference or the end of an interval in per cent or points, with a true minus."""
    if not known(value):
        return "NA"
    text = f"{100 * value:.1f}"
    text = "0.0" if text == "-0.0" else text
    return ("+" + text if sign and float(text) > 0 else text).replace("-", "−")


def cell_text(cell: Rate | Loss | Cell | None) -> str:
    """A number with its interval, and what it rests on."""
    if cell is None:
        return ""
    if isinstance(cell, Cell):  # of any unit
        ends = "" if cell.low is None or cell.high is None else f" [{cell.low:.4g}, {cell.high:.4g}]"
        return "NA" if cell.value is None else f"{cell.value:.4g}{ends} n = {cell.n}"
    ends = f"[{points(cell.low)}, {points(cell.high)}]"
    if isinstance(cell, Loss):
        return f"{points(cell.estimate, True)} {ends}"
    return f"{percent(cell)} {ends} {cell.hits}/{cell.n}"
