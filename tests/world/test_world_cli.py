"""`efface world build` with made-up artwork."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from efface.cli.world import app
from efface.errors import OutputExists
from efface.world import artwork


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
