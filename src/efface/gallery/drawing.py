"""Drawing: what decides pixels beside the shot, and shards of pictures run by an engine.

Pictures come from the shared cache when their key (weights, patch, prompt, seed, sampler) is the same, so none is drawn
twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch

from efface.engines import Engine
from efface.files import key_of
from efface.gallery.images import Images
from efface.gallery.task import Drawn, Row, engine_for, job_of, reader_of
from efface.work import Work

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Patch

__all__ = ["SHARD", "Sampling", "Shard", "Side", "Tally", "drawn", "fingerprint"]

SHARD = 16  # images drawn and recorded together; also the batch, so that results do not depend on resuming
Shard = Sequence[Row]
"""Pictures that are drawn as one batch, all at one guidance."""


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: everything beside weights and shot that can change pixels."""

    steps: int
    guidance: float
    dtype: str
    schedule: tuple[tuple[str, object], ...]
    """The scheduler's class and configuration."""
    device: str = "cpu"

    @classmethod
    def of(cls, model: Model, steps: int | None = None, guidance: float | None = None) -> Sampling:
        card = model.card
        return cls(
            card.steps if steps is None else steps,
            card.guidance if guidance is None else guidance,
            str(model.dtype).removeprefix("torch."),
            card.schedule,
            model.device.type,
        )

    @cached_property
    def hash(self) -> str:
        own = {} if self.device == "cpu" else {"device": self.device}
        return key_of(
            steps=self.steps,
            guidance=self.guidance,
            dtype=self.dtype,
            schedule=self.schedule,
            torch=torch.__version__,
            diffusers=version("diffusers"),
            batch=SHARD,
            **own,
        )[:16]


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    """base or edited; generated where nothing is compared."""
    model: Model
    patch: str = ""
    """Content hash of what is on the model while it draws; empty where that changes nothing."""
    change: Patch | None = None
    """A patch to put on the model for drawing; None where the model is as it should be."""

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The model is as this side draws."""
        if self.change is None:
            yield
            return
        with self.change.applied(self.model):
            yield


def fingerprint(model: Model) -> str:
    """Hash of what draws: all weights as loaded, the sites that patches change, guards and gates in force.

    Equal fingerprints draw equal images; a patch that changes nothing leaves the base's.
    """
    changed: dict[str, str] = {}
    for site in sorted({s for p in model.changes for s in p.sites}):
        weight = model.weight(site)
        if not weight.equal(model.base_weight(site)):
            raw = weight.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            changed[site] = hashlib.sha256(raw).hexdigest()
    acting = (p for p in model.changes if p.strength)
    rules = [p.content_hash for p in acting if p.by_prompt]
    return key_of(model=model.identity, sites=changed, rules=rules)[:16] if changed or rules else model.identity


# --- drawing ---------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What drawing cost and what could not be drawn."""

    seconds: float = 0.0
    """Spent in the sampler, an average over the workers."""
    failed: dict[str, str] | None = field(default_factory=dict)
    """Key of an image -> why; None: failing raises."""


def drawn(
    side: Side, shards: Sequence[Shard], sampling: Sampling, images: Images, work: Work, tally: Tally,
    engine: Engine | None = None,
) -> None:  # fmt: skip
    """Draw these shards and store what comes back as it comes; an image that is there stays as it is.

    engine: where it is drawn, else in this process or in workers, whichever is faster.
    """
    engine = engine or engine_for(side.model, len(shards))
    seconds: dict[str, float] = {}
    tolerant = tally.failed is not None
    with side.in_force(), job_of(engine, side.model, sampling.steps, sampling.guidance, tolerant, work) as job:
        for result in engine.run(job, shards, work, f"drawing {side.name} (x{SHARD})"):
            found: Drawn = reader_of(Drawn).validate_python(result)
            for key, png in found.pngs():
                images.put_png(key, png)
            seconds[found.worker] = seconds.get(found.worker, 0.0) + found.seconds
            if tally.failed is not None:
                tally.failed |= found.failed
    tally.seconds += sum(seconds.values()) / max(len(seconds), 1)
