"""Captions know what they are true of, batches show what they must, withheld names are checked."""

from __future__ import annotations

import pytest
import torch
from toy import TOY

from efface.errors import BadRequest, UnknownName
from efface.world.captions import Caption, caption, find, fits
from efface.worldmaking.lessons import COLOURS, Labels, Withheld, pairs, true_of


def labels(*rows: tuple[int, int, int, int]) -> Labels:
    return Labels(*(torch.tensor(column) for column in zip(*rows, strict=True)))


def test_captions_are_true_of_what_they_say_and_of_nothing_else() -> None:
    dog, cat, noto, blob = frozenset(["dog"]), frozenset(["cat"]), "noto", "blob"
    told = [
        Caption("a dog", (dog,), None, None), Caption("a dog in noto style", (dog,), noto, None),
        Caption("a cat and a dog", (cat, dog), None, None), Caption("an animal", (dog | cat,), None, None),
        Caption("a picture in blob style", (), blob, None), Caption("a red background", (), None, "red"),
    ]  # fmt: skip
    red, blue = COLOURS.index("red"), COLOURS.index("blue")
    shown = labels((0, -1, 0, red), (0, -1, 1, blue), (0, 1, 0, red), (1, -1, 1, red), (-1, -1, -1, red))
    assert true_of(told, shown, TOY).int().tolist() == [
        [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1],
    ]  # fmt: skip


def test_a_caption_knows_what_it_says() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(300):
        said = caption([find("dog")], "noto", "red", generator)
        assert (said.style is not None) == ("noto" in said.text)
        assert (said.background is not None) == ("red" in said.text.split())
        assert all("dog" in names for names in said.phrases)
    assert fits("a dog") == frozenset(["dog"])
    assert {"dog", "lion"} <= fits("a animal") | fits("an animal")


def test_batches_show_one_object_in_two_styles() -> None:
    drawn = torch.ones(4, 2, dtype=torch.bool)
    things, styles = pairs(9, drawn, torch.Generator().manual_seed(0))
    assert len(things) == len(styles) == 9
    assert torch.equal(things[0:8:2], things[1:9:2])
    assert (styles[0:8:2] != styles[1:9:2]).all()
    drawn[2, 1] = False
    things, styles = pairs(400, drawn, torch.Generator().manual_seed(0))
    assert drawn[things, styles].all()
    assert (styles == 1).float().mean() > 0.35


@pytest.mark.parametrize(("names", "error", "word"), [
    (["unicorns"], UnknownName, "unicorns"), (["noto", "noto style"], BadRequest, "twice"),
    (["dog", "dog"], BadRequest, "twice"), (["dog", "cat", "key"], BadRequest, "fewer"),
])  # fmt: skip
def test_bad_withheld_names_are_refused(names: list[str], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        Withheld.parse(names, TOY)
