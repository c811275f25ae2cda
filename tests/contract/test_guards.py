"""What every guard rule promises, one row each: it acts in the sampler alone, and leaves nothing behind.

A rule is `Rule` in the file of the method whose name it has. A row makes a patch with the method of that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface
from conftest import all_bits
from efface import registry
from efface.errors import UnknownName
from efface.evidence.needs import Needs
from efface.model import Model
from efface.model.places import PLACES
from efface.patch import Guard, Patch
from tiny_families import make_pipe

CONCEPT, PROMPTS, SEEDS = "a dog", ["a dog", "a red house", "a cat"], [0, 5, 9]


def _rules() -> list[str]:
    found = []
    for name in registry.names("methods"):
        try:
            registry.rule_of(name)
        except UnknownName:
            continue
        found.append(name)
    return found


every_row = pytest.mark.parametrize("rule", _rules())


@cache
def base() -> Model:
    return efface.load(make_pipe())


@cache
def patch(rule: str) -> Patch:
    return efface.erase(base(), [CONCEPT], method=rule)


def drawn(model: Model, rows: slice = slice(None), guidance: float = 5.0) -> np.ndarray:
    """(n, h, w, 3)"""
    return model.sample(PROMPTS[rows], SEEDS[rows], steps=2, guidance=guidance)


def hooks(model: Model) -> int:
    """How many there are on all modules."""
    parts = [model.part(name) for name in model.network.weighed]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for part in parts for m in part.modules())


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No patch in force and no hook, whatever a test did."""
    before = hooks(base())
    yield
    assert not base().in_force
    assert hooks(base()) == before


def test_there_is_a_row() -> None:
    assert "negative-prompt" in _rules()


@every_row
def test_its_method_needs_no_weights_and_makes_guards_alone(rule: str) -> None:
    made = patch(rule)
    assert made.edits
    assert all(isinstance(e, Guard) for e in made.edits)
    assert efface.plan(base(), [CONCEPT], method=rule).needs == Needs()


@every_row
def test_it_stands_at_a_place_that_the_sampler_has(rule: str) -> None:
    for edit in patch(rule).edits:
        assert isinstance(edit, Guard)
        made = registry.rule_of(edit.rule)(edit.settings, {}, 1.0)
        assert made.place in PLACES


@every_row
def test_it_changes_the_picture_and_no_weight(rule: str) -> None:
    model = base()
    before, bits = drawn(model), all_bits(model)
    with patch(rule).applied(model):
        assert not np.array_equal(drawn(model), before)
        assert all_bits(model) == bits
    assert np.array_equal(drawn(model), before)


@every_row
def test_a_prompt_is_drawn_alike_alone_and_among_others(rule: str) -> None:
    with patch(rule).applied(base()):
        together, alone = drawn(base()), drawn(base(), slice(1, 2))
    assert np.abs(together[1:2].astype(int) - alone.astype(int)).max() <= 1


@every_row
def test_at_strength_zero_it_is_the_base(rule: str) -> None:
    before = drawn(base())
    with patch(rule).scaled(0.0).applied(base()):
        assert np.array_equal(drawn(base()), before)


@every_row
def test_it_comes_back_from_its_file(rule: str, tmp_path: Path) -> None:
    read = Patch.load(patch(rule).save(tmp_path / "guard.safetensors"))
    assert read.content_hash == patch(rule).content_hash
    with patch(rule).applied(base()):
        here = drawn(base())
    with read.applied(base()):
        assert np.array_equal(drawn(base()), here)


@every_row
def test_it_leaves_nothing_behind_when_drawing_fails(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **more: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with patch(rule).applied(base()), monkeypatch.context() as patched:
        patched.setattr(type(base().network), "predict", broken)
        with pytest.raises(KeyboardInterrupt):
            drawn(base())
