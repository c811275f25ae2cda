"""`efface world build` with made-up artwork."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from efface.cli.world import app
from efface.errors import BadRequest, OutputExists, WrongFile
from efface.worldmaking import artwork


def two_squares() -> artwork.Sprites:
    pixels = np.full((2, 96, 96, 4), 255, np.uint8)
    pixels[0, ..., 1:3] = 0
    pixels[1, ..., :2] = 0
    return artwork.Sprites(pixels, np.array([0, 1]), np.array([0, 1]), ("red", "blue"), ("first", "second"))


def test_build_writes_a_sheet_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artwork, "sprites", lambda progress: two_squares())
    sheet = tmp_path / "sheet.png"
    done = CliRunner().invoke(app, ["build", "--sheet", str(sheet)])
    assert done.exit_code == 0, done.output
    assert "first: 1 of 2 objects" in done.output
    drawn = np.asarray(Image.open(sheet))
    colours, counts = np.unique(drawn.reshape(-1, 3), axis=0, return_counts=True)
    tally = dict(zip(map(tuple, colours.tolist()), counts.tolist(), strict=True))
    assert tally[(255, 0, 0)] == tally[(0, 0, 255)] == 48 * 48
    again = CliRunner().invoke(app, ["build", "--sheet", str(sheet)])
    assert isinstance(again.exception, OutputExists)


def test_a_bundle_holds_every_sprite_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artwork, "sprites", lambda progress: two_squares())
    file = tmp_path / "sprites.npz"
    done = CliRunner().invoke(app, ["build", "--bundle", str(file)])
    assert done.exit_code == 0, done.output
    again = artwork.read(file)
    assert (again.pixels == two_squares().pixels).all()
    monkeypatch.setattr(artwork, "INK", "#222")  # another version of the artwork
    with pytest.raises(WrongFile, match="checksum"):
        artwork.read(file)
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(WrongFile, match="delete it"):
        artwork.read(file)


def test_a_full_disk_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("efface.files.os.fsync", full)
    with pytest.raises(WrongFile, match="No space left"):
        artwork.write(tmp_path / "sprites.npz", two_squares())
    assert not list(tmp_path.glob("*sprites*"))


def test_plan_says_what_is_left_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "own"))
    for target in ("micro", "mini", "judge"):
        done = CliRunner().invoke(app, ["train", target, "--plan"])
        assert done.exit_code == 0, done.output
        assert "in all" in done.output
    assert not (tmp_path / "own").exists()


def test_a_quick_check_leaves_the_list_of_the_model_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(found: object, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "card.md").write_text("")
        written.append(folder)
        return folder / "card.json"

    monkeypatch.setattr("efface.worldmaking.check.check", lambda *a: {})
    monkeypatch.setattr("efface.worldmaking.check.write", write)
    assert CliRunner().invoke(app, ["check", "micro", "--quick"]).exit_code == 0
    assert CliRunner().invoke(app, ["check", "micro", "--quick", "-o", str(cache / "own")]).exit_code == 0
    assert written == [cache / "cards" / "micro", cache / "own"]


@pytest.mark.parametrize(("arguments", "word"), [
    (["train", "micro", "--without", "dogg", "--plan"], "'dog'"),
    (["train", "micro", "--without", "noto", "--without", "noto style", "--plan"], "twice"),
    (["train", "judge", "--without", "dog", "--plan"], "micro and mini"),
    (["train", "big", "--plan"], "target"),
    (["train", "micro", "--minutes", "1000"], "150"),
])  # fmt: skip
def test_wrong_requests_name_what_is_wrong(
    arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "own"))
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, BadRequest)
    assert word in str(done.exception)
    assert not (tmp_path / "own").exists()
