"""Composite scores: every published row that can be checked, and their laws."""

from __future__ import annotations

import numpy as np
import pytest

from efface.numerics.composites import h_a, h_c, h_o, harmonic, mean_rank, overall, unlearning_quality

# Forgotten, preserved, printed Overall in per cent (FIA, table 2; Confuse5 of ScaPre)
OVERALL = [
    (48.9, 76.9, 61.4), (26.6, 72.2, 72.8), (2.7, 52.4, 68.1), (5.5, 71.9, 81.7), (2.1, 76.7, 86.0),
    (83.9, 86.6, 27.2), (2.9, 5.6, 10.6), (5.8, 76.3, 84.3),
]  # fmt: skip
# erased, kept, synonyms, printed H_o (MACE, table 1)
OBJECTS = [
    (9.06, 95.39, 10.03, 92.03), (40.32, 98.79, 49.83, 64.09), (7.38, 85.48, 5.92, 90.57), (6.97, 95.18, 14.22, 91.15),
    (96.76, 98.32, 94.15, 6.13),
]  # fmt: skip
PERSONS = [(67.79, 85.05, 46.72), (0.08, 32.16, 48.66), (18.70, 61.78, 70.21), (4.31, 84.56, 89.78)]
ARTISTS = [(21.31, 25.70, 4.39), (22.59, 28.58, 5.99), (29.63, 28.90, -0.73)]
# ScaPre's table of Imagenette: SD 1.5, FMN, SPM, ESD, MACE, UCE, RECE, SP, ScaPre
RESIDUAL = np.asarray([89.9, 71.9, 47.4, 38.7, 78.5, 8.5, 4.9, 9.6, 0.8])
CLIP = np.asarray([31.43, 30.62, 30.81, 30.14, 31.02, 29.45, 29.27, 29.25, 30.43])
UQ = np.asarray([28.85, 37.35, 52.89, 47.84, 35.07, 37.23, 32.60, 31.78, 64.09])
# FIA, table 4, the rows of FIA, ConceptPrune, MACE, UCE, ESD: CLIP_a down, FSR up, FID down, CLIP up, mean rank
RANKS = np.asarray([
    (27.45, 83.4, 16.7, 30.56, 2.50), (27.90, 79.6, 18.4, 29.76, 4.50), (30.98, 57.4, 15.9, 30.14, 3.75),
    (31.89, 44.0, 19.7, 31.19, 5.50), (33.62, 39.2, 17.1, 30.52, 6.50),
])  # fmt: skip


@pytest.mark.parametrize(("forgotten", "preserved", "printed"), OVERALL)
def test_published_rows_of_overall(forgotten: float, preserved: float, printed: float) -> None:
    """E-17, 1.11-28."""
    assert 100 * overall(forgotten / 100, preserved / 100) == pytest.approx(printed, abs=0.05)


@pytest.mark.parametrize(("erased", "kept", "printed"), PERSONS)
def test_published_rows_of_h_c(erased: float, kept: float, printed: float) -> None:
    """E-17."""
    assert 100 * h_c(erased / 100, kept / 100) == pytest.approx(printed, abs=0.01)


def test_laws_of_overall() -> None:
    """E-17."""
    draw = np.random.default_rng(0)
    f, p = draw.random(200), draw.random(200)
    found = overall(f, p)
    assert found == pytest.approx(overall(1 - p, 1 - f), abs=1e-12)
    assert (np.minimum(p, 1 - f) - 1e-12 <= found).all()
    assert (found <= np.maximum(p, 1 - f) + 1e-12).all()
    assert (overall(f, (p + 1) / 2) >= found).all()
    assert (overall((f + 1) / 2, p) <= found).all()
    assert overall(1.0, 1.0) == overall(0.0, 0.0) == overall(1.0, 0.0) == 0


@pytest.mark.parametrize(("erased", "kept", "synonyms", "printed"), OBJECTS)
def test_published_rows_of_h_o(erased: float, kept: float, synonyms: float, printed: float) -> None:
    """E-18."""
    assert 100 * h_o(erased / 100, kept / 100, synonyms / 100) == pytest.approx(printed, abs=0.02)


