"""Records and files that survive a kill at any instant."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.errors import Cancelled, OutputExists, WrongFile
from efface.files import key_of, leftovers, write_bytes
from efface.gallery.images import Images, pixel_hash, read_images
from efface.scores.records import Record, Records, read_records
from efface.work import Work, seed_of
from plain_rows import record

KEY, OTHER = "a" * 32, "b" * 32


def rows(n: int) -> list[Record]:
    return [record("base", "p", i, key=f"k{i}") for i in range(n)]


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
    other = record("base", "p", 9, key="k9")
    file.write_bytes(whole[:-cut])
    again = Records(file)
    assert [r.key for r in again][:2] == ["k0", "k1"]
    for row in (*rows(3), other):
        again.append(row)
    assert list(Records(file)) == [*rows(3), other]


def test_the_same_record_twice_is_written_once_and_another_under_its_key_raises(tmp_path: Path) -> None:
    records = Records(tmp_path / "r.jsonl")
    records.append(rows(1)[0])
    size = (tmp_path / "r.jsonl").stat().st_size
    records.append(rows(1)[0])
    assert (tmp_path / "r.jsonl").stat().st_size == size
    with pytest.raises(WrongFile, match="k0"):
        records.append(record("base", "p", 1, key="k0"))
    assert list(Records(tmp_path / "r.jsonl")) == rows(1)


def test_a_file_cut_anywhere_in_its_last_two_lines_loses_at_most_the_torn_line(tmp_path: Path) -> None:
    """E-3: loading never raises, and writing the same rows again gives the same set."""
    file, records = tmp_path / "r.jsonl", None
    records = Records(file)
    for row in rows(4):
        records.append(row)
    whole = file.read_bytes()
    begin = whole.rindex(b"\n", 0, whole.rindex(b"\n", 0, len(whole) - 1)) + 1
    for cut in range(begin, len(whole) + 1):
        file.write_bytes(whole[:cut])
        found = Records(file)
        assert [r.key for r in found] in ([["k0", "k1", "k2"][:n] for n in (2, 3)] + [["k0", "k1", "k2", "k3"]])
        for row in rows(4):
            found.append(row)
        assert list(Records(file)) == rows(4)


def test_a_flipped_byte_is_found_wherever_it_is_and_the_record_can_be_written_again(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    records = Records(file)
    for row in rows(3):
        records.append(row)
    whole = file.read_bytes()
    for place in range(0, len(whole), 3):
        for bit in (1, 4, 128):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            found = Records(file)
            assert all(row in rows(3) for row in found), place
            assert len(found) + found.damaged >= 2
            for row in rows(3):
                found.append(row)
            assert list(Records(file)) == rows(3)


FORM = {"key": "a", "side": "base", "image": "", "prompt": "p", "seed": 1, "judge": "", "judge_version": "",
        "pixels": "", "garbage": False, "hits": [], "values": {}}  # fmt: skip


@pytest.mark.parametrize(
    "change", [{}, {"seed": "1"}, {"seed": -1}, {"hits": "cat"}, {"hits": [1]}, {"values": []}, {"garbage": 0},
               {"values": {"a": "high"}}, {"state": "fine"}, {"boxes": [["a"]]}, {"prompt": None}, {"key": 3}],
)  # fmt: skip
def test_a_line_without_a_seal_or_of_another_form_is_damaged(change: dict[str, object], tmp_path: Path) -> None:
    """What is no record is judged again; what is one comes back as it was."""
    file = tmp_path / "r.jsonl"
    Records(file).append(record("base", "q", 2, key="b"))
    with file.open("ab") as stream:
        stream.write(json.dumps(FORM).encode() + b"\n")
    assert (list(read_records(file)[0]), read_records(file)[1]) == (["b"], 1)
    with file.open("ab") as stream:
        stream.write(sealed(json.dumps(FORM | change)))
    found, damaged = read_records(file)
    assert (sorted(found), damaged) == ((["b"], 2) if change else (["a", "b"], 1))


def sealed(body: str) -> bytes:
    return f'{body[:-1]}, "sum": "{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def test_a_record_that_is_void_may_be_written_anew(tmp_path: Path) -> None:
    records = Records(tmp_path / "r.jsonl")
    records.append(record("base", "p", 1, key="a"))
    records.void("a", "its image was lost")
    records.void("unknown", "never written")
    assert "a" not in Records(tmp_path / "r.jsonl")
    records.append(record("base", "p", 2, key="a"))
    assert list(Records(tmp_path / "r.jsonl")) == [record("base", "p", 2, key="a")]


def test_large_seeds_survive(tmp_path: Path) -> None:
    """E-10: 32 bits unsigned and more; negative ones raise."""
    from efface.errors import BadRequest
    from efface.gallery.shot import Item, Shot

    seed = 4_290_749_014
    Records(tmp_path / "r.jsonl").append(record("base", "p", seed, key="a"))
    assert next(iter(Records(tmp_path / "r.jsonl"))).shot.seed == seed
    generator = torch.Generator().manual_seed(Item(Shot("p", seed)).seed)
    assert generator.initial_seed() == seed
    for wrong in (-1, 2**64):
        with pytest.raises(BadRequest, match="seed"):
            Item(Shot("p", wrong))


def test_a_record_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Records(tmp_path / "r.jsonl").append(record("base", "p", 0, values={"a": float("nan")}))


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
    images.put(KEY, pixels)
    assert (images.get(KEY) == pixels).all()
    images.path(KEY).write_bytes(images.png(KEY)[:40])
    with pytest.raises(WrongFile, match="damaged"):
        images.get(KEY)
    assert not images.has(KEY)
    with pytest.raises(WrongFile, match="gone"):
        images.get(KEY)


def test_a_flipped_bit_anywhere_in_an_image_is_found_unless_it_changes_no_pixel(tmp_path: Path) -> None:
    """Every byte of the file, each with another bit: damaged, or the same pixels as were judged."""
    images, pixels = Images(tmp_path), np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    images.put(KEY, pixels)
    whole, found = images.png(KEY), 0
    for place in range(len(whole)):
        bit = 1 << place * 3 % 8
        images.path(KEY).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        if images.whole(KEY, pixel_hash(pixels)):
            assert (images.get(KEY) == pixels).all(), place
        else:
            found += 1
    assert found > len(whole) // 2


def test_the_hash_of_an_image_is_that_of_its_pixels(tmp_path: Path) -> None:
    """E-5: compression and metadata do not matter, one bit does."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    info = PngInfo()
    info.add_text("note", "other")
    images = Images(tmp_path)
    for key, options in ((KEY, {"compress_level": 0}), (OTHER, {"compress_level": 9, "pnginfo": info})):
        images.path(key).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(images.path(key), **options)
    assert pixel_hash(images.get(KEY)) == pixel_hash(images.get(OTHER)) == pixel_hash(pixels)
    assert images.png(KEY) != images.png(OTHER)
    other = pixels.copy()
    other[3, 3, 1] ^= 1
    assert pixel_hash(other) != pixel_hash(pixels)
    assert images.whole(KEY, pixel_hash(pixels))
    assert not images.whole(KEY, pixel_hash(other))
    assert images.whole(key_of(absent=1), "anything")


