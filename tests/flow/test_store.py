"""Records and files that survive a kill at any instant."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.errors import Cancelled, OutputExists, WrongFile
from efface.store import Images, Records, key_of, write_bytes
from efface.work import Work, seed_of


def rows(n: int) -> list[dict[str, object]]:
    return [{"key": f"k{i}", "value": i} for i in range(n)]


def test_what_was_appended_is_read_back_in_key_order(tmp_path: Path) -> None:
    records = Records(tmp_path / "r.jsonl")
    for row in rows(3)[::-1]:
        records.append(row)
    assert list(Records(tmp_path / "r.jsonl")) == list(records) == rows(3)


@pytest.mark.parametrize("cut", range(1, 26, 4))
def test_a_torn_last_line_is_dropped_and_the_next_record_is_whole(cut: int, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    records = Records(file)
    for row in rows(3):
        records.append(row)
    whole = file.read_bytes()
    assert cut < len(whole.splitlines(keepends=True)[-1])
    file.write_bytes(whole[:-cut])
    again = Records(file)
    assert [r["key"] for r in again][:2] == ["k0", "k1"]
    for row in (*rows(3), {"key": "k9", "value": 9}):
        again.append(row)
    assert list(Records(file)) == [*rows(3), {"key": "k9", "value": 9}]


def test_the_same_record_twice_is_written_once_and_another_under_its_key_raises(tmp_path: Path) -> None:
    records = Records(tmp_path / "r.jsonl")
    records.append(rows(1)[0])
    size = (tmp_path / "r.jsonl").stat().st_size
    records.append(rows(1)[0])
    assert (tmp_path / "r.jsonl").stat().st_size == size
    with pytest.raises(WrongFile, match="k0"):
        records.append({"key": "k0", "value": 1})
    assert list(Records(tmp_path / "r.jsonl")) == rows(1)


def test_a_record_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Records(tmp_path / "r.jsonl").append({"key": "a", "value": float("nan")})


@pytest.mark.parametrize("when", ["replace", "fsync"])
def test_an_interrupted_write_leaves_nothing_and_keeps_the_old_file(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_bytes(b"old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, when, stop)
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_bytes(tmp_path / name, b"new")
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("old", b"old")]


def test_an_unwritable_place_is_named_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WrongFile, match=r"file/x.*another place"):
        write_bytes(tmp_path / "file" / "x", b"")
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"1")
    with pytest.raises(OutputExists, match="overwrite"):
        write_bytes(tmp_path / "a", b"2", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"1"


def test_a_key_depends_on_every_value_and_on_no_order() -> None:
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1"), key_of(a=None)}) == 5


def test_an_image_is_read_back_exactly_and_a_torn_one_is_deleted(tmp_path: Path) -> None:
    images, pixels = Images(tmp_path), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    images.put("abc", pixels)
    assert (images.get("abc") == pixels).all()
    images.path("abc").write_bytes(images.png("abc")[:40])
    with pytest.raises(WrongFile, match="damaged"):
        images.get("abc")
    assert not images.has("abc")
    with pytest.raises(WrongFile, match="gone"):
        images.get("abc")


# --- work ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [True, False])
def test_saved_state_is_restored_exactly_and_is_a_copy(on_disk: bool, tmp_path: Path) -> None:
    work = Work(folder=tmp_path / "w" if on_disk else None)
    assert work.restore() is None
    state = {"x": torch.randn(3), "step": torch.tensor(4)}
    work.save(state)
    wanted = state["x"].clone()
    state["x"].zero_()
    found = (Work(folder=tmp_path / "w") if on_disk else work).restore()
    assert found is not None
    assert found["x"].equal(wanted)
    assert int(found["step"]) == 4


def test_a_torn_state_is_named(tmp_path: Path) -> None:
    Work(folder=tmp_path).save({"x": torch.zeros(9)})
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(WrongFile, match=file.name):
        Work(folder=tmp_path).restore()


def test_a_generator_depends_on_seed_and_name_alone() -> None:
    def drawn(seed: int, name: str) -> float:
        return float(torch.randn(1, generator=Work(seed).rng(name)))

    assert drawn(0, "a") == drawn(0, "a")
    assert len({drawn(0, "a"), drawn(0, "b"), drawn(1, "a")}) == 3
    assert seed_of("a", 1) != seed_of("a1") and 0 <= seed_of("x") < 2**63  # noqa: PT018


def test_progress_gives_every_item_and_stops_at_the_next_one_when_cancelled() -> None:
    work, seen = Work(), []
    assert list(work.progress("abc", "letters")) == ["a", "b", "c"]
    with pytest.raises(Cancelled):
        seen.extend(work.cancel() or item for item in work.progress("abc", "letters"))
    assert seen == ["a"]


def test_json_lines_are_one_object_a_line(tmp_path: Path) -> None:
    Records(tmp_path / "r").append({"key": "a", "text": "two\nlines"})
    assert [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()] == [
        {"key": "a", "text": "two\nlines"}
    ]
