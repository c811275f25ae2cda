"""ScaPre: scalable and precise concept unlearning in closed form.

Deng, Li, Xiao, Hui, Ma, "Forget Many, Forget Right: Scalable and Precise Concept Unlearning in Diffusion Models",
ICLR 2026, arXiv 2601.06162: spectral trace regulariser, Bures geometry alignment, Informax decoupler. Three systems:
those of both released scripts (`LargeScale`, `RollBack`) and the paper's own equation (`Paper`). Rows w_i solve

    w_i ((lam + mu) I + R + G + a_i Pi_C) = (lam + mu) w0_i + V_i

and then move back towards w0_i. The presets `efface` and `world` are none of the paper's (`_sentences.py`).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from efface.errors import BadRequest, EffaceWarning
from efface.evidence.needs import Needs
from efface.methods import require
from efface.methods._constraints import Block, Projections, Texts, by_door, chosen, erased, kept
from efface.methods._geometry import Geometry
from efface.methods._informax import Channels, Entropy, Informax
from efface.methods._sentences import KeptSentences
from efface.methods._systems import Edited, Numbers, RowSystem, TextRows, one_operator, stored
from efface.model.card import Door
from efface.numerics import spectral
from efface.numerics.rows import end_row
from efface.patch import Answer, Edit, LowRank

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.request import Request
    from efface.work import Work

__all__ = ["PRESETS", "LargeScale", "Paper", "RollBack", "ScaPre", "Spectral", "System"]

SATURATED = 0.95  # above this share of channels at the largest information the mask tells nothing apart


@dataclass(frozen=True)
class Spectral:
    """The spectral trace regulariser."""

    on: bool = False
    """Whether there is one."""
    gate: Literal["code", "paper", "shared"] = "code"
    """What it damps: directions that few concepts share (code), the paper's (1 - sigmoid(s)) s, or those that many
    share (ours, its temperature in units of the median)."""
    temperature: float = 1.0
    """Of the gate."""
    exponent: float = 1.0
    """Of the gate."""

    def __post_init__(self) -> None:
        require(self, "temperature", "exponent", above=0)

    @property
    def formula(self) -> spectral.Gate:
        return spectral.Gate(self.temperature, self.exponent, self.gate)


# --- the three systems -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaPre:
    """What the three systems share. G is the Gram matrix of the context rows, V what they shall become."""

    texts: Texts = field(default=Texts())
    """What is said of a concept."""
    projections: Projections = "both"
    """Which projections of cross-attention are edited."""
    technique: Literal["replace", "tensor"] = "replace"
    """Outputs of the anchor as they are, or less their part along the concept's own."""
    erase_scale: float = 1.0
    """eta, the weight of what is erased."""
    lam: float = 0.5
    """The ridge: how strongly a weight is pulled to its old value."""
    mask: Informax = field(default=Informax())
    """The Informax decoupler's masks."""
    target: Literal["mask", "interpolate", "full", "zero"] = "mask"
    """The mask multiplies what a concept shall become (code), leaves masked-out channels as they are (ours), or does
    not act on it; zero is the paper's V* = 0."""
    spectral: Spectral = field(default=Spectral())
    """The spectral trace regulariser."""
    entropy: Entropy = field(default=Entropy())
    """The entropy factor and mu."""
    geometry: Geometry = field(default=Geometry())
    """The step back towards the old weight."""

    def __post_init__(self) -> None:
        require(self, "erase_scale", "lam", above=0)

    # What a system adds to the equation; each knows one or two of these.

    @property
    def decoupled(self) -> Literal["span", "rows", "off"]:
        """Where the decoupler's penalty a_i acts."""
        return "off"

    @property
    def held(self) -> bool:
        """Whether `lam W0` stands on the right side."""
        return True

    def further(self, concepts: Tensor) -> list[tuple[Tensor, float | Tensor]]:
        """Rows (n, d) with weights that the Gram matrix also holds; concepts (m, d)."""
        return []

    def damping(self) -> spectral.Gate | None:
        """The gate of R where R grows with mu."""
        return None

    def taken_off(self, V: Tensor, weight: Tensor, concepts: Tensor) -> Tensor:
        """The right side V (o, d) after the spectral term."""
        return V

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, request: Request, card: Card) -> Needs:
        """The texts of concepts, anchors and kept texts, and the empty text; no pictures, no denoiser."""
        self.check(request)
        pairs = [t for c in request.concepts for pair in self.texts.pairs(c, request) for t in pair]
        return Needs(texts=tuple(dict.fromkeys(["", *pairs, *self.kept_texts(request)])))

    def kept_texts(self, request: Request) -> tuple[str, ...]:
        """Kept texts that are looked at: only as neutral ones."""
        return tuple(self.texts.kept(request)) if self.mask.negatives == "keep" else ()

    def check(self, request: Request) -> None:
        """Raise BadRequest for settings that contradict each other or the request."""
        self.texts.check(request)

    # --- solving -------------------------------------------------------------------------------------------------

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """One operator where nothing depends on the weight, else one change a site, low rank where that is smaller."""
        edits: list[Edit] = []
        numbers = {}
        for door in model.card.doors:
            system = System(self, evidence, request, door, work)
            sites = chosen(model.card, door, self.projections)
            own, found = self._one(system, model, sites) if self.linear else self._each(system, model, sites, work)
            edits += own
            numbers[door.name] = {"shared": system.numbers, "sites": found}
        return Answer(tuple(edits), by_door(numbers))

    @property
    def linear(self) -> bool:
        """Without masks, entropy and geometry step nothing depends on the weight: `W' = W (I + S)` at every site."""
        replaced = self.technique == "replace" and self.mask.information == "off"
        return replaced and self.geometry.still and self.entropy.mu != "entropy"

    def _one(self, system: System, model: Model, sites: list[str]) -> tuple[list[Edit], dict[str, Numbers]]:
        unit = system.site(torch.eye(system.door.width, dtype=torch.float64), "")
        edit, numbers = one_operator(system.door, unit, system.rows, model, sites)
        return [edit], numbers

    def _each(
        self, system: System, model: Model, sites: list[str], work: Work
    ) -> tuple[list[Edit], dict[str, Numbers]]:
        edits: list[Edit] = []
        numbers: dict[str, Numbers] = {}
        for site in work.progress(sites, "sites"):
            weight = model.weight(site).cpu().double()  # (o, d)
            found = system.site(weight, site)
            edit = stored(site, found.weight - weight)
            rank = {"rank": edit.up.shape[1]} if isinstance(edit, LowRank) else {}
            edits.append(edit)
            numbers[site] = found.numbers | rank
        _warn(numbers)
        return edits, numbers


