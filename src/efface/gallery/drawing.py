"""Measuring: draw both sides of a suite at the same prompts and seeds, judge every image.

One record is one image of one side under one judge: judged, or NA or ERROR with a reason. Images come from the shared
cache when their key (weights, patch, prompt, seed, sampler) is the same, so none is drawn twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from efface.engines import Engine
from efface.files import key_of
from efface.gallery.images import Images
from efface.gallery.shot import Item
from efface.gallery.task import Drawn, engine_for, job_of, reader_of
from efface.patch import Guard
from efface.work import Work

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["SHARD", "Sampling", "Side", "Tally", "draw", "fingerprint", "shards_of"]

SHARD = 16  # images drawn and recorded together; also the batch, so that results do not depend on resuming


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: everything beside the weights that can change pixels."""

    steps: int
    guidance: float
    dtype: str
    schedule: tuple[tuple[str, Any], ...]
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
    """One side of a comparison: "base" or "edited", a model, the content hash of what is applied to it."""

    name: str
    model: Model
    patch: str = ""

    def image_key(self, item: Item, sampling: Sampling) -> str:
        """Hash of everything that can change the pixels, and of nothing else: another recipe draws no image again."""
        return item.shot.key(model=self.model.identity, patch=self.patch, sampling=sampling.hash)


def fingerprint(model: Model) -> str:
    """Hash of what draws: all weights as loaded, the sites that patches change, guards and gates in force.

    Equal fingerprints draw equal images; a patch that changes nothing leaves the base's.
    """
    changed: dict[str, str] = {}
    for site in sorted({s for p in model.patches for s in p.sites}):
        weight = model.weight(site)
        if not weight.equal(model.base_weight(site)):
            raw = weight.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            changed[site] = hashlib.sha256(raw).hexdigest()
    acting = (p for p in model.patches if p.strength)
    rules = [p.content_hash for p in acting if any(isinstance(e, Guard) or e.gate is not None for e in p.edits)]
    return key_of(model=model.identity, sites=changed, rules=rules)[:16] if changed or rules else model.identity


# --- drawing ---------------------------------------------------------------------------------------------------------


def shards_of(side: Side, items: Iterable[Item], sampling: Sampling) -> list[list[tuple[Any, ...]]]:
    """Items in batches as they are drawn: `SHARD` at most, one guidance each, in the order given."""
    groups: dict[float | None, list[tuple[Any, ...]]] = {}
    for item in items:
        shot = item.shot
        row = (shot.prompt, shot.seed, side.image_key(item, sampling), shot.guidance)
        groups.setdefault(shot.guidance, []).append(row)
    return [rows[i : i + SHARD] for rows in groups.values() for i in range(0, len(rows), SHARD)]


@dataclass
class Tally:
    """What drawing cost and what could not be drawn."""

    seconds: float = 0.0
    """Spent in the sampler, an average over the workers."""
    failed: dict[str, str] | None = field(default_factory=dict)
    """Key of an image -> why; None: failing raises."""


def draw(
    side: Side,
    items: Sequence[Item],
    sampling: Sampling,
    images: Images,
    work: Work,
    shards: Sequence[Sequence[Sequence[Any]]] | None = None,
    tally: Tally | None = None,
    skip: Collection[str] = (),
    engine: Engine | None = None,
) -> int:
    """Draw what is missing, shard by shard; returns how many images were drawn.

    A shard with a missing image is drawn whole, so that the batches, and with them the pixels, are those of an
    uninterrupted run; an image that is there stays as it is. shards: as frozen by the run, else those of `items`.
    tally: with one, images that fail are named in it, else the failure is raised. skip: keys not to try. engine: where
    it is drawn, else in this process or in workers, whichever is faster.
    """
    shards = shards_of(side, items, sampling) if shards is None else shards
    missing = [shard for shard in shards if not all(images.has(row[2]) or row[2] in skip for row in shard)]
    tally, engine = tally or Tally(failed=None), engine or engine_for(side.model, len(missing))
    before = sum(images.has(row[2]) for shard in missing for row in shard)
    if missing:
        _run(engine, side, missing, sampling, images, work, tally)
    return sum(images.has(row[2]) for shard in missing for row in shard) - before


def _run(
    engine: Engine,
    side: Side,
    shards: Sequence[Sequence[Sequence[Any]]],
    sampling: Sampling,
    images: Images,
    work: Work,
    tally: Tally,
) -> None:
    """Draw these shards and store what comes back as it comes."""
    seconds: dict[str, float] = {}
    tolerant = tally.failed is not None
    with job_of(engine, side.model, sampling.steps, sampling.guidance, tolerant, work) as job:
        for result in engine.run(job, shards, work, f"drawing {side.name} (x{SHARD})"):
            drawn: Drawn = reader_of(Drawn).validate_python(result)
            for key, png in drawn.pngs():
                images.put_png(key, png)
            seconds[drawn.worker] = seconds.get(drawn.worker, 0.0) + drawn.seconds
            if tally.failed is not None:
                tally.failed |= drawn.failed
    tally.seconds += sum(seconds.values()) / max(len(seconds), 1)


# --- judging ---------------------------------------------------------------------------------------------------------
