"""Needs: what a method says it will look at, before anything is loaded; data only.

From needs come the plan, the cost and `--dry-run`. A **reducer** turns the inputs and outputs of a site into running
sums, so nothing grows with the number of images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from efface.errors import BadRequest
from efface.sites import Site

__all__ = ["Moments", "Needs", "PromptGroup", "Reducer", "State", "Statistics"]

State = dict[str, torch.Tensor]
"""Running sums of one (group, site, step): what is written to disk."""


@runtime_checkable
class Reducer(Protocol):
    """A frozen value that sums up what passes through a site.

    `add` gets, for one step and one batch: prompt ids (r,), guidance roles (r,), inputs (r, ..., d) and outputs
    (r, ..., o) of the site, and may read `earlier`, the finished state of the same site and step of the prompt group
    named by `Statistics.reads`. `merge` joins two partial states; `finish_step` makes what is stored.
    """

    def start(self, site: Site) -> State: ...

    def add(
        self,
        state: State,
        step: int,
        prompt_ids: Sequence[int],
        roles: Sequence[str],
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        earlier: State | None = None,
    ) -> State: ...

    def merge(self, a: State, b: State) -> State: ...

    def finish_step(self, step: int, state: State) -> State: ...


@dataclass(frozen=True)
class PromptGroup:
    """Prompts to draw while statistics are taken, one image for each prompt and seed (lists of equal length)."""

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.seeds) or not self.prompts:
            raise BadRequest(
                f"prompt group {self.name!r} needs one seed a prompt, got {len(self.prompts)} and {len(self.seeds)}"
            )


@dataclass(frozen=True)
class Statistics:
    """A reducer over sites, prompt groups and steps. reads: an earlier group whose states `add` may read."""

    reducer: Reducer
    sites: tuple[str, ...]
    groups: tuple[str, ...]
    steps: tuple[int, ...]
    reads: str | None = None


@dataclass(frozen=True)
class Needs:
    """texts: to encode; rows: "all" or "content" (enough when no padding row is looked at). prompts: groups to draw.
    denoiser: False means it is never opened. judge: True means the selection judge on the tune half, nothing else.
    """

    texts: tuple[str, ...] = ()
    rows: str = "all"
    prompts: tuple[PromptGroup, ...] = ()
    statistics: tuple[Statistics, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    denoiser: bool = False
    judge: bool = False

    def group(self, name: str) -> PromptGroup:
        found: Mapping[str, PromptGroup] = {g.name: g for g in self.prompts}
        if name not in found:
            raise BadRequest(f"statistics name the prompt group {name!r}, which the method does not ask for")
        return found[name]

    @property
    def images(self) -> int:
        """How many pictures have to be drawn."""
        return sum(len(g.prompts) for g in self.prompts)


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of a site's inputs by channel, conditional and unconditional rows together."""

    def start(self, site: Site) -> State:
        width = site.shape[1]
        return {
            "count": torch.zeros((), dtype=torch.float64),
            **{k: torch.zeros(width, dtype=torch.float64) for k in ("sum", "squares")},
        }

    def add(
        self,
        state: State,
        step: int,
        prompt_ids: Sequence[int],
        roles: Sequence[str],
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        earlier: State | None = None,
    ) -> State:
        flat = inputs.reshape(-1, inputs.shape[-1]).double()  # (rows, d)
        return {
            "count": state["count"] + len(flat),
            "sum": state["sum"] + flat.sum(0).cpu(),
            "squares": state["squares"] + flat.square().sum(0).cpu(),
        }

    def merge(self, a: State, b: State) -> State:
        return {k: a[k] + b[k] for k in a}

    def finish_step(self, step: int, state: State) -> State:
        return state
