"""The field's composite scores, with their exact formulas; rates are fractions, UQ and Overall as well.

Overall: FIA's and ScaPre's (2 P (1 - F) / (P + 1 - F)). UQ: ScaPre, arXiv 2601.06162; the constants were found by
fitting the paper's table (eight of its nine printed values reproduce, docs/metrics/composites.md). H_o, H_c, H_a:
MACE, arXiv 2403.06135, equations 8 and 9. UQ and mean rank depend on which methods stand in the table.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit
from scipy.stats import rankdata

__all__ = ["h_a", "h_c", "h_o", "harmonic", "mean_rank", "overall", "unlearning_quality"]


def harmonic(*parts: float | np.ndarray) -> np.ndarray:
    """Harmonic mean, element by element; 0 where any part is 0."""
    stacked = np.stack(np.broadcast_arrays(*[np.asarray(p, np.float64) for p in parts]))  # (k, ...)
    if not ((stacked >= 0) & (stacked <= 1)).all():
        raise ValueError("expected rates between 0 and 1; divide per cent by 100")
    some = (stacked > 0).all(0)
    inverse = 1 / np.where(stacked > 0, stacked, 1.0)
    return np.where(some, len(stacked) / inverse.sum(0), 0.0)


def overall(forgotten: float | np.ndarray, preserved: float | np.ndarray) -> np.ndarray:
    """2 P (1 - F) / (P + 1 - F). forgotten: accuracy left on targets (F); preserved: accuracy on kept concepts (P)."""
    return harmonic(1 - np.asarray(forgotten, np.float64), preserved)


def h_c(erased: float | np.ndarray, kept: float | np.ndarray) -> np.ndarray:
    """MACE's score of persons from accuracies on erased and kept concepts; the same formula as `overall`."""
    return overall(erased, kept)


def h_o(erased: float | np.ndarray, kept: float | np.ndarray, synonyms: float | np.ndarray) -> np.ndarray:
    """MACE's score of objects from accuracies on the erased class, kept classes and synonyms of the erased one.

    An average over classes is the mean of this score, not this score of the means.
    """
    return harmonic(1 - np.asarray(erased, np.float64), kept, 1 - np.asarray(synonyms, np.float64))


def h_a(clip_erased: float, clip_kept: float) -> float:
    """MACE's score of artists: CLIP score on kept less CLIP score on erased ones. A difference, in CLIP points."""
    return clip_kept - clip_erased


def unlearning_quality(residual: np.ndarray, clip: np.ndarray) -> np.ndarray | None:
    """ScaPre's UQ of the m methods of one table, (m,); the base model is one of them. None (NA) where undefined.

    residual: accuracy left on targets (down is better); clip: CLIP score on target-free captions (up). Both are
    standardised over the table (population deviation), squashed by a sigmoid and averaged harmonically. Undefined
    for one method, or when a column does not vary.
    """
    residual, clip = np.asarray(residual, np.float64), np.asarray(clip, np.float64)
    if residual.shape != clip.shape or residual.ndim != 1:
        raise ValueError(f"expected two columns of one length, got {residual.shape} and {clip.shape}; one row a method")
    if len(residual) < 2 or not residual.std() > 1e-12 or not clip.std() > 1e-12:
        return None
    low = (residual.mean() - residual) / residual.std()
    high = (clip - clip.mean()) / clip.std()
    return harmonic(expit(low), expit(high))


def mean_rank(columns: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Mean over metrics of each method's place, (m,); 1 is best, ties share. columns: (m, k); up: bool (k,)."""
    columns = np.asarray(columns, np.float64)
    if not np.isfinite(columns).all():
        raise ValueError("expected a number in every cell; leave out methods or metrics with NA")
    towards = np.where(np.asarray(up, bool), -columns, columns)
    return rankdata(towards, axis=0).mean(1)
