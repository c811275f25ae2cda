"""UCE, Unified Concept Editing: one closed-form solve sends the rows of concepts to the rows of their anchors.

Gandikota, Orgad, Belinkov, Materzynska, Bau, "Unified Concept Editing in Diffusion Models", WACV 2024,
arXiv 2308.14761, equations 5 to 7. Edits the keys and values of cross-attention. Two scripts were released and both are
here: one row a text (2025) and all rows from the last content token on (2023, the paper's). Over W' it minimises

    sum_E a |W' c - W g|^2 + sum_P b |W' c - W c|^2 + lam |W' - W|^2

which is equation 7 with the code's ridge and scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import BadRequest
from efface.evidence.needs import Needs
from efface.methods import require
from efface.methods._constraints import Texts, by_door, chosen, complete_prompts, erased, kept
from efface.model.card import Door
from efface.numerics.ridge import Ridge, ridge_operator, tensor_delta
from efface.numerics.spectral import factors
from efface.patch import Answer, Dense, Edit, Operator

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.request import Request
    from efface.work import Work

__all__ = ["PRESETS", "UCE"]


@dataclass(frozen=True)
class UCE:
    """The defaults are those of the 2025 script: one row a text, nothing kept unless named."""

    rows: Literal["last", "tail", "content-to-end"] = "last"
    """Which rows of a text are sent to those of its anchor: the last content row (2025), all from it on (2023), or all
    but the start's, paired by role, so that end and padding no longer carry the concept (ours)."""
    technique: Literal["replace", "tensor"] = "replace"
    """Outputs of the anchor as they are, or less their part along the concept's own (2023)."""
    erase_scale: float = 1.0
    """a, the weight of a text to erase."""
    preserve_scale: float | Literal["rule"] = 1.0
    """b, the weight of a kept text; the rule of the 2023 script is max(0.1, 1 / number of kept texts)."""
    lam: float = 0.5
    """The ridge: how strongly a weight is pulled to its old value."""
    expand: bool = False
    """Whether concepts and anchors, but not kept texts, also come in the released wordings."""
    guide: str = ""
    """Anchor of concepts that name none."""
    values_only: bool = False
    """Leaves the keys alone."""
    prompt_file: str = ""
    """File of complete prompts, one a line, for the one concept of kind sensitive."""

    def __post_init__(self) -> None:
        require(self, "erase_scale", "lam", above=0)
        require(self, "preserve_scale", least=0)

    @property
    def texts(self) -> Texts:
        return Texts(self.rows, "code" if self.expand else "none", self.guide, self.prompt_file)

    def ask(self, request: Request, card: Card) -> Needs:
        """The texts of concepts, anchors and kept texts; no pictures, no denoiser. Raises BadRequest, WrongFile."""
        complete_prompts(self, request)
        pairs = [t for c in request.concepts for pair in self.texts.pairs(c, request) for t in pair]
        texts = ("", *pairs, *request.kept_texts)
        return Needs(texts=tuple(dict.fromkeys(texts)), rows="content" if self.rows == "last" else "all")

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """One operator for all keys and values of a door; with technique "tensor" one change a site.

        Raises BadRequest for an equation that rounding spoils or an anchor that leaves no target, WrongFile for rows
        that hold NaN.
        """
        edits: list[Edit] = []
        numbers = {}
        for door in model.card.doors:
            found = self.constraints(evidence, request, door)
            try:
                ridge = ridge_operator(found.rows, found.guides, found.weights, self.lam, erased=found.erased)
            except ArithmeticError as error:
                raise BadRequest(str(error)) from None
            sites = chosen(model.card, door, "values" if self.values_only else "both")
            rank = min(ridge.left.shape)
            if self.technique == "replace":
                left, right = (ridge.left, ridge.right) if ridge.thin else factors(ridge.operator())  # (d, r)
                edits.append(Operator(door.name, left.float().contiguous(), right.float().contiguous(), tuple(sites)))
                rank = left.shape[1]
            else:
                edits += [
                    _tensor(model.weight(site).cpu(), site, ridge, found) for site in work.progress(sites, "sites")
                ]
            numbers[door.name] = _numbers(ridge, len(found.weights), rank)
        return Answer(tuple(edits), by_door(numbers))

    def constraints(self, evidence: Evidence, request: Request, door: Door) -> Constraints:
        """What a door's equation is made of."""
        blocks = [(b.rows, b.guides, self.erase_scale) for b in erased(evidence, request, self.texts, door)]
        stays = [r for streams in kept(evidence, self._kept(request), self.rows, door) for r in streams]
        first = len(blocks)
        blocks += [(r, r, self.preserve(request)) for r in stays]
        sizes = torch.tensor([len(rows) for rows, _, _ in blocks])
        return Constraints(
            rows=torch.cat([rows for rows, _, _ in blocks]).double(),
            guides=torch.cat([guides for _, guides, _ in blocks]).double(),
            weights=torch.tensor([w for _, _, w in blocks], dtype=torch.float64).repeat_interleave(sizes),
            group=torch.arange(len(blocks)).repeat_interleave(sizes),
            erased=(torch.arange(len(blocks)) < first).repeat_interleave(sizes),
        )

    def _kept(self, request: Request) -> tuple[str, ...]:
        """Kept texts; the empty text belongs to them wherever padding is edited."""
        return request.kept_texts if self.rows == "last" else tuple(dict.fromkeys(("", *request.kept_texts)))

    def preserve(self, request: Request) -> float:
        """Weight of a kept text."""
        if isinstance(self.preserve_scale, str):
            return max(0.1, 1 / (1 + len(request.kept_texts)))
        return self.preserve_scale


class Constraints(NamedTuple):
    """Rows and what they shall become, erased ones first."""

    rows: Tensor  # (n, d)
    guides: Tensor  # (n, d)
    weights: Tensor  # (n,)
    group: Tensor  # (n,) number of the text
    erased: Tensor  # (n,)


def _tensor(weight: Tensor, site: str, ridge: Ridge, found: Constraints) -> Dense:
    """The change of one weight (o, d) with technique "tensor"."""
    try:
        return Dense(site, tensor_delta(weight, ridge, found.rows, found.guides, found.group).float())
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _numbers(ridge: Ridge, constraints: int, rank: int) -> dict[str, float | int | str]:
    return {
        "condition": float(f"{ridge.condition:.6g}"),
        "residual": float(f"{ridge.residual:.2g}"),
        "rank": rank,
        "constraints": constraints,
        "solver": ridge.solver,
    }


PRESETS: dict[str, UCE] = {
    "code": UCE(),  # the 2025 script
    "code/style": UCE(guide="art"),
    "paper": UCE(rows="tail", preserve_scale="rule"),  # the 2023 script
    "efface": UCE(rows="content-to-end", erase_scale=2.0, lam=0.1, expand=True),
    "world": UCE(rows="content-to-end", erase_scale=5.0, lam=0.1),
}
PLUGIN = UCE
