"""A throw-away rule of the sampler that adds a ramp to whatever passes, and writes down where it was called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from efface.model.places import Call, Step
from efface.model.text import Context
from efface.patch import Guard, Patch, patch

__all__ = ["Add", "Nudge", "nudges"]

Add = Callable[[str, float], "tuple[Patch, Nudge]"]
"""Place and amount -> a patch with a rule there, and the rule."""


@dataclass(frozen=True)
class Nudge:
    """What it saw stands in `calls`: index of the step, site, shape."""

    place: str
    amount: float
    prompt: str
    calls: list[tuple[int, str, tuple[int, ...]]] = field(default_factory=list)

    def start(self, call: Call) -> str:
        return call.prompts[0]

    def at(self, step: Step, state: Any, value: Any, site: str) -> Any:
        assert state == self.prompt
        if self.place == "prompt":
            tensors = value.context.tensors
            self._see(step, site, next(iter(tensors.values())))
            return replace(value, context=Context({n: self._moved(t) for n, t in tensors.items()}))
        tensor = value.guided if self.place == "prediction" else value
        self._see(step, site, tensor)
        return self._moved(tensor)

    def _see(self, step: Step, site: str, tensor: torch.Tensor) -> None:
        self.calls.append((step.index, site, tuple(tensor.shape)))

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + self.amount * torch.linspace(-1, 1, tensor.shape[-1], dtype=tensor.dtype)


def nudges(monkeypatch: pytest.MonkeyPatch, prompt: str) -> Add:
    """Makes rules for calls whose first prompt is this one."""
    made: dict[str, Nudge] = {}

    def add(place: str, amount: float) -> tuple[Patch, Nudge]:
        made[place] = Nudge(place, amount, prompt)
        return Patch((Guard(place),)), made[place]

    monkeypatch.setattr(patch, "rule_of", lambda name: lambda settings, values, strength: made[name])
    return add
