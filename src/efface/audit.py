"""Audit: draw a suite with the base and the edited model, judge it, write the report.

A run is a folder: `spec.json` (frozen), `plan.json`, `environment.json`, `records.jsonl`, `images/`, `report.html`,
`report.json`. The same command goes on where a killed one stopped; another spec in the same folder is refused.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.engines import Engine
from efface.errors import BadRequest, Unavailable, UnknownName, WrongFile
from efface.files import cache_folder
from efface.gallery.drawing import Sampling, Side, Tally, draw
from efface.gallery.images import Images
from efface.gallery.shot import Item
from efface.registry import find
from efface.report import content as evaluation
from efface.report import gate as gates
from efface.report import page
from efface.request import Concept, Request
from efface.runs import folder as runfolder
from efface.runs.spec import Audit, request_of
from efface.scores.judging import Watch, judge_images, record_failures
from efface.untrusted import refuse_links
from efface.work import Work

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Patch
    from efface.report.gate import Gate

__all__ = ["Audit", "audit", "concepts_for", "images_of", "request_of"]

PRIVATE_SHARDS = 16  # shards of a private suite that are on disk at a time


def audit(
    asked: Audit,
    out: Path,
    work: Work | None = None,
    overwrite: bool = False,
    gate: Gate | None = None,
    allow_undecided: bool = False,
    metrics: Sequence[tuple[str, Any]] = (),
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Draw, judge, count, write `out/report.html` and `out/report.json`; returns the report.

    metrics: by name, from `scores.configured`; they look at the stored images again. With a gate the report says what
    each rule found. engine: where images are drawn, which changes none. Raises OutputExists for a folder
    that holds another run or something else, BadRequest (a base that equals its edit; a gate for another suite, role or
    concept, before anything is drawn), WrongFile.
    """
    work, start = work or Work(), time.perf_counter()
    asked = asked.settled()
    suite, plan = asked.planned()
    if gate:
        gates.check(gate, asked.suite, suite.version, gates.asked_of(plan))
    sides = asked.sides()
    watch = watching(suite, asked.judge, asked.base)
    spec = asked.spec(plan.items)
    with runfolder.opened(out, spec, overwrite) as folder:
        cost = _Costs(start)
        _measure(asked, suite, plan.items, sides, watch, folder, work, cost, engine)
        told = tuple(dataclasses.replace(i, shot=i.shot.veiled()) if suite.private else i for i in plan.items)
        part = cost.timed("seconds counting")
        told_plan = dataclasses.replace(plan, items=told)
        result = evaluation.report(asked, suite, told_plan, folder, watch, spec, metrics)
        if gate:
            evaluation.add_gate(result, gate, allow_undecided, told, evaluation.current(folder, watch), folder.images)
        part()
        result["cost"] = cost.lines(asked, folder)
        page.write(result, out, evaluation.picture_source(folder.images, suite.private))
    return result


