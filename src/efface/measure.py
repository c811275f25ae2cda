"""Measuring: draw both sides of a suite at the same prompts and seeds, judge every image, count.

One record is one image of one side under one judge; a rate is a pure function of the set of records. Base images
come from the shared cache when their key (weights, prompt, seed, sampler) is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.engines import local
from efface.errors import WrongFile
from efface.numerics import intervals
from efface.sampler import sample
from efface.store import Images, Records, key_of
from efface.suites import ROLES, Item
from efface.work import Work

if TYPE_CHECKING:
    from efface.judges import Judge
    from efface.judges.garbage import Garbage
    from efface.model import Model

__all__ = ["Sampling", "Side", "absent_table", "cell", "draw", "judge_images", "tables"]

KNOWN_AT_LEAST = 0.5  # a target that the base draws less often is NA
SHARD = 16  # images drawn and recorded together; also the batch, so that results do not depend on resuming


@dataclass(frozen=True)
class Sampling:
    """How images are drawn: everything beside the weights that can change pixels."""

    steps: int
    guidance: float
    dtype: str
    schedule: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, model: Model, steps: int | None = None, guidance: float | None = None) -> Sampling:
        card = model.card
        return cls(
            card.steps if steps is None else steps,
            card.guidance if guidance is None else guidance,
            str(model.dtype).removeprefix("torch."),
            card.schedule,
        )

    @property
    def hash(self) -> str:
        return key_of(
            steps=self.steps,
            guidance=self.guidance,
            dtype=self.dtype,
            schedule=self.schedule,
            torch=torch.__version__,
            diffusers=version("diffusers"),
            batch=SHARD,
        )[:16]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: "base" or "edited", a model, the hash of what is applied to it."""

    name: str
    model: Model
    patch: str = ""

    def image_key(self, item: Item, sampling: Sampling) -> str:
        return key_of(
            model=self.model.identity,
            patch=self.patch,
            prompt=item.prompt,
            seed=item.seed,
            sampling=sampling.hash,
        )


