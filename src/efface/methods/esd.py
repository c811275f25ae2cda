"""ESD, Erased Stable Diffusion: fine-tune until the concept is predicted as what guidance turns away from it.

Gandikota, Materzynska, Fiotto-Kaufman, Bau, "Erasing Concepts from Diffusion Models", ICCV 2023, arXiv 2303.07345,
equation 7. It needs no pictures: targets are predictions of the frozen network at latents that a network draws. The
release of 2023 (`paper`) and the rewrite of 2025 (`code`) differ in who draws them and at which time they are seen.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import BadRequest, EffaceWarning, NothingChanged
from efface.evidence.needs import Needs
from efface.methods import require
from efface.methods._constraints import anchor_of, complete_prompts, finite
from efface.model.devices import Team
from efface.patch import Answer
from efface.training.loop import Net, train
from efface.training.trajectories import Ask, predictions

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card, Site
    from efface.model.text import Context
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["ESD", "PRESETS", "Latents"]

SIGNAL = 1e-12  # below this share of the mean square, concept and anchor are the same to the model
Scope = Literal["x", "x-strict", "u", "all"]


@dataclass(frozen=True)
class Latents:
    """Where the latents of updates come from."""

    drawn_by: Literal["frozen", "own"] = "frozen"
    """The untouched network (2025), or the one in training (2023), whose latents drift as it forgets."""
    steps: int = 50
    """N, the steps of the sampler."""
    guidance: float = 3.0
    """Of its steps."""
    sampler: Literal["ddim", "model"] = "ddim"
    """DDIM without noise (2023), or the model's own scheduler (2025)."""
    time: Literal["matched", "bins"] = "matched"
    """The time of the latent (2025), or one of those that lie T k / N to T (k + 1) / N below the top (2023)."""
    walks: int = 0
    """Ways from noise to picture that are drawn whole and looked at in mixed order, every step once (ours); 0 draws one
    anew for every update, as released, which costs about ten times more."""

    def __post_init__(self) -> None:
        require(self, "steps", least=1)
        require(self, "guidance", "walks", least=0)
        if self.walks and self.drawn_by == "own":
            raise BadRequest("setting 'walks' draws whole ways before training, so 'drawn_by' is frozen; change one")


@dataclass(frozen=True)
class ESD:
    """One update at latent z, time t, concept c, empty text u: `mean((e(z, t, c) - (e0(u) - eta (e0(c) - e0(u))))^2)`.

    With an anchor, u is the anchor (ours). With a carrier f, the loss is
    `mean((e(z, t, f) - (e0(f) - (1 + eta) (e0(c) - e0(u))))^2)`.
    """

    scope: Scope = "x"
    """Trained modules: all of cross-attention, its keys and values, all but it, or all."""
    eta: float = 1.0
    """How far beyond the anchor the prediction goes."""
    updates: int = 200
    """Of the whole run, shared by its concepts."""
    learning_rate: float = 5e-5
    """Of Adam."""
    batch: int = 1
    """Latents at once."""
    rank: int = 0
    """Of a low-rank result (ours); 0 is dense."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """What trained tensors are kept in; bfloat16 is as released in 2025 and loses most updates."""
    latents: Latents = field(default=Latents())
    """Where the latents come from."""
    carrier: str = ""
    """What an attribute is taken from: "cowboy" for the concept "cowboy hat"."""
    guide: str = ""
    """Anchor of concepts that name none."""
    prompt_file: str = ""
    """File of complete prompts, one a line, for the one concept of kind sensitive."""

    def __post_init__(self) -> None:
        require(self, "learning_rate", above=0)
        require(self, "updates", "batch", least=1)
        require(self, "eta", least=-1)
        require(self, "rank", least=0)

    def ask(self, request: Request, card: Card) -> Needs:
        """Texts of concepts, anchors and the carrier, and the empty text; the denoiser is trained."""
        self.sites(card)
        if self.latents.sampler == "ddim":
            card.walked_by("DDIMScheduler")
        for concept in request.concepts:
            if anchor_of(concept, self.guide).casefold() in {t.casefold() for t in self.texts(concept, request)}:
                what = "setting 'guide'" if concept.anchor is None else "the anchor"
                raise BadRequest(f"{what} of {concept.name!r} is what is to be erased; name another")
        texts = {t for c in request.concepts for t in (*self.texts(c, request), anchor_of(c, self.guide))}
        return Needs(texts=tuple(sorted({"", self.carrier, *texts})), denoiser=True)

    def texts(self, concept: Concept, request: Request) -> tuple[str, ...]:
        """What stands for a concept, in turn. Raises BadRequest, WrongFile."""
        own = complete_prompts(self, request)
        return tuple(own) if concept.kind == "sensitive" else concept.texts

    def sites(self, card: Card) -> tuple[str, ...]:
        """Weights and biases of the scope's modules; adapters go on weights alone. Raises BadRequest for none."""
        chosen = [s for s in card.sites if _within(self.scope, s)]
        if not chosen:
            raise BadRequest(f"setting 'scope': {card.name} has no module of scope {self.scope!r}; take another")
        biases = [f"{s.name}.bias" for s in chosen if s.bias and not self.rank]
        return tuple(sorted([*(s.name for s in chosen), *biases]))

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Answer:
        """Train, and return what changed. Raises WrongFile for weights or texts that are not finite, NothingChanged."""
        for site in model.card.sites:  # a damaged weight elsewhere would ruin every prediction: find it before training
            model.weight(site.name)
        if self.weights == "bfloat16":
            warnings.warn("bfloat16 weights lose most updates; float32 keeps them", EffaceWarning, stacklevel=2)
        dtype = torch.bfloat16 if self.weights == "bfloat16" else None
        net = Net(model, self.sites(model.card), rank=self.rank, dtype=dtype, rng=work.rng)
        steps = Erasing(self, model, evidence, request, net, work)
        about = asdict(self) | {"request": request.asdict(), "seed": work.seed, "model": model.identity}
        adam = torch.optim.Adam(net.parameters, lr=self.learning_rate)
        list(train(net, steps, adam, self.updates, work, about, team=steps.team))
        numbers: dict[str, Any] = {"updates": self.updates, "rows": asdict(net.counts), "moved": round(net.moved(), 6)}
        return Answer(net.edits(), numbers | {"trained": sum(p.numel() for p in net.parameters)})


