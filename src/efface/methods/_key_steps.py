"""Key steps: the settings and the objective of KSCU's training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import BadRequest, NothingChanged
from efface.methods import require
from efface.methods._augmentation import mixed_texts, ten_texts
from efface.methods._constraints import finite
from efface.model.devices import Team
from efface.model.text import Context
from efface.numerics import schedules
from efface.numerics.schedules import KeyStep
from efface.training.trajectories import Trajectories, predictions

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.text import Encoded
    from efface.request import Concept
    from efface.training.loop import Net
    from efface.work import Work

__all__ = ["KeySteps", "Loss", "Optimiser", "Pool", "Schedule", "Subject", "Trajectory", "Tuning"]

# Below this share of the prediction's mean square, concept and anchor are the same to the model.
SIGNAL = 1e-12

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Which steps are trained, and how often."""

    updates: int = 750
    """L, the updates for one concept."""
    updates_several: int | Literal["each"] = 750
    """L for several concepts together; each: `updates` for each of them."""
    steps: int = 50
    """E, the steps of DDIM."""
    first_step: int = 14
    """S, the first step of a pass."""
    cap: int | Literal["nine-tenths"] = "nine-tenths"
    """The latest start that a pass may have; nine-tenths is ceil(0.9 E) - 1."""
    loops: int = 8
    """Passes before the start moves up."""
    order: Literal["name", "shuffle", "given"] = "name"
    """Of the concepts in a pass; shuffle is anew each pass (ours)."""

    def __post_init__(self) -> None:
        require(self, "updates", "updates_several", "steps", "loops", least=1)
        require(self, "first_step", "cap", least=0)

    def total(self, concepts: int) -> int:
        """L, the updates of a run."""
        if concepts == 1:
            return self.updates
        return self.updates * concepts if isinstance(self.updates_several, str) else self.updates_several

    def table(
        self, updates: int, concepts: int, order: Callable[[int], Sequence[int]] | None = None, *, capped: bool = True
    ) -> list[KeyStep]:
        """The key steps of a run; capped: no start beyond nine tenths, whatever `cap` says.

        Raises BadRequest for a start beyond the schedule.
        """
        cap = None if isinstance(self.cap, str) else self.cap
        if cap is not None and capped:
            cap = min(cap, schedules.last_start(self.steps))
        try:
            return schedules.key_steps(updates, self.steps, self.first_step, self.loops, concepts, cap, order)
        except ValueError as error:
            raise BadRequest(f"setting of KSCU: {error}; choose a smaller first_step or more steps") from None


@dataclass(frozen=True)
class Optimiser:
    """What is trained, and how."""

    scope: Literal["xattn", "noxattn", "selfattn"] = "noxattn"
    """Which weights."""
    rank: int = 0
    """Of a low-rank result (ours); 0 is dense."""
    learning_rate: float = 1e-5
    """Of Adam."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """What trained tensors are kept in; bfloat16 is as released and loses most updates."""
    batch: int = 1
    """Trajectories at once."""
    checkpointing: bool = False
    """Less memory for one more forward pass."""

    def __post_init__(self) -> None:
        require(self, "learning_rate", above=0)
        require(self, "batch", least=1)
        require(self, "rank", least=0)


@dataclass(frozen=True)
class Loss:
    """The two errors of an update, and a third for kept texts."""

    negative_guidance: float = 1.0
    """g, how far beyond the anchor a concept's prediction goes."""
    rule: Literal["time", "index"] = "time"
    """Whether lambda_1 follows the timestep (2026) or the number of the step (2025)."""
    slope: float = 2e-5
    """Of lambda_1."""
    empty_weight: float = 1e-4
    """lambda_2, the weight of the empty text's error."""
    keep_weight: float = 0.0
    """Weight of a kept text that holds its prediction (ours)."""

    def __post_init__(self) -> None:
        require(self, "slope", "empty_weight", "keep_weight", least=0)


@dataclass(frozen=True)
class Trajectory:
    """Where the latents come from."""

    start: Literal["walk", "fresh"] = "walk"
    """Goes on from update to update (2026), or starts each from noise (2025)."""
    guidance: float = 3.0
    """Of its steps."""
    prefix: Literal["tuned", "frozen"] = "tuned"
    """Which network makes the steps before a start."""
    advance: Literal["exact", "lagged"] = "exact"
    """Whether the step after an update predicts anew, or takes the predictions of the update (ours, cheaper)."""
    noise: Literal["seed", "named"] = "seed"
    """Drawn by seed plus update, as released, or by name (ours)."""

    def __post_init__(self) -> None:
        require(self, "guidance", least=0)


@dataclass(frozen=True)
class Pool:
    """Augmented texts, late in training."""

    texts: Literal["concept", "mixed"] = "concept"
    """Ten of each concept (2026), or 200 of all mixed (2025)."""
    augment: float = 0.05
    """Share of the updates, the last, that see one."""

    def __post_init__(self) -> None:
        require(self, "augment", least=0, most=1)

    @property
    def first_release(self) -> bool:
        return self.texts == "mixed"