@dataclass(frozen=True)
class LargeScale(ScaPre):
    """The large-scale script: R = mu U diag(1 - g) U^T, and a_i = eta max_k m_ki in the span of the concepts."""

    erase_scale: float = 3.0
    """eta, the weight of what is erased."""
    decoupler: Literal["span", "rows", "off"] = "span"
    """Where the penalty a_i acts: in the span of the concepts (code), on whole rows (paper), or nowhere."""
    concept_gram: bool = True
    """Whether C C^T is added to G."""

    @property
    def decoupled(self) -> Literal["span", "rows", "off"]:
        return self.decoupler

    def further(self, concepts: Tensor) -> list[tuple[Tensor, float | Tensor]]:
        return [(concepts, 1.0)] if self.concept_gram else []

    def damping(self) -> spectral.Gate | None:
        return self.spectral.formula if self.spectral.on else None

    def check(self, request: Request) -> None:
        super().check(request)
        if self.decoupler == "rows" and self.spectral.on:
            raise BadRequest("setting 'decoupler' rows excludes 'spectral' in the large-scale form; take preset=paper")


@dataclass(frozen=True)
class RollBack(ScaPre):
    """The roll-back script: no mu, no a_i, the spectral term on the right side, and a share of every row given back."""

    mask: Informax = field(default=Informax(power=2.0))
    """The Informax decoupler's masks."""
    entropy: Entropy = field(default=Entropy(mu=0.0))
    """The entropy factor and mu."""
    geometry: Geometry = field(default=Geometry(step="roll-back"))
    """The step back towards the old weight."""
    concept_gram: bool = True
    """Whether C C^T is added to G."""
    residual_scale: float | Literal["erase_scale"] = "erase_scale"
    """Weight of the spectral term; that of `erase_scale` as released."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "residual_scale", least=0)

    def further(self, concepts: Tensor) -> list[tuple[Tensor, float | Tensor]]:
        return [(concepts, 1.0)] if self.concept_gram else []

    def taken_off(self, V: Tensor, weight: Tensor, concepts: Tensor) -> Tensor:
        if not self.spectral.on:
            return V
        scale = self.erase_scale if isinstance(self.residual_scale, str) else self.residual_scale
        return V - scale * spectral.residual_term(weight, concepts, self.spectral.formula)


@dataclass(frozen=True)
class Paper(ScaPre):
    """The paper's equation `diag(a) W + W (lam I + S + R) = lam W0 + V`, then the full Bures step.

    What the paper leaves open (lam, draws, guide, `lam W0`) is filled as in the code; the length of the step is ours.
    """

    mask: Informax = field(default=Informax(normalise="max", power=1.0, redraw=False))
    """The Informax decoupler's masks."""
    target: Literal["mask", "interpolate", "full", "zero"] = "full"
    """The mask multiplies what a concept shall become (code), leaves masked-out channels as they are (ours), or does
    not act on it; zero is the paper's V* = 0."""
    spectral: Spectral = field(default=Spectral(on=True, gate="paper"))
    """The spectral trace regulariser."""
    entropy: Entropy = field(default=Entropy(mu=0.0))
    """The entropy factor and mu."""
    geometry: Geometry = field(default=Geometry(step="bures", bures=0.3))
    """The step back towards the old weight."""
    decoupler: Literal["span", "rows", "off"] = "rows"
    """Where the penalty a_i acts: in the span of the concepts (code), on whole rows (paper), or nowhere."""
    anchored: bool = True
    """Whether `lam W0` stands on the right side; the equation as printed has none."""

    @property
    def decoupled(self) -> Literal["span", "rows", "off"]:
        return self.decoupler

    @property
    def held(self) -> bool:
        return self.anchored

    def further(self, concepts: Tensor) -> list[tuple[Tensor, float | Tensor]]:
        if not self.spectral.on:
            return []
        directions, penalty = spectral.penalised(concepts, self.spectral.formula)
        return [(directions.T, penalty)]  # R has no mu here and is one more Gram matrix

    def check(self, request: Request) -> None:
        super().check(request)
        if not self.anchored and self.target == "zero":
            raise BadRequest("setting 'anchored' is off and 'target' is zero: W = 0 is the only solution; change one")