def _within(scope: Scope, site: Site) -> bool:
    cross = site.role.startswith("cross.")
    strict = site.role in ("cross.k", "cross.v")
    return {"x": cross, "x-strict": strict, "u": not cross, "all": True}[scope]


class Spot(NamedTuple):
    """Where an update is made."""

    text: int
    """Number of the text that is unlearned."""
    step: int
    """k, the number of steps before it."""
    noise: str
    """Name of the noise that its way begins with."""


class Erasing:
    """The loss of every update, and the latents it is taken at."""

    def __init__(self, method: ESD, model: Model, evidence: Evidence, request: Request, net: Net, work: Work) -> None:
        self.method, self.network, self.work = method, model.network, work
        self.device, self.dtype, self.team = net.device, net.dtype, Team()
        self.share = self.team.share(method.batch)
        family = model.network.family
        self.rows = {
            t: family.context(model.network, [finite(e)]).to(net.device, net.dtype) for t, e in evidence.texts.items()
        }
        concepts = sorted(request.concepts, key=lambda c: c.name)  # the order of the request shall not matter
        self.pairs = [(t, anchor_of(c, method.guide)) for c in concepts for t in method.texts(c, request)]
        self.kept: dict[str, list[Tensor]] = {}

    # --- one update ----------------------------------------------------------------------------------------------

    def terms(self, net: Net, index: int) -> dict[str, Tensor]:
        """The mean squared error to the target."""
        spot = self.spot(index)
        concept, anchor = self.pairs[spot.text]
        carrier = self.method.carrier or concept
        z, t = self.latent(net, spot), self.time(index, spot)
        c, u, f = predictions(net.reference, z, t, *(self.rows[text] for text in (concept, anchor, carrier)))
        if float((c - u).square().mean()) <= SIGNAL * float(u.square().mean()):
            raise NothingChanged(
                f"the model predicts the same for {concept!r} and for its anchor {anchor!r}; name another of the two"
            )
        (said,) = predictions(net.predict, z, t, self.rows[carrier])
        return {"concept": (said - target(c, u, f, self.method.eta)).square().mean()}

    def after(self, net: Net, index: int) -> None:
        """Nothing follows an update: every latent is named by its number."""

    def where(self, index: int) -> str:
        spot = self.spot(index)
        return f"step {spot.step} of {self.method.latents.steps}, concept {self.pairs[spot.text][0]!r}"

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing to go on from."""

    def spot(self, index: int) -> Spot:
        """Which text and step an update looks at; of walks every step once, in mixed order."""
        steps, walks = self.method.latents.steps, self.method.latents.walks
        if not walks:
            step = int(torch.randint(steps, (1,), generator=self.work.rng(f"step {index}")))
            return Spot(index % len(self.pairs), step, f"noise {index}")
        block, place = divmod(index, walks * steps)
        mixed = torch.randperm(walks * steps, generator=self.work.rng(f"order {block}"))
        walk, step = divmod(int(mixed[place]), steps)
        return Spot(walk % len(self.pairs), step, f"noise {block} {walk}")

    # --- latents -------------------------------------------------------------------------------------------------

    def latent(self, net: Net, spot: Spot) -> Tensor:
        """Scaled latents (b, c, h, w) as the network reads them at a spot."""
        shape = (self.method.batch, *self.network.card.latent)
        noise = torch.randn(shape, generator=self.work.rng(spot.noise))[self.share].to(self.device, self.dtype)
        text = self.rows[self.method.carrier or self.pairs[spot.text][0]]
        if not self.method.latents.walks:
            ask = net.reference if self.method.latents.drawn_by == "frozen" else net.predict
            return self.walked(ask, noise, text, spot.step)[-1]
        if spot.noise not in self.kept:
            if len(self.kept) >= self.method.latents.walks:  # those of the block before
                self.kept.clear()
            self.kept[spot.noise] = self.walked(net.reference, noise, text, self.method.latents.steps - 1)
        return self.kept[spot.noise][spot.step]

    @torch.no_grad()
    def walked(self, ask: Ask, noise: Tensor, text: Context, count: int) -> list[Tensor]:
        """Scaled latents before every one of the first steps, and before the one after `count` of them."""
        scheduler, blank = self.scheduler(), self.rows[""]
        times = scheduler.timesteps
        z, found = noise * scheduler.init_noise_sigma, []
        for k in range(count + 1):
            scaled = scheduler.scale_model_input(z, times[k])
            found.append(scaled)
            if k < count:
                c, u = predictions(ask, scaled, times[k], text, blank)
                z = scheduler.step(u + self.method.latents.guidance * (c - u), times[k], z).prev_sample
        return found

    def scheduler(self) -> Any:
        """A fresh one: some remember the steps before."""
        found = self.network.scheduler("DDIMScheduler" if self.method.latents.sampler == "ddim" else None)
        found.set_timesteps(self.method.latents.steps, device=self.device)
        return found

    def time(self, index: int, spot: Spot) -> Tensor:
        """t of the loss."""
        if self.method.latents.time == "matched":
            return self.scheduler().timesteps[spot.step]
        scheduler, steps = self.scheduler(), self.method.latents.steps
        size = int(scheduler.config.num_train_timesteps) // steps
        later = int(torch.randint(size, (1,), generator=self.work.rng(f"time {index}")))
        return torch.tensor(size * (steps - 1 - spot.step) + later, device=self.device)


def target(c: Tensor, u: Tensor, f: Tensor, eta: float) -> Tensor:
    """What is to be predicted for the carrier f; with f = c it is `u - eta (c - u)`."""
    return f - (1 + eta) * (c - u)


# --- presets ---------------------------------------------------------------------------------------------------------

_PAPER = ESD(
    scope="u", updates=1000, learning_rate=1e-5, latents=Latents(drawn_by="own", time="bins"),
)  # fmt: skip
_CODE = ESD(weights="bfloat16", latents=Latents(sampler="model"))
_OURS = ESD(scope="u", latents=Latents(walks=8))
_WORLD = replace(_OURS, updates=240, learning_rate=1e-4, latents=Latents(steps=20, walks=8))
PRESETS: dict[str, ESD] = {
    "paper": _PAPER,
    "paper/style": replace(_PAPER, scope="x"),
    "paper/person": replace(_PAPER, scope="x"),
    "code": _CODE,
    "efface": _OURS,
    "efface/style": replace(_OURS, scope="x"),
    "efface/person": replace(_OURS, scope="x"),
    "world": _WORLD,
    "world/style": replace(_WORLD, scope="x"),
}
PLUGIN = ESD
