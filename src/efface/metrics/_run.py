"""Metrics on a run: composites from the counts alone, the neighbourhood of what was erased, and any metric by name."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from efface.errors import BadRequest
from efface.gallery.images import Images, read_images
from efface.gallery.shot import KEPT, TARGETS, Ask, Item, Shot
from efface.judges import Verdict
from efface.judges.panel import Panel
from efface.metrics import Metric, Specimen
from efface.metrics.composites import Composites, Summary
from efface.metrics.neighbourhood import Neighbourhood, image_space, text_space
from efface.registry import configure
from efface.scores.cells import Cell
from efface.scores.readings import Reading
from efface.scores.records import Record
from efface.scores.scores import Pair, Scores, labels_of

if TYPE_CHECKING:
    from efface.model import Model
    from efface.request import Concept, Request

__all__ = ["MetricCell", "NamedMetric", "Near", "Proposal", "Surroundings", "composites", "configured", "measure",
           "surroundings"]  # fmt: skip

CHUNK = 128  # images of one side in memory
SEEN = 4  # base images a concept whose features place it in image space
# roles whose prompts say the label itself, by the head of the judge that answers to it
NAMED = {"style": ("style", "other-style"), "object": ("target", "neighbour", "other", "in-prompt")}
PLACED = ("object", "style", "scene")  # kinds of concepts that have neighbours


class NamedMetric(NamedTuple):
    """A metric as the user wrote it."""

    name: str
    metric: Metric


@dataclass(frozen=True, kw_only=True)
class MetricCell(Cell):
    """A cell of a report, with the metric that it is of."""

    metric: str

    @classmethod
    def of(cls, metric: str, cell: Cell) -> MetricCell:
        return cls(**vars(cell), metric=metric)


# --- composites ------------------------------------------------------------------------------------------------------


def composites(pairs: Mapping[str, Sequence[Pair]]) -> list[Cell]:
    """Overall, H_c and H_o of the runs of one table, the base model among them; NA with a reason.

    pairs: scored pairs by run. Accuracies are means over concepts, as in the papers. UQ and mean rank are NA: they need
    CLIP scores of captions, which no suite draws beside targets.
    """
    first = next(iter(pairs.values()))
    rows = [_summary("base", first, "base"), *(_summary(name, found, "edited") for name, found in pairs.items())]
    return Composites().table(rows)


def _summary(name: str, pairs: Sequence[Pair], side: str) -> Summary:
    def mean(roles: tuple[str, ...]) -> float | None:
        by_label = labels_of([p for p in pairs if p.role in roles])
        rates = [sum(getattr(p, side) for p in found) / len(found) for found in by_label.values()]
        return sum(rates) / len(rates) if rates else None

    return Summary(name, mean(TARGETS), mean(KEPT), mean(("synonym",)))


# --- the neighbourhood -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Near:
    """One concept near an erased one."""

    target: str
    space: str
    """text or image."""
    concept: str
    cosine: float
    kept: bool
    """Whether the request keeps it already."""
    loss: float | None
    """Of a concept that the suite drew on both sides."""
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Proposal:
    """One concept for the keep list."""

    concept: str
    keep: str
    """The text to keep."""
    why: str


@dataclass(frozen=True)
class Surroundings:
    """What is nearest to each erased concept, what it lost, and whom to keep."""

    nearest: tuple[Near, ...]
    proposals: tuple[Proposal, ...]
    harm: tuple[Cell, ...]
    arguments: str
    """The proposals as options of `efface erase`."""


def surroundings(model: Model, request: Request, scores: Scores, images: Images, panel: Panel) -> Surroundings:
    """The neighbourhood of what was erased, in text and image space.

    Text space is the model's own encoder over its concept list and the suite's concepts; image space the features of
    the judge, where it has any, over base images in which it finds the concept. Persons and sensitive concepts have
    no neighbours here.
    """
    goals = {c.label: c for c in request.concepts if c.kind in PLACED}
    kinds, texts = _named(model, goals, scores.items)
    text, seen = text_space(model, texts), image_space(_pictured(scores, images, panel))
    targets = tuple(t for t in goals if t in text)
    metric = Neighbourhood(targets, text if targets else {}, seen if {*targets} & {*seen} else {}, kinds)
    # other panels give a score and no yes or no
    cells = metric.aggregate(r for r in scores.readings() if panel.decides and r.role in KEPT)
    keep = {t.casefold() for t in request.kept_texts}
    kept = {name for name, said in texts.items() if keep & {name.casefold(), said.casefold()}}
    proposals = [Proposal(name, texts.get(name, name), why) for name, why in metric.proposals(cells, kept)]
    harm = tuple(c for c in cells if c.name != "harm")
    arguments = " ".join(f"--keep {shlex.quote(p.keep)}" for p in proposals)
    return Surroundings(_nearest(metric, cells, kept), tuple(proposals), harm, arguments)


def _nearest(metric: Neighbourhood, cells: Sequence[Cell], kept: Collection[str]) -> tuple[Near, ...]:
    harm = {c.concept: c for c in cells if c.name == "harm" and c.state == "ok"}
    near = []
    for space, targets in metric.nearest().items():
        for target, some in targets.items():
            for name, cosine in some:
                cell = harm.get(name, Cell("harm"))
                loss = (cell.value, cell.low, cell.high, cell.n)
                near.append(Near(target, space, name, round(cosine, 4), name in kept, *loss))
    return tuple(near)


def _named(model: Model, goals: Mapping[str, Concept], items: Sequence[Item]) -> tuple[dict[str, str], dict[str, str]]:
    """Kind and text of every concept that may be near: those that the model lists, those that the suite keeps."""
    kinds = {str(name): kind for name, kind in model.kinds.items()}
    for ask in (a for i in items for a in i.asks):
        if ask.role in KEPT:
            kinds.setdefault(ask.label, "style" if ask.role == "other-style" else "object")
    kinds |= {label: c.kind for label, c in goals.items()}
    texts = {name: f"{name} style" if kind == "style" else name for name, kind in kinds.items()}
    return kinds, texts | {label: c.name for label, c in goals.items()}


def _pictured(scores: Scores, images: Images, panel: Panel) -> dict[str, list[np.ndarray]]:
    """The judge's features of the first base images in which it finds what was asked for, by concept."""
    if not panel.labels:
        return {}
    chosen = _first_shown(scores, images)
    wanted = list(dict.fromkeys(key for keys in chosen.values() for key in keys))
    features: dict[str, np.ndarray] = {}
    for part in (wanted[k : k + CHUNK] for k in range(0, len(wanted), CHUNK)):
        verdict = panel.verdict(np.stack([images.get(key) for key in part]))
        features |= dict(zip(part, verdict.features, strict=True)) if verdict else {}
    return {label: [features[key] for key in keys] for label, keys in chosen.items() if keys}