# --- presets ---------------------------------------------------------------------------------------------------------

# The published flags of either script, for fifty classes; `code-similar`: for look-alikes and for painters.
_CODE, _ROLL_BACK = LargeScale(), RollBack()
PRESETS: dict[str, ScaPre | KeptSentences] = {
    "code": _CODE,
    "code/sensitive": replace(
        _CODE, erase_scale=1.0, mask=replace(_CODE.mask, information="off"), geometry=Geometry(iterations=2)
    ),
    "code-similar": replace(
        _CODE,
        erase_scale=2.0,
        mask=replace(_CODE.mask, power=8.0),
        spectral=Spectral(on=True),
        entropy=Entropy(samples=30),
    ),
    "roll-back": _ROLL_BACK,
    "roll-back/style": replace(_ROLL_BACK, texts=Texts(guide="art"), geometry=Geometry(step="roll-back", floor=0.5)),
    "roll-back-similar": replace(
        _ROLL_BACK, spectral=Spectral(on=True), geometry=Geometry(step="roll-back", floor=1.0)
    ),
    "paper": Paper(),
    "efface": KeptSentences(),
    # chosen on the tune half of `mini` for a keep list of half its objects; a longer one needs a larger scale
    "world": KeptSentences(erase_scale=1.0, lam=0.02),
}
PLUGIN = ScaPre


# --- one door --------------------------------------------------------------------------------------------------------