def test_an_image_that_is_there_stays_and_a_held_one_survives_its_cache(tmp_path: Path) -> None:
    cache, run = Images(tmp_path / "cache"), Images(tmp_path / "run")
    first, second = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 9, np.uint8)
    cache.put(KEY, first)
    cache.put(KEY, second)
    assert (cache.get(KEY) == first).all()
    run.adopt(cache, [KEY, key_of(gone=1)])
    cache.drop(KEY)
    assert (run.get(KEY) == first).all()
    assert list(run.keys()) == [KEY]
    assert not run.has(key_of(gone=1))


def test_leftovers_are_the_old_temporary_files(tmp_path: Path) -> None:
    for name in (".a.png.1.tmp", "b.png", ".lock"):
        (tmp_path / name).write_bytes(b"")
    assert leftovers(tmp_path) == []
    assert [f.name for f in leftovers(tmp_path, 0)] == [".a.png.1.tmp"]


def test_a_folder_with_broken_pictures_names_them_and_is_left_alone(tmp_path: Path) -> None:
    images = Images(tmp_path)
    images.put(KEY, np.zeros((4, 4, 3), np.uint8))
    assert list(read_images(tmp_path)) == [f"{KEY[:2]}/{KEY}.png"]
    (tmp_path / "broken.png").write_bytes(images.png(KEY)[:30])
    (tmp_path / "text.jpg").write_text("no picture")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    with pytest.raises(WrongFile, match=r"2 of 3 .*broken\.png, text\.jpg"):
        read_images(tmp_path)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    (tmp_path / "empty").mkdir()
    for place in ("empty", "absent"):
        with pytest.raises(WrongFile, match=place):
            read_images(tmp_path / place)


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
    said = record("base", 'two\nlines, "sum": "1"', 0, key="a")
    Records(tmp_path / "r").append(said)
    rows = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert rows[0]["format"] == "efface-records/2"
    assert (rows[1]["key"], rows[1]["prompt"]) == ("a", 'two\nlines, "sum": "1"')
    assert list(Records(tmp_path / "r")) == [said]
