"""Rows and cells: order does not matter, pairs are never zipped by luck, NA and ERROR are no numbers."""

from __future__ import annotations

import resource
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import pytest

from efface import registry
from efface.errors import BadRequest
from efface.gallery.shot import Ask, Item, Shot
from efface.metrics.accuracy import Accuracy
from efface.metrics.garbage import GarbageRate
from efface.metrics.neighbourhood import Neighbourhood
from efface.numerics.intervals import tango, wilson
from efface.scores.cells import Left, by_prompt, loss_cell, mean_cell, rate_cell, set_interval
from efface.scores.readings import Readings
from efface.scores.scores import Scores
from plain_rows import readings, record, rows


@pytest.mark.parametrize(
    ("name", "settings"),
    [("pairs", {"measure": "psnr"}), ("clip", {"text": "concept", "model": "folder"}),
     ("detections", {"strict": "true"}), ("unlearning", {"target": "noto", "scope": "all"}),
     ("distribution", {"points": "9"})],
)  # fmt: skip
def test_settings_are_converted_from_words(name: str, settings: dict[str, Any]) -> None:
    made = registry.configure(name, settings, "metrics")
    assert {str(getattr(made, k)).lower() for k in settings} == {str(v).lower() for v in settings.values()}
    with pytest.raises(BadRequest, match="nonsense"):
        registry.configure(name, {"nonsense": "1"}, "metrics")


def test_only_tables_of_methods_depend_on_the_set() -> None:
    dependent = {n for n in registry.names("metrics") if registry.find("metrics", n)().set_dependent}
    assert dependent == {"composites"}


def test_partners_are_matched_by_place_and_missing_ones_are_named() -> None:
    """E-6."""
    some = rows()
    base, edited = Readings.of(readings(some)).pairs()
    assert [(r.prompt, r.shot.seed) for r in base] == [(r.prompt, r.shot.seed) for r in edited]
    with pytest.raises(BadRequest, match="1 without a partner"):
        Readings.of(readings(some[1:])).pairs()
    with pytest.raises(BadRequest, match="twice"):
        Readings.of(readings([*some, *some])).pairs()


def test_rows_of_two_judge_versions_are_not_mixed() -> None:
    """E-9."""
    old, new = rows(12, judge_version="aaa"), rows(12, judge_version="bbb")
    assert Accuracy().aggregate(readings(old)) == Accuracy().aggregate(readings(new))
    with pytest.raises(BadRequest, match="aaa, bbb"):
        Accuracy().aggregate(readings([*old, *new]))


def test_states_are_three_and_no_more() -> None:
    with pytest.raises(BadRequest, match="state ok, na or error"):
        Readings.of(readings([{"side": "base", "state": "fine"}])).states()


def test_na_and_errors_change_their_own_counts_alone() -> None:
    """E-13."""
    plain = rate_cell("x", np.asarray([3.0, 4]), np.asarray([10.0, 10]))
    more = rate_cell("x", np.asarray([3.0, 4]), np.asarray([10.0, 10]), Left(7))
    assert (more.value, more.hits, more.n, more.n_na) == (plain.value, 7, 20, 7)
    none = rate_cell("x", np.zeros(0), np.zeros(0), Left(7))
    assert (none.state, none.value, none.n_na) == ("na", None, 7)
    assert mean_cell("x", np.zeros(0), np.zeros(0, np.int64), Left(2)).state == "na"


@pytest.mark.parametrize(("failed", "state"), [(0, "ok"), (1, "ok"), (2, "error")])
def test_more_than_one_per_cent_of_errors_is_an_error(failed: int, state: str) -> None:
    """E-15, for one cell."""
    cell = rate_cell("x", np.full(50, 1.0), np.full(50, 2.0), Left(error=failed))
    assert cell.state == state
    assert (cell.value is None) == (state == "error")


def test_a_cell_of_one_prompt_says_so_and_takes_its_images_for_independent() -> None:
    cell = rate_cell("x", np.asarray([7.0]), np.asarray([24.0]))
    assert (cell.low, cell.high) == wilson(7, 24)
    assert "one prompt" in cell.note
    loss = loss_cell("x", np.asarray([6.0]), np.asarray([2.0]), np.asarray([240.0]))
    assert (loss.value, loss.low, loss.high) == tuple(tango(6, 2, 240))
    assert "few prompts" in rate_cell("x", np.asarray([3.0, 4]), np.asarray([10.0, 10])).note


def test_rows_are_gathered_by_group_and_prompt() -> None:
    groups, prompts = np.asarray([2, 0, 0, 2, 2]), np.asarray([5, 1, 1, 0, 5])
    found = by_prompt(groups, prompts, 3, np.asarray([1, 1, 0, 1, 1]))
    assert [[list(v) for v in part] for part in found] == [[[2], [1]], [[], []], [[1, 2], [1, 2]]]


def test_the_jackknife_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(size=20)
    ends = set_interval(lambda r: float(values[r].mean()), np.arange(20))
    assert ends is not None
    error = values.std(ddof=1) / np.sqrt(20)
    assert ends[1] - ends[0] == pytest.approx(2 * 2.093 * error, rel=1e-3)
    assert set_interval(lambda r: 0.0, np.zeros(5, int)) is None


def test_rows_come_from_items_and_records() -> None:
    items = [Item(Shot("a dog and a key", 7), (Ask("target", "dog"), Ask("other", "key"), Ask("other", "sofa")))]
    said = record("edited", "a dog and a key", 7, "key", values={"dog": 0.1, "key": 0.9})
    found = Scores.of(items, [said]).readings()
    assert [(r.role, r.concept, r.state, r.hit, r.value) for r in found] == [
        ("target", "dog", "ok", False, 0.1), ("other", "key", "ok", True, 0.9), ("other", "sofa", "na", None, None),
    ]  # fmt: skip
    assert found[2].reason
    failed = replace(said, state="error", reason="the judge failed", hits=(), values={}, boxes=())
    assert {(r.state, r.hit, r.reason) for r in Scores.of(items, [failed]).readings()} == {
        ("error", None, "the judge failed")
    }


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds() -> None:
    """Processor time, so that a busy machine does not matter; the peak is that of the whole process."""
    many = readings(rows(50_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for metric in (Accuracy(), GarbageRate(), Neighbourhood()):
        start = process_time()
        metric.aggregate(many)
        assert process_time() - start <= 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 1_000_000  # KiB