class System:
    """What all sites of a door share: rows, factorisation, masks."""

    def __init__(self, method: ScaPre, evidence: Evidence, request: Request, door: Door, work: Work) -> None:
        self.method, self.door = method, door
        blocks = erased(evidence, request, method.texts, door)
        self.rows = rows = TextRows.of(blocks, evidence, door)
        neutral = _neutral(method, blocks, rows, evidence, request, door)
        self.channels = Channels(method.mask, method.entropy, rows.names, rows.concepts, neutral, work.seed)
        parts = [(rows.pairs.stacked(), method.erase_scale), *method.further(rows.concepts)]
        self.shared = spectral.shared_factor(*spectral.weighted(parts), method.lam, rows.concepts, method.damping())
        self.system = RowSystem(self.shared, rows, 0, work)
        self.numbers = self.system.numbers

    def site(self, weight: Tensor, name: str) -> Edited:
        """The edited weight of one site and its numbers; weight (o, d)."""
        m, entropy = self.method, None
        if m.entropy.mu == "entropy" or m.geometry.by_entropy:
            entropy = self.channels.entropies(weight, name)  # (o,)
        mu = self.mu(entropy)
        masks = self.channels.masks(weight, name, "target")
        right = spectral.right_side(weight, self.target(weight, masks.values), (m.lam + mu) * m.held)
        strength, pull = self.pulls(weight, name, masks.values, mu)
        solved, exactness = self.system.solve(right, strength, pull, name)
        new = m.geometry.moved(solved, weight, m.lam, mu, entropy)
        numbers = self.rows.effects(new, weight) | {"mu": round(mu, 6)} | exactness | masks.numbers
        return Edited(new, numbers | self.system.about(mu))

    def mu(self, entropy: Tensor | None) -> float:
        """Strength of the pull to the old weight at a site with these entropies (o,)."""
        setting = self.method.entropy.mu
        if isinstance(setting, str):
            assert entropy is not None
            return float((1 - entropy).clamp(0, 1).mean())
        return float(setting)

    def pulls(self, weight: Tensor, name: str, masks: Tensor, mu: float) -> tuple[float | Tensor, Tensor | None]:
        """mu with the decoupler's penalty: a strength a row (o, 1), or beside it the penalty (o,) in the span."""
        m = self.method
        if m.decoupled == "off":
            return mu, None
        # The released code draws these masks a second time, independently of the target's.
        again = self.channels.masks(weight, name, "decouple").values if m.mask.redraw else masks
        pull = m.erase_scale * again.amax(1)  # (o,)
        return (mu + pull[:, None], None) if m.decoupled == "rows" else (mu, pull)

    def target(self, weight: Tensor, masks: Tensor) -> Tensor:
        """V (o, d)."""
        m, V = self.method, torch.zeros_like(weight)
        if m.target != "zero":
            masks = torch.ones_like(masks) if m.target == "full" else masks
            interpolate = m.target == "interpolate"
            try:
                V = spectral.target(
                    weight, self.rows.pairs, masks, m.erase_scale, technique=m.technique, interpolate=interpolate
                )
            except ValueError as error:
                raise BadRequest(str(error)) from None
        return m.taken_off(V, weight, self.rows.concepts)


def _neutral(
    method: ScaPre, blocks: list[Block], rows: TextRows, evidence: Evidence, request: Request, door: Door
) -> Tensor:
    """Rows of neutral text: (d,), one a kept text (r, d) or one a concept (m, 1, d)."""
    named = kept(evidence, method.kept_texts(request), "last", door)
    if method.mask.negatives == "guide":
        return torch.stack([b.neutral for b in blocks]).double()
    if named:
        return torch.stack([row[0].double() for streams in named for row in streams])
    return end_row(rows.empty, rows.spans)[0]


def _warn(numbers: dict[str, Numbers]) -> None:
    """Say so where the masks tell no channels apart."""
    share = sum(n["saturation"] for n in numbers.values()) / len(numbers)
    if share > SATURATED:
        text = f"{share:.1%} of the Informax masks are saturated, so power acts as one factor for all; raise sigma"
        warnings.warn(text, EffaceWarning, stacklevel=4)
