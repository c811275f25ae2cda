"""The table of methods and families, from cards alone: a method looks at texts of a model, or refuses in a sentence.

No weight is there to be opened. Solving and drawing the cells is slow (test_families.py has UCE and ScaPre on all).
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest

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
def bare(family: str, home: Path) -> Path:
    """The smallest model of a family without its weights."""
    whole = FAMILIES[SMALLEST[family]].save(home / f"{family}-whole")
    return Path(shutil.copytree(whole, home / family, ignore=shutil.ignore_patterns("*.safetensors")))


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
