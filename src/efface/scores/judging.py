"""Judging: one record an image of one side under one judge: judged, or NA or ERROR with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import EffaceError
from efface.files import key_of
from efface.gallery.drawing import Sampling, Side
from efface.gallery.images import Images, pixel_hash
from efface.gallery.shot import Item
from efface.scores.records import Records
from efface.work import Work

if TYPE_CHECKING:
    pass


NO_DETECTOR = "one colour"  # the version of what finds images of one colour and nothing else


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
        shot = item.shot.veiled() if self.private else item.shot
        own = {} if shot.guidance is None else {"guidance": shot.guidance}
        who = {"judge": self.name, "judge_version": self.version}
        return {"key": self.key(side.name, image), "side": side.name, "image": image, "prompt": shot.prompt,
                "seed": shot.seed, **own, **who, **said}  # fmt: skip


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
    from efface.numerics.distances import clip_scores

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