class _Costs:
    """Where the time went, and what was drawn."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.seconds = {"seconds drawing": 0.0, "seconds judging": 0.0, "seconds counting": 0.0}
        self.drawn = {"base": 0, "edited": 0}
        self.planned = 0
        self.repaired = 0

    def timed(self, name: str) -> Any:
        begin = time.perf_counter()

        def end() -> None:
            self.seconds[name] += time.perf_counter() - begin

        return end

    def lines(self, asked: Audit, folder: runfolder.Folder) -> dict[str, Any]:
        """The costs of this call: a run that went on states its last part."""
        whole = time.perf_counter() - self.start
        drawing = self.seconds["seconds drawing"]
        found: dict[str, Any] = {f"{side} images drawn": n for side, n in self.drawn.items()}
        found["images taken from the cache"] = self.planned - sum(self.drawn.values())
        found["bytes of the patch"] = len(asked.patch.to_bytes()) if asked.patch else 0
        found |= {"images repaired": self.repaired, "damaged records dropped": folder.records.damaged}
        found |= {name: round(value, 2) for name, value in self.seconds.items()}
        found["seconds beside drawing"] = round(whole - drawing, 2)
        return found | {"seconds": round(whole, 1)}


@contextmanager
def _applied(asked: Audit, side: Side) -> Iterator[None]:
    with ExitStack() as stack:
        if side.name == "edited" and asked.patch and side.patch:
            stack.enter_context(asked.patch.applied(asked.base))
        yield


def _measure(
    asked: Audit,
    suite: Any,
    items: tuple[Item, ...],
    sides: tuple[Side, Side],
    watch: Watch,
    folder: runfolder.Folder,
    work: Work,
    cost: _Costs,
    engine: Engine | None,
) -> None:
    sampling, hidden = asked.sampling, suite.private and not asked.store_images
    place = folder.images if suite.private else folder.cache
    pixels = {r["image"]: r["pixels"] for r in folder.records if r.get("pixels")}
    damaged = {}
    for side in sides:
        keys = [side.image_key(i, sampling) for i in items]
        damaged[side.name] = folder.drop_damaged(keys, pixels)
    plan = folder.freeze(sides, items, sampling, suite.private)
    cost.planned = 2 * len(items)
    for side in sides:
        cost.repaired += len(damaged[side.name])
        shards = folder.shards(plan, side, items, sampling)
        known = [r for r in folder.records if r["key"] == watch.key(side.name, r["image"])]
        skip = {r["image"] for r in known if hidden or r.get("state") == "error"}
        if not suite.private:  # what the run holds is not drawn again; a stranger's run must not fill the cache
            skip |= {key for key in plan["sides"][side.name]["keys"] if folder.images.has(key)}
        by_key = {side.image_key(i, sampling): i for i in items}
        step = PRIVATE_SHARDS if hidden else max(len(shards), 1)
        for batch in [shards[k : k + step] for k in range(0, len(shards), step)] or [[]]:
            tally = Tally()
            begin = time.perf_counter()
            with _applied(asked, side):
                cost.drawn[side.name] += draw(side, items, sampling, place, work, batch, tally, skip, engine)
            cost.seconds["seconds drawing"] += min(tally.seconds, time.perf_counter() - begin)
            part = [by_key[row[2]] for shard in batch for row in shard] if hidden else items
            _judge(side, part, sampling, watch, folder, work, cost, tally, damaged[side.name])
            if hidden:
                for item in part:
                    folder.images.drop(side.image_key(item, sampling))


def _judge(
    side: Side,
    items: Sequence[Item],
    sampling: Sampling,
    watch: Watch,
    folder: runfolder.Folder,
    work: Work,
    cost: _Costs,
    tally: Tally,
    damaged: Sequence[str],
) -> None:
    """Take the images over, then one record each, those that failed included."""
    end = cost.timed("seconds judging")
    folder.images.adopt(folder.cache, [side.image_key(i, sampling) for i in items])
    folder.void_changed(damaged)
    record_failures(side, items, sampling, watch, folder.records, tally.failed or {})
    judge_images(side, items, sampling, folder.images, watch, folder.records, work)
    end()


def watching(suite: Any, name: str = "", base: Model | None = None) -> Watch:
    """The reporting judge, NAME or NAME:WHERE, else the suite's own, and the garbage detector that fits it.

    base: a detector in this model's folder, fitted on its own drawings, comes before the judge's.
    An unavailable judge is NA with its cure. Raises UnknownName, WrongFile, and BadRequest for a selection judge.
    """
    from efface.judges import garbage

    kind, _, where = (name or suite.judge).partition(":")
    make = find("judges", kind)
    takes = inspect.signature(make).parameters
    given = {k: getattr(suite, k) for k in ("labels", "template") if k in takes and getattr(suite, k, None)}
    rules: dict[str, Any] = {"private": suite.private, "threshold": getattr(suite, "threshold", 0.6)}
    rules["counts"] = tuple(c.strip() for c in getattr(suite, "counts", "").split(",") if c.strip())
    try:
        place = Path(where) if Path(where).exists() else where  # a folder, or a hub id
        judge = make(place, **given) if where else make(**given)
    except Unavailable as error:
        return Watch(None, None, kind, str(error), **rules)
    if "selection" in (getattr(judge, "role", ""), judge.card.get("role")):
        raise BadRequest(f"judge {kind} is for selection: methods may ask it, so it may not report; name another")
    try:
        detector = garbage.load(judge, base and _with_detector(base))
    except (Unavailable, WrongFile):
        detector = None  # fitted with another judge; pictures of one colour are still found
    return Watch(judge, detector, judge.name, "", **rules)


def _with_detector(model: Model) -> Path | None:
    """The model's folder, where it holds a garbage detector."""
    try:
        return model.folder if (model.folder / "garbage.json").is_file() else None
    except WrongFile:  # a pipeline in memory
        return None


def images_of(run: Path) -> Images:
    """The images of a run; those of runs older than version 0.2 that lie in the cache are held from now on."""
    images, cache = Images(run / "images"), Images(cache_folder() / "images")
    refuse_links(run)
    records = runfolder.rows_of(run)
    images.adopt(cache, [r["image"] for r in records])
    return images


def concepts_for(asked: list[str], patch: Patch | None) -> Request:
    """The request of an audit: what the patch was made for, with the concepts that the command names in place of its.

    What the patch keeps counts as kept, but for what the command names. Raises BadRequest, UnknownName.
    """
    if patch is None and not asked:
        raise BadRequest("an edited model does not say what was erased; name it with -c")
    if patch is None or (asked and "request" not in patch.recipe):
        return Request.build(asked)
    if "request" not in patch.recipe:
        raise UnknownName("part of the patch", "request", patch.recipe)
    made = request_of(patch)
    if not asked:
        return made
    named = {t.casefold() for text in asked for t in Concept.parse(text).texts}
    return Request.build(asked, [k for k in made.kept_texts if k.casefold() not in named], made.seed, made.preset)
