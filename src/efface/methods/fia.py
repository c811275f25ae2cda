"""FIA: prune the single weights of the feed-forwards that respond to a concept and not to its surroundings.

Deng, Hui, Li, Ji, Qin, Yuan, Ma, "Forget-It-All: Multi-Concept Machine Unlearning via Concept-Aware Neuron Masking",
arXiv 2601.06163: unified saliency (Eq. 1), contrastive saliency (2), time-integrated sensitivity (3), spatial selection
(4 to 6), fusion that spares what many concepts share (7, 8). Nothing is trained; the prompts are drawn for a few steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import BadRequest, WrongFile
from efface.evidence.needs import Needs, PromptGroup, State, Statistics
from efface.evidence.reducers import ColumnNorms, Cosines, SaliencyFold, level_of, sensitivity_of
from efface.methods import require
from efface.methods._constraints import unstyled
from efface.methods._tally import MaskTally
from efface.numerics import saliency
from efface.patch import Answer, Edit, Mask
from efface.prompts import Form, forms, load, read_pairs
from efface.world import objects
from efface.world.captions import with_article

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card, Site
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["FIA", "PRESETS", "Drawing", "Score", "Selection", "Sentences"]


@dataclass(frozen=True)
class Score:
    """How strongly a weight responds to a prompt (Eq. 1 and 3)."""

    kind: Literal["cosine", "norm"] = "cosine"
    """|W| ||X_j|| |cos(X_j, Y_o)| (Eq. 1), or |W| ||X_j|| (code)."""
    row_normalise: bool = False
    """Whether every token row has length 1 (code)."""
    halves: Literal["pooled", "cond"] = "pooled"
    """Which rows of a guided batch are summed: those of both halves, or of the conditional one alone."""
    scale: Literal["max", "raw"] = "max"
    """The mean in Eq. 3 is divided by its largest value (code), or not (paper)."""
    r1: float = 0.05
    """Share of a layer that passes the threshold of Eq. 3."""
    threshold: Literal["above", "at"] = "above"
    """Whether what lies at the threshold passes too."""

    def __post_init__(self) -> None:
        require(self, "r1", above=0, most=1)


@dataclass(frozen=True)
class Selection:
    """Which weights are a concept's (Eq. 4 to 6), and which of them stay because many concepts share them (7, 8)."""

    by: Literal["both", "row", "layer"] = "both"
    """Taken where a weight is among the largest of its row and of its layer, or of one alone."""
    r2: float = 0.01
    """Share that is taken."""
    hard: str = ""
    """Concepts (or synonyms), separated by ;, that take another share."""
    r2_hard: float = 0.03
    """That share."""
    alpha: float | Literal["off"] = 0.6
    """A weight in ceil(alpha C) masks of C stays; off: none stays."""
    counting: Literal["exact", "code"] = "exact"
    """At least two masks and an exact ceiling, or neither (code)."""

    def __post_init__(self) -> None:
        require(self, "r2", "r2_hard", "alpha", above=0, most=1)

    def ratios(self, request: Request) -> dict[str, float]:
        """r2 by concept."""
        hard = {h.strip().casefold() for h in self.hard.split(";")}
        named = {c.name: {t.casefold() for t in (*c.texts, c.label)} for c in request.concepts}
        return {name: self.r2_hard if own & hard else self.r2 for name, own in named.items()}

    def spared_from(self, concepts: int, rule: saliency.Rule | None = None) -> int:
        """The number of masks from which on a weight stays."""
        if isinstance(self.alpha, str):
            return concepts + 1
        return saliency.spared_from(self.alpha, concepts, rule or self.counting)


