"""FIA: prune the single weights of the feed-forwards that respond to a concept and not to its surroundings.

Deng, Hui, Li, Ji, Qin, Yuan, Ma, "Forget-It-All: Multi-Concept Machine Unlearning via Concept-Aware Neuron Masking",
arXiv 2601.06163: unified saliency (Eq. 1), contrastive saliency (2), time-integrated sensitivity (3), spatial selection
(4 to 6), fusion that spares what many concepts share (7, 8). Nothing is trained; the prompts are drawn for a few steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from efface.errors import BadRequest, NothingChanged, WrongFile
from efface.evidence.needs import Needs, PromptGroup, State, Statistics
from efface.evidence.reducers import ColumnNorms, Cosines, SaliencyFold, level_of, sensitivity_of
from efface.numerics import saliency
from efface.patch import Mask, Patch
from efface.prompts import Form, forms, load, read_pairs
from efface.world import objects
from efface.world.captions import with_article

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card, Site
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["FIA"]

_EFFACE: dict[str, Any] = {
    "score": "cosine", "row_normalise": False, "halves": "pooled", "scale": "max", "threshold": "above",
    "counting": "exact", "selection": "both", "sites": "ff.out", "r1": 0.05, "r2": 0.01, "alpha": 0.6,
    "hard": "", "r2_hard": 0.03, "saliency_steps": 10, "inference_steps": 50, "guidance": 7.5,
    "prompt_set": "places", "prompts": 5, "base": "plain", "pairs": "", "keep_steps": False,
}  # fmt: skip
_PAPER = _EFFACE | {"scale": "raw"}
_CODE = _EFFACE | {"score": "norm", "row_normalise": True, "counting": "code", "prompts": 30}
# Table 8, which the released configurations repeat; the named concepts are those that the authors found hard.
_OBJECTS = {"r2": 0.007, "hard": "parachute; golf ball; gas pump"}
_STYLES = {"r2": 0.02, "alpha": 0.8}
_PAINTERS = _STYLES | {"hard": "Van Gogh; Vincent van Gogh"}
PRESETS: dict[str, dict[str, Any]] = {
    "efface": _EFFACE, "efface/style": _STYLES, "efface/person": {"base": "neutral"},
    "paper": _PAPER, "paper/object": _OBJECTS, "paper/style": _PAINTERS,
    "code": _CODE, "code/object": _OBJECTS, "code/style": _PAINTERS,
    "world": _EFFACE | {
        "saliency_steps": 4, "inference_steps": 20, "guidance": 4.0, "prompt_set": "world", "prompts": 8,
        "base": "objects", "sites": "cross.v+cross.out+ff.in+ff.out", "r2": 0.02,
    },
    "world/style": {"alpha": 0.8, "base": "plain"},
}  # fmt: skip

ALIKE = 1e-5  # a surplus of this share of the base's score is rounding: both were drawn alike
MUCH = 0.1  # of the weights looked at; more pruned than this is told


@dataclass(frozen=True)
class FIA:
    """Weights (o, d) with `0 < sum_c Q_c < max(2, ceil(alpha C))` become zero; Q_c are the masks of the concepts.

    score: "cosine" |W| ||X_j|| |cos(X_j, Y_o)| (Eq. 1) or "norm" |W| ||X_j|| (code). row_normalise: every token row has
    length 1 (code). halves: rows of both halves of guidance "pooled", or "cond" alone. scale: of the mean in Eq. 3,
    divided by its "max" (code) or "raw" (paper). r1, threshold: share of a layer that passes Eq. 3's threshold, "above"
    it or "at" it too. r2, selection: share taken of every row and of the layer; "both", or one "row" / "layer" alone.
    hard, r2_hard: names (or synonyms, by ;) that take another r2. alpha, counting: a weight in ceil(alpha C) masks
    stays; "exact" counts at least two and rounds exactly, "code" does neither; alpha "off": none stays. sites: roles,
    joined by +.
    saliency_steps: denoiser calls looked at, of a schedule of inference_steps, at this guidance. prompt_set, prompts:
    sentences and how many pairs of them. base: they without the concept ("plain"), with a word for anything
    ("neutral"), or with three objects of other categories ("objects", ours); "auto" (ours): objects for a model that
    says what captions it had and had none without an object, else plain. pairs: a CSV file with complete prompts in
    the columns concept and base, and name where they serve one concept; kind `sensitive` takes nothing else.
    keep_steps: store every step of the cosine score, so that another r1 needs no sampling.
    """

    score: Literal["cosine", "norm"] | None = None
    row_normalise: bool | None = None
    halves: Literal["pooled", "cond"] | None = None
    scale: Literal["max", "raw"] | None = None
    r1: float | None = None
    threshold: Literal["above", "at"] | None = None
    r2: float | None = None
    selection: Literal["both", "row", "layer"] | None = None
    hard: str | None = None
    r2_hard: float | None = None
    alpha: float | Literal["off"] | None = None
    counting: Literal["exact", "code"] | None = None
    sites: str | None = None
    saliency_steps: int | None = None
    inference_steps: int | None = None
    guidance: float | None = None
    prompt_set: Literal["places", "world"] | None = None
    prompts: int | None = None
    base: Literal["plain", "neutral", "objects", "auto"] | None = None
    pairs: str | None = None
    keep_steps: bool | None = None

    def __post_init__(self) -> None:
        for field in ("r1", "r2", "r2_hard", "alpha"):
            value = getattr(self, field)
            if not (value is None or value == "off" or 0 < value <= 1):
                raise BadRequest(f"setting {field!r} of FIA must be above 0 and at most 1, got {value}")
        for field in ("saliency_steps", "inference_steps", "prompts", "guidance"):
            value = getattr(self, field)
            if value is not None and not 1 <= value < math.inf:
                raise BadRequest(f"setting {field!r} of FIA must be at least 1, got {value}")
        most = min(self.inference_steps or 255, 255)
        if (self.saliency_steps or 1) > most:
            raise BadRequest(f"setting 'saliency_steps' of FIA must be at most {most}, got {self.saliency_steps}")

    # --- what is looked at -------------------------------------------------------------------------------------------

    def ask(self, request: Request, card: Card) -> Needs:
        """The prompts of every concept and, once for all that share them, those of their base."""
        groups, bases = self._groups(request, card), self._bases(request, card)
        sites = tuple(s.name for s in self._sites(card))
        steps = tuple(range(self.saliency_steps or 1))
        base, concept, fold = self._reducers()
        wanted = [Statistics(base, sites, tuple(bases.values()), steps, bias=False)]
        for prompts, name in bases.items():
            served = tuple(_group(c) for c, (_, own) in groups.items() if own == prompts)
            wanted.append(Statistics(concept, sites, served, steps, name if fold else None, fold, bias=False))
        drawn = {name: prompts for prompts, name in bases.items()} | {_group(c): own for c, (own, _) in groups.items()}
        return Needs(
            prompts=tuple(PromptGroup(n, p, (request.seed,) * len(p)) for n, p in drawn.items()),
            statistics=tuple(wanted),
            steps=self.inference_steps,
            guidance=self.guidance,
        )

    def _reducers(self) -> tuple[ColumnNorms | Cosines, ColumnNorms | Cosines, SaliencyFold | None]:
        """For the base, for a concept, and what joins the concept's steps."""
        rows = (bool(self.row_normalise), self.halves or "pooled")
        if self.score == "norm":
            return ColumnNorms(*rows), ColumnNorms(*rows), None
        return Cosines(*rows, level=True), Cosines(*rows, level=False), None if self.keep_steps else self._fold

    @property
    def _fold(self) -> SaliencyFold:
        return SaliencyFold(self.r1 or 0.0, self.threshold == "at")

    def _sites(self, card: Card) -> tuple[Site, ...]:
        return card.select(*(self.sites or "").split("+"))

    def _bases(self, request: Request, card: Card) -> dict[tuple[str, ...], str]:
        """Names of the base groups by their prompts, whatever the order of the concepts."""
        found = sorted({base for _, base in self._groups(request, card).values()})
        return {prompts: f"base {i}" for i, prompts in enumerate(found)}

    def _groups(self, request: Request, card: Card) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Concept prompts and base prompts, by the concept's name."""
        own = read_pairs(self.pairs) if self.pairs else {}
        return {c.name: self._of(c, request, card, own) for c in request.concepts}

    def _of(
        self, concept: Concept, request: Request, card: Card, own: dict[str, list[tuple[str, str]]]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        rows = own.get(concept.name.casefold(), [])
        if concept.kind == "sensitive":
            rows = rows or own.get("", [])
            if not rows:
                raise BadRequest(
                    f"kind 'sensitive' expands no template: {concept.name!r} needs complete prompts of your own; "
                    "--set pairs=FILE names a CSV file with the columns concept and base"
                )
        if rows:
            return _distinct(c for c, _ in rows), _distinct(b for _, b in rows)
        chosen = forms("fia", self.prompt_set or "places", concept.kind, self.prompts or 1)
        texts = [self._phrase(t, concept.kind) for t in concept.texts]
        base = self._base(concept, request, card, chosen)
        return _distinct(f.filled(t) for t in texts for f in chosen), _distinct(base)

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
            return text.removesuffix(" style")
        return with_article(text) if self.prompt_set == "world" and kind == "object" else text

    # --- what is pruned ----------------------------------------------------------------------------------------------

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """One mask a site. Raises NothingChanged when a concept selects nothing, or nothing is pruned."""
        names, ratios = [c.name for c in request.concepts], self._ratios(request)
        least = self._least(len(names))
        tally, edits = _Tally(names, least), []
        views = _views(self.ask(request, model.card))
        for site in work.progress(self._sites(model.card), "sites"):
            weight = model.weight(site.name)
            weight = weight.to("cpu", torch.promote_types(weight.dtype, torch.float32))  # (o, d)
            counts = torch.zeros(weight.shape, dtype=torch.uint8 if len(names) < 255 else torch.int16)
            chosen = {}
            for name in names:
                A = self._score(name, views[_group(name)], evidence, site.name, weight, tally)
                zeros = self.counting == "code"
                mask = saliency.select(A, ratios[name], self.selection or "both", zeros)  # (o, d)
                counts += mask
                chosen[name] = mask.reshape(-1).nonzero()[:, 0].int()
            pruned, agnostic = saliency.fuse(counts, least)
            tally.site(site.name, pruned, agnostic, chosen)
            if bool(pruned.any()):
                edits.append(Mask.pack(site.name, pruned))
        tally.check(model.card.name)
        drawn = {"sampler": model.card.schedule_dict()["_class_name"], "timesteps": self._timesteps(model)}
        repaired = self.counting == "exact" and self._least(len(names), "code") < 2
        return Patch(tuple(edits), {"numbers": tally.numbers() | drawn | {"repaired": repaired}})

    def _timesteps(self, model: Model) -> list[int]:
        """The timesteps that were looked at: samplers that call the network twice at one show it here."""
        scheduler = model.network.scheduler()
        scheduler.set_timesteps(self.inference_steps)
        return [int(t) for t in scheduler.timesteps[: self.saliency_steps]]

    def _ratios(self, request: Request) -> dict[str, float]:
        """r2 by concept."""
        hard = {h.strip().casefold() for h in (self.hard or "").split(";")}
        found = {c.name: {t.casefold() for t in (*c.texts, c.label)} for c in request.concepts}
        return {name: float((self.r2_hard if own & hard else self.r2) or 0.0) for name, own in found.items()}

    def _least(self, concepts: int, rule: saliency.Rule | None = None) -> int:
        if self.alpha == "off":
            return concepts + 1
        return saliency.spared_from(float(self.alpha or 0.0), concepts, rule or self.counting or "exact")

    def _score(
        self,
        name: str,
        view: tuple[Statistics, Statistics, str],
        evidence: Evidence,
        site: str,
        weight: torch.Tensor,
        tally: _Tally,
    ) -> torch.Tensor:
        """A of one concept at one site (o, d): folded while sampling, or here from the steps."""
        base, own, level = view
        state: State | None = evidence.state(own, _group(name), site) if own.fold else None
        for step in () if own.fold else own.steps:
            found = evidence.state(own, _group(name), site, step)
            state = self._fold.add(state, step, found, level_of(evidence.state(base, level, site, step)), weight)
        assert state is not None
        surplus = float(state["surplus"])
        if not math.isfinite(surplus):
            raise WrongFile(f"the evidence of {name!r} at {site} holds NaN; remove it from the cache folder")
        tally.surplus[name] = max(tally.surplus[name], surplus)
        return sensitivity_of(state).value(self.scale or "max")


class _Tally:
    """Counts for the recipe, and whether anything was found at all."""

    def __init__(self, names: Sequence[str], least: int) -> None:
        self.names, self.least = names, least
        self.surplus = dict.fromkeys(names, 0.0)
        self.selected = dict.fromkeys(names, 0)
        self.shared = dict.fromkeys(names, 0)
        self.sites: dict[str, dict[str, int]] = {}
        self.weights = self.pruned = 0

    def site(self, site: str, pruned: torch.Tensor, agnostic: torch.Tensor, chosen: dict[str, torch.Tensor]) -> None:
        flat = agnostic.reshape(-1)
        for name, at in chosen.items():
            self.selected[name] += len(at)
            self.shared[name] += int(flat[at].sum())
        self.sites[site] = {"pruned": int(pruned.count_nonzero()), "agnostic": int(agnostic.count_nonzero())}
        self.weights += pruned.numel()
        self.pruned += self.sites[site]["pruned"]

    def check(self, model: str) -> None:
        """Raises NothingChanged; warns when much of the network goes."""
        for name in self.names:
            if not self.selected[name] or self.surplus[name] <= ALIKE:
                raise NothingChanged(
                    f"nothing is selected for {name!r}: {model} draws its prompts like their base prompts; "
                    "use another name or other prompts"
                )
        if not self.pruned:
            raise NothingChanged(
                f"every selected weight is in {self.least} or more masks and counts as shared by the concepts, so "
                "none is pruned; raise alpha or use counting=exact"
            )
        if self.pruned > MUCH * self.weights:
            from efface.errors import EffaceWarning

            share = f"{self.pruned / self.weights:.1%}"
            warnings.warn(f"{share} of the looked-at weights are pruned; lower r2", EffaceWarning, stacklevel=2)

    def numbers(self) -> dict[str, Any]:
        """Pruned share of all weights looked at, least number of masks that spares, counts by concept and by site."""
        concepts = {
            n: {"selected": self.selected[n], "shared": self.shared[n], "surplus": float(f"{self.surplus[n]:.4g}")}
            for n in sorted(self.names)
        }
        share = float(f"{self.pruned / self.weights:.6g}")
        return {"pruned": share, "spared_from": self.least, "concepts": concepts, "sites": self.sites}


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
