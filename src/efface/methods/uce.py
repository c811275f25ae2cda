"""UCE, Unified Concept Editing: one closed-form solve sends the rows of concepts to the rows of their anchors.

Gandikota, Orgad, Belinkov, Materzynska, Bau, "Unified Concept Editing in Diffusion Models", WACV 2024,
arXiv 2308.14761, equations 5 to 7. Edits the keys and values of cross-attention. Two scripts were released and both are
here: one row a text (2025) and all rows from the last content token on (2023, the paper's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from efface.errors import BadRequest
from efface.evidence.needs import Needs
from efface.methods import complete_prompts, finite, require
from efface.numerics.ridge import Ridge, ridge_operator, tensor_delta
from efface.numerics.rows import content_to_end, last_row, tail_pairs
from efface.numerics.spectral import factors
from efface.patch import Dense, Edit, Operator, Patch

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.model.text import Encoded
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["UCE"]

PRESETS: dict[str, dict[str, Any]] = {
    # The 2025 script: one row a text, nothing kept unless named.
    "code": {
        "rows": "last",
        "technique": "replace",
        "erase_scale": 1.0,
        "preserve_scale": 1.0,
        "lam": 0.5,
        "expand": False,
        "guide": "",
        "values_only": False,
        "prompt_file": "",
    },
    "code/style": {"guide": "art"},
    # The 2023 script, the paper's: tail rows; preserve_scale 0 means max(0.1, 1 / number of kept texts).
    "paper": {
        "rows": "tail",
        "technique": "replace",
        "erase_scale": 1.0,
        "preserve_scale": 0.0,
        "lam": 0.5,
        "expand": False,
        "guide": "",
        "values_only": False,
        "prompt_file": "",
    },
    # Ours: all rows but BOS, paired by role, so that EOS and padding no longer carry the concept.
    "efface": {
        "rows": "content-to-end",
        "technique": "replace",
        "erase_scale": 2.0,
        "preserve_scale": 1.0,
        "lam": 0.1,
        "expand": True,
        "guide": "",
        "values_only": False,
        "prompt_file": "",
    },
    "world": {
        "rows": "content-to-end",
        "technique": "replace",
        "erase_scale": 5.0,
        "preserve_scale": 1.0,
        "lam": 0.1,
        "expand": False,
        "guide": "",
        "values_only": False,
        "prompt_file": "",
    },
}

# The released prompt expansion; it applies to concepts and anchors, not to kept texts.
EXPANSIONS = {
    "style": ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "": ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
}


@dataclass(frozen=True)
class UCE:
    """Minimise `sum_E a |W' c - W g|^2 + sum_P b |W' c - W c|^2 + lam |W' - W|^2` over W' (equation 7, with the code's
    ridge and scales).

    rows: "last" (2025), "tail" (2023) or "content-to-end" (ours). technique: "replace" (v* = W g) or "tensor" (that,
    less its part along the old output; 2023). erase_scale a, preserve_scale b (0: the 2023 rule), ridge lam. expand:
    the released prompt expansion. guide: anchor of concepts that name none. values_only: leave the keys alone.
    prompt_file: complete prompts, one a line, for the one concept of kind sensitive.
    """

    rows: Literal["last", "tail", "content-to-end"] | None = None
    technique: Literal["replace", "tensor"] | None = None
    erase_scale: float | None = None
    preserve_scale: float | None = None
    lam: float | None = None
    expand: bool | None = None
    guide: str | None = None
    values_only: bool | None = None
    prompt_file: str | None = None

    def __post_init__(self) -> None:
        require(self, ("erase_scale", "lam"), ("preserve_scale",))

    def ask(self, request: Request, card: Card) -> Needs:
        """The texts of concepts, anchors and kept texts; no pictures, no denoiser. Raises BadRequest, WrongFile."""
        complete_prompts(self, request)
        pairs = [t for c in request.concepts for pair in self._pairs(c, request) for t in pair]
        texts = ("", *pairs, *request.kept_texts)
        return Needs(texts=tuple(dict.fromkeys(texts)), rows="content" if self.rows == "last" else "all")

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """One operator for all keys and values; with technique "tensor" one change a site.

        Raises BadRequest for an equation that rounding spoils or an anchor that leaves no target, WrongFile for rows
        that hold NaN.
        """
        rows, guides, weights, group, erased = self._constraints(evidence, request)
        try:
            ridge = ridge_operator(rows, guides, weights, _set(self.lam), erased=erased)
        except ArithmeticError as error:
            raise BadRequest(str(error)) from None
        sites = [s.name for s in model.card.select(*(("cross.v",) if self.values_only else ("cross.k", "cross.v")))]
        if self.technique == "replace":
            left, right = (ridge.left, ridge.right) if ridge.thin else factors(ridge.operator())  # (d, r)
            stream = model.card.doors[0].name
            edit = Operator(stream, left.float().contiguous(), right.float().contiguous(), tuple(sites))
            return Patch((edit,), {"numbers": _numbers(ridge, weights, left.shape[1])})
        edits: list[Edit] = []
        for site in work.progress(sites, "sites"):
            try:
                delta = tensor_delta(model.weight(site).cpu(), ridge, rows, guides, group)
            except ValueError as error:
                raise BadRequest(str(error)) from None
            edits.append(Dense(site, delta.float()))
        return Patch(tuple(edits), {"numbers": _numbers(ridge, weights, min(ridge.left.shape))})

    def _pairs(self, concept: Concept, request: Request) -> list[tuple[str, str]]:
        """(text, anchor text) of a concept: its name and synonyms, expanded alike."""
        anchor = self.guide or "" if concept.anchor is None else concept.anchor
        if concept.kind == "sensitive":
            return [(line, anchor) for line in complete_prompts(self, request)]
        pairs = [(text, anchor) for text in concept.texts]
        if self.expand:
            forms, names = EXPANSIONS.get(concept.kind, EXPANSIONS[""]), concept.texts
            if concept.kind == "style":  # "painting by Van Gogh", not "painting by Van Gogh style"
                names, anchor = [text.removesuffix(" style") for text in names], anchor.removesuffix(" style")
            # an empty anchor stays the empty text: "image of" alone would itself be a concept
            pairs += [(f.format(n), f.format(anchor) if anchor else "") for n in names for f in forms]
        return pairs

    def _constraints(
        self, evidence: Evidence, request: Request
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """rows (n, d), guides (n, d), weights (n,), number of the concept text (n,), erased (n,)."""
        blocks = []
        for concept in request.concepts:
            for text, anchor in self._pairs(concept, request):
                pair = self._rows(finite(evidence.text(text)), finite(evidence.text(anchor)))
                blocks.append((*pair, _set(self.erase_scale), True))
        for encoded in self._kept(evidence, request):
            kept = last_row(encoded.rows, encoded.count - 2) if self.rows == "last" else encoded.rows
            kept = content_to_end(kept) if self.rows == "content-to-end" else kept
            blocks.append((kept, kept, self._preserve(request), False))
        rows = torch.cat([b[0] for b in blocks]).double()  # (n, d)
        guides = torch.cat([b[1] for b in blocks]).double()
        sizes = torch.tensor([len(b[0]) for b in blocks])
        weights = torch.tensor([b[2] for b in blocks], dtype=torch.float64).repeat_interleave(sizes)
        group = torch.arange(len(blocks)).repeat_interleave(sizes)
        erased = torch.tensor([b[3] for b in blocks]).repeat_interleave(sizes)
        return rows, guides, weights, group, erased

    def _rows(self, concept: Encoded, anchor: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rows == "last":
            return last_row(concept.rows, concept.count - 2), last_row(anchor.rows, anchor.count - 2)
        if self.rows == "tail":
            return tail_pairs(concept.rows, concept.count - 2, anchor.rows, anchor.count - 2)
        return aligned(concept, anchor)

    def _kept(self, evidence: Evidence, request: Request) -> list[Encoded]:
        """Kept texts; the empty text belongs to them wherever padding is edited."""
        texts = request.kept_texts if self.rows == "last" else tuple(dict.fromkeys(("", *request.kept_texts)))
        return [finite(evidence.text(t)) for t in texts]

    def _preserve(self, request: Request) -> float:
        return _set(self.preserve_scale) or max(0.1, 1 / (1 + len(request.kept_texts)))


def aligned(concept: Encoded, anchor: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows but BOS of a concept, each with the anchor's row of the same role: content, EOS, padding."""
    from efface.numerics.rows import aligned_guide_index

    index = aligned_guide_index(len(concept.rows), concept.count - 2, anchor.count - 2)
    return content_to_end(concept.rows), anchor.rows[index]


def _set(value: float | None) -> float:
    if value is None:
        raise TypeError("resolve(method, request, card) comes before ask and solve")
    return value


def _numbers(ridge: Ridge, weights: torch.Tensor, rank: int) -> dict[str, float | int | str]:
    return {
        "condition": float(f"{ridge.condition:.6g}"),
        "residual": float(f"{ridge.residual:.2g}"),
        "rank": rank,
        "constraints": len(weights),
        "solver": ridge.solver,
    }
