"""What an audit is asked: two models, a request, a suite, and how it is drawn; and all that this decides.

Everything about the request is settled here, once: a RunPlan says what is drawn, by whom it is judged, and what the
report says of it. Nothing that comes later looks at the Audit again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from efface.errors import BadRequest, WrongFile
from efface.gallery.drawing import Sampling, Side, fingerprint
from efface.gallery.shot import Item, Shot
from efface.judges.panel import Brief
from efface.registry import configure
from efface.request import Concept, Request
from efface.runs.prompts import fitted
from efface.scores.forms import SPARE
from efface.suites import Entry, Known, Plan, Suite, suite_hash

if TYPE_CHECKING:
    from pathlib import Path

    from efface.model import Model
    from efface.patch import Patch

__all__ = ["Asked", "AskedConcept", "Audit", "RunPlan", "Sampler", "Spec", "SuiteUsed", "request_of"]


@dataclass(frozen=True)
class Spec:
    """What decides a run: the same spec goes on with the same folder."""

    base: str
    """Identity of the base model."""
    patch: str
    """Hash of the patch; empty for an edited model."""
    edited: str
    """Identity of the edited model; empty for a patch."""
    suite: str
    suite_hash: str
    sampling: str
    request: Mapping[str, object]
    control: bool = False
    judge: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    store_images: bool = False

    def line(self) -> dict[str, object]:
        """As spec.json holds it; what is not asked for is left out."""
        extra = {w: getattr(self, w) for w in ("control", "judge", "settings", "store_images")}
        always = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in extra}
        return {"format": "efface-run/1", **always, **{k: v for k, v in extra.items() if v}}


@dataclass(frozen=True)
class AskedConcept:
    """One concept as the report names it."""

    name: str
    kind: str
    anchor: str | None


@dataclass(frozen=True)
class Asked:
    """What was asked for, as the report says it."""

    model: str
    concepts: tuple[AskedConcept, ...]
    keep: tuple[str, ...]
    method: str
    preset: str
    seed: int
    suite: str
    command: str
    control: bool | None = field(default=None, metadata=SPARE)
    """Whether the edited side is declared to be no edit."""


@dataclass(frozen=True)
class Sampler:
    """How images were drawn."""

    steps: int
    guidance: float
    dtype: str
    scheduler: str


@dataclass(frozen=True)
class SuiteUsed:
    """What was drawn, as the report says it."""

    name: str
    version: str
    hash: str
    prompts: int
    images: int
    sampler: Sampler
    settings: Mapping[str, str] | None = field(default=None, metadata=SPARE)
    private: bool | None = field(default=None, metadata=SPARE)


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before the first image is drawn."""

    spec: Spec
    items: tuple[Item, ...]
    """What is drawn, and what is asked of each picture."""
    told: tuple[Item, ...]
    """The same as records and reports name it: prompts are veiled where the suite is private."""
    sides: tuple[Side, Side]
    """Base and edited."""
    sampling: Sampling
    judge: str
    """NAME or NAME:WHERE of who reports."""
    brief: Brief
    """What the judge is asked for."""
    metrics: tuple[str, ...]
    """Metrics that the suite is made for, as `--metric` takes them."""
    private: bool
    """Whether pictures are kept out of the cache, and blurred."""
    hidden: bool
    """Whether they are dropped once they are judged."""
    absent: Mapping[str, str]
    """Roles that are NA, with the reason."""
    not_measured: tuple[str, ...]
    asked: Asked
    suite: SuiteUsed
    request: Request
    """Settled."""
    patch: Patch | None
    """The edit, where the edited side is the base with a patch."""


