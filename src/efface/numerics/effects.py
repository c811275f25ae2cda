"""What an edit of one weight does to outputs that matter: numbers for the recipe, no part of any method.

Rows are texts; W and W0 are (o, d), float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["effects", "power_of_ten", "short"]

PADDING = 8  # padding rows looked at, evenly spread: they are nearly alike


def short(value: float) -> float:
    """Six digits: what stays the same on another machine."""
    return float(f"{value:.6g}")


def power_of_ten(value: float, least: float = 1e-16) -> float:
    """The next power of ten above, for sizes of rounding errors."""
    return float(f"1e{int(torch.tensor(max(value, least), dtype=torch.float64).log10().ceil())}")


def effects(W: Tensor, W0: Tensor, concepts: Tensor, goals: Tensor, empty: Tensor) -> dict[str, float]:
    """Relative norms: concepts (m, d) and the rows (m, d) they shall become, the empty text (L, d) by its parts.

    concept_output: `|W c| / |W0 c|`; target_error: `|W c - W0 g| / |W0 c|`; the empty text's BOS, EOS and padding (at
    most eight rows of it) and the weight itself by how much they moved. 0 where there is nothing to compare with: no
    padding, a weight of zeros.
    """
    padding = len(empty) - 2
    looked = [0, 1, *(2 + i * padding // PADDING for i in range(PADDING))] if padding > PADDING else range(len(empty))
    empty = empty[list(looked)]
    own, left = concepts @ W0.T, concepts @ W.T  # (m, o)
    moved, before = empty @ (W - W0).T, empty @ W0.T  # (L, o)
    found = {
        "concept_output": left.norm() / own.norm(),
        "target_error": (left - goals @ W0.T).norm() / own.norm(),
        "empty_text_change": moved[1].norm() / before[1].norm(),
        "empty_bos_change": moved[0].norm() / before[0].norm(),
        "empty_padding_change": moved[2:].norm() / before[2:].norm(),
        "relative_change": (W - W0).norm() / W0.norm(),
    }
    return {name: short(float(value)) if value.isfinite() else 0.0 for name, value in found.items()}
