"""KSCU, Key Step Concept Unlearning: fine-tune at the late steps only, where a concept takes its form.

Zhang, Lin, Zhao, Yang, Wang, Shen, "Concept Unlearning by Modeling Key Steps of Diffusion Process", arXiv 2507.06526.
Negative guidance at a creeping window of key steps, with a dynamic target for the empty text. Two releases, 2025
(`code-2025`) and 2026 (`code`); what is marked "ours" is off in both.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from efface import prompts
from efface.errors import BadRequest, EffaceWarning
from efface.evidence.needs import Needs
from efface.methods._constraints import anchor_of, complete_prompts
from efface.methods._key_steps import KeySteps, Loss, Optimiser, Pool, Schedule, Subject, Trajectory, Tuning
from efface.patch import Answer
from efface.training.loop import Net, train
from efface.training.scopes import sites_of

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["KSCU", "PRESETS"]


@dataclass(frozen=True)
class KSCU(Tuning):
    """One update at latent z, key step i, concept c; p, n frozen, a, u tuned predictions for c and the empty text:
    `mean((a - (n - g (p - n)))^2) + lambda_2 mean((u - (n - lambda_1(i) (p - n)))^2)`.

    With an anchor r, p - n becomes p - e(r) (ours).
    """

    guide: str = ""
    """Anchor of concepts that name none."""
    expand: Literal["none", "sentence"] = "none"
    """Whether visits take short sentences around the name in turn (ours)."""
    prompt_file: str = ""
    """File of complete prompts, one a line, for the one concept of kind sensitive."""

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, request: Request, card: Card) -> Needs:
        """Texts of concepts, anchors and kept texts, and the empty text; the denoiser is trained."""
        self.sites(card)
        card.walked_by("DDIMScheduler")
        complete_prompts(self, request)
        for concept in request.concepts:
            own = {t.casefold() for t in (*concept.texts, *self.texts(concept, request))}
            if anchor_of(concept, self.guide).casefold() in own:
                what = "setting 'guide'" if concept.anchor is None else "the anchor"
                raise BadRequest(f"{what} of {concept.name!r} is what is to be erased; name another")
        texts = {t for c in request.concepts for t in (*self.texts(c, request), anchor_of(c, self.guide))}
        kept = set(request.kept_texts) if self.loss.keep_weight else set()
        return Needs(texts=tuple(sorted({"", *texts, *kept})), denoiser=True)

    def sites(self, card: Card) -> tuple[str, ...]:
        """Weights and biases of the scope's modules; adapters go on weights alone. Raises BadRequest for none."""
        return sites_of(card, self.optimiser.scope, biases=not self.optimiser.rank)

    def texts(self, concept: Concept, request: Request) -> tuple[str, ...]:
        """What a concept's visits are conditioned on, in turn. Raises BadRequest, WrongFile."""
        if concept.kind == "sensitive":
            return tuple(complete_prompts(self, request))
        forms = ["{}"]
        if self.expand == "sentence":
            forms = prompts.load("kscu")["sentences"]["style" if concept.kind == "style" else "object"]
        return tuple(form.format(text) for form in forms for text in concept.texts)

    # --- solving -------------------------------------------------------------------------------------------------

    def subjects(self, request: Request) -> list[Subject]:
        """What is unlearned, in the order of its visits."""
        given = self.schedule.order == "given"
        concepts = list(request.concepts) if given else sorted(request.concepts, key=lambda c: c.name)
        return [Subject(c, self.texts(c, request), anchor_of(c, self.guide)) for c in concepts]

    def objective(self, model: Model, evidence: Evidence, request: Request, net: Net, work: Work) -> KeySteps:
        """The loss of every update, with its latents. Raises BadRequest, WrongFile."""
        kept = sorted(request.kept_texts) if self.loss.keep_weight else []
        return KeySteps(self, self.subjects(request), kept, model, evidence, net, work)

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """Train, and return what changed. Raises NothingChanged where the model does not tell concept from anchor."""
        for site in model.card.sites:  # a damaged weight elsewhere would ruin every prediction: find it before training
            model.weight(site.name)
        optimiser = self.optimiser
        dtype = torch.bfloat16 if optimiser.weights == "bfloat16" else None
        if dtype:
            warnings.warn("bfloat16 weights lose most updates; float32 keeps them", EffaceWarning, stacklevel=2)
        adapters: dict[str, Any] = {"rank": optimiser.rank, "checkpointing": optimiser.checkpointing, "rng": work.rng}
        net = Net(model, self.sites(model.card), dtype=dtype, **adapters)
        steps = self.objective(model, evidence, request, net, work)
        adam = torch.optim.Adam(net.parameters, lr=optimiser.learning_rate)
        about = asdict(self) | {"concepts": [asdict(s.concept) for s in steps.subjects], "seed": work.seed}
        about |= {"model": model.identity, "table": steps.table_hash, "keep": list(steps.kept)}
        list(train(net, steps, adam, len(steps.table), work, about, team=steps.team))
        return Answer(net.edits(), steps.numbers(net))


# --- presets ---------------------------------------------------------------------------------------------------------


def _style(method: KSCU) -> KSCU:
    schedule = replace(method.schedule, updates=500, first_step=24)
    if not isinstance(schedule.updates_several, str):
        schedule = replace(schedule, updates_several=500)
    return replace(method, schedule=schedule, optimiser=replace(method.optimiser, scope="xattn"))


def _person(method: KSCU) -> KSCU:
    schedule = replace(method.schedule, updates=200, first_step=40)
    return replace(method, schedule=schedule, optimiser=replace(method.optimiser, scope="xattn"))


def _dense(method: KSCU) -> KSCU:
    return replace(method, optimiser=replace(method.optimiser, rank=0, learning_rate=1e-5))


_2026 = KSCU()
_2025 = KSCU(
    schedule=Schedule(first_step=15, cap=49),
    loss=Loss(rule="index", slope=1e-4, empty_weight=2e-5),
    trajectory=Trajectory(start="fresh"),
    pool=Pool("mixed", augment=0.0),
)
_PAPER = replace(_2025, pool=Pool("mixed"))
_OURS = KSCU(
    schedule=Schedule(updates_several="each", order="shuffle"),
    optimiser=Optimiser(rank=16, learning_rate=1e-4),
    trajectory=Trajectory(advance="lagged", noise="named"),
)
_WORLD = replace(
    _OURS,
    schedule=replace(_OURS.schedule, updates=120, steps=20, first_step=6, loops=2),
    optimiser=Optimiser(scope="xattn", learning_rate=2e-4),
    loss=Loss(negative_guidance=0.25, keep_weight=2.0),
    expand="sentence",
)
PRESETS: dict[str, KSCU] = {
    "code": _2026,
    "code/style": _style(_2026),
    "code/person": _person(_2026),
    "code-2025": _2025,
    "code-2025/style": _style(_2025),
    "code-2025/person": _person(_2025),
    "paper": _PAPER,
    "paper/style": _style(_PAPER),
    "paper/person": _person(_PAPER),
    "efface": _OURS,
    "efface/style": _dense(_style(_OURS)),
    "efface/person": _dense(_person(_OURS)),
    "world": _WORLD,
    "world/style": replace(_WORLD, schedule=replace(_WORLD.schedule, first_step=10)),
}
PLUGIN = KSCU
