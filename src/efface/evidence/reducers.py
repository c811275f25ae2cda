"""Reducers: what is kept of the rows that pass a site, for methods that look at activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from efface.evidence.needs import State
from efface.model.card import Site
from efface.numerics import saliency
from efface.numerics.saliency import Moments, Sensitivity

__all__ = ["ColumnNorms", "Cosines", "SaliencyFold", "level_of", "sensitivity_of"]


@dataclass(frozen=True)
class _Rows:
    """Which rows of a batch belong to a prompt, and their form."""

    normalise: bool
    halves: str

    def start(self, site: Site) -> State:
        return {k: torch.zeros((), dtype=torch.float64) for k in ("count", "mean", "m2")}

    def merge(self, a: State, b: State) -> State:
        return _stored(_moments(a).merge(_moments(b)))

    def rows(self, prompt_ids: Sequence[int], roles: Sequence[str]) -> list[list[int]]:
        """Row numbers of each prompt, in the order of the prompts."""
        found: dict[int, list[int]] = {}
        for row, (prompt, role) in enumerate(zip(prompt_ids, roles, strict=True)):
            if self.halves == "pooled" or role == "cond":
                found.setdefault(prompt, []).append(row)
        return [found[p] for p in sorted(found)]


@dataclass(frozen=True)
class ColumnNorms(_Rows):
    """Moments over prompts of the column norms of a site's inputs: vectors of its input width, float64."""

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
        rows = self.rows(prompt_ids, roles)
        norms = torch.stack([saliency.column_norms(_flat(inputs, r), self.normalise) for r in rows])  # (p, d)
        return _stored(_moments(state).merge(saliency.moments(norms.cpu())))

    def finish_step(self, step: int, state: State) -> State:
        return state


@dataclass(frozen=True)
class Cosines(_Rows):
    """Mean over prompts of Eq. 1 without |W|, (o, d) in float32 or wider; level: plus its standard deviation."""

    level: bool

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
        found = Moments(0, torch.zeros(()), torch.zeros(()))
        for rows in self.rows(prompt_ids, roles):
            X, Y = _flat(inputs, rows), _flat(outputs, rows)  # (n, d), (n, o)
            if self.normalise:
                lengths = torch.linalg.vector_norm(X, dim=1, keepdim=True).clamp_min(1e-12)
                X, Y = X / lengths, Y / lengths
            one = saliency.cosine_energy(X, Y)  # (o, d)
            found = found.merge(Moments(1, one, one.new_zeros(())), overwrite=True)
        there = Moments(found.count, found.mean.cpu(), found.m2.cpu())
        return _stored(_moments(state).merge(there))

    def finish_step(self, step: int, state: State) -> State:
        return {"level": _moments(state).level()} if self.level else {"mean": state["mean"]}


@dataclass(frozen=True)
class SaliencyFold:
    """Eq. 2 and the sums of Eq. 3, one step after the other; surplus: the most that a step exceeds its base."""

    r1: float
    at: bool

    def add(self, total: State | None, step: int, state: State, earlier: State | None, weight: torch.Tensor) -> State:
        assert earlier is not None
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        above = saliency.contrast(state["mean"], earlier["level"])  # (o, d) or (d,)
        surplus = saliency.ratio(above, earlier["level"])
        known = 0.0 if total is None else float(total["surplus"])
        sound = math.isfinite(surplus) and math.isfinite(known)
        S = saliency.weighted(weight, above.to(weight.dtype))  # (o, d)
        sums = Sensitivity.empty(S) if total is None else sensitivity_of(total)
        if sound:
            sums.add(S, self.r1, self.at)
        return {
            "total": sums.total,
            "passed": sums.passed,
            "steps": torch.tensor(float(sums.steps)),
            "surplus": torch.tensor(max(surplus, known) if sound else math.nan, dtype=torch.float64),
        }


def sensitivity_of(state: State) -> Sensitivity:
    """The sums of a folded state; they share its memory."""
    return Sensitivity(state["total"], state["passed"], int(state["steps"]))


def _moments(state: State) -> Moments:
    return Moments(int(state["count"]), state["mean"], state["m2"])


def _stored(found: Moments) -> State:
    return {"count": torch.tensor(float(found.count), dtype=torch.float64), "mean": found.mean, "m2": found.m2}


def level_of(state: State) -> State:
    """A base state as the fold reads it: mean plus standard deviation under "level"."""
    return state if "level" in state else {"level": _moments(state).level()}


def _flat(values: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Token rows of one prompt (n, d), in float32 at least."""
    chosen = values[rows]
    return chosen.reshape(-1, chosen.shape[-1]).to(torch.promote_types(values.dtype, torch.float32))