def _first_shown(scores: Scores, images: Images) -> dict[str, list[str]]:
    """Keys of base images that show what was asked for, a few of each label."""
    base, chosen = scores.places["base"], dict[str, list[str]]()
    for item in scores.items:
        record = base.get(item.shot)
        for ask in item.asks if record else ():
            found = chosen.setdefault(ask.label, []) if ask.role in (*KEPT, *TARGETS) else None
            if record and found is not None and len(found) < SEEN and ask.label in record.hits:
                found += [record.image] if images.has(record.image) else []
    return chosen


# --- any metric ------------------------------------------------------------------------------------------------------


def configured(texts: Sequence[str]) -> list[NamedMetric]:
    """`NAME` or `NAME:KEY=VALUE,...` -> metrics under these names. Raises BadRequest, UnknownName."""
    found = []
    for text in texts:
        name, _, rest = text.partition(":")
        pairs = [p.partition("=") for p in rest.split(",") if p.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise BadRequest(f"a metric is written NAME or NAME:KEY=VALUE,..., got {text!r}")
        settings = {k.strip(): v.strip() for k, _, v in pairs}
        found.append(NamedMetric(text, configure(name, settings, "metrics")))
    return found


def measure(
    metrics: Sequence[NamedMetric], scores: Scores, images: Images, panel: Panel, real: Path | None = None
) -> list[MetricCell]:
    """Cells of each metric over the images of a run, both sides; images that are not stored are left out.

    A metric `of_records` counts what the records hold, and needs no image. real: a folder of real pictures, for
    metrics that compare with them. Raises BadRequest for such a metric without them, or a folder without features.
    """
    if real is None and (wants := next((name for name, m in metrics if m.of_real), "")):
        raise BadRequest(f"metric {wants} compares with real pictures; name their folder with --real FOLDER")
    pictured = _real(real, panel) if real else []
    made: dict[str, list[Reading]] = {name: scores.readings() if m.of_records else [] for name, m in metrics}
    looking = [(name, metric) for name, metric in metrics if not metric.of_records]
    for record, ask, specimen in _looked(scores, images, panel) if looking else ():
        for name, metric in looking:
            if record.side == "edited" or not metric.of_pairs:  # it has nothing to say of the base alone
                made[name].append(_reading(metric, record, ask, specimen))
    for name, metric in metrics:
        made[name] += pictured if metric.of_real else []
    return [MetricCell.of(name, cell) for name, metric in metrics for cell in metric.aggregate(made[name])]


def _real(folder: Path, panel: Panel) -> list[Reading]:
    """Features of the pictures of a folder, one at a time: their sizes differ."""
    made = []
    for name, pixels in read_images(folder).items():
        found = panel.features(pixels[None], panel.verdict(pixels[None]))
        if found is None:
            raise BadRequest(f"judge {panel.name} gives no features; name one that does, --judge torchmetrics-features")
        told = {"features": panel.features_of}
        made.append(Reading(side="real", shot=Shot(name, 0), role="quality", features=found[0], told=told))
    return made


def _reading(metric: Metric, record: Record, ask: Ask, specimen: Specimen) -> Reading:
    scored = metric.score(specimen)
    return Reading(
        side=record.side,
        shot=record.shot,
        role=ask.role,
        concept=ask.label,
        state=scored.state,
        reason=scored.reason,
        hit=scored.hit,
        value=scored.value,
        garbage=specimen.garbage,
        features=metric.features(specimen),
        boxes=specimen.boxes,
        told=scored.detail or {},
    )


def _looked(scores: Scores, images: Images, panel: Panel) -> Iterator[tuple[Record, Ask, Specimen]]:
    """Every question of every stored image as a metric sees it, base side first of each item."""
    both = [(item, scores.both(item)) for item in scores.items]
    stored = [(i, pair) for i, pair in both if all(r.state == "ok" and images.has(r.image) for r in pair)]
    for start in range(0, len(stored), CHUNK):
        part = stored[start : start + CHUNK]
        sides = [np.stack([images.get(pair[k].image) for _, pair in part]) for k in (0, 1)]  # (n, h, w, 3)
        said = [panel.verdict(p) for p in sides]
        seen = [panel.features(p, v) for p, v in zip(sides, said, strict=True)]
        for n, (item, pair) in enumerate(part):
            views = [_View(p[n], verdict, vectors, n) for p, verdict, vectors in zip(sides, said, seen, strict=True)]
            for record, view, base in zip(pair, views, (None, views[0]), strict=True):
                for ask in item.asks:
                    yield record, ask, _specimen(item, ask, record, view, base, panel)


class _View(NamedTuple):
    """One image and what the judge says of the pictures that it was looked at with."""

    image: np.ndarray
    verdict: Verdict | None
    vectors: np.ndarray | None
    row: int

    @property
    def features(self) -> np.ndarray | None:
        return None if self.vectors is None else self.vectors[self.row]


def _specimen(item: Item, ask: Ask, record: Record, view: _View, base: _View | None, panel: Panel) -> Specimen:
    chances = view.verdict.probabilities[view.row] if view.verdict else None
    value = record.values.get(ask.label)
    return Specimen(
        image=view.image,
        prompt=record.shot.prompt,
        concept=ask.label,
        base=base.image if base else None,
        probabilities=None if value is None else {ask.label: value},
        hits=frozenset(record.hits),
        heads={head: _head(head, item, chances, panel) for head in NAMED},
        features=view.features,
        features_of=panel.features_of,
        base_features=base.features if base else None,
        boxes=record.boxes,
        garbage=record.garbage,
    )


def _head(head: str, item: Item, chances: np.ndarray | None, panel: Panel) -> tuple[str, str]:
    """What the prompt names of a head's labels and what the head finds likeliest, "" for neither or for several.

    chances: the judge's, by label, objects first (labels,). A head without the label has no say in it.
    """
    asked = {ask.label for ask in item.asks if ask.role in NAMED[head]}
    named = asked.pop() if len(asked) == 1 else ""
    labels, first = (panel.objects, 0) if head == "object" else (panel.styles, len(panel.objects))
    if chances is None or not labels or (named and named not in labels):
        return named, ""
    return named, labels[int(chances[first : first + len(labels)].argmax())]