@dataclass(frozen=True)
class Drawing:
    """What is drawn and looked at."""

    saliency_steps: int = 10
    """Calls of the denoiser that are looked at."""
    inference_steps: int = 50
    """Steps of the schedule that they are the first of."""
    guidance: float = 7.5
    """Of the pictures."""
    keep_steps: bool = False
    """Whether every step of the cosine score is stored, so that another r1 needs no sampling."""

    def __post_init__(self) -> None:
        require(self, "inference_steps", "guidance", least=1)
        require(self, "saliency_steps", least=1, most=min(self.inference_steps, 255))

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(range(self.saliency_steps))


class Prompts(NamedTuple):
    """What is drawn for a concept, and what it is compared with."""

    own: tuple[str, ...]
    base: tuple[str, ...]


@dataclass(frozen=True)
class Sentences:
    """The prompts of a concept and those of its base."""

    prompt_set: Literal["places", "world"] = "places"
    """Which sentences."""
    prompts: int = 5
    """How many pairs of them."""
    base: Literal["plain", "neutral", "objects", "auto"] = "plain"
    """What a concept is compared with: the sentence without it, with a word for anything, or with three objects of
    other categories; auto (ours): objects for a model that says what captions it had and had none without an object,
    else plain."""
    pairs: str = ""
    """A CSV file with complete prompts in the columns concept and base, and name where they serve one concept; kind
    sensitive takes nothing else."""

    def __post_init__(self) -> None:
        require(self, "prompts", least=1)

    def of(self, request: Request, card: Card) -> dict[str, Prompts]:
        """By the concept's name."""
        own = read_pairs(self.pairs) if self.pairs else {}
        return {c.name: self._of(c, request, card, own) for c in request.concepts}

    def _of(self, concept: Concept, request: Request, card: Card, own: dict[str, list[tuple[str, str]]]) -> Prompts:
        rows = own.get(concept.name.casefold(), [])
        if concept.kind == "sensitive":
            rows = rows or own.get("", [])
            if not rows:
                raise BadRequest(
                    f"kind 'sensitive' expands no template: {concept.name!r} needs complete prompts of your own; "
                    "--set pairs=FILE names a CSV file with the columns concept and base"
                )
        if rows:
            return Prompts(_distinct(c for c, _ in rows), _distinct(b for _, b in rows))
        chosen = forms("fia", self.prompt_set, concept.kind, self.prompts)
        texts = [self._phrase(t, concept.kind) for t in concept.texts]
        base = self._base(concept, request, card, chosen)
        return Prompts(_distinct(f.filled(t) for t in texts for f in chosen), _distinct(base))

    def _base(self, concept: Concept, request: Request, card: Card, chosen: list[Form]) -> list[str]:
        lacking = card.captions is not None and "empty" not in card.captions
        objects_stand_in = self.base == "objects" or (self.base == "auto" and lacking)
        if objects_stand_in and concept.kind != "style":
            others = [self._phrase(t, "object") for t in _others(concept, request)]
            return [f.filled(t) for t in others for f in chosen]
        return [f.filled(f.neutral) if self.base == "neutral" else f.plain for f in chosen]

    def _phrase(self, text: str, kind: str) -> str:
        """A name as the sentences take it."""
        if kind == "style":
            return unstyled(text)
        return with_article(text) if self.prompt_set == "world" and kind == "object" else text


