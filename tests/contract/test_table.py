"""The table of methods and families, from cards alone: a method looks at texts of a model, or refuses in a sentence.

No weight is there to be opened. Solving and drawing the cells is slow, with as little training as there can be.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import efface
from efface import registry
from efface.erasure import plan
from efface.errors import EffaceError, Unavailable, WrongFile
from tiny_families import FAMILIES

SMALLEST = {t.family: name for name, t in FAMILIES.items() if t.fast}
METHODS = registry.names("methods")
# What a method cannot do on a family, by its sheet: predictions of a flow have no noise to train on, distilled
# guidance has no unconditional side.
REFUSED = {
    ("esd", "flux"), ("esd", "sd3"), ("kscu", "flux"), ("kscu", "sd3"), ("negative-prompt", "flux"),
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table")


@cache
def whole(family: str, home: Path) -> Path:
    """The smallest model of a family."""
    return FAMILIES[SMALLEST[family]].save(home / f"{family}-whole")


@cache
def bare(family: str, home: Path) -> Path:
    """The smallest model of a family without its weights."""
    return Path(shutil.copytree(whole(family, home), home / family, ignore=shutil.ignore_patterns("*.safetensors")))


def test_every_family_has_a_column() -> None:
    assert set(SMALLEST) == set(registry.names("families"))


@pytest.mark.parametrize("family", registry.names("families"))
@pytest.mark.parametrize("method", METHODS)
def test_a_method_asks_from_the_card_or_refuses_in_one_sentence(method: str, family: str, home: Path) -> None:
    model = bare(family, home)
    if (method, family) in REFUSED:
        with pytest.raises(Unavailable) as caught:
            plan(model, ["dog"], ["cat"], method)
        assert isinstance(caught.value, EffaceError)
        assert len(str(caught.value).splitlines()) == 1
        return
    made = plan(model, ["dog"], ["cat"], method)
    assert made.needs == plan(model, ["dog"], ["cat"], method).needs
    assert made.model.card.family == family
    with pytest.raises(WrongFile):  # nothing was opened, for nothing is there
        made.model.identity  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("family", registry.names("families"))
@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_asks_solves_and_moves_the_picture(method: str, family: str, home: Path) -> None:
    if (method, family) in REFUSED:
        pytest.skip("it refuses, as the table above says")
    model = efface.load(whole(family, home), "cpu")
    settings = registry.flat(plan(model, ["dog"], ["cat"], method).method)
    names = {path.rpartition(".")[2] for path in settings}
    budget = {name: 2 for name in names if name.startswith(("updates", "prompts", "saliency_steps"))}
    before = model.sample(["a dog"], [0], steps=2)
    with efface.erase(model, ["dog"], ["cat"], method, **budget).applied(model):
        assert not np.array_equal(model.sample(["a dog"], [0], steps=2), before)
    assert np.array_equal(model.sample(["a dog"], [0], steps=2), before)
