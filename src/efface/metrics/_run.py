"""Metrics on a run: composites from the counts alone, the neighbourhood of what was erased, and any metric by name."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efface.errors import BadRequest
from efface.gallery.images import Images
from efface.gallery.shot import Ask, Item
from efface.judges import Verdict
from efface.metrics import Cell, questions
from efface.metrics import Item as Measured
from efface.metrics.composites import Composites, Summary
from efface.metrics.neighbourhood import Neighbourhood, image_space, text_space
from efface.registry import configure
from efface.scores.judging import Watch
from efface.scores.records import shot_of
from efface.scores.tables import Pair

if TYPE_CHECKING:
    from efface.model import Model
    from efface.request import Concept, Request

__all__ = ["composites", "configured", "measure", "neighbourhood"]

CHUNK = 128  # images of one side in memory
SEEN = 4  # base images a concept whose features place it in image space
KEPT, TARGETS = ("neighbour", "other", "other-style"), ("target", "style")
# roles whose prompts say the label itself, by the head of the judge that answers to it
NAMED = {"style": ("style", "other-style"), "object": ("target", "neighbour", "other", "in-prompt")}
Json = dict[str, Any]


def composites(pairs: Mapping[str, Sequence[Pair]]) -> list[Json]:
    """Overall, H_c and H_o of the runs of one table, the base model among them; NA with a reason.

    pairs: scored pairs by run. Accuracies are means over concepts, as in the papers. UQ and mean rank are NA: they need
    CLIP scores of captions, which no suite draws beside targets.
    """
    first = next(iter(pairs.values()))
    rows = [_summary("base", first, "base"), *(_summary(name, found, "edited") for name, found in pairs.items())]
    return [cell.as_row() for cell in Composites().table(rows)]


def _summary(name: str, pairs: Sequence[Pair], side: str) -> Summary:
    def mean(roles: tuple[str, ...]) -> float | None:
        by_label: dict[str, list[bool]] = {}
        for p in pairs:
            if p.role in roles:
                by_label.setdefault(p.label, []).append(getattr(p, side))
        rates = [sum(hits) / len(hits) for hits in by_label.values()]
        return sum(rates) / len(rates) if rates else None

    return Summary(name, mean(TARGETS), mean(KEPT), mean(("synonym",)))


def neighbourhood(
    model: Model, request: Request, items: Sequence[Item], rows: Sequence[Json], images: Images, watch: Watch
) -> Json:
    """What is nearest to each erased concept in text and image space, what it lost, and whom to keep: `--keep` ready.

    Text space is the model's own encoder over its concept list and the suite's concepts; image space the features of
    the judge, where it has any, over base images in which it finds the concept. Persons and sensitive concepts have
    no neighbours here.
    """
    goals = {c.label: c for c in request.concepts if c.kind in ("object", "style", "scene")}
    kinds, texts = _named(model, goals, items)
    text, seen = text_space(model, texts), image_space(_pictured(items, rows, images, watch))
    targets = tuple(t for t in goals if t in text)
    metric = Neighbourhood(targets, text if targets else {}, seen if {*targets} & {*seen} else {}, kinds)
    judged = watch.labels or watch.detects  # others give a score and no yes or no
    cells = metric.aggregate(r for r in questions(items, rows) if judged and r["role"] in KEPT)
    harm = {c.concept: c for c in cells if c.name == "harm" and c.state == "ok"}
    keep = {t.casefold() for t in request.kept_texts}
    kept = {name for name, said in texts.items() if keep & {name.casefold(), said.casefold()}}
    near = [
        {"target": target, "space": space, "concept": name, "cosine": round(cosine, 4), "kept": name in kept,
         **_loss(harm.get(name))}
        for space, found in metric.nearest().items() for target, some in found.items() for name, cosine in some
    ]  # fmt: skip
    listed = [{"concept": n, "keep": texts.get(n, n), "why": why} for n, why in metric.proposals(cells, kept)]
    return {"nearest": near, "proposals": listed, "harm": [c.as_row() for c in cells if c.name != "harm"],
            "arguments": " ".join(f"--keep {shlex.quote(row['keep'])}" for row in listed)}  # fmt: skip


def _named(model: Model, goals: Mapping[str, Concept], items: Sequence[Item]) -> tuple[dict[str, str], dict[str, str]]:
    """Kind and text of every concept that may be near: those that the model lists, those that the suite keeps."""
    kinds = {str(name): kind for name, kind in model.kinds.items()}
    for ask in (a for i in items for a in i.asks):
        if ask.role in KEPT:
            kinds.setdefault(ask.label, "style" if ask.role == "other-style" else "object")
    kinds |= {label: c.kind for label, c in goals.items()}
    texts = {name: f"{name} style" if kind == "style" else name for name, kind in kinds.items()}
    return kinds, texts | {label: c.name for label, c in goals.items()}


def _pictured(items: Sequence[Item], rows: Sequence[Json], images: Images, watch: Watch) -> dict[str, list[np.ndarray]]:
    """The judge's features of the first base images in which it finds what was asked for, by concept."""
    if not watch.classifies:
        return {}
    by_place = {shot_of(r): r for r in rows if r["side"] == "base"}
    chosen: dict[str, list[str]] = {}
    for item in items:
        row = by_place.get(item.shot)
        for ask in item.asks if row else ():
            found = chosen.setdefault(ask.label, []) if ask.role in (*KEPT, *TARGETS) else None
            if row and found is not None and len(found) < SEEN and ask.label in row["hits"]:
                found += [row["image"]] if images.has(row["image"]) else []
    wanted = list(dict.fromkeys(key for keys in chosen.values() for key in keys))
    features: dict[str, np.ndarray] = {}
    for part in (wanted[k : k + CHUNK] for k in range(0, len(wanted), CHUNK)):
        verdict = watch.judge.look(np.stack([images.get(key) for key in part]))
        features |= dict(zip(part, verdict.features, strict=True))
    return {label: [features[key] for key in keys] for label, keys in chosen.items() if keys}