def draw(side: Side, items: Sequence[Item], sampling: Sampling, images: Images, work: Work) -> int:
    """Draw what is missing, shard by shard; returns how many images were drawn.

    A shard with a missing image is drawn whole, so that the batches, and with them the pixels, are those of an
    uninterrupted run. On CPU, many shards are shared among worker processes.
    """
    keyed = [(i.prompt, i.seed, side.image_key(i, sampling)) for i in items]
    shards = [keyed[i : i + SHARD] for i in range(0, len(keyed), SHARD)]
    missing = [shard for shard in shards if not all(images.has(k) for _, _, k in shard)]
    how: dict[str, Any] = {"steps": sampling.steps, "guidance": sampling.guidance}
    label = f"drawing {side.name} (x{SHARD})"
    model, lanes = side.model, torch.get_num_threads()
    if model.can_move and lanes > 1 and len(missing) >= 2 * lanes:
        local.run(lanes, model.folder, model.patches, how, images.folder, missing, work, label)
    else:
        with _one_thread(model.can_move):
            for shard in work.progress(missing, label):
                prompts, seeds, keys = zip(*shard, strict=True)
                found = sample(model, prompts, seeds, batch=SHARD, work=work, **how)
                for key, image in zip(keys, found, strict=True):
                    images.put(key, image)
    return sum(len(shard) for shard in missing)


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """As the workers draw: several threads may differ from one by 1/255, and a resumed run must not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judge_images(
    side: Side,
    items: Sequence[Item],
    sampling: Sampling,
    images: Images,
    judge: Judge,
    garbage: Garbage,
    records: Records,
) -> None:
    """One record an image: what is shown (per ask), whether it is garbage. Judged records are not judged again."""
    labels = [*judge.objects, *judge.styles]
    index = {label: i for i, label in enumerate(labels)}
    todo = [(i, side.image_key(i, sampling)) for i in items]
    todo = [(i, k) for i, k in todo if record_key(side, k, judge, garbage) not in records]
    for start in range(0, len(todo), 256):
        part = todo[start : start + 256]
        pixels = np.stack([images.get(k) for _, k in part])  # (n, h, w, 3)
        verdict = judge.look(pixels)
        flags = garbage.flags(pixels, verdict)
        for row, (item, key) in enumerate(part):
            records.append({
                "key": record_key(side, key, judge, garbage),
                "side": side.name,
                "image": key,
                "pixels": hashlib.sha256(pixels[row].tobytes()).hexdigest()[:32],
                "prompt": item.prompt,
                "seed": item.seed,
                "judge": judge.name,
                "judge_version": judge.version,
                "garbage": bool(flags[row]),
                "hits": [labels[i] for i in np.flatnonzero(verdict.hits[row])],
                "values": {
                    a.label: round(float(verdict.probabilities[row, index[a.label]]), 6)
                    for a in item.asks
                    if a.label in index
                },
            })  # fmt: skip


def record_key(side: Side, image: str, judge: Judge, garbage: Garbage) -> str:
    return key_of(side=side.name, image=image, judge=judge.version, garbage=garbage.version)


# --- counting ---------------------------------------------------------------------------------------------------------


def cell(hits: int, n: int) -> dict[str, Any] | None:
    """A rate with its Wilson 95 % interval, or None for n = 0."""
    if n == 0:
        return None
    low, high = intervals.wilson(hits, n)
    return {"hits": hits, "n": n, "rate": hits / n, "low": low, "high": high}


@dataclass(frozen=True)
class _Pair:
    """One question asked of one pair of images."""

    role: str
    label: str
    base: bool
    edited: bool
    base_garbage: bool
    edited_garbage: bool


def tables(items: Sequence[Item], rows: Sequence[dict[str, Any]], labels: frozenset[str]) -> list[dict[str, Any]]:
    """One table a role, in the order of `ROLES`: a row a label, and the pooled row.

    rows: records of both sides. labels: what the judge can name; other labels are NA. A target that the base draws
    at < 50 % is NA, never a success.
    """
    by_image = {(r["side"], r["prompt"], r["seed"]): r for r in rows}
    pairs: dict[str, list[_Pair]] = {}
    for item in items:
        base, edited = (by_image.get((s, item.prompt, item.seed)) for s in ("base", "edited"))
        if base is None or edited is None:
            raise WrongFile(f"no record of {item.prompt!r}, seed {item.seed}; run the same command again")
        for ask in item.asks:
            pairs.setdefault(ask.role, []).append(
                _Pair(ask.role, ask.label, ask.label in base["hits"], ask.label in edited["hits"], base["garbage"],
                      edited["garbage"])
            )  # fmt: skip
    return [_table(role, pairs[role], labels) for role in ROLES if role in pairs]


def absent_table(role: str, reason: str) -> dict[str, Any]:
    """The table of a role that cannot be measured: one row that says why."""
    title, direction = ROLES[role]
    empty = dict.fromkeys(("base", "edited", "loss", "garbage", "replaced"))
    row = {"name": title.lower(), "state": "na", "reason": reason, "note": ""} | empty
    return {"role": role, "label": title, "direction": direction, "rows": [row], "pooled": None}


def _table(role: str, pairs: list[_Pair], labels: frozenset[str]) -> dict[str, Any]:
    title, direction = ROLES[role]
    names = list(dict.fromkeys(p.label for p in pairs))
    rows = [_row(role, name, [p for p in pairs if p.label == name], labels) for name in names]
    scored = {r["name"] for r in rows if r["state"] == "ok"}
    pooled = _row(role, "all", [p for p in pairs if p.label in scored], None) if scored else None
    if pooled:
        pooled["note"] = f"{len(scored)} of {len(rows)} scored"
    return {"role": role, "label": title, "direction": direction, "rows": rows, "pooled": pooled}


def _row(role: str, name: str, pairs: list[_Pair], labels: frozenset[str] | None) -> dict[str, Any]:
    n = len(pairs)
    base, edited = sum(p.base for p in pairs), sum(p.edited for p in pairs)
    row: dict[str, Any] = {
        "name": name, "state": "ok", "reason": "", "note": "", "base": cell(base, n), "edited": cell(edited, n),
        "loss": None, "garbage": cell(sum(p.edited_garbage for p in pairs), n), "replaced": None,
    }  # fmt: skip
    if labels is not None and name not in labels:
        return row | {
            "state": "na",
            "reason": "the judge does not know this label",
            "base": None,
            "edited": None,
        }
    if role in ("target", "style") and labels is not None and base / n < KNOWN_AT_LEAST:
        return row | {"state": "na", "reason": f"not known to this model: the base draws it in {base} of {n}"}
    if role in ("target", "style"):
        row["replaced"] = cell(sum(not p.edited and not p.edited_garbage for p in pairs), n)
    row["both"] = both = sum(p.base and p.edited for p in pairs)  # makes every paired statistic computable
    found = intervals.paired_difference(both, base - both, edited - both, n - base - edited + both)
    return row | {"loss": {"estimate": found.estimate, "low": found.low, "high": found.high}}
