"""Negative prompt: the unconditional side of guidance says what shall not be drawn, instead of nothing.

Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv 2207.12598, section 3.2, with a text in place of the
empty one, as all pipelines offer it. No weight changes, so it is the baseline of every guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from efface.errors import Unavailable
from efface.evidence.needs import Needs
from efface.methods._constraints import complete_prompts
from efface.model.places import Call, Rows, Step
from efface.model.text import Context
from efface.patch import Answer, Guard

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.request import Request
    from efface.work import Work

__all__ = ["PRESETS", "NegativePrompt", "Rule"]


@dataclass(frozen=True)
class NegativePrompt:
    """One guard at the place `prompt`; anchors and kept texts have no part in it."""

    text: str = ""
    """What shall not be drawn; empty for the names and synonyms of the concepts, with commas between."""
    prompt_file: str = ""
    """File of complete prompts, one a line, for the one concept of kind sensitive."""

    def ask(self, request: Request, card: Card) -> Needs:
        """Nothing: the text is encoded when pictures are drawn. Raises BadRequest, WrongFile, and Unavailable for a
        model that has no unconditional side."""
        if card.guidance <= 1 or card.blank == "nothing":
            raise Unavailable(f"{card.name} draws without an unconditional side, which a negative prompt needs")
        complete_prompts(self, request)
        return Needs()

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """One guard."""
        return Answer((Guard("negative-prompt", {"text": self.text or self._names(request)}),))

    def _names(self, request: Request) -> str:
        own = complete_prompts(self, request)
        named = [t for c in request.concepts for t in (own if c.kind == "sensitive" else c.texts)]
        return ", ".join(dict.fromkeys(named))


@dataclass(frozen=True)
class Rule:
    """Unconditional rows moved towards the row of a text: at strength 1 they are replaced."""

    settings: Mapping[str, Any]  # text: what shall not be drawn
    values: Mapping[str, torch.Tensor]
    strength: float
    place: str = "prompt"

    def start(self, call: Call) -> Context:
        """The row of the text."""
        return call.network.context([str(self.settings["text"])])

    def at(self, step: Step, state: Context, value: Rows, site: str) -> Rows:
        """The same rows, the unconditional ones moved."""
        return replace(value, context=value.context.moved(value.where("uncond"), state, self.strength))


PRESETS: dict[str, NegativePrompt] = {"efface": NegativePrompt(), "world": NegativePrompt()}
PLUGIN = NegativePrompt
