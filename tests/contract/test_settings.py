"""How settings are written, settled and refused; the same for every kind of plug-in."""

from __future__ import annotations

import sys
from dataclasses import FrozenInstanceError, dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from efface import registry
from efface.errors import BadRequest, UnknownName
from efface.registry import Chosen, changed, flat, resolve, spellings
from efface.request import Concept, Request


@dataclass(frozen=True)
class Mask:
    """A group of settings."""

    kind: Literal["soft", "hard", "off"] = "soft"
    power: float = 5.0
    draws: int = 5

    def __post_init__(self) -> None:
        if self.power < 0:
            raise BadRequest("setting 'power' must be at least 0")


@dataclass(frozen=True)
class Step:
    """Another group, with a name that the first has too."""

    length: float = 0.0
    draws: int = 2


@dataclass(frozen=True)
class Toy:
    """A method's settings."""

    scale: float | Literal["rule"] = 1.0
    on: bool = False
    mask: Mask = field(default=Mask())
    step: Step = field(default=Step())


@dataclass(frozen=True)
class Other:
    """Another form of the same method."""

    scale: float = 3.0
    depth: int = 1


PRESETS: dict[str, Toy | Other] = {
    "efface": Toy(scale=2.0),
    "efface/style": Toy(scale=2.0, mask=Mask(power=0.0)),
    "deep": Other(),
}


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ({"scale": "2.5"}, Toy(scale=2.5)),
        ({"scale": "rule"}, Toy(scale="rule")),
        ({"on": "true"}, Toy(on=True)),
        ({"mask.power": "2"}, Toy(mask=Mask(power=2.0))),
        ({"power": 2}, Toy(mask=Mask(power=2.0))),
        ({"mask": "hard"}, Toy(mask=Mask("hard"))),
        ({"mask": "off", "power": 0}, Toy(mask=Mask("off", 0.0))),
        ({"mask": {"power": 1, "draws": "3"}}, Toy(mask=Mask(power=1.0, draws=3))),
        ({"mask": Mask("hard", 1.0)}, Toy(mask=Mask("hard", 1.0))),
        ({"mask.draws": 9, "step.draws": 8}, Toy(mask=Mask(draws=9), step=Step(draws=8))),
        ({}, Toy()),
    ],
    ids=str,
)
def test_a_setting_is_written_by_its_path_its_own_name_or_its_group(written: dict[str, Any], wanted: Toy) -> None:
    assert changed(Toy(), written) == wanted


def test_nothing_is_no_value_and_zero_is_one() -> None:
    start = Toy(scale=4.0, mask=Mask(power=3.0))
    assert changed(start, {"power": 0}).mask.power == 0
    assert changed(start, {"scale": 0}).scale == 0
    with pytest.raises(BadRequest, match="'power'"):
        changed(start, {"power": None})


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"scal": 1}, r"unknown setting of Toy 'scal'; did you mean 'scale'"),
        ({"mask.powr": 1}, r"'mask\.powr'; did you mean 'mask\.power'"),
        ({"draws": 1}, r"'draws' of Toy stands for mask\.draws and step\.draws; write one of them"),
        ({"mask": {"powr": 1}}, r"unknown setting of Mask 'powr'; did you mean 'power'"),
        ({"mask": "strong"}, r"'mask'.*'strong'"),
        ({"mask.kind": "strong"}, r"'mask\.kind'.*'strong'"),
        ({"power": "much"}, r"'power'.*'much'"),
        ({"power": -1}, "'power'"),
        ({"scale": b"much"}, "'scale'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence_that_names_the_setting(written: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said) as caught:
        changed(Toy(), written)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_are_flat_by_path_and_back() -> None:
    values = flat(Toy(mask=Mask("hard")))
    assert list(values) == ["scale", "on", "mask.kind", "mask.power", "mask.draws", "step.length", "step.draws"]
    assert values["mask.kind"] == "hard"
    assert changed(Toy(), values) == Toy(mask=Mask("hard"))
    assert "power" in spellings(Toy)
    assert "draws" not in spellings(Toy)


# --- presets ---------------------------------------------------------------------------------------------------------


def settled(settings: dict[str, Any], preset: str | None = None, *kinds: str) -> Any:
    concepts = tuple(Concept(f"name {i}", kind) for i, kind in enumerate(kinds or ("object",)))
    card: Any = SimpleNamespace(preset="efface")
    return resolve(Chosen("toy", Toy, settings), Request(concepts, preset=preset), card)


def test_the_users_value_goes_before_the_preset_by_kind_and_that_before_the_preset() -> None:
    assert settled({}) == settled({}, "efface") == Toy(scale=2.0)
    assert settled({}, None, "style", "style") == Toy(scale=2.0, mask=Mask(power=0.0))
    assert settled({}, None, "style", "object") == Toy(scale=2.0)
    assert settled({"power": 7}, None, "style") == Toy(scale=2.0, mask=Mask(power=7.0))
    with pytest.raises(UnknownName, match=r"preset of toy 'efac'.*'efface'"):
        settled({}, "efac")


def test_the_preset_decides_the_form_and_a_setting_of_another_form_is_refused() -> None:
    assert settled({"depth": "4"}, "deep") == Other(depth=4)
    with pytest.raises(UnknownName, match=r"setting of toy \(preset efface\) 'depth'"):
        settled({"depth": 4})
    with pytest.raises(UnknownName, match=r"setting of toy \(preset deep\) 'mask'"):
        settled({"mask": "off"}, "deep")


def test_a_preset_is_not_changed_by_what_is_made_of_it() -> None:
    before = replace(PRESETS["efface"])
    made = settled({"scale": 9})
    assert PRESETS["efface"] == before != made
    with pytest.raises(FrozenInstanceError):
        made.scale = 1


def test_a_setting_that_no_form_of_a_method_has_is_refused_before_a_model_is_opened() -> None:
    assert registry.choose("SCAPRE", {"mask.power": 1}).name == "scapre"
    with pytest.raises(UnknownName, match=r"setting of scapre 'mask\.powers'"):
        registry.choose("scapre", {"mask.powers": 1})


@pytest.mark.parametrize("folder", [k for k in registry.KINDS if registry.names(k)])
def test_every_file_of_a_kind_names_its_plug_in(folder: str) -> None:
    for name in registry.names(folder):
        found = registry.find(folder, name)
        assert callable(found)
        assert vars(sys.modules[found.__module__])["PLUGIN"] is found