@dataclass(frozen=True)
class Tuning:
    """How key steps are trained."""

    schedule: Schedule = field(default=Schedule())
    """Which steps are trained, and how often."""
    optimiser: Optimiser = field(default=Optimiser())
    """What is trained, and how."""
    loss: Loss = field(default=Loss())
    """The errors and their weights."""
    trajectory: Trajectory = field(default=Trajectory())
    """Where the latents come from."""
    pool: Pool = field(default=Pool())
    """Augmented texts."""

    def __post_init__(self) -> None:
        self.table(1, 1)

    def table(self, updates: int, concepts: int, order: Callable[[int], Sequence[int]] | None = None) -> list[KeyStep]:
        """The key steps of a run. Raises BadRequest for a start beyond the schedule."""
        # the second release stays below 0.9 E whatever the cap says; the first one took 48 of 50
        return self.schedule.table(updates, concepts, order, capped=not self.pool.first_release)


# --- the objective ---------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """What is unlearned, as the objective sees it."""

    concept: Concept
    texts: tuple[str, ...]
    """What its visits are conditioned on, in turn."""
    anchor: str
    """Where it goes; the empty text at the least."""


class KeySteps:
    """The loss of every update, and the trajectory its latents come from."""

    def __init__(
        self,
        tuning: Tuning,
        subjects: Sequence[Subject],
        kept: Sequence[str],
        model: Model,
        evidence: Evidence,
        net: Net,
        work: Work,
    ) -> None:
        self.tuning, self.subjects, self.kept, self.model, self.work = tuning, subjects, kept, model, work
        self.device, self.dtype = net.device, net.dtype
        self.table = tuning.table(tuning.schedule.total(len(subjects)), len(subjects), self._order(len(subjects)))
        fresh = tuning.trajectory.start == "fresh"
        self.starts = set(range(len(self.table)) if fresh else schedules.jumps(self.table))
        self.team = Team()
        self.share = self.team.share(tuning.optimiser.batch)
        self.path = Trajectories(model, tuning.schedule.steps, tuning.trajectory.guidance)
        self.rows = {t: self._row(e) for t, e in evidence.texts.items()}
        pool = tuning.pool
        self.augmented = schedules.augmented_from(len(self.table), pool.augment, strict=pool.first_release)
        self.pools = self._pools() if self.augmented < len(self.table) and pool.augment else None
        self.latent: Tensor | None = None  # (b, c, h, w): where the next update is made
        self._pair: tuple[Tensor, Tensor] | None = None

    def _order(self, n: int) -> Callable[[int], list[int]] | None:
        shuffled = self.tuning.schedule.order == "shuffle" and n > 1
        return (lambda k: torch.randperm(n, generator=self.work.rng(f"order {k}")).tolist()) if shuffled else None

    # --- one update ----------------------------------------------------------------------------------------------

    def terms(self, net: Net, index: int) -> dict[str, Tensor]:
        """The concept's and the empty text's mean squared errors, weighted."""
        loss, entry, kept = self.tuning.loss, self.table[index], self._kept(index)
        if index in self.starts:
            self.latent = self._start(net, index)
        z, t = self._latent, self.path.times[entry.step]
        text, anchor = self.text(entry), self.subjects[entry.concept].anchor
        frozen = ["", text, *([anchor] if anchor else []), *kept]
        said = dict(zip(frozen, predictions(net.reference, z, t, *(self.rows[f] for f in frozen)), strict=True))
        p, n, q = said[text], said[""], said[anchor]
        self._check_signal(index, p, q)
        changed = self._changed(index)
        tuned = [self.rows[text] if changed is None else changed, *(self.rows[f] for f in ("", *kept))]
        a, u, *now = predictions(net.predict, z, t, *tuned)
        self._pair = (a.detach(), u.detach())
        to, still = schedules.concept_target(p, q, loss.negative_guidance), self._dynamic(entry.step)
        terms = {
            "concept": (a - to).square().mean(),
            "empty": loss.empty_weight * (u - schedules.empty_target(p, n, still)).square().mean(),
        }
        for k, own in zip(kept, now, strict=True):
            terms["keep"] = loss.keep_weight * (own - said[k]).square().mean()
        return terms

    def after(self, net: Net, index: int) -> None:
        """One DDIM step with the network just updated, where the next update goes on from here."""
        if index + 1 >= len(self.table) or index + 1 in self.starts:
            self.latent = None
            return
        step, text = self.table[index].step, self.rows[self.text(self.table[index])]
        if self.tuning.trajectory.advance == "exact":
            self.latent = self.path.walk(net.predict, self._latent, step, text, self.rows[""])
            return
        assert self._pair is not None
        said, empty = self._pair
        if self._changed(index) is not None:  # what was predicted is for another text
            (said,) = predictions(net.predict, self._latent, self.path.times[step], text)
        self.latent = self.path.next(self._latent, step, said, empty)

    def where(self, index: int) -> str:
        entry = self.table[index]
        return (
            f"step {entry.step} of {self.tuning.schedule.steps}, concept {self.subjects[entry.concept].concept.name!r}"
        )

    def state(self) -> dict[str, Tensor]:
        return {} if self.latent is None else {"latent": self.team.gather(self.latent)}

    def load(self, state: dict[str, Tensor]) -> None:
        whole = state.get("latent")
        self.latent = None if whole is None else whole[self.share]

    @property
    def _latent(self) -> Tensor:
        assert self.latent is not None
        return self.latent

    def _dynamic(self, step: int) -> float:
        loss = self.tuning.loss
        if loss.rule == "index":
            return schedules.by_index(step, loss.slope)
        return schedules.by_time(int(self.path.times[step]), loss.slope, self.path.levels)

    def _check_signal(self, index: int, p: Tensor, q: Tensor) -> None:
        """At the first update of a concept: a model that does not tell it from its anchor has nothing to unlearn."""
        number = self.table[index].concept
        if any(e.concept == number for e in self.table[:index]):
            return
        if float((p - q).square().mean()) <= SIGNAL * float(q.square().mean()):
            raise NothingChanged(
                f"the model predicts the same for {self.subjects[number].concept.name!r} and for its anchor "
                f"{self.subjects[number].anchor!r}; name another concept or anchor"
            )

    # --- latents -------------------------------------------------------------------------------------------------

    def draw(self, index: int) -> Tensor:
        """Noise (b, c, h, w) of a start at update `index`, float32 on CPU."""
        shape = (self.tuning.optimiser.batch, *self.model.card.latent)
        seeded = torch.Generator().manual_seed(self.work.seed + index)
        named = self.tuning.trajectory.noise == "named"
        return torch.randn(shape, generator=self.work.rng(f"noise {index}") if named else seeded)

    def _start(self, net: Net, index: int) -> Tensor:
        """Fresh noise, denoised up to the update's step."""
        entry = self.table[index]
        noise = self.draw(index)[self.share].to(self.device, self.dtype)
        ask = net.predict if self.tuning.trajectory.prefix == "tuned" else net.reference
        return self.path.fresh(ask, noise, entry.step, self.rows[self.text(entry)], self.rows[""])

    # --- texts ---------------------------------------------------------------------------------------------------

    def text(self, entry: KeyStep) -> str:
        """What a visit is conditioned on."""
        texts = self.subjects[entry.concept].texts
        return texts[entry.visit % len(texts)]

    def _kept(self, index: int) -> list[str]:
        """The kept text of this update, if any."""
        if not self.kept:
            return []
        return [self.kept[schedules.pick(self.work.rng(f"kept {index}"), len(self.kept))]]

    def _row(self, encoded: Encoded) -> Context:
        """The one row of a text."""
        net = self.model.network
        return net.family.context(net, [finite(encoded)]).to(self.device, self.dtype)

    def _changed(self, index: int) -> Context | None:
        """The row of an augmented text with a little noise, late in training; else None."""
        if self.pools is None or index < self.augmented:
            return None
        rng, pool = self.work.rng(f"augmentation {index}"), self.pools[self.table[index].concept]
        return self.rows[pool[schedules.pick(rng, len(pool))]].noisy(1e-5, rng)

    def _pools(self) -> list[list[str]]:
        """Augmented texts by concept, those that the model's window holds; encoded here."""
        rng = self.work.rng("augmentation")
        concepts, texts = [s.concept for s in self.subjects], [s.texts for s in self.subjects]
        pools = [ten_texts(c, own, rng) for c, own in zip(concepts, texts, strict=True)]
        if self.tuning.pool.first_release:
            pools = [mixed_texts(concepts, texts, rng)] * len(pools)
        pools = [[t for t in pool if self.model.reads(t)] or list(own) for pool, own in zip(pools, texts, strict=True)]
        new = sorted({t for pool in pools for t in pool} - self.rows.keys())
        for encoded in self.model.encode(new) if new else ():
            self.rows[encoded.text] = self._row(encoded)
        return pools

    # --- numbers -------------------------------------------------------------------------------------------------

    @property
    def table_hash(self) -> str:
        """Of every update's concept, step and text."""
        entries = [(self.subjects[e.concept].concept.name, e.step, self.text(e)) for e in self.table]
        return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]

    def numbers(self, net: Net) -> dict[str, Any]:
        """For the recipe; nothing that varies between runs."""
        return {
            "updates": len(self.table),
            "table": self.table_hash,
            "concepts": [s.concept.name for s in self.subjects],
            "jumps": len(self.starts),
            "rows": asdict(net.counts),
            "rows_per_update": round(net.counts.forward / len(self.table) / self.tuning.optimiser.batch, 3),
            "trained": sum(p.numel() for p in net.parameters),
            "moved": round(net.moved(), 6),
        }