@dataclass(frozen=True)
class FIA:
    """Weights (o, d) with `0 < sum_c Q_c < max(2, ceil(alpha C))` become zero; Q_c are the masks of the concepts."""

    score: Score = field(default=Score())
    """How strongly a weight responds."""
    selection: Selection = field(default=Selection())
    """Which weights go."""
    drawing: Drawing = field(default=Drawing())
    """What is drawn and looked at."""
    sentences: Sentences = field(default=Sentences())
    """The prompts."""
    sites: str = "ff.out"
    """Roles of the weights that may go, joined by +."""

    # --- what is looked at -------------------------------------------------------------------------------------------

    def ask(self, request: Request, card: Card) -> Needs:
        """The prompts of every concept and, once for all that share them, those of their base."""
        groups = self.sentences.of(request, card)
        bases = {prompts: f"base {i}" for i, prompts in enumerate(sorted({p.base for p in groups.values()}))}
        sites, steps = tuple(s.name for s in self._sites(card)), self.drawing.steps
        base, concept, fold = self._reducers()
        wanted = [Statistics(base, sites, tuple(bases.values()), steps, bias=False)]
        for prompts, name in bases.items():
            served = tuple(_group(c) for c, own in groups.items() if own.base == prompts)
            wanted.append(Statistics(concept, sites, served, steps, name if fold else None, fold, bias=False))
        drawn = {name: prompts for prompts, name in bases.items()} | {_group(c): p.own for c, p in groups.items()}
        return Needs(
            prompts=tuple(PromptGroup(n, p, (request.seed,) * len(p)) for n, p in drawn.items()),
            statistics=tuple(wanted),
            steps=self.drawing.inference_steps,
            guidance=self.drawing.guidance,
        )

    def _reducers(self) -> tuple[ColumnNorms | Cosines, ColumnNorms | Cosines, SaliencyFold | None]:
        """For the base, for a concept, and what joins the concept's steps."""
        rows = (self.score.row_normalise, self.score.halves)
        if self.score.kind == "norm":
            return ColumnNorms(*rows), ColumnNorms(*rows), None
        folded = None if self.drawing.keep_steps else self._fold
        return Cosines(*rows, level=True), Cosines(*rows, level=False), folded

    @property
    def _fold(self) -> SaliencyFold:
        return SaliencyFold(self.score.r1, self.score.threshold == "at")

    def _sites(self, card: Card) -> tuple[Site, ...]:
        return card.select(*self.sites.split("+"))

    # --- what is pruned ----------------------------------------------------------------------------------------------

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """One mask a site. Raises NothingChanged when a concept selects nothing, or nothing is pruned."""
        names = [c.name for c in request.concepts]
        tally = MaskTally(names, self.selection.spared_from(len(names)))
        scores = _Scores(self, evidence, self.ask(request, model.card), tally)
        ratios, edits = self.selection.ratios(request), list[Edit]()
        for site in work.progress(self._sites(model.card), "sites"):
            weight = model.weight(site.name)
            weight = weight.to("cpu", torch.promote_types(weight.dtype, torch.float32))  # (o, d)
            pruned = self._pruned(site.name, weight, scores, ratios, tally)
            if bool(pruned.any()):
                edits.append(Mask.pack(site.name, pruned))
        tally.check(model.card.name)
        drawn = {"sampler": model.card.schedule_dict()["_class_name"], "timesteps": self._timesteps(model)}
        repaired = self.selection.counting == "exact" and self.selection.spared_from(len(names), "code") < 2
        return Answer(tuple(edits), tally.numbers() | drawn | {"repaired": repaired})

    def _pruned(self, site: str, weight: Tensor, scores: _Scores, ratios: dict[str, float], tally: MaskTally) -> Tensor:
        """Which weights (o, d) of a site go; the tally counts them."""
        counts = torch.zeros(weight.shape, dtype=torch.uint8 if len(ratios) < 255 else torch.int16)
        chosen = {}
        for name, r2 in ratios.items():
            A = scores.of(name, site, weight)
            mask = saliency.select(A, r2, self.selection.by, self.selection.counting == "code")  # (o, d)
            counts += mask
            chosen[name] = mask.reshape(-1).nonzero()[:, 0].int()
        pruned, agnostic = saliency.fuse(counts, tally.least)
        tally.site(site, pruned, agnostic, chosen)
        return pruned

    def _timesteps(self, model: Model) -> list[int]:
        """The timesteps that were looked at: samplers that call the network twice at one show it here."""
        network = model.network
        times = network.family.times(network, network.scheduler(), self.drawing.inference_steps)
        return [int(t) for t in times[: self.drawing.saliency_steps]]


