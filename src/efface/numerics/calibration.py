"""What a judge's probabilities are worth: temperature, calibration error, Brier score.

Guo et al., "On calibration of modern neural networks", ICML 2017 (temperature); equal-mass bins after Nguyen and
O'Connor 2015; Brier 1950.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

__all__ = ["brier", "calibration_error", "likelihood", "temperature"]


def likelihood(logits: np.ndarray, labels: np.ndarray, heat: float = 1.0) -> float:
    """Mean negative log-likelihood of labels (n,) under softmax(logits / heat), logits (n, c)."""
    chance = log_softmax(np.asarray(logits, np.float64) / heat, axis=1)
    return float(-chance[np.arange(len(labels)), labels].mean())


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The one scalar that makes softmax(logits / T) likeliest; argmax does not change, the likelihood never falls."""
    if len(logits) < 2 or len(logits) != len(labels):
        raise ValueError(f"expected a label a row and two rows or more, got {len(logits)} and {len(labels)}")
    found = minimize_scalar(
        lambda t: likelihood(logits, labels, float(np.exp(t))), bounds=(-3.0, 3.0), method="bounded"
    )  # fmt: skip
    heat = float(np.exp(found.x))
    return heat if likelihood(logits, labels, heat) <= likelihood(logits, labels) else 1.0


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error with bins of equal mass: mean over bins of |confidence - share right|."""
    order = np.argsort(confidence, kind="stable")
    pairs = np.stack([np.asarray(confidence, np.float64), np.asarray(right, np.float64)], 1)[order]  # (n, 2)
    parts = np.array_split(pairs, min(bins, len(pairs)))
    return float(sum(len(p) * abs(p[:, 0].mean() - p[:, 1].mean()) for p in parts) / len(pairs))


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of probabilities (n, c) to the one-hot truth, summed over classes: 0 to 2."""
    wanted = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - wanted) ** 2).sum(1).mean())
