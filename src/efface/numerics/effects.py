"""What an edit of one weight does to outputs that matter: numbers for the recipe, no part of any method.

Rows are texts; W and W0 are (o, d), float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efface.numerics.rows import Spans

__all__ = ["effects", "power_of_ten", "short"]

PADDING = 8  # padding rows looked at, evenly spread: they are nearly alike


def short(value: float) -> float:
    """Six digits: what stays the same on another machine."""
    return float(f"{value:.6g}")


def power_of_ten(value: float, least: float = 1e-16) -> float:
    """The next power of ten above, for sizes of rounding errors."""
    return float(f"1e{int(torch.tensor(max(value, least), dtype=torch.float64).log10().ceil())}")


def effects(W: Tensor, W0: Tensor, concepts: Tensor, goals: Tensor, empty: Tensor, spans: Spans) -> dict[str, float]:
    """Relative norms: concepts (m, d) and the rows (m, d) they shall become, the empty text (L, d) by its parts.

    concept_output: `|W c| / |W0 c|`; target_error: `|W c - W0 g| / |W0 c|`; the empty text's start, end and padding (at
    most eight rows of it) and the weight itself by how much they moved. 0 where there is nothing to compare with: no
    padding, a weight of zeros.
    """
    parts = [range(*spans.start), range(*spans.end), _spread(spans.padding[0], len(empty))]
    empty = empty[[row for part in parts for row in part]]
    own, left = concepts @ W0.T, concepts @ W.T  # (m, o)
    sizes = [len(part) for part in parts]
    moved, before = (rows.split(sizes) for rows in (empty @ (W - W0).T, empty @ W0.T))  # three of (., o) each
    start, end, padding = (m.norm() / b.norm() for m, b in zip(moved, before, strict=True))
    found = {
        "concept_output": left.norm() / own.norm(),
        "target_error": (left - goals @ W0.T).norm() / own.norm(),
        "empty_text_change": end,
        "empty_bos_change": start,
        "empty_padding_change": padding,
        "relative_change": (W - W0).norm() / W0.norm(),
    }
    return {name: short(float(value)) if value.isfinite() else 0.0 for name, value in found.items()}


def _spread(first: int, stop: int) -> list[int]:
    """At most `PADDING` numbers from `first` to `stop`, evenly spread."""
    size = stop - first
    return [first + i * size // PADDING for i in range(PADDING)] if size > PADDING else list(range(first, stop))