def test_h_o_of_means_is_not_the_mean_of_h_o() -> None:
    """E-18: the row of UCE prints 85.48 as a mean over classes; the formula on its means gives 86.35."""
    assert 100 * h_o(0.1354, 0.9845, 0.2318) == pytest.approx(86.35, abs=0.01)
    classes = np.asarray([(0.0, 0.98, 0.1), (0.6, 0.98, 0.5)])
    assert h_o(*classes.T).mean() != pytest.approx(float(h_o(*classes.mean(0))), abs=1e-3)


def test_h_o_without_synonyms_is_h_c_only_where_these_are_the_mean_of_the_rest() -> None:
    """E-18."""
    two = float(h_c(0.2, 0.9))
    assert h_o(0.2, 0.9, 1 - two) == pytest.approx(two, abs=1e-12)
    assert h_o(0.2, 0.9, 0.4) != pytest.approx(two, abs=1e-3)
    assert h_o(0.0, 1.0, 1.0) == 0


@pytest.mark.parametrize(("erased", "kept", "printed"), ARTISTS)
def test_published_rows_of_h_a(erased: float, kept: float, printed: float) -> None:
    """E-18."""
    assert h_a(erased, kept) == pytest.approx(printed, abs=1e-9)


def test_published_rows_of_uq() -> None:
    """E-19, 1.11-28: eight of nine as printed; the third prints 49.89 where its inputs give 52.89."""
    found = unlearning_quality(RESIDUAL, CLIP)
    assert found is not None
    assert 100 * found == pytest.approx(UQ, abs=0.01)


def test_uq_depends_on_the_pool_and_on_nothing_linear() -> None:
    """E-19."""
    found = unlearning_quality(RESIDUAL, CLIP)
    moved = unlearning_quality(RESIDUAL / 100, 5 * CLIP - 3)
    assert found is not None
    assert moved == pytest.approx(found, abs=1e-12)
    rest = np.arange(9) != 4  # without MACE
    without = unlearning_quality(RESIDUAL[rest], CLIP[rest])
    assert without is not None
    assert 100 * without[-1] == pytest.approx(65.37, abs=0.01)
    assert 100 * without[4] == pytest.approx(39.28, abs=0.01)
    few = unlearning_quality(RESIDUAL[[0, 1, 2, 3, 4, 8]], CLIP[[0, 1, 2, 3, 4, 8]])
    assert few is not None
    assert 100 * few[[3, 4]] == pytest.approx([29.15, 42.12], abs=0.01)  # the order of two methods is reversed


def test_uq_is_not_defined_for_one_method_or_without_spread() -> None:
    """E-19."""
    assert unlearning_quality(np.asarray([0.1]), np.asarray([30.0])) is None
    assert unlearning_quality(np.asarray([0.1, 0.1]), np.asarray([30.0, 31.0])) is None
    assert unlearning_quality(np.asarray([0.1, 0.2]), np.asarray([30.0, 30.0])) is None
    with pytest.raises(ValueError, match="columns"):
        unlearning_quality(np.zeros(2), np.zeros(3))


UP = np.asarray([False, True, False, True])


def test_published_mean_ranks_are_not_contradicted() -> None:
    """E-20: the table prints ranks among eight methods; three more can only push a mean rank back, by at most three."""
    among_five, printed = mean_rank(RANKS[:, :4], UP), RANKS[:, 4]
    assert (among_five <= printed).all()
    assert (printed <= among_five + 3).all()


def test_laws_of_mean_rank() -> None:
    """E-20."""
    columns = np.random.default_rng(1).random((7, 4))
    found = mean_rank(columns, UP)
    assert mean_rank(np.exp(3 * columns), UP) == pytest.approx(found, abs=1e-12)
    assert mean_rank(columns, ~UP) == pytest.approx(8 - found, abs=1e-12)
    assert found.mean() == pytest.approx(4)
    tied = np.asarray([[1.0], [1.0], [2.0]])
    assert mean_rank(tied, np.asarray([False])) == pytest.approx([1.5, 1.5, 3])
    with pytest.raises(ValueError, match="NA"):
        mean_rank(np.asarray([[np.nan]]), np.asarray([True]))


@pytest.mark.parametrize("bad", [90.0, -0.1, float("nan")])
def test_rates_that_are_no_fractions_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        harmonic(bad, 0.5)
