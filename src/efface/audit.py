"""Audit: draw a suite with the base and the edited model, judge it, write the report.

A run is a folder: `spec.json` (frozen), `plan.json`, `environment.json`, `records.jsonl`, `images/`, `report.html`,
`report.json`. The same command goes on where a killed one stopped; another spec in the same folder is refused.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from efface.engines import Engine
from efface.errors import BadRequest, EffaceWarning, Unavailable, UnknownName
from efface.gallery.drawing import Shard, Tally
from efface.gallery.gallery import Gallery
from efface.gallery.shot import Item, Shot
from efface.judges.panel import Panel, seated
from efface.metrics._run import NamedMetric, configured
from efface.report import page
from efface.report.content import Measured, gated, report
from efface.report.report import Cost, Counted, Report
from efface.report.ruling import check, planned_roles
from efface.report.sheets import picture_source
from efface.request import Concept, Request
from efface.runs.folder import Folder, opened
from efface.runs.guarding import guarded
from efface.runs.plan import FrozenPlan, freeze
from efface.runs.spec import Audit, RunPlan, request_of
from efface.scores.judging import Judging
from efface.scores.scores import Scores
from efface.work import Work

if TYPE_CHECKING:
    from efface.patch import Patch
    from efface.report.gate import Gate

__all__ = ["Audit", "audit", "concepts_for", "request_of"]

HIDDEN_SHARDS = 16  # shards of a private suite that are on disk at a time


def audit(
    asked: Audit,
    out: Path,
    work: Work | None = None,
    overwrite: bool = False,
    gate: Gate | None = None,
    allow_undecided: bool = False,
    metrics: Sequence[NamedMetric] = (),
    engine: Engine | None = None,
    real: Path | None = None,
) -> Report:
    """Draw, judge, count, write `out/report.html` and `out/report.json`; returns the report.

    metrics: by name, from `metrics`; they look at the stored images again. With a gate the report says what each rule
    found. engine: where images are drawn, which changes none. real: a folder of real pictures, to which the edited
    images are compared as sets. Raises OutputExists for a folder that holds another run
    or something else, BadRequest (a base that equals its edit; a gate for another suite, role or concept, before
    anything is drawn), WrongFile.
    """
    cost, plan = _Spent(), asked.planned()
    if gate:
        check(gate, plan.suite, planned_roles(plan.items, plan.absent))
    panel = seated(plan.judge, plan.brief)
    if panel.why and plan.hidden:
        raise Unavailable(
            f"{panel.why} Nothing was drawn: this suite's images are deleted once judged; "
            "with --store-images they are drawn now and judged by the same command later."
        )
    if panel.why:
        warnings.warn(
            f"{panel.why} Images are drawn and stored, and wait for the judge: the same command judges them later.",
            EffaceWarning,
            stacklevel=2,
        )
    own = (*plan.metrics, *(["distribution:reference=real"] if real and not any(m.of_real for _, m in metrics) else []))
    chosen = [*metrics, *configured([m for m in own if m not in {name for name, _ in metrics}])]
    with opened(out, plan.spec, overwrite) as folder:
        panel = guarded(panel, plan, folder)
        sitting = _Sitting(plan, folder, panel, cost, work or Work(), engine)
        frozen = sitting.measured()
        with cost.counting():
            run = _counted(plan, folder, panel, frozen)
            found = report(run, chosen, real)
            found = gated(found, run, gate, allow_undecided) if gate else found
        found = replace(found, cost=cost.summary(plan, folder))
        page.write(found, out, picture_source(run.images, plan.private))
    return found


def _counted(plan: RunPlan, folder: Folder, panel: Panel, frozen: FrozenPlan) -> Measured:
    """What the records of planned images by this panel say."""
    mine = [r for r in Judging(folder.records, panel).mine() if (r.side, r.image) in frozen.images]
    records = Counted(len(mine), len(folder.records) - len(mine))
    return Measured(plan, Scores.of(plan.told, mine), panel, folder.images, records, folder.environments)


@dataclass
class _Spent:
    """Where the time went, and what was drawn."""

    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("drawing", "judging", "counting"), 0.0))
    drawn: dict[str, int] = field(default_factory=lambda: {"base": 0, "edited": 0})
    repaired: int = 0

    @contextmanager
    def judging(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds["judging"] += time.perf_counter() - begin

    @contextmanager
    def counting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds["counting"] += time.perf_counter() - begin

    def summary(self, plan: RunPlan, folder: Folder) -> Cost:
        """The costs of this call: a run that went on states its last part."""
        whole = time.perf_counter() - self.start
        return Cost(
            base_images_drawn=self.drawn["base"],
            edited_images_drawn=self.drawn["edited"],
            images_taken_from_the_cache=2 * len(plan.items) - sum(self.drawn.values()),
            bytes_of_the_patch=len(plan.patch.to_bytes()) if plan.patch else 0,
            images_repaired=self.repaired,
            damaged_records_dropped=folder.records.damaged,
            seconds_drawing=round(self.seconds["drawing"], 2),
            seconds_judging=round(self.seconds["judging"], 2),
            seconds_counting=round(self.seconds["counting"], 2),
            seconds_beside_drawing=round(whole - self.seconds["drawing"], 2),
            seconds=round(whole, 1),
        )


@dataclass(frozen=True)
class _Sitting:
    """Both sides are drawn and judged."""

    plan: RunPlan
    folder: Folder
    panel: Panel
    cost: _Spent
    work: Work
    engine: Engine | None

    def measured(self) -> FrozenPlan:
        """Draw what is missing and judge what is not judged; returns what was planned."""
        items = self.plan.items
        shots = [i.shot for i in items]
        galleries = self.folder.galleries(self.plan)
        pixels = {r.image: r.pixels for r in self.folder.records if r.pixels}
        damaged = {g.side.name: g.damaged(shots, pixels) for g in galleries}
        frozen = freeze(self.folder.path, galleries, items, self.plan.told)
        for gallery in galleries:
            self.cost.repaired += len(damaged[gallery.side.name])
            shards = frozen.sides[gallery.side.name].batches(gallery, shots)
            self._side(gallery, shards, damaged[gallery.side.name])
        return frozen

    def _side(self, gallery: Gallery, shards: Sequence[Shard], damaged: Sequence[Shot]) -> None:
        judging = Judging(self.folder.records, self.panel, self.plan.private)
        judging.void_failed(gallery)
        skip = self._skipped(gallery, judging)
        for batch, items in self._batches(gallery, shards):
            tally = self._drawn(gallery, batch, skip)
            with self.cost.judging():
                gallery.hold(i.shot for i in items)
                judging.void_changed(gallery, damaged)
                judging.failed(gallery, items, tally.failed or {})
                judging.judge(gallery, items, self.work)
            if self.plan.hidden:
                gallery.drop(i.shot for i in items if not i.harmless)

    def _skipped(self, gallery: Gallery, judging: Judging) -> set[str]:
        """Images not to draw: they were judged and are not kept."""
        mine = (r for r in judging.mine() if r.side == gallery.side.name)
        return {r.image for r in mine if self.plan.hidden}

    def _batches(self, gallery: Gallery, shards: Sequence[Shard]) -> Iterator[tuple[Sequence[Shard], Sequence[Item]]]:
        """Shards that are drawn before their images are judged, with what is judged then: few where none is kept."""
        if not self.plan.hidden:
            yield shards, self.plan.items
            return
        by_key = {gallery.key(i.shot): i for i in self.plan.items}
        for k in range(0, len(shards), HIDDEN_SHARDS):
            batch = shards[k : k + HIDDEN_SHARDS]
            yield batch, [by_key[row.key] for shard in batch for row in shard]

    def _drawn(self, gallery: Gallery, shards: Sequence[Shard], skip: set[str]) -> Tally:
        tally, begin = Tally(), time.perf_counter()
        self.cost.drawn[gallery.side.name] += gallery.draw(shards, self.work, tally, skip, self.engine)
        self.cost.seconds["drawing"] += min(tally.seconds, time.perf_counter() - begin)
        return tally


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
