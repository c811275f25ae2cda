"""What every metric promises, one row each: order does not matter, and what cannot be known is NA with a reason."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from efface import registry
from efface.errors import BadRequest
from efface.metrics import Metric, Specimen
from efface.scores.forms import row_of
from plain_rows import readings, rows

every_row = pytest.mark.parametrize("name", registry.names("metrics"))


def made(name: str) -> Metric:
    """With its default settings."""
    return registry.find("metrics", name)()


@every_row
def test_it_is_found_by_name_and_gives_the_same_cells_in_any_order(name: str) -> None:
    """E-1, E-12: bit for bit, and as JSON without NaN."""
    metric: Metric = registry.find("metrics", name)()
    assert metric.direction in ("up", "down", "same")
    some = rows()
    shuffled = [some[i] for i in np.random.default_rng(1).permutation(len(some))]
    there, back = metric.aggregate(readings(some)), metric.aggregate(readings(shuffled))
    assert there == back
    assert there
    for cell in there:
        json.dumps(row_of(cell), allow_nan=False)
        assert cell.state in ("ok", "na", "error")
        assert (cell.value is not None) == (cell.state == "ok")
        assert bool(cell.reason) == (cell.state != "ok")


@every_row
def test_it_answers_na_where_it_cannot_know(name: str) -> None:
    metric: Metric = registry.find("metrics", name)()
    item = Specimen(np.zeros((16, 16, 3), np.uint8), "a dog", "dog")
    found = metric.score(item)
    assert (found.state, found.hit, found.value) == ("na", None, None)
    assert found.reason


@every_row
def test_a_score_is_a_pure_function_of_the_specimen(name: str) -> None:
    draw = np.random.default_rng(0)
    image, base = draw.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    item = Specimen(
        image, "a dog", "dog", base, {"dog": 0.9, "cat": 0.1}, frozenset({"dog"}),
        {"object": ("dog", "dog")}, draw.normal(size=4), draw.normal(size=4), boxes=(("A", 0.9),),
    )  # fmt: skip
    kept = (image.copy(), base.copy())
    first, second = made(name).score(item), made(name).score(item)
    assert first == second
    assert first.state in ("ok", "na", "error")
    assert bool(first.reason) == (first.state != "ok")
    assert (first.hit is None and first.value is None) or first.state == "ok"
    assert np.array_equal(image, kept[0])
    assert np.array_equal(base, kept[1])


@every_row
def test_nothing_at_all_is_no_number(name: str) -> None:
    for cell in made(name).aggregate([]):
        assert (cell.state, cell.value) == ("na", None)
        assert cell.reason


@every_row
def test_its_settings_are_the_fields_of_a_frozen_dataclass(name: str) -> None:
    metric = made(name)
    assert dataclasses.is_dataclass(metric)
    assert type(metric).__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(BadRequest, match="nonsense") as caught:
        registry.configure(name, {"nonsense": "1"}, "metrics")
    assert len(str(caught.value).splitlines()) == 1
