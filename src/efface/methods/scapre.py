"""ScaPre: scalable and precise concept unlearning in closed form.

Deng, Li, Xiao, Hui, Ma, "Forget Many, Forget Right: Scalable and Precise Concept Unlearning in Diffusion Models",
ICLR 2026, arXiv 2601.06162: spectral trace regulariser, Bures geometry alignment, Informax decoupler. This is its
large-scale form, as released (preset `code`); what is marked "ours" belongs to the presets `efface` and `world`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from efface.methods import require
from efface.needs import Needs
from efface.numerics import geometry, information, spectral
from efface.numerics.rows import aligned_guide_index, content_to_end, last_row, tail_pairs
from efface.patch import Dense, Edit, LowRank, Operator, Patch
from efface.work import Work, seed_of

if TYPE_CHECKING:
    from efface.evidence import Evidence
    from efface.model import Encoded, Model
    from efface.request import Concept, Request
    from efface.sites import Card

__all__ = ["ScaPre"]

_CODE: dict[str, Any] = {
    "rows": "tail", "expand": "none", "companions": 0, "guide": "",
    "anchor": "guide", "balance": False, "erase_scale": 3.0, "lam": 0.5, "keep_scale": 0.0,
    "mask": "code", "normalise": "zscore", "power": 5.0, "sigma": 0.01, "negatives": "empty", "samples": 20,
    "target": "mask", "concept_gram": True, "decouple": True, "spectral": False, "temperature": 1.0,
    "spectral_power": 1.0, "geometry": "rows", "iterations": 1, "bures": 0.0, "mu": "entropy", "relative": False,
}  # fmt: skip
_EFFACE: dict[str, Any] = _CODE | {
    "rows": "content-to-end", "expand": "sentence", "companions": 32,
    "anchor": "nearest", "balance": True, "erase_scale": 20.0, "lam": 0.05, "keep_scale": 1.0,
    "mask": "off", "normalise": "unit", "power": 1.0, "sigma": 0.003, "negatives": "keep", "target": "interpolate",
    "concept_gram": False, "decouple": False, "geometry": "bures", "bures": 0.0, "mu": 0.0, "relative": True,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {"code": _CODE, "efface": _EFFACE, "world": _EFFACE}

# Sentences around a concept (ours). The second form is what an empty anchor leaves of it.
SENTENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "style": (("{} style", ""), ("in {} style", ""), ("a picture in {} style", "a picture")),
    "": (("{}", ""), ("a {}", ""), ("a picture of a {}", "")),
}


@dataclass(frozen=True)
class ScaPre:
    """Rows w_i solve `w_i (lam + mu) I + R + G + a_i Pi_C = (lam + mu) w0_i + V_i`, then move back towards w0_i.

    rows: context rows: "tail" (code), "last", or "content-to-end" paired by role (ours). expand: "none" or "sentence"
    (ours: short sentences around each name). companions: kept texts that an erased style is taken away from (ours;
    "a cat in noto style" -> "a cat"). guide: anchor of concepts that name none. anchor: "nearest"
    (ours) sends objects without an anchor to the closest kept text instead. balance: every concept weighs the same,
    however many texts it has (ours). erase_scale: eta. lam: ridge.
    keep_scale: weight of kept texts and the empty text in the equation (ours; 0 is the code's, which ignores them).
    mask: Informax by "code" draws, "population" limit or "off"; normalise: "zscore" (code), "max" (paper), "unit"
    (ours); power, sigma, samples as in the code; negatives: "empty" (code) or "keep" (ours). target: "mask" multiplies
    the target (code), "interpolate" (ours) leaves masked-out channels as they are. concept_gram: add C C^T. decouple:
    penalise inside span(C). spectral, temperature, spectral_power: the spectral term. geometry: "rows" (code, with
    iterations), "bures" (full step of length `bures`), "none". mu: a number or "entropy", the code's. relative: lam and
    sigma are in units of the rows' root mean square norm, squared for lam (ours), so that settings carry over to other
    text encoders.
    """

    rows: Literal["tail", "last", "content-to-end"] | None = None
    expand: Literal["none", "sentence"] | None = None
    companions: int | None = None
    guide: str | None = None
    anchor: Literal["guide", "nearest"] | None = None
    balance: bool | None = None
    erase_scale: float | None = None
    lam: float | None = None
    keep_scale: float | None = None
    mask: Literal["code", "population", "off"] | None = None
    normalise: Literal["zscore", "max", "unit"] | None = None
    power: float | None = None
    sigma: float | None = None
    negatives: Literal["empty", "keep"] | None = None
    samples: int | None = None
    target: Literal["mask", "interpolate"] | None = None
    concept_gram: bool | None = None
    decouple: bool | None = None
    spectral: bool | None = None
    temperature: float | None = None
    spectral_power: float | None = None
    geometry: Literal["rows", "bures", "none"] | None = None
    iterations: int | None = None
    bures: float | None = None
    mu: float | Literal["entropy"] | None = None
    relative: bool | None = None

    def __post_init__(self) -> None:
        positive = ("erase_scale", "lam", "power", "sigma", "samples", "temperature", "spectral_power", "iterations")
        require(self, positive, ("keep_scale", "bures", "mu"))

    def ask(self, request: Request, card: Card) -> Needs:
        """The texts of concepts, anchors and kept texts, and the empty text; no pictures, no denoiser."""
        pairs = [t for c in request.concepts for pair in self._pairs(c, request) for t in pair]
        return Needs(texts=tuple(dict.fromkeys(("", *pairs, *self._kept_texts(request)))))

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """One operator where nothing depends on the weight, else one change a site, low rank where that is smaller."""
        context = _Context(self, evidence, self._anchored(request, evidence))
        sites = model.card.select("cross.k", "cross.v")
        if self._one_operator:
            edit, numbers = _operator(context, model, [s.name for s in sites], work)
            return Patch((edit,), {"numbers": {"shared": context.numbers, "sites": numbers}})
        edits: list[Edit] = []
        numbers = {}
        for site in work.progress(sites, "sites"):
            weight = model.weight(site.name).double().cpu()  # (o, d)
            new, numbers[site.name] = context.site(weight, site.name, work)
            edits.append(_stored(site.name, new - weight))
        return Patch(tuple(edits), {"numbers": {"shared": context.numbers, "sites": numbers}})

    @property
    def _one_operator(self) -> bool:
        """Without masks, entropy and geometry step nothing depends on the weight: `W' = W (I + S)` at every site."""
        still = self.geometry == "none" or (self.geometry == "bures" and not self.bures)
        return self.mask == "off" and still and self.mu != "entropy"

    def _pairs(self, concept: Concept, request: Request) -> list[tuple[str, str]]:
        """(text, anchor text) of a concept, its synonyms and the sentences around them."""
        anchor = self.guide or "" if concept.anchor is None else concept.anchor
        pairs = [(text, anchor) for text in concept.texts]
        if self.expand != "sentence":
            return pairs
        style = concept.kind == "style"
        for text in concept.texts:
            name = text.removesuffix(" style") if style else text
            for form, bare in SENTENCES["style" if style else ""][1:]:
                pairs.append((form.format(name), form.format(anchor) if anchor else bare))
        if not style or not self.companions or not request.kept_texts:
            return pairs
        # taken away from things that stay, a style leaves them as they are; alone it would take them along
        names = [text.removesuffix(" style") for text in concept.texts]
        kept = _spread(request.kept_texts, self.companions)
        new = f"a {{}} in {anchor} style" if anchor else "a {}"
        return [(f"a {k} in {n} style", new.format(k)) for n in names for k in kept]

    def _anchored(self, request: Request, evidence: Evidence) -> Request:
        """With anchor "nearest": every object without an anchor of its own goes to the kept text closest to it."""
        if self.anchor != "nearest" or not request.kept_texts:
            return request
        kept = torch.stack([_meaning(evidence.text(text)) for text in request.kept_texts])  # (k, d)

        def settled(concept: Concept) -> Concept:
            if concept.kind == "style" or concept.anchor is not None:
                return concept
            closest = int((kept @ _meaning(evidence.text(concept.name))).argmax())
            return replace(concept, anchor=request.kept_texts[closest])

        return replace(request, concepts=tuple(settled(c) for c in request.concepts))

    def _kept_texts(self, request: Request) -> tuple[str, ...]:
        """Texts that keep their outputs: the empty text and, around every kept text, the same sentences."""
        forms = [form for form, _ in SENTENCES[""]] if self.expand == "sentence" else ["{}"]
        return ("", *(f.format(text) for text in request.kept_texts for f in forms))


class _Context:
    """What all sites share: rows, concept vectors, the factorisation, negatives. One text stream."""

    def __init__(self, method: ScaPre, evidence: Evidence, request: Request) -> None:
        self.method = method
        self.names: list[str] = []
        blocks, guides, firsts = [], [], []
        for concept in request.concepts:
            pairs = method._pairs(concept, request)
            weight = (1 / len(pairs)) ** 0.5 if method.balance else 1.0
            for text, anchor in pairs:
                x, g = _paired(method.rows, evidence.text(text), evidence.text(anchor))
                blocks.append(weight * x.double())
                guides.append(weight * g.double())
                firsts.append(last_row(evidence.text(text).rows, evidence.text(text).count - 2)[0])
                self.names.append(text)
        self.pairs = spectral.pair_rows(blocks, guides)
        self.concepts = torch.stack(firsts).double()  # (m, d)
        kept = [evidence.text(t) for t in method._kept_texts(request)]
        self.kept = torch.cat([content_to_end(e.rows) for e in kept]).double() if method.keep_scale else None
        self.empty = evidence.text("").rows[1].double()  # EOS of the empty text
        named = [last_row(e.rows, e.count - 2)[0].double() for e in kept if e.text]
        self.neutral = torch.stack(named) if method.negatives == "keep" and named else self.empty
        scale = float(self.concepts.square().sum(1).mean().sqrt()) if method.relative else 1.0
        self.lam, self.sigma = float(method.lam or 0.0) * scale**2, float(method.sigma or 0.0) * scale
        self._factor()

    def _factor(self) -> None:
        m, stacked = self.method, self.pairs.stacked()
        rows = [(stacked, float(m.erase_scale or 0.0))]
        if m.concept_gram:
            rows.append((self.concepts, 1.0))
        if self.kept is not None:
            rows.append((self.kept, float(m.keep_scale or 0.0)))
        weights = torch.cat([torch.full((len(r),), w, dtype=torch.float64) for r, w in rows])
        gate = spectral.Gate(m.temperature or 1.0, m.spectral_power or 1.0) if m.spectral else None
        self.shared = spectral.shared_factor(torch.cat([r for r, _ in rows]), weights, self.lam, self.concepts, gate)
        self.kept_gram = None if self.kept is None else float(m.keep_scale or 0.0) * self.kept.T @ self.kept
        values = self.shared.values
        self.numbers = {
            "condition": float(f"{float(values.max() / values.min()):.6g}"),
            "concepts": len(self.concepts),
            "rows": len(stacked),
            "kept_rows": 0 if self.kept is None else len(self.kept),
        }

    def site(self, weight: torch.Tensor, name: str, work: Work) -> tuple[torch.Tensor, dict[str, float]]:
        """The edited weight (o, d) of one site and its numbers."""
        m = self.method
        mu = float(m.mu or 0.0) if m.mu != "entropy" else self._entropy_mu(weight, name, work)
        masks, saturation = self._masks(weight, name, "target", work)  # (o, m)
        eta = float(m.erase_scale or 0.0)
        target = spectral.target(weight, self.pairs, masks, eta, interpolate=m.target == "interpolate")
        pull = None
        if m.decouple:
            # The released code draws these masks a second time, independently of the target's.
            pull = eta * self._masks(weight, name, "decouple", work)[0].amax(1)
        solved = spectral.solve_site(weight, self.shared, target, mu, pull, self.kept_gram)
        new = self._geometry(solved, weight, mu)
        return new, self.sanity(weight, new) | {"mu": round(mu, 6), "saturation": round(saturation, 4)}

    def _masks(self, weight: torch.Tensor, site: str, purpose: str, work: Work) -> tuple[torch.Tensor, float]:
        m = self.method
        if m.mask == "off":
            return torch.ones(len(weight), len(self.concepts), dtype=torch.float64), 0.0
        if m.mask == "population":
            found = information.population_information(weight, self.concepts, self.neutral, self.sigma)
        else:
            draws = [self._draws(site, purpose, side, 5, work) for side in ("positive", "negative")]
            neutral = self.neutral if self.neutral.ndim == 1 else _round_robin(self.neutral, 5)
            found = information.code_information(weight, self.concepts, neutral, draws[0], draws[1], self.sigma)
        how, power = m.normalise or "zscore", m.power or 1.0
        return information.normalise(found, how, power=power), information.saturation(found)

    def _entropy_mu(self, weight: torch.Tensor, site: str, work: Work) -> float:
        """Mean over rows of what the entropy factor leaves."""
        m = self.method
        draws = self._draws(site, "entropy", "", m.samples or 20, work)
        spread = information.entropy_factor(weight, self.concepts, draws, self.sigma, 20)
        return float((1 - spread).clamp(0, 1).mean())

    def _draws(self, site: str, purpose: str, side: str, n: int, work: Work) -> torch.Tensor:
        """Standard normal (m, n, d), keyed by site, concept and purpose: order and subset of concepts do not matter."""
        d = self.concepts.shape[1]
        made = []
        for concept in self.names:
            generator = torch.Generator().manual_seed(seed_of(work.seed, site, concept, purpose, side))
            made.append(torch.randn(n, d, generator=generator, dtype=torch.float64))
        return torch.stack(made)

    def _geometry(self, new: torch.Tensor, weight: torch.Tensor, mu: float) -> torch.Tensor:
        m = self.method
        if m.geometry == "rows":
            p, q = geometry.row_prox(new, weight, self.lam + mu, mu, m.iterations or 1)
            return geometry.combine(p, new, q, weight)
        if m.geometry == "bures" and m.bures:
            return geometry.bures_step(new, weight, m.bures)
        return new

    def sanity(self, weight: torch.Tensor, new: torch.Tensor) -> dict[str, float]:
        """What is left of the concepts' outputs, and how far the empty text's moved."""
        left = (self.concepts @ new.T).norm() / (self.concepts @ weight.T).norm()
        moved = (self.empty @ (new - weight).T).norm() / (self.empty @ weight.T).norm()
        change = (new - weight).norm() / weight.norm()
        return {
            k: float(f"{float(v):.6g}")
            for k, v in (("concept_output", left), ("empty_text_change", moved), ("relative_change", change))
        }


def _meaning(encoded: Encoded) -> torch.Tensor:
    """The last content row at unit length, less BOS: what is common to all texts tells nothing. (d,)"""
    row = encoded.rows[encoded.count - 2] - encoded.rows[0]
    return torch.nn.functional.normalize(row.double(), dim=0)


def _spread(texts: tuple[str, ...], n: int) -> tuple[str, ...]:
    """At most n of the texts, evenly spread over the list."""
    n = min(n, len(texts))
    return tuple(texts[i * len(texts) // n] for i in range(n))


def _paired(rows: str | None, concept: Encoded, anchor: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Context rows (T, d) and guide rows (T, d) of one text."""
    if rows == "last":
        return last_row(concept.rows, concept.count - 2), last_row(anchor.rows, anchor.count - 2)
    if rows == "tail":
        return tail_pairs(concept.rows, concept.count - 2, anchor.rows, anchor.count - 2)
    index = aligned_guide_index(len(concept.rows), concept.count - 2, anchor.count - 2)
    return content_to_end(concept.rows), anchor.rows[index]


def _round_robin(rows: torch.Tensor, n: int) -> torch.Tensor:
    """n rows (n, d), the given ones in turn."""
    return rows[torch.arange(n) % len(rows)]


def _operator(
    context: _Context, model: Model, sites: list[str], work: Work
) -> tuple[Edit, dict[str, dict[str, float]]]:
    """The edit of the identity matrix is I + S; one S serves every site."""
    stream = model.card.streams[0]
    unit = torch.eye(stream.width, dtype=torch.float64)
    new, shared = context.site(unit, "", work)
    numbers = {}
    for site in sites:
        weight = model.weight(site).double().cpu()  # (o, d)
        numbers[site] = shared | context.sanity(weight, weight @ new)
    found = spectral.low_rank(new - unit, 1e-6)
    left, right = (new - unit, unit) if found is None else (found[0], found[1].T)
    return Operator(stream.name, left.float().contiguous(), right.float().contiguous(), tuple(sites)), numbers


def _stored(site: str, delta: torch.Tensor) -> Edit:
    """Low rank where the measured rank is smaller, else dense; float32 either way."""
    found = spectral.low_rank(delta, 1e-6)
    if found is None:
        return Dense(site, delta.float())
    return LowRank(site, found[0].float().contiguous(), found[1].float().contiguous())