def _loss(cell: Cell | None) -> Json:
    """Of a concept that the suite drew on both sides; nothing of others."""
    if cell is None:
        return {"loss": None, "low": None, "high": None, "pairs": 0}
    return {"loss": cell.value, "low": cell.low, "high": cell.high, "pairs": cell.n}


def configured(texts: Sequence[str]) -> list[tuple[str, Any]]:
    """`NAME` or `NAME:KEY=VALUE,...` -> metrics under these names. Raises BadRequest, UnknownName."""
    found = []
    for text in texts:
        name, _, rest = text.partition(":")
        pairs = [p.partition("=") for p in rest.split(",") if p.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise BadRequest(f"a metric is written NAME or NAME:KEY=VALUE,..., got {text!r}")
        found.append((text, configure(name, {k.strip(): v.strip() for k, _, v in pairs}, "metrics")))
    return found


def measure(
    metrics: Sequence[tuple[str, Any]], items: Sequence[Item], rows: Sequence[Json], images: Images, watch: Watch
) -> list[Json]:
    """Cells of each metric over the images of a run, both sides; images that are not stored are left out.

    A metric `of_records` counts what the records hold, and needs no image.
    """
    counting = {name for name, metric in metrics if getattr(metric, "of_records", False)}
    made: dict[str, list[Json]] = {name: questions(items, rows) if name in counting else [] for name, _ in metrics}
    looking = [(name, metric) for name, metric in metrics if name not in counting]
    for side, item, ask, measured in _looked(items, rows, images, watch) if looking else ():
        for name, metric in looking:
            if side == "base" and metric.of_pairs:
                continue  # it has nothing to say of the base alone
            scored = metric.score(measured)
            made[name].append({
                "side": side, "prompt": item.prompt, "seed": item.seed, "guidance": item.shot.guidance,
                "role": ask.role, "concept": ask.label,
                "state": scored.state, "hit": scored.hit, "value": scored.value, "reason": scored.reason,
                "garbage": measured.garbage, "features": metric.features(measured), **(scored.detail or {}),
            })  # fmt: skip
    return [{"metric": name, **cell.as_row()} for name, metric in metrics for cell in metric.aggregate(made[name])]


def _looked(
    items: Sequence[Item], rows: Sequence[Json], images: Images, watch: Watch
) -> Iterator[tuple[str, Item, Ask, Measured]]:
    """Every question of every stored image as a metric sees it, base side first in each chunk."""
    by_place = {(r["side"], shot_of(r)): r for r in rows if r.get("state", "ok") == "ok"}
    both = []
    for item in items:
        pair = [by_place.get((s, item.shot)) for s in ("base", "edited")]
        if all(row is not None and images.has(row["image"]) for row in pair):
            both.append((item, pair))
    for start in range(0, len(both), CHUNK):
        part = both[start : start + CHUNK]
        sides = [np.stack([images.get(pair[k]["image"]) for _, pair in part]) for k in (0, 1)]  # (n, h, w, 3)
        said = [watch.judge.look(p) if watch.classifies else None for p in sides]
        for n, (item, pair) in enumerate(part):
            for k, side in enumerate(("base", "edited")):
                for ask in item.asks:
                    yield side, item, ask, _measured(item, ask, pair[k], sides, said, watch, n, k)


def _measured(
    item: Item, ask: Ask, row: Json, sides: list[np.ndarray], said: list[Verdict | None], watch: Watch, n: int, k: int
) -> Measured:
    verdict, base = said[k], said[0]
    known = {ask.label: row["values"][ask.label]} if ask.label in row["values"] else None
    heads = {head: _head(head, item, verdict.probabilities[n] if verdict else None, watch) for head in NAMED}
    return Measured(
        image=sides[k][n], prompt=item.prompt, concept=ask.label, base=sides[0][n] if k else None,
        probabilities=known, hits=frozenset(row["hits"]), heads=heads,
        features=verdict.features[n] if verdict else None,
        base_features=base.features[n] if base and k else None,
        boxes=tuple((b[0], b[1]) for b in row["boxes"]) if "boxes" in row else None, garbage=row["garbage"],
    )  # fmt: skip


def _head(head: str, item: Item, chances: np.ndarray | None, watch: Watch) -> tuple[str, str]:
    """What the prompt names of a head's labels and what the head finds likeliest, "" for neither or for several.

    chances: the judge's, by label, objects first (labels,). A head without the label has no say in it.
    """
    asked = {ask.label for ask in item.asks if ask.role in NAMED[head]}
    named = asked.pop() if len(asked) == 1 else ""
    objects, styles = (tuple(getattr(watch.judge, kind, ())) for kind in ("objects", "styles"))
    labels, first = (objects, 0) if head == "object" else (styles, len(objects))
    if chances is None or not labels or (named and named not in labels):
        return named, ""
    return named, labels[int(chances[first : first + len(labels)].argmax())]