@dataclass(frozen=True)
class Audit:
    """Everything that decides an audit."""

    base: Model
    request: Request
    suite: str
    patch: Patch | None = None
    """The edited side is the base with this patch."""
    edited: Model | None = None
    """Or this model."""
    steps: int | None = None
    guidance: float | None = None
    command: str = ""
    """As it was typed, for the report."""
    judge: str = ""
    """NAME or NAME:WHERE instead of the suite's own."""
    settings: tuple[tuple[str, object], ...] = ()
    """Of the suite."""
    control: bool = False
    """The edited side is declared to be no edit."""
    store_images: bool = False
    """Keep the images of a private suite."""

    def __post_init__(self) -> None:
        if (self.patch is None) == (self.edited is None):
            raise BadRequest("an audit needs either a patch or an edited model, got both or neither")
        if self.edited is not None and self.edited.identity == self.base.identity and not self.control:
            raise BadRequest(
                "base and edited model are the same; name the edited one and the one it was made from, "
                "or declare a control with --control"
            )
        if self.edited is not None and _sampler(self.base) != _sampler(self.edited):
            raise BadRequest(
                f"the models state different schedulers ({_sampler(self.base)[0]} and {_sampler(self.edited)[0]}, or "
                "other settings of one), which would count as the edit; save the edited one with the base's scheduler"
            )

    def outline(self) -> tuple[Suite, Request, Plan]:
        """The suite, the settled request, and what is drawn for it. Raises BadRequest, UnknownName."""
        suite: Suite = configure(self.suite, dict(self.settings), "suites")
        request = self.request.settle(self.base.kinds)
        known = Known(cast("tuple[Entry, ...]", self.base.concepts), self.base.captions)
        plan = suite.plan(request, known)
        if not plan.items:
            raise BadRequest(f"suite {self.suite} draws nothing for this request; name concepts that it knows")
        return suite, request, _cut(self.base, plan)

    def planned(self) -> RunPlan:
        """Decide everything. Raises BadRequest, also for an edit that changes nothing and is no control."""
        suite, request, plan = self.outline()
        sampling = Sampling.of(self.base, self.steps, self.guidance)
        spec = self._spec(request, plan.items, sampling)
        told = tuple(dataclasses.replace(i, shot=i.shot.veiled()) for i in plan.items) if suite.private else plan.items
        return RunPlan(
            spec=spec,
            items=plan.items,
            told=told,
            sides=self._sides(),
            sampling=sampling,
            judge=self.judge or suite.judge,
            brief=self._brief(suite, plan),
            metrics=plan.metrics,
            private=suite.private,
            hidden=suite.private and not self.store_images,
            absent=plan.absent,
            not_measured=plan.not_measured,
            asked=self._asked(request),
            suite=self._suite(suite, told, spec.suite_hash, sampling),
            request=request,
            patch=self.patch,
        )

    def _brief(self, suite: Suite, plan: Plan) -> Brief:
        labels = dict.fromkeys(a.label for i in plan.items for a in i.asks)
        return dataclasses.replace(suite.brief, asked=tuple(labels), home=_home(self.base))

    def seat(self) -> tuple[str, Brief]:
        """Who would judge, as `seated` takes it, without deciding anything else. Raises BadRequest, UnknownName."""
        suite, _, plan = self.outline()
        return self.judge or suite.judge, self._brief(suite, plan)

    def _spec(self, request: Request, items: tuple[Item, ...], sampling: Sampling) -> Spec:
        return Spec(
            base=self.base.identity,
            patch=self.patch.hash if self.patch else "",
            edited=self.edited.identity if self.edited else "",
            suite=self.suite,
            suite_hash=suite_hash(items),
            sampling=sampling.hash,
            request=request.asdict(),
            control=self.control,
            judge=self.judge,
            settings=tuple((k, str(v)) for k, v in self.settings),
            store_images=self.store_images,
        )

    def _asked(self, request: Request) -> Asked:
        recipe = self.patch.recipe if self.patch else {}
        return Asked(
            model=self.base.card.name,
            concepts=tuple(AskedConcept(c.name, c.kind, c.anchor) for c in request.concepts),
            keep=request.kept_texts,
            method=recipe.get("method", "unknown"),
            preset=recipe.get("preset", "unknown"),
            seed=request.seed,
            suite=self.suite,
            command=self.command,
            control=True if self.control else None,
        )

    def _suite(self, suite: Suite, told: tuple[Item, ...], hash_: str, sampling: Sampling) -> SuiteUsed:
        scheduler = self.base.card.schedule_dict()["_class_name"]
        return SuiteUsed(
            name=self.suite,
            version=suite.version,
            hash=hash_,
            prompts=len({i.shot.prompt for i in told}),
            images=len(told),
            sampler=Sampler(sampling.steps, sampling.guidance, sampling.dtype, scheduler),
            settings={k: str(v) for k, v in self.settings} if self.settings else None,
            private=True if suite.private else None,
        )

    def _sides(self) -> tuple[Side, Side]:
        """Base and edited. An edited side that draws what the base draws is refused unless declared a control."""
        base = Side("base", self.base)
        if self.edited is not None:
            return base, Side("edited", self.edited)
        assert self.patch is not None
        with self.patch.applied(self.base):
            same = fingerprint(self.base) == self.base.identity
        if same and not self.control:
            raise BadRequest(
                "the patch leaves the model as it is (weights, guards and gates are the base's); "
                "raise its strength, or declare a control with --control"
            )
        edited = Side("edited", self.base)
        return base, edited if same else dataclasses.replace(edited, patch=self.patch.content_hash, change=self.patch)


def request_of(patch: Patch) -> Request:
    """The request that stands in a patch's recipe."""
    row = patch.recipe["request"]
    return Request(tuple(_concept(c) for c in row["concepts"]), tuple(row["keep"]), row["seed"], row["preset"])


def _concept(row: Mapping[str, object]) -> Concept:
    fields = dict(row) | {w: tuple(cast("list[str]", row[w])) for w in ("synonyms", "keep")}
    return Concept(**fields)  # pyright: ignore[reportArgumentType]


def _sampler(model: Model) -> tuple[str, dict[str, object]]:
    """Class and settings of a model's scheduler, what its configuration leaves out filled in."""
    made = model.network.scheduler()
    return type(made).__name__, {k: v for k, v in made.config.items() if not k.startswith("_")}


def _home(model: Model) -> Path | None:
    """Where the model lies, for what is fitted on its drawings."""
    try:
        return model.folder
    except WrongFile:  # a pipeline in memory
        return None


def _cut(model: Model, plan: Plan) -> Plan:
    """Prompts cut to what the model reads, and what is said of it."""
    items = tuple(dataclasses.replace(i, shot=_fitted(model, i.shot)) for i in plan.items)
    pairs = {(i.shot.prompt, j.shot.prompt) for i, j in zip(plan.items, items, strict=True)}
    cut = [(whole, part) for whole, part in pairs if whole != part]
    inside = sum(whole[len(part)] != " " for whole, part in cut)
    said = (f"the ends of {len(cut)} prompts, longer than the model reads: they were cut at a word",) if cut else ()
    said += (f"{inside} of them inside a run of characters without a space that alone is longer",) if inside else ()
    return dataclasses.replace(plan, items=items, not_measured=(*plan.not_measured, *said))


def _fitted(model: Model, shot: Shot) -> Shot:
    prompt = fitted(model, shot.prompt)
    return shot if prompt == shot.prompt else dataclasses.replace(shot, prompt=prompt)
