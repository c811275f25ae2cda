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
from efface.model.card import Site

__all__ = ["Fold", "Needs", "PromptGroup", "Reducer", "State", "Statistics"]

State = dict[str, torch.Tensor]
"""Running sums of one (group, site, step): what is written to disk."""


@runtime_checkable
class Reducer(Protocol):
    """A frozen value that sums up what passes through a site.

    `add` gets, for one step and one batch: prompt ids (r,), guidance roles (r,), inputs (r, ..., d) and outputs
    (r, ..., o) of the site, and may read `earlier`, the finished state of the same site and step of the prompt group
    named by `Statistics.reads`. Prompts of a batch advance together: their rows are told apart by prompt id. `merge`
    joins two partial states; `finish_step` makes what is stored.
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


@runtime_checkable
class Fold(Protocol):
    """A frozen value that joins the finished states of one site over the steps, in their order.

    `add` gets what came of the steps before (None at the first), the step's finished state, that of the group that is
    read (`Statistics.reads`) and the site's weight. It may change `total` in place.
    """

    def add(
        self, total: State | None, step: int, state: State, earlier: State | None, weight: torch.Tensor
    ) -> State: ...


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
    """A reducer over sites, prompt groups and steps; sampling stops after the last of them.

    reads: an earlier group whose states may be read. fold: what is kept is one state a site over all steps, in place
    of one a step. bias: False takes the site's bias off the outputs.
    """

    reducer: Reducer
    sites: tuple[str, ...]
    groups: tuple[str, ...]
    steps: tuple[int, ...]
    reads: str | None = None
    fold: Fold | None = None
    bias: bool = True

    @property
    def name(self) -> str:
        """What tells apart statistics of one group: everything here but sites, groups and steps that are not folded."""
        folded = f" {self.fold!r} {self.steps}" if self.fold else ""
        reads = f" reads {self.reads!r}" if self.reads else ""
        return f"{self.reducer!r}{folded}{reads}{'' if self.bias else ' without bias'}"


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
