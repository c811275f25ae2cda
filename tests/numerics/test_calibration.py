"""Temperature, calibration error, Brier score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from efface.numerics.calibration import brier, calibration_error, likelihood, temperature


def judged(seed: int, heat: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a judge whose probabilities are right at temperature `heat`, and what was shown."""
    draw = np.random.default_rng(seed)
    logits = 2 * draw.normal(size=(n, 5))
    shown = (softmax(logits, axis=1).cumsum(1) > draw.random((n, 1))).argmax(1)
    return heat * logits, shown


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(heat: float) -> None:
    """E-33: 1 where the judge is right already."""
    logits, shown = judged(0, heat)
    found = temperature(logits, shown)
    assert found / heat == pytest.approx(1, abs=0.05)
    assert likelihood(logits, shown, found) <= likelihood(logits, shown)
    assert ((logits / found).argmax(1) == logits.argmax(1)).all()
    assert (np.argsort(logits[:, 0] / found) == np.argsort(logits[:, 0])).all()  # so a ranking's area stays


def test_calibration_errors_fall_with_the_right_temperature() -> None:
    """E-33."""
    logits, shown = judged(1, 3.0)
    errors = []
    for heat in (1.0, temperature(logits, shown)):
        chance = softmax(logits / heat, axis=1)
        right = chance.argmax(1) == shown
        errors.append((calibration_error(chance.max(1), right), brier(chance, shown)))
    assert errors[1][0] < 0.2 * errors[0][0]
    assert errors[1][1] < errors[0][1]


def test_worked_calibration_error_and_brier() -> None:
    assert calibration_error(np.asarray([0.9, 0.9, 0.6, 0.6]), np.asarray([1, 1, 0, 1]), bins=2) == pytest.approx(0.1)
    assert brier(np.asarray([[0.8, 0.2], [0.3, 0.7]]), np.asarray([0, 0])) == pytest.approx((0.08 + 0.98) / 2)


def test_a_judge_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="label"):
        temperature(np.zeros((3, 2)), np.zeros(2, int))
