"""Patches, a report, a comparison and records are what they were before the product was rebuilt.

EFFACE_GOLDEN_EXACT=1 asks for every bit: on the machine, with the versions and the thread of whoever froze them.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import frozen
import pytest

EXACT = os.environ.get("EFFACE_GOLDEN_EXACT") == "1"
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in frozen.SLOW else n for n in frozen.names()]


def told(found: list[str]) -> str:
    return "\n".join([f"{len(found)} differences", *found[:20]])


@pytest.fixture(scope="module")
def patch_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The patch of a name, made once."""
    return cache(lambda name: frozen.patch_of(name, tmp_path_factory.mktemp("frozen")))


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_is_what_it_was(name: str, patch_of: Callable[[str], Any]) -> None:
    found = frozen.patch_differences(frozen.kept()["patches"][name], patch_of(name), EXACT)
    assert not found, told(found)


def test_every_preset_is_frozen_and_none_is_gone() -> None:
    assert set(frozen.kept()["patches"]) == set(frozen.names())
    for method, presets in frozen.PRESETS.items():
        assert frozen.known_presets(method) == set(presets), method


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return frozen.runs(tmp_path_factory.mktemp("frozen"))


@pytest.mark.parametrize("what", ["report", "compare", "records"])
def test_a_run_says_what_it_said(what: str, runs: dict[str, Any]) -> None:
    found = frozen.run_differences(what, runs[what], EXACT)
    assert not found, told(found)


# --- a test that sees nothing would let everything pass --------------------------------------------------------------


@pytest.mark.parametrize("name", ["uce:efface", "scapre:code", "kscu:efface", "fia:world@micro"])
def test_an_edit_of_one_per_cent_or_of_another_place_is_seen(name: str, patch_of: Callable[[str], Any]) -> None:
    was, patch = frozen.kept()["patches"][name], copy.deepcopy(patch_of(name))
    edit = patch.edits[-1]
    tensor = next(iter(edit.tensors().values()))
    if edit.kind == "mask":
        tensor.copy_(tensor.roll(1))  # as many bits, elsewhere
    else:
        tensor.mul_(1.01)
    found = frozen.patch_differences(was, patch)
    assert len(found) == 1
    assert f"edit {len(patch.edits) - 1} at" in found[0]


def test_another_setting_or_number_is_seen(patch_of: Callable[[str], Any]) -> None:
    was, patch = frozen.kept()["patches"]["uce:code"], copy.deepcopy(patch_of("uce:code"))
    assert not frozen.patch_differences(was, patch)
    patch.recipe["settings"]["lam"] *= 2
    patch.recipe["numbers"]["condition"] *= 1.01
    found = frozen.patch_differences(was, patch)
    assert [f.split(":")[0] for f in found] == ["structure settings", "numbers.condition"]


def test_a_changed_report_is_seen() -> None:
    now = frozen.differences({"a": [1, 2.0, "x"], "b": None}, {"a": [1, 2.1, "x"], "c": None}, frozen.close(1e-6, 1e-6))
    assert now == [".b: gone, was None", ".c: new, None", ".a[1]: 2.0 is 2.1 now"]
    assert not frozen.differences([1.0, True, 3], [1.0 + 1e-9, True, 3], frozen.close(1e-6, 1e-6))
    assert frozen.differences([1.0, True, 3], [1.0 + 1e-9, 1, 4], frozen.close(0, 0)) != []
