"""Measuring: draw both sides of a suite at the same prompts and seeds, judge every image.

One record is one image of one side under one judge: judged, or NA or ERROR with a reason. Images come from the shared
cache when their key (weights, patch, prompt, seed, sampler) is the same, so none is drawn twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.engines import local
from efface.engines.local import Tally
from efface.errors import EffaceError
from efface.patch import Guard
from efface.store import Images, Records, key_of, pixel_hash
from efface.suites import Item, veiled
from efface.work import Work

if TYPE_CHECKING:
    from efface.model import Model

__all__ = [
    "NO_DETECTOR",
    "SHARD",
    "Sampling",
    "Side",
    "Watch",
    "draw",
    "fingerprint",
    "judge_images",
    "record_failures",
    "record_key",
    "shards_of",
]

NO_DETECTOR = "one colour"  # the version of what finds images of one colour and nothing else
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
        own = {} if item.guidance is None else {"guidance": item.guidance}
        return key_of(
            model=self.model.identity,
            patch=self.patch,
            prompt=item.prompt,
            seed=item.seed,
            sampling=sampling.hash,
            **own,
        )


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
        row = (item.prompt, item.seed, side.image_key(item, sampling), item.guidance)
        groups.setdefault(item.guidance, []).append(row)
    return [rows[i : i + SHARD] for rows in groups.values() for i in range(0, len(rows), SHARD)]


def draw(
    side: Side,
    items: Sequence[Item],
    sampling: Sampling,
    images: Images,
    work: Work,
    shards: Sequence[Sequence[Sequence[Any]]] | None = None,
    tally: Tally | None = None,
    skip: Collection[str] = (),
) -> int:
    """Draw what is missing, shard by shard; returns how many images were drawn.

    A shard with a missing image is drawn whole, so that the batches, and with them the pixels, are those of an
    uninterrupted run; an image that is there stays as it is. shards: as frozen by the run, else those of `items`.
    tally: with one, images that fail are named in it, else the failure is raised. skip: keys not to try.
    """
    shards = shards_of(side, items, sampling) if shards is None else shards
    missing = [shard for shard in shards if not all(images.has(row[2]) or row[2] in skip for row in shard)]
    how: dict[str, Any] = {"steps": sampling.steps, "guidance": sampling.guidance}
    label = f"drawing {side.name} (x{SHARD})"
    model = side.model
    lanes = local.lanes_for(model) if model.can_move and missing else 1
    tally = tally or Tally(failed=None)
    before = sum(images.has(row[2]) for shard in missing for row in shard)
    if lanes > 1 and len(missing) >= 2 * lanes:
        local.run(lanes, model.folder, model.patches, how, images.folder, missing, work, label, tally)
    else:
        with _one_thread(model.can_move):
            for shard in work.progress(missing, label):
                local.draw_shard(model, shard, {**how, "work": work}, images, tally)
    return sum(images.has(row[2]) for shard in missing for row in shard) - before


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """As the workers draw: several threads may differ from one by 1/255, and a resumed run must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- judging ---------------------------------------------------------------------------------------------------------


def record_key(side: str, image: str, judge: str, garbage: str) -> str:
    """Of one record: one image of one side under these versions of the judge and of the garbage detector."""
    return key_of(side=side, image=image, judge=judge, garbage=garbage)


@dataclass(frozen=True)
class Watch:
    """Who looks: the judge, and who says what is garbage.

    why: the reason when there is no judge. private: prompts stand in the records as hashes. threshold, counts: of a
    detector, which regions count (no label named: all).
    """

    judge: Any
    garbage: Any
    name: str
    why: str = ""
    private: bool = False
    threshold: float = 0.6
    counts: tuple[str, ...] = ()

    @property
    def detects(self) -> bool:
        return hasattr(self.judge, "boxes")

    @property
    def classifies(self) -> bool:
        """A judge with labels, which looks at an image and says what it shows."""
        return bool(self.labels) and hasattr(self.judge, "look")

    @property
    def compares(self) -> bool:
        """A judge of image and text without labels: it gives a score, and no yes or no."""
        return hasattr(self.judge, "texts") and not self.labels

    @property
    def version(self) -> str:
        if not self.detects:
            return self.judge.version if self.judge else "none"
        return key_of(judge=self.judge.version, threshold=self.threshold, counts=self.counts)[:12]

    @property
    def garbage_version(self) -> str:
        return self.garbage.version if self.garbage else NO_DETECTOR

    @property
    def labels(self) -> tuple[str, ...]:
        """What the judge can name; a detector names whatever it is asked for."""
        return (*getattr(self.judge, "objects", ()), *getattr(self.judge, "styles", ()))

    def key(self, side: str, image: str) -> str:
        return record_key(side, image, self.version, self.garbage_version)

    def row(self, side: Side, item: Item, image: str, **said: Any) -> dict[str, Any]:
        """A record: what was drawn, who looked, and what was said."""
        own = {} if item.guidance is None else {"guidance": item.guidance}
        who = {"judge": self.name, "judge_version": self.version}
        prompt = veiled(item.prompt) if self.private else item.prompt
        return {"key": self.key(side.name, image), "side": side.name, "image": image, "prompt": prompt,
                "seed": item.seed, **own, **who, **said}  # fmt: skip