class _Scores:
    """The sensitivity of every weight to every concept, from the evidence."""

    def __init__(self, method: FIA, evidence: Evidence, needs: Needs, tally: MaskTally) -> None:
        self.method, self.evidence, self.tally = method, evidence, tally
        self.fold, self.views = method._fold, _views(needs)

    def of(self, name: str, site: str, weight: Tensor) -> Tensor:
        """A of one concept at one site (o, d): folded while sampling, or here from the steps."""
        base, own, level = self.views[_group(name)]
        state: State | None = self.evidence.state(own, _group(name), site) if own.fold else None
        for step in () if own.fold else own.steps:
            found = self.evidence.state(own, _group(name), site, step)
            state = self.fold.add(state, step, found, level_of(self.evidence.state(base, level, site, step)), weight)
        assert state is not None
        surplus = float(state["surplus"])
        if not math.isfinite(surplus):
            raise WrongFile(f"the evidence of {name!r} at {site} holds NaN; remove it from the cache folder")
        self.tally.surplus[name] = max(self.tally.surplus[name], surplus)
        return sensitivity_of(state).value(self.method.score.scale)


def _views(needs: Needs) -> dict[str, tuple[Statistics, Statistics, str]]:
    """By concept group: statistics of its base, its own, and the name of the base group."""
    base, *others = needs.statistics
    return {g: (base, own, name) for name, own in zip(base.groups, others, strict=True) for g in own.groups}


def _group(concept: str) -> str:
    return f"of {concept}"


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _others(concept: Concept, request: Request) -> list[str]:
    """Three objects of other categories than the concept's that are not to be erased themselves. Raises BadRequest."""
    category = {o.name: o.category for o in objects()}
    erased = {t.casefold() for c in request.concepts for t in c.texts}
    own = category.get(concept.label.casefold())
    listed = dict.fromkeys([*load("fia")["objects"], *(o.name for o in objects() if o.picked)])
    found = [n for n in listed if category[n] != own and n not in erased][:3]
    if len(found) < 3:
        raise BadRequest(
            f"setting 'base' of FIA: no three objects of another kind than {concept.name!r} stay in this request; "
            "set base=plain"
        )
    return found


# --- presets ---------------------------------------------------------------------------------------------------------

# Table 8, which the released configurations repeat; the named concepts are those that the authors found hard.
_HARD_OBJECTS, _HARD_PAINTERS = "parachute; golf ball; gas pump", "Van Gogh; Vincent van Gogh"


def _objects(method: FIA) -> FIA:
    return replace(method, selection=replace(method.selection, r2=0.007, hard=_HARD_OBJECTS))


def _styles(method: FIA, hard: str = "") -> FIA:
    return replace(method, selection=replace(method.selection, r2=0.02, alpha=0.8, hard=hard))


_EFFACE = FIA()
_PAPER = FIA(score=Score(scale="raw"))
_CODE = FIA(
    score=Score("norm", row_normalise=True), selection=Selection(counting="code"), sentences=Sentences(prompts=30)
)
_WORLD = FIA(
    selection=Selection(r2=0.02),
    drawing=Drawing(saliency_steps=4, inference_steps=20, guidance=4.0),
    sentences=Sentences("world", prompts=8, base="objects"),
    sites="cross.v+cross.out+ff.in+ff.out",
)
PRESETS: dict[str, FIA] = {
    "efface": _EFFACE,
    "efface/style": _styles(_EFFACE),
    "efface/person": replace(_EFFACE, sentences=Sentences(base="neutral")),
    "paper": _PAPER,
    "paper/object": _objects(_PAPER),
    "paper/style": _styles(_PAPER, _HARD_PAINTERS),
    "code": _CODE,
    "code/object": _objects(_CODE),
    "code/style": _styles(_CODE, _HARD_PAINTERS),
    "world": _WORLD,
    "world/style": replace(
        _WORLD, selection=replace(_WORLD.selection, alpha=0.8), sentences=replace(_WORLD.sentences, base="plain")
    ),
}
PLUGIN = FIA
