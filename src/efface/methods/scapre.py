"""ScaPre: scalable and precise concept unlearning in closed form.

Deng, Li, Xiao, Hui, Ma, "Forget Many, Forget Right: Scalable and Precise Concept Unlearning in Diffusion Models",
ICLR 2026, arXiv 2601.06162: spectral trace regulariser, Bures geometry alignment, Informax decoupler. All three forms:
both released scripts (presets `code` and `roll-back`) and the paper's own equation (`paper`). What is marked "ours"
belongs to the presets `efface` and `world`.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from efface import prompts
from efface.errors import BadRequest
from efface.evidence.needs import Needs
from efface.methods import complete_prompts, finite, require
from efface.numerics import geometry, information, spectral
from efface.numerics.effects import effects, power_of_ten, short
from efface.numerics.rows import content_to_end, last_row, paired_rows
from efface.patch import Dense, Edit, LowRank, Operator, Patch
from efface.work import Work, seed_of

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.model.text import Encoded
    from efface.request import Concept, Request

__all__ = ["ScaPre"]

SATURATED = 0.95  # above this share of channels at the largest information the mask tells nothing apart
RESIDUAL_LIMIT = 1e-6

# The large-scale script with its published flags for fifty classes; `code-similar`: for look-alikes and for painters.
_CODE: dict[str, Any] = {
    "form": "large-scale", "projections": "both", "rows": "tail", "expand": "none", "companions": 0, "guide": "",
    "prompt_file": "", "anchor": "guide", "balance": False, "technique": "replace", "erase_scale": 3.0, "lam": 0.5,
    "anchored": True, "keep_scale": 0.0, "empty_scale": 0.0, "mask": "code", "normalise": "zscore", "power": 5.0,
    "sigma": 0.01, "negatives": "empty", "draws": 5, "redraw": True, "samples": 20, "bins": 20, "target": "mask",
    "concept_gram": True, "decouple": True, "decoupler": "span", "spectral": False, "gate": "code",
    "temperature": 1.0, "spectral_power": 1.0, "residual_scale": 0.0, "geometry": "rows", "iterations": 1,
    "bures": 0.0, "truncate": 1e-4, "floor": 0.8, "blend": False, "mu": "entropy", "relative": False,
}  # fmt: skip
_ROLL_BACK: dict[str, Any] = _CODE | {  # the roll-back script with its published flags for ten and for fifty classes
    "form": "roll-back", "erase_scale": 1.0, "power": 2.0, "decouple": False, "geometry": "roll-back", "mu": 0.0,
}  # fmt: skip
# The paper's equation. What it leaves open is filled as in the code (lam, draws, guide, anchored); bures 0.3 is ours.
_PAPER: dict[str, Any] = _CODE | {
    "form": "paper", "erase_scale": 1.0, "normalise": "max", "power": 1.0, "redraw": False, "target": "full",
    "concept_gram": False, "decoupler": "rows", "spectral": True, "gate": "paper", "geometry": "bures", "mu": 0.0,
    "bures": 0.3,
}  # fmt: skip
_EFFACE: dict[str, Any] = _CODE | {
    "rows": "content-to-end", "expand": "sentence", "companions": 32,
    "anchor": "nearest", "balance": True, "erase_scale": 20.0, "lam": 0.05, "keep_scale": 1.0, "empty_scale": 1.0,
    "mask": "off", "normalise": "unit", "power": 1.0, "sigma": 0.003, "negatives": "keep", "redraw": False,
    "target": "interpolate", "concept_gram": False, "decouple": False, "geometry": "bures", "mu": 0.0,
    "relative": True,
}  # fmt: skip
# Chosen on the tune half of the bundled `mini` for a keep list of half its objects; a longer one needs a larger scale.
_WORLD: dict[str, Any] = _EFFACE | {"erase_scale": 1.0, "lam": 0.02}
PRESETS: dict[str, dict[str, Any]] = {
    "code": _CODE,
    "code/sensitive": {"erase_scale": 1.0, "mask": "off", "iterations": 2},
    "code-similar": _CODE | {"erase_scale": 2.0, "power": 8.0, "spectral": True, "samples": 30},
    "roll-back": _ROLL_BACK,
    "roll-back/style": {"floor": 0.5, "guide": "art"},
    "roll-back-similar": _ROLL_BACK | {"floor": 1.0, "spectral": True},
    "paper": _PAPER,
    "efface": _EFFACE,
    "world": _WORLD,
}


@dataclass(frozen=True)
class ScaPre:
    """Rows w_i solve `w_i ((lam + mu) I + R + G + a_i Pi_C) = (lam + mu) w0_i + V_i`, then move back towards w0_i.

    form: "large-scale", "roll-back" (no mu, the spectral term stands on the right), "paper" (`B W + W A = lam W0 + V`).
    projections: keys, values or both. rows: context rows: "tail" (code), "last", "content" or "content-to-end", the
    last two paired by role (ours). expand: "none", the released templates ("code") or "sentence" (ours: short sentences
    around each name). companions: kept texts that an erased style is taken away from (ours; "a cat in noto style" ->
    "a cat"). guide: anchor of concepts that name none. prompt_file: complete prompts, one a line, for the one
    concept of kind sensitive. anchor: "nearest" (ours) sends objects without an anchor to the closest kept text.
    balance: every concept weighs the same, however many texts it has (ours). technique: guide outputs as they are, or
    less their part along the concept's own ("tensor"). erase_scale: eta. lam: ridge. anchored: keep `lam W0` on the
    right; the equation as printed has none. keep_scale, empty_scale: weight of kept texts and of the empty text in the
    equation (ours; 0 is the code's, which ignores them).

    mask: Informax by "code" draws, by "rowwise" scalar draws, in the "population" limit (both ours) or "off";
    normalise: "zscore" (code), "max" (paper), "unit" (ours); power, sigma, draws a side; redraw: a second set for the
    decoupler, as released; negatives: "empty" (code), "keep" or "guide" texts (ours). samples, bins: of the entropy
    factor. target: "mask" multiplies it (code), "interpolate" (ours) leaves masked-out channels as they are, "full" has
    no mask, "zero" is the paper's V* = 0. concept_gram: add C C^T. decouple: penalise inside span(C) or, with decoupler
    "rows", everywhere (paper). spectral, gate, temperature, spectral_power, residual_scale (0: eta): the spectral term.

    geometry: "rows" (code, with iterations), "bures" (full step of length `bures`, singular values below `truncate` of
    the largest left out), "roll-back" (by entropy, at least `floor` of the edit stays), "none". blend: the released
    mix of energy and angle. mu: a number or "entropy", the code's. relative: lam and sigma are in units of the rows'
    root mean square norm, squared for lam (ours), so that settings carry over to other text encoders.
    """

    form: Literal["large-scale", "roll-back", "paper"] | None = None
    projections: Literal["both", "keys", "values"] | None = None
    rows: Literal["tail", "last", "content", "content-to-end"] | None = None
    expand: Literal["none", "code", "sentence"] | None = None
    companions: int | None = None
    guide: str | None = None
    prompt_file: str | None = None
    anchor: Literal["guide", "nearest"] | None = None
    balance: bool | None = None
    technique: Literal["replace", "tensor"] | None = None
    erase_scale: float | None = None
    lam: float | None = None
    anchored: bool | None = None
    keep_scale: float | None = None
    empty_scale: float | None = None
    mask: Literal["code", "rowwise", "population", "off"] | None = None
    normalise: Literal["zscore", "max", "unit"] | None = None
    power: float | None = None
    sigma: float | None = None
    negatives: Literal["empty", "keep", "guide"] | None = None
    draws: int | None = None
    redraw: bool | None = None
    samples: int | None = None
    bins: int | None = None
    target: Literal["mask", "interpolate", "full", "zero"] | None = None
    concept_gram: bool | None = None
    decouple: bool | None = None
    decoupler: Literal["span", "rows"] | None = None
    spectral: bool | None = None
    gate: Literal["code", "paper", "shared"] | None = None
    temperature: float | None = None
    spectral_power: float | None = None
    residual_scale: float | None = None
    geometry: Literal["rows", "bures", "roll-back", "none"] | None = None
    iterations: int | None = None
    bures: float | None = None
    truncate: float | None = None
    floor: float | None = None
    blend: bool | None = None
    mu: float | Literal["entropy"] | None = None
    relative: bool | None = None

    def __post_init__(self) -> None:
        positive = ("erase_scale", "lam", "power", "sigma", "draws", "samples", "bins", "temperature", "spectral_power")
        shares = ("bures", "truncate", "floor")
        others = ("companions", "keep_scale", "empty_scale", "residual_scale", "mu")
        require(self, (*positive, "iterations"), (*others, *shares))
        for field in shares:
            if (getattr(self, field) or 0) > 1:
                raise BadRequest(f"setting {field!r} of ScaPre is a share of at most 1, got {getattr(self, field)}")
        if self.bins == 1:
            raise BadRequest("setting 'bins' of ScaPre must be at least 2: one bin holds everything")

    def ask(self, request: Request, card: Card) -> Needs:
        """The texts of concepts, anchors and kept texts, and the empty text; no pictures, no denoiser."""
        self._check(request)
        pairs = [t for c in request.concepts for pair in self._pairs(c, request) for t in pair]
        texts = ["", *pairs, *self._kept_texts(request)]
        if self.anchor == "nearest" and self.expand == "code":  # every kept thing may become an anchor
            texts += [f.format(t) for t in _kept(request)[0] for f in prompts.load("scapre")["released"]["object"]]
        return Needs(texts=tuple(dict.fromkeys(texts)))

    def _check(self, request: Request) -> None:
        """Raise BadRequest for settings that contradict each other or the request."""
        if not self.anchored and self.target == "zero":
            raise BadRequest("setting 'anchored' is off and 'target' is zero: W = 0 is the only solution; change one")
        if self.decoupler == "rows" and self.decouple and self.spectral and self.form == "large-scale":
            raise BadRequest("setting 'decoupler' rows excludes 'spectral' in the large-scale form; set form=paper")
        for concept in request.concepts:
            if concept.anchor is None and self.guide in concept.texts:
                raise BadRequest(f"setting 'guide' is {self.guide!r}, which is to be erased; name another guide")
        things, styles = _kept(request)
        product = things and (styles or any(c.kind == "style" for c in request.concepts))
        if complete_prompts(self, request) and self.expand == "sentence" and product:
            raise BadRequest(
                "kind 'sensitive' cannot be combined with a product of two lists, and kept things are worded in every "
                "style of the request; erase or keep styles in a request of their own, or set expand=none"
            )

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """One operator where nothing depends on the weight, else one change a site, low rank where that is smaller."""
        context = _Context(self, evidence, self._anchored(request, evidence), work)
        roles = {"both": ("cross.k", "cross.v"), "keys": ("cross.k",), "values": ("cross.v",)}
        sites = [s.name for s in model.card.select(*roles[self.projections or "both"])]
        if self._one_operator:
            edit, numbers = _operator(context, model, sites)
            return Patch((edit,), {"numbers": {"shared": context.numbers, "sites": numbers}})
        edits: list[Edit] = []
        numbers = {}
        for site in work.progress(sites, "sites"):
            weight = model.weight(site).cpu().double()  # (o, d)
            new, numbers[site] = context.site(weight, site)
            edits.append(_stored(site, new - weight))
            if isinstance(edits[-1], LowRank):
                numbers[site]["rank"] = edits[-1].up.shape[1]
        _warn(numbers)
        return Patch(tuple(edits), {"numbers": {"shared": context.numbers, "sites": numbers}})

    @property
    def _one_operator(self) -> bool:
        """Without masks, entropy and geometry step nothing depends on the weight: `W' = W (I + S)` at every site."""
        still = {"none": True, "rows": False, "bures": not self.bures, "roll-back": self.floor == 1}
        linear = self.technique == "replace" and not self.blend and self.mu != "entropy"
        return self.mask == "off" and linear and still[self.geometry or "none"]

    @property
    def _entropies(self) -> bool:
        """Whether the entropy factor of the rows is looked at."""
        return self.mu == "entropy" or bool(self.blend) or (self.geometry == "roll-back" and self.floor != 1)

    def _pairs(self, concept: Concept, request: Request) -> list[tuple[str, str]]:
        """(text, anchor text) of a concept, its synonyms and the sentences around them."""
        anchor = self.guide or "" if concept.anchor is None else concept.anchor
        if concept.kind == "sensitive":
            return [(line, anchor) for line in complete_prompts(self, request)]
        pairs = [(text, anchor) for text in concept.texts]
        if self.expand == "none":
            return pairs
        kind, data = "style" if concept.kind == "style" else "object", prompts.load("scapre")
        names = list(concept.texts)
        if kind == "style":  # the sentences say "style" themselves
            names, anchor = [text.removesuffix(" style") for text in names], anchor.removesuffix(" style")
        if self.expand == "code":  # an empty anchor stays the empty text: "image of" alone would itself be a concept
            forms = data["released"][kind]
            return pairs + [(f.format(n), f.format(anchor) if anchor else "") for n in names for f in forms]
        forms = data["sentences"][kind][1:]
        pairs += [(f.format(n), f.format(anchor) if anchor else bare) for n in names for f, bare in forms]
        if kind != "style" or not self.companions or not (things := _kept(request)[0]):
            return pairs
        # taken away from things that stay, a style leaves them as they are; alone it would take them along
        kept = [things[i * len(things) // n] for n in [min(self.companions, len(things))] for i in range(n)]
        new = f"a {{}} in {anchor} style" if anchor else "a {}"
        return [(f"a {k} in {name} style", new.format(k)) for name in names for k in kept]

    def _anchored(self, request: Request, evidence: Evidence) -> Request:
        """With anchor "nearest": every object without an anchor of its own goes to the kept text closest to it."""
        if self.anchor != "nearest" or not (things := _kept(request)[0]):
            return request
        kept = torch.stack([_meaning(evidence.text(text)) for text in things])  # (k, d)

        def settled(concept: Concept) -> Concept:
            if concept.kind in ("style", "sensitive") or concept.anchor is not None:
                return concept
            closest = int((kept @ _meaning(evidence.text(concept.name))).argmax())
            return replace(concept, anchor=things[closest])

        return replace(request, concepts=tuple(settled(c) for c in request.concepts))

    def _kept_texts(self, request: Request) -> dict[str, float]:
        """Texts that keep their outputs, and their weights; a kept thing in all kept styles weighs as one sentence."""
        scale, found = self.keep_scale or 0.0, {"": self.empty_scale or 0.0}
        if self.expand != "sentence":
            return found | dict.fromkeys(sorted(request.kept_texts), scale)
        things, styles = _kept(request)
        for kind, names in (("object", things), ("style", styles)):
            sentences = prompts.load("scapre")["sentences"][kind]
            found |= {form.format(n): scale for n in names for form, _ in sentences}
        return found | {f"a {t} in {s} style": scale / len(styles) for t in things for s in styles}


def _kept(request: Request) -> tuple[list[str], list[str]]:
    """Kept things, and the bare names of kept styles; sorted, so that the order of the request does not matter."""
    texts = sorted(request.kept_texts)
    things = [t for t in texts if not t.endswith(" style")]
    return things, [t.removesuffix(" style") for t in texts if t.endswith(" style")]


class _Context:
    """What all sites share: rows, concept vectors, the factorisation, negatives. One text stream."""

    def __init__(self, method: ScaPre, evidence: Evidence, request: Request, work: Work) -> None:
        self.method, self.seed = method, work.seed
        self.names: list[str] = []
        blocks, guides, firsts, neutral = [], [], [], []
        for concept in request.concepts:
            pairs = method._pairs(concept, request)
            weight = (1 / len(pairs)) ** 0.5 if method.balance else 1.0
            for text, anchor in pairs:
                own, other = finite(evidence.text(text)), finite(evidence.text(anchor))
                x, g, goal = paired_rows(method.rows or "tail", own.rows, own.count - 2, other.rows, other.count - 2)
                if torch.equal(x, g):
                    raise BadRequest(f"anchor {anchor!r} means the same as {text!r} to this model; name another anchor")
                blocks.append(weight * x.double())
                guides.append(weight * g.double())
                firsts.append((last_row(own.rows, own.count - 2)[0], goal))
                neutral.append(last_row(other.rows, other.count - 2) if anchor else other.rows[1:2])
                self.names.append(text)
        self.pairs = spectral.pair_rows(blocks, guides)
        self.concepts, self.goals = (torch.stack(v).double() for v in zip(*firsts, strict=True))  # (m, d)
        self.empty = evidence.text("").rows.double()  # (L, d)
        scales = method._kept_texts(request)
        kept = [finite(evidence.text(t)) for t in scales]
        weighed = [(content_to_end(e.rows), w) for e, w in zip(kept, scales.values(), strict=True) if w]
        self.kept_rows = sum(len(rows) for rows, _ in weighed)
        self.kept_gram = spectral.gram_of(weighed) if weighed else None  # (d, d)
        named = [last_row(e.rows, e.count - 2)[0].double() for e in kept if e.text]
        self.neutral = torch.stack(named) if method.negatives == "keep" and named else self.empty[1]  # EOS
        if method.negatives == "guide":
            self.neutral = torch.stack(neutral).double()  # (m, 1, d)
        scale = float(self.concepts.square().sum(1).mean().sqrt()) if method.relative else 1.0
        self.lam, self.sigma = float(method.lam or 0.0) * scale**2, float(method.sigma or 0.0) * scale
        self.eta = float(method.erase_scale or 0.0)
        self.gate = spectral.Gate(method.temperature or 1.0, method.spectral_power or 1.0, method.gate or "code")
        self._factor()
        self.looked_at = (self.concepts, self.goals, self.empty)
        self.probe = torch.randn(self.empty.shape[1], 2, generator=work.rng("residual"), dtype=torch.float64)

    def _factor(self) -> None:
        m = self.method
        blocks: list[tuple[torch.Tensor, float | torch.Tensor]] = [(self.pairs.stacked(), self.eta)]
        if m.concept_gram:
            blocks.append((self.concepts, 1.0))
        if m.spectral and m.form == "paper":  # R has no mu there and is one more Gram matrix
            directions, penalty = spectral.penalised(self.concepts, self.gate)
            blocks.append((directions.T, penalty))
        gate = self.gate if m.spectral and m.form == "large-scale" else None
        self.shared = spectral.shared_factor(*spectral.weighted(blocks), self.lam, self.concepts, gate, self.kept_gram)
        sizes = {"concepts": len(self.concepts), "rows": len(blocks[0][0]), "kept_rows": self.kept_rows}
        self.numbers = self._system(0.0) | sizes

    def _system(self, mu: float) -> dict[str, float]:
        return {"condition": short(self.shared.condition(mu)), "effective_rank": short(self.shared.effective_rank(mu))}

    def site(self, weight: torch.Tensor, name: str) -> tuple[torch.Tensor, dict[str, float]]:
        """The edited weight (o, d) of one site and its numbers."""
        m, entropy = self.method, None
        if m._entropies:
            draws = self._draws(name, "entropy", "", m.samples or 20, weight.shape[1])
            entropy = information.entropy_factor(weight, self.concepts, draws, self.sigma, m.bins or 20)  # (o,)
        mu = float((1 - entropy).clamp(0, 1).mean()) if entropy is not None and m.mu == "entropy" else float(m.mu or 0)
        masks, found = self._masks(weight, name, "target")  # (o, m)
        V, anchor = self._target(weight, masks), (self.lam + mu) * bool(m.anchored)
        right = spectral.right_side(weight, V, anchor, self.kept_gram)
        strength, pull = mu, None
        if m.decouple:
            # The released code draws these masks a second time, independently of the target's.
            again = self._masks(weight, name, "decouple")[0] if m.redraw else masks
            pull = self.eta * again.amax(1)  # (o,)
            if m.decoupler == "rows":
                strength, pull = mu + pull[:, None], None
        solved = self.shared.solve(right, strength, pull)
        residual = self.shared.residual(solved, right, strength, pull, self.probe)
        if not residual < RESIDUAL_LIMIT:
            raise BadRequest(f"the equation at {name or 'all sites'} is solved to {residual:.0e} only; raise lam")
        new = self._geometry(solved, weight, mu, entropy)
        numbers = {
            "mu": round(mu, 6), "residual": power_of_ten(residual),
            "saturation": round(information.saturation(found), 4) if found is not None else 0.0,
            "information_values": 0 if found is None else len(found.unique(sorted=False)),
        }  # fmt: skip
        return new, effects(new, weight, *self.looked_at) | numbers | self._system(mu)

    def _target(self, weight: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """V (o, d)."""
        m, V = self.method, torch.zeros_like(weight)
        if m.target != "zero":
            masks = torch.ones_like(masks) if m.target == "full" else masks
            how = {"technique": m.technique or "replace", "interpolate": m.target == "interpolate"}
            try:
                V = spectral.target(weight, self.pairs, masks, self.eta, **how)
            except ValueError as error:
                raise BadRequest(str(error)) from None
        if m.spectral and m.form == "roll-back":
            V = V - (m.residual_scale or self.eta) * spectral.residual_term(weight, self.concepts, self.gate)
        return V

    def _masks(self, weight: torch.Tensor, site: str, purpose: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Informax masks (o, m) and the information (o, m) that they come from."""
        m, draws, rowwise = self.method, None, self.method.mask == "rowwise"
        if m.mask == "off":
            return torch.ones(len(weight), len(self.concepts), dtype=torch.float64), None
        if m.mask != "population":
            size = (len(weight), m.draws or 5) if rowwise else (m.draws or 5, weight.shape[1])
            draws = [self._draws(site, purpose, side, *size) for side in ("positive", "negative")]
        found = information.information(weight, self.concepts, self.neutral, self.sigma, draws, rowwise=rowwise)
        return information.normalise(found, m.normalise or "zscore", power=m.power or 1.0), found

    def _draws(self, site: str, purpose: str, side: str, *size: int) -> torch.Tensor:
        """Standard normal (m, *size), float32 as released; keyed by site, concept and purpose: order is no matter."""
        n = min(len(self.names), torch.get_num_threads())
        out = torch.empty(len(self.names), *size)

        def fill(first: int) -> None:
            for line, name in zip(out[first::n], self.names[first::n], strict=True):
                line.normal_(generator=torch.Generator().manual_seed(seed_of(self.seed, site, name, purpose, side)))

        with ThreadPoolExecutor(n) as pool:  # a generator runs on one core, and drawing is much of the whole edit
            list(pool.map(fill, range(n)))
        return out.double()

    def _geometry(self, new: torch.Tensor, weight: torch.Tensor, mu: float, e: torch.Tensor | None) -> torch.Tensor:
        m = self.method
        if m.geometry == "rows":
            p, q = geometry.row_prox(new, weight, self.lam + mu, mu, m.iterations or 1)
            new = geometry.combine(p, new, q, weight)
        elif m.geometry == "bures" and m.bures:
            new = geometry.bures_step(new, weight, m.bures, m.truncate or 0.0)
        elif m.geometry == "roll-back" and e is not None:
            new = geometry.entropy_rollback(new, weight, e, m.floor or 0.0)
        return geometry.energy_angle_blend(new, weight, (1 - e).clamp(0, 1)) if m.blend and e is not None else new


def _warn(numbers: dict[str, dict[str, float]]) -> None:
    """Say so where the masks tell no channels apart."""
    share = sum(n["saturation"] for n in numbers.values()) / len(numbers)
    if share > SATURATED:
        from efface.errors import EffaceWarning

        text = f"{share:.1%} of the Informax masks are saturated, so power acts as one factor for all; raise sigma"
        warnings.warn(text, EffaceWarning, stacklevel=3)


def _meaning(encoded: Encoded) -> torch.Tensor:
    """The last content row at unit length, less BOS: what is common to all texts tells nothing. (d,)"""
    row = encoded.rows[encoded.count - 2] - encoded.rows[0]
    return torch.nn.functional.normalize(row.double(), dim=0)


def _operator(context: _Context, model: Model, sites: list[str]) -> tuple[Edit, dict[str, dict[str, float]]]:
    """The edit of the identity matrix is I + S; one S serves every site."""
    stream = model.card.doors[0]
    unit = torch.eye(stream.width, dtype=torch.float64)
    new, shared = context.site(unit, "")
    numbers = {}
    for site in sites:
        weight = model.weight(site).cpu().double()  # (o, d)
        numbers[site] = shared | effects(weight @ new, weight, *context.looked_at)
    left, right = spectral.factors(new - unit)
    return Operator(stream.name, left.float().contiguous(), right.float().contiguous(), tuple(sites)), numbers


def _stored(site: str, delta: torch.Tensor) -> Edit:
    """Low rank where the measured rank is smaller, else dense; float32 either way."""
    found = spectral.low_rank(delta)
    if found is None:
        return Dense(site, delta.float())
    return LowRank(site, found[0].float().contiguous(), found[1].float().contiguous())