def judge_images(
    side: Side,
    items: Sequence[Item],
    sampling: Sampling,
    images: Images,
    watch: Watch,
    records: Records,
    work: Work,
) -> int:
    """One record an image: what is shown (per ask), whether it is garbage; returns how many were judged.

    Judged records are not judged again. An image at which the judge fails is an ERROR with the reason.
    """
    todo = [(i, side.image_key(i, sampling)) for i in items]
    todo = [(i, k) for i, k in todo if watch.key(side.name, k) not in records and images.has(k)]
    height, width = side.model.card.size
    chunk = max(8, 256 * 64 * 64 // (height * width))
    parts = [todo[start : start + chunk] for start in range(0, len(todo), chunk)]
    for part in work.progress(parts, f"judging {side.name} (x{chunk})"):
        pixels = np.stack([images.get(k) for _, k in part])  # (n, h, w, 3)
        for (item, key), image, said in zip(part, pixels, _looked(watch, part, pixels), strict=True):
            records.append(watch.row(side, item, key, pixels=pixel_hash(image), **said))
        records.sync()
    return len(todo)


def _looked(watch: Watch, part: Sequence[tuple[Item, str]], pixels: np.ndarray) -> list[dict[str, Any]]:
    """What the judge says of each image; one by one when it fails at all of them together."""
    empty: dict[str, Any] = {"garbage": False, "hits": [], "values": {}}
    if watch.judge is None:
        return [empty | {"state": "na", "reason": watch.why} for _ in part]
    try:
        return _verdicts(watch, part, pixels)
    except (EffaceError, RuntimeError, ValueError) as error:
        if len(part) == 1:
            return [empty | {"state": "error", "reason": f"the judge failed: {str(error)[:300]}"}]
        return [said for i in range(len(part)) for said in _looked(watch, part[i : i + 1], pixels[i : i + 1])]


def _verdicts(watch: Watch, part: Sequence[tuple[Item, str]], pixels: np.ndarray) -> list[dict[str, Any]]:
    from efface.judges.garbage import constant

    if watch.detects:
        return _detected(watch, part, pixels)
    if watch.compares:
        return _compared(watch, part, pixels)
    labels = watch.labels
    index = {label: i for i, label in enumerate(labels)}
    verdict = watch.judge.look(pixels)
    flags = watch.garbage.flags(pixels, verdict) if watch.garbage else constant(pixels)
    return [
        {
            "garbage": bool(flags[row]),
            "hits": [labels[i] for i in np.flatnonzero(verdict.hits[row])],
            "values": {
                a.label: round(float(verdict.probabilities[row, index[a.label]]), 6)
                for a in item.asks
                if a.label in index
            },
        }
        for row, (item, _) in enumerate(part)
    ]


def _detected(watch: Watch, part: Sequence[tuple[Item, str]], pixels: np.ndarray) -> list[dict[str, Any]]:
    """A detector's regions; what was asked for is shown where one of them counts."""
    from efface.judges.garbage import constant

    found = []
    for (item, _), boxes, flat in zip(part, watch.judge.boxes(pixels), constant(pixels), strict=True):
        scores = [score for label, score in boxes if not watch.counts or label in watch.counts]
        top, asked = max(scores, default=0.0), [a.label for a in item.asks]
        found.append({
            "garbage": bool(flat), "hits": asked if top >= watch.threshold else [],
            "values": dict.fromkeys(asked, round(top, 6)), "boxes": [[label, round(s, 6)] for label, s in boxes],
        })  # fmt: skip
    return found


def _compared(watch: Watch, part: Sequence[tuple[Item, str]], pixels: np.ndarray) -> list[dict[str, Any]]:
    """100 cos of each image and its prompt (Hessel et al. 2021, without clipping)."""
    from efface.judges.garbage import constant
    from efface.metrics.clip import clip_scores

    prompts = list(dict.fromkeys(item.prompt for item, _ in part))
    vectors, cut = watch.judge.texts(prompts)
    scores, flat = clip_scores(watch.judge.images(pixels), vectors), constant(pixels)
    found = []
    for row, (item, _) in enumerate(part):
        column = prompts.index(item.prompt)
        values = dict.fromkeys((a.label for a in item.asks), round(float(scores[row, column]), 6))
        found.append({"garbage": bool(flat[row]), "hits": [], "values": values, "cut": bool(cut[column])})
    return found


def record_failures(
    side: Side, items: Sequence[Item], sampling: Sampling, watch: Watch, records: Records, failed: dict[str, str]
) -> None:
    """Images that could not be drawn stand in the records as ERROR, with the reason."""
    for item in items:
        key = side.image_key(item, sampling)
        if key in failed and watch.key(side.name, key) not in records:
            said = {"state": "error", "reason": failed[key], "garbage": False, "hits": [], "values": {}}
            records.append(watch.row(side, item, key, pixels="", **said))
