"""What every judge promises, one row each. Judges whose weights are not here are small random networks.

A row has what `--judge NAME:WHERE` would say, and another brief that has to be another version of the panel.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from efface import registry
from efface.errors import BadRequest, UnknownName
from efface.judges.panel import PLAIN, Brief, EmptyPanel, Panel, Question, seated
from small_judges import save_clip, save_resnet, stand_in_detector

SIZE = 64


@dataclass(frozen=True)
class Row:
    """One judge."""

    save: Callable[[Path], Path] | None = None
    """Writes the folder that stands after the colon; none: the judge is bundled, or a package."""
    missing: str = ""
    """What stands after the colon where nothing is; "" where the judge cannot be missing."""
    cure: str = ""
    """What the sentence about a missing judge names."""
    brief: Brief = PLAIN
    other: Brief | None = None
    """A brief that decides otherwise."""


ROWS = {
    "world": Row(),
    "transformers-classifier": Row(
        save_resnet, "somebody/some-resnet", "hf download", Brief(("cassette player",)), Brief(("sea lion",))
    ),
    "clip": Row(save_clip, "somebody/some-clip", "hf download", Brief(("dog", "cat")), Brief(("dog", "sofa"))),
    "nudenet": Row(cure=r"efface\[nudenet\]", other=Brief(threshold=0.9)),
}
FOR_METHODS = {"selection"}  # a judge that methods may ask, and that may not report
OF_FEATURES = {"torchmetrics-features"}  # answers no question; tests/cli/test_standard_measurements.py
every_row = pytest.mark.parametrize("name", ROWS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judges")


@cache
def _where(name: str, home: Path) -> str:
    save = ROWS[name].save
    return f":{save(home / name)}" if save else ""


@pytest.fixture
def seat(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Panel]:
    """`seat(name, brief)`: the judge of a row on its panel."""
    stand_in_detector(tmp_path / "package", monkeypatch)
    return lambda name, brief=None: seated(name + _where(name, home), brief or ROWS[name].brief)


def pictures(n: int) -> np.ndarray:
    """Coarse coloured pictures (n, SIZE, SIZE, 3), all of them different."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)


def questions(panel: Panel, n: int) -> list[Question]:
    asked = (*panel.labels[:2], "nothing that it knows")
    return [Question(f"a picture {k}", asked) for k in range(n)]


def test_every_judge_has_a_row() -> None:
    assert {*ROWS, *FOR_METHODS, *OF_FEATURES} == set(registry.names("judges"))


@every_row
def test_it_has_a_name_a_version_and_a_seat_that_a_report_can_print(name: str, seat: Callable[..., Panel]) -> None:
    panel = seat(name)
    assert not isinstance(panel, EmptyPanel)
    assert panel.name
    assert panel.role == "reporting"
    assert panel.seats[0].version == panel.versions.judge
    assert seat(name).versions == panel.versions
    assert all(s.name and s.version for s in panel.seats)
    assert panel.decides != panel.compares


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.other])
def test_what_decides_otherwise_is_another_version(name: str, seat: Callable[..., Panel]) -> None:
    assert seat(name, ROWS[name].other).versions.judge != seat(name).versions.judge


@every_row
def test_a_picture_is_judged_alike_alone_in_a_batch_and_again(name: str, seat: Callable[..., Panel]) -> None:
    panel, some = seat(name), pictures(3)
    asked = questions(panel, 3)
    together = panel.findings(some, asked)
    alone = [panel.findings(some[k : k + 1], asked[k : k + 1])[0] for k in range(3)]
    assert together == panel.findings(some, asked)
    for one, among in zip(alone, together, strict=True):
        assert (one.state, one.garbage, one.hits) == ("ok", among.garbage, among.hits)
        assert one.values == pytest.approx(among.values, rel=0, abs=1e-5)


@every_row
def test_every_question_has_one_answer_and_an_unknown_label_has_none(name: str, seat: Callable[..., Panel]) -> None:
    panel, some = seat(name), pictures(2)
    found = panel.findings(some, questions(panel, 2))
    assert [f.state for f in found] == ["ok", "ok"]
    for finding in found:
        assert all(np.isfinite(v) for v in finding.values.values())
        assert set(finding.values) >= set(panel.known(frozenset(panel.labels[:2])))
        if panel.labels:
            assert "nothing that it knows" not in finding.values


@every_row
@pytest.mark.parametrize(
    "bad",
    [np.zeros((1, SIZE, SIZE, 3)), np.zeros((1, SIZE, SIZE, 4), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)],
    ids=["floats", "four channels", "no axis of pictures"],
)
def test_what_is_no_picture_is_one_sentence(name: str, bad: np.ndarray, seat: Callable[..., Panel]) -> None:
    panel = seat(name)
    with pytest.raises(BadRequest, match="uint8") as caught:
        panel.look(bad, questions(panel, len(bad)))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.cure])
def test_a_judge_that_is_not_here_leaves_an_empty_seat_with_the_cure(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[name]
    monkeypatch.setitem(sys.modules, "nudenet", None)
    panel = seated(f"{name}:{row.missing}" if row.missing else name, row.brief)
    assert isinstance(panel, EmptyPanel)
    found = panel.findings(pictures(1), [Question("a dog", ("dog",))])
    assert found[0].state == "na"
    assert re.search(row.cure, found[0].reason)


def test_a_judge_for_methods_may_not_report_and_an_unknown_one_has_neighbours() -> None:
    for name in FOR_METHODS:
        with pytest.raises(BadRequest, match="selection"):
            seated(name)
    with pytest.raises(UnknownName, match="world"):
        seated("wrld")
