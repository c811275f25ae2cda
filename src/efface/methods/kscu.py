"""KSCU, Key Step Concept Unlearning: fine-tune at the late steps only, where a concept takes its form.

Zhang, Lin, Zhao, Yang, Wang, Shen, "Concept Unlearning by Modeling Key Steps of Diffusion Process", arXiv 2507.06526.
Negative guidance at a creeping window of key steps, with a dynamic target for the empty text. Two releases, 2025
(`code-2025`) and 2026 (`code`); what is marked "ours" is off in both.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from efface import prompts
from efface.errors import BadRequest, NothingChanged
from efface.evidence.needs import Needs
from efface.methods import complete_prompts, finite, require
from efface.model.devices import Team
from efface.model.text import Context
from efface.numerics import schedules
from efface.numerics.schedules import KeyStep
from efface.patch import Patch
from efface.training.loop import Net, train

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model import Model
    from efface.model.card import Card
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["KSCU"]

_2026: dict[str, Any] = {
    "updates": 750, "updates_several": 750, "steps": 50, "first_step": 14, "cap": 0, "loops": 8, "order": "name",
    "scope": "noxattn", "rank": 0, "learning_rate": 1e-5, "weights": "float32", "batch": 1, "checkpointing": False,
    "negative_guidance": 1.0, "guide": "", "rule": "time", "slope": 2e-5, "empty_weight": 1e-4, "keep_weight": 0.0,
    "guidance": 3.0, "trajectory": "walk", "prefix": "tuned", "advance": "exact", "noise": "seed",
    "augment": 0.05, "pool": "concept", "expand": "none", "prompt_file": "",
}  # fmt: skip
_STYLE: dict[str, Any] = {"updates": 500, "updates_several": 500, "first_step": 24, "scope": "xattn"}
_PERSON: dict[str, Any] = {"updates": 200, "first_step": 40, "scope": "xattn"}
_2025: dict[str, Any] = _2026 | {
    "first_step": 15, "cap": 49, "rule": "index", "slope": 1e-4, "empty_weight": 2e-5, "trajectory": "fresh",
    "augment": 0.0, "pool": "mixed",
}  # fmt: skip
_OURS: dict[str, Any] = _2026 | {
    "updates_several": 0, "order": "shuffle", "rank": 16, "learning_rate": 1e-4, "noise": "named", "advance": "lagged",
}  # fmt: skip
_DENSE: dict[str, Any] = {"updates_several": 0, "rank": 0, "learning_rate": 1e-5}
_WORLD: dict[str, Any] = _OURS | {
    "updates": 120, "steps": 20, "first_step": 6, "loops": 2, "scope": "xattn", "rank": 0, "learning_rate": 2e-4,
    "negative_guidance": 0.25, "expand": "sentence", "keep_weight": 2.0,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "code": _2026, "code/style": _STYLE, "code/person": _PERSON,
    "code-2025": _2025, "code-2025/style": _STYLE, "code-2025/person": _PERSON,
    "paper": _2025 | {"augment": 0.05}, "paper/style": _STYLE, "paper/person": _PERSON,
    "efface": _OURS, "efface/style": _STYLE | _DENSE, "efface/person": _PERSON | _DENSE,
    "world": _WORLD, "world/style": {"first_step": 10},
}  # fmt: skip

# What the second release holds for FLUX.1-dev (28 steps, flow matching, guidance embedded). Data until that family is.
FLUX: dict[str, dict[str, Any]] = {
    "": {
        "updates": 750, "updates_several": 750, "steps": 28, "first_step": 8, "cap": 0, "loops": 8, "scope": "attn",
        "learning_rate": 1e-4, "negative_guidance": 1.0, "rule": "noise", "slope": 0.02, "empty_weight": 1e-4,
        "guidance": 3.5,
    },
    "style": {"updates": 500, "updates_several": 500, "first_step": 14},
    "person": {"updates": 200, "first_step": 22},
}  # fmt: skip

# Below this share of the prediction's mean square, concept and anchor are the same to the model.
SIGNAL = 1e-12


@dataclass(frozen=True)
class KSCU:
    """One update at latent z, key step i, concept c; p, n frozen, a, u tuned predictions for c and the empty text:
    `mean((a - (n - g (p - n)))^2) + lambda_2 mean((u - (n - lambda_1(i) (p - n)))^2)`.

    updates: L for one concept; updates_several: L for several (0: `updates` for each of them). steps: E, of DDIM.
    first_step: S; cap: latest start (0: ceil(0.9 E) - 1); loops: passes before the start moves up. order of concepts in
    a pass: by "name", "shuffle" (anew each pass; ours) or as "given". scope: "xattn", "noxattn" or "selfattn". rank: of
    a low-rank result (ours), 0 is dense. weights: what trained tensors are kept in; "bfloat16" is as released and loses
    most updates. batch: trajectories at once. checkpointing: less memory, one more forward pass. negative_guidance: g.
    guide: anchor of concepts that name none; with an anchor r, p - n becomes p - e(r) (ours). rule and slope: lambda_1
    by "time" (2026) or step "index" (2025). empty_weight: lambda_2. keep_weight: weight of a kept text that holds its
    prediction (ours). guidance: of the trajectory. trajectory: "walk" goes on from update to update (2026), "fresh"
    starts each from noise (2025). prefix: network that makes the steps before a start, "tuned" or "frozen". advance:
    "exact", or "lagged", which takes the predictions of the update just made (ours, cheaper). noise: by "seed" plus
    update, as released, or "named" (ours). augment: share of the updates, the last, that see an augmented text; pool:
    ten a "concept" (2026) or "mixed" (2025). expand: "sentence" visits short sentences around the name in turn (ours).
    prompt_file: file of complete prompts, one a line, for the one concept of kind sensitive.
    """

    updates: int | None = None
    updates_several: int | None = None
    steps: int | None = None
    first_step: int | None = None
    cap: int | None = None
    loops: int | None = None
    order: Literal["name", "shuffle", "given"] | None = None
    scope: Literal["xattn", "noxattn", "selfattn"] | None = None
    rank: int | None = None
    learning_rate: float | None = None
    weights: Literal["float32", "bfloat16"] | None = None
    batch: int | None = None
    checkpointing: bool | None = None
    negative_guidance: float | None = None
    guide: str | None = None
    rule: Literal["time", "index"] | None = None
    slope: float | None = None
    empty_weight: float | None = None
    keep_weight: float | None = None
    guidance: float | None = None
    trajectory: Literal["walk", "fresh"] | None = None
    prefix: Literal["tuned", "frozen"] | None = None
    advance: Literal["exact", "lagged"] | None = None
    noise: Literal["seed", "named"] | None = None
    augment: float | None = None
    pool: Literal["concept", "mixed"] | None = None
    expand: Literal["none", "sentence"] | None = None
    prompt_file: str | None = None

    def __post_init__(self) -> None:
        positive = ("updates", "steps", "loops", "learning_rate", "batch")
        not_negative = ("updates_several", "first_step", "cap", "rank", "slope", "empty_weight", "keep_weight")
        require(self, positive, (*not_negative, "guidance", "augment"))
        if self.augment is not None and self.augment > 1:
            raise BadRequest(f"setting 'augment' of KSCU is a share of the updates, at most 1, got {self.augment}")
        if None not in (self.steps, self.first_step, self.cap):
            self.table(1, 1)

    def table(self, updates: int, concepts: int, order: Callable[[int], Sequence[int]] | None = None) -> list[KeyStep]:
        """The key steps of a run. Raises BadRequest for a start beyond the schedule."""
        steps, first, loops = _set(self.steps), _set(self.first_step), self.loops or 1
        try:
            # the second release stays below 0.9 E whatever the cap says; the first one took 48 of 50
            cap = min(self.cap, schedules.last_start(steps)) if self.cap and self.pool != "mixed" else self.cap or None
            return schedules.key_steps(updates, steps, first, loops, concepts, cap, order)
        except ValueError as error:
            raise BadRequest(f"setting of KSCU: {error}; choose a smaller first_step or more steps") from None

    def total(self, concepts: int) -> int:
        """L, the updates of a run."""
        each = _set(self.updates)
        return each if concepts == 1 else (self.updates_several or each * concepts)

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, request: Request, card: Card) -> Needs:
        """Texts of concepts, anchors and kept texts, and the empty text; the denoiser is trained."""
        self.sites(card)
        complete_prompts(self, request)
        for concept in request.concepts:
            own = {t.casefold() for t in (*concept.texts, *self.texts(concept, request))}
            if self._anchor(concept).casefold() in own:
                what = "setting 'guide'" if concept.anchor is None else "the anchor"
                raise BadRequest(f"{what} of {concept.name!r} is what is to be erased; name another")
        texts = {t for c in request.concepts for t in (*self.texts(c, request), self._anchor(c))}
        kept = set(request.kept_texts) if self.keep_weight else set()
        return Needs(texts=tuple(sorted({"", *texts, *kept})), denoiser=True)

    def sites(self, card: Card) -> tuple[str, ...]:
        """Weights and biases of the scope's modules; adapters go on weights alone. Raises BadRequest for none."""
        prefix = "self." if self.scope == "selfattn" else "cross."
        chosen = [s for s in card.sites if s.role.startswith(prefix) != (self.scope == "noxattn")]
        if not chosen:
            raise BadRequest(
                f"setting 'scope' of KSCU: {card.name} has no module of scope {self.scope!r}; take another"
            )
        biases = [f"{s.name}.bias" for s in chosen if s.bias and not self.rank]
        return tuple(sorted([*(s.name for s in chosen), *biases]))

    def texts(self, concept: Concept, request: Request) -> tuple[str, ...]:
        """What a concept's visits are conditioned on, in turn. Raises BadRequest, WrongFile."""
        if concept.kind == "sensitive":
            return tuple(complete_prompts(self, request))
        forms = ["{}"]
        if self.expand == "sentence":
            forms = prompts.load("kscu")["sentences"]["style" if concept.kind == "style" else "object"]
        return tuple(form.format(text) for form in forms for text in concept.texts)

    def _anchor(self, concept: Concept) -> str:
        return (self.guide or "") if concept.anchor is None else concept.anchor

    # --- solving -------------------------------------------------------------------------------------------------

    def solve(self, model: Model, evidence: Evidence, request: Request, work: Work) -> Patch:
        """Train, and return what changed. Raises NothingChanged where the model does not tell concept from anchor."""
        from efface.errors import EffaceWarning

        concepts = sorted(request.concepts, key=lambda c: c.name) if self.order != "given" else list(request.concepts)
        table = self.table(self.total(len(concepts)), len(concepts), self._order(len(concepts), work))
        for site in model.card.sites:  # a damaged weight elsewhere would ruin every prediction: find it before training
            model.weight(site.name)
        dtype = torch.bfloat16 if self.weights == "bfloat16" else None
        if dtype:
            warnings.warn("bfloat16 weights lose most updates; float32 keeps them", EffaceWarning, stacklevel=2)
        adapters: dict[str, Any] = {"rank": self.rank or 0, "checkpointing": bool(self.checkpointing), "rng": work.rng}
        net = Net(model, self.sites(model.card), dtype=dtype, **adapters)
        steps = _KeySteps(self, model, evidence, request, concepts, table, net, work)
        optimiser = torch.optim.Adam(net.parameters, lr=_set(self.learning_rate))
        about = asdict(self) | {"concepts": [asdict(c) for c in concepts], "seed": work.seed, "model": model.identity}
        about |= {"table": steps.table_hash, "keep": steps.kept}
        list(train(net, steps, optimiser, len(table), work, about, team=steps.team))
        return Patch(net.edits(), {"numbers": steps.numbers(net)})

    def _order(self, n: int, work: Work) -> Callable[[int], list[int]] | None:
        shuffled = self.order == "shuffle" and n > 1
        return (lambda k: torch.randperm(n, generator=work.rng(f"order {k}")).tolist()) if shuffled else None


def _set(value: Any) -> Any:
    if value is None:
        raise TypeError("resolve(method, request, card) comes before ask and solve")
    return value


# --- the objective ---------------------------------------------------------------------------------------------------


class _KeySteps:
    """The loss of every update, and the trajectory its latents come from."""

    def __init__(
        self,
        method: KSCU,
        model: Model,
        evidence: Evidence,
        request: Request,
        concepts: Sequence[Concept],
        table: list[KeyStep],
        net: Net,
        work: Work,
    ) -> None:
        self.method, self.model, self.table, self.work = method, model, table, work
        self.concepts, self.device, self.dtype = concepts, net.device, net.dtype
        self.team = Team()
        self.share = self.team.share(_set(method.batch))
        self.starts = set(range(len(table)) if method.trajectory == "fresh" else schedules.jumps(table))
        self.scheduler = model.network.scheduler("DDIMScheduler")
        self.levels = int(self.scheduler.config.num_train_timesteps)
        if _set(method.steps) > self.levels:
            raise BadRequest(f"setting 'steps' of KSCU: the model has {self.levels} noise levels, got {method.steps}")
        self.scheduler.set_timesteps(method.steps, device=net.device)
        self.times: Tensor = self.scheduler.timesteps  # (E,)
        self.texts = [method.texts(c, request) for c in concepts]
        self.anchors = [method._anchor(c) for c in concepts]
        self.kept = sorted(request.kept_texts) if method.keep_weight else []
        self.rows = {t: finite(e).rows[None].to(net.device, net.dtype) for t, e in evidence.texts.items()}  # (1, L, d)
        self.augmented = schedules.augmented_from(len(table), _set(method.augment), strict=method.pool == "mixed")
        self.pools = self._pools() if self.augmented < len(table) and method.augment else None
        self.latent: Tensor | None = None  # (b, c, h, w): where the next update is made
        self._pair: tuple[Tensor, Tensor] | None = None

    # --- one update ----------------------------------------------------------------------------------------------

    def terms(self, net: Net, index: int) -> dict[str, Tensor]:
        """The concept's and the empty text's mean squared errors, weighted."""
        m, entry = self.method, self.table[index]
        if index in self.starts:
            self.latent = self._start(net, index)
        z, t = self._latent, self.times[entry.step]
        text, anchor = self._text(entry), self.anchors[entry.concept]
        frozen = ["", text, *([anchor] if anchor else []), *self._kept(index)]
        said = dict(zip(frozen, self._predict(net.reference, z, t, *(self.rows[f] for f in frozen)), strict=True))
        p, n, q = said[text], said[""], said[anchor]
        self._check_signal(index, p, q)
        changed = self._changed(index)
        tuned = [
            self.rows[text] if changed is None else changed,
            self.rows[""],
            *(self.rows[k] for k in self._kept(index)),
        ]
        a, u, *kept = self._predict(net.predict, z, t, *tuned)
        self._pair = (a.detach(), u.detach())
        g, weight = _set(m.negative_guidance), _set(m.empty_weight)
        terms = {
            "concept": (a - schedules.concept_target(p, q, g)).square().mean(),
            "empty": weight * (u - schedules.empty_target(p, n, self._dynamic(entry.step))).square().mean(),
        }
        for k, now in zip(self._kept(index), kept, strict=True):
            terms["keep"] = _set(m.keep_weight) * (now - said[k]).square().mean()
        return terms

    def after(self, net: Net, index: int) -> None:
        """One DDIM step with the network just updated, where the next update goes on from here."""
        if index + 1 >= len(self.table) or index + 1 in self.starts:
            self.latent = None
            return
        entry = self.table[index]
        t, c = self.times[entry.step], self.rows[self._text(entry)]
        if self.method.advance == "exact":
            self.latent = self._ddim(self._latent, t, *self._predict(net.predict, self._latent, t, c, self.rows[""]))
            return
        assert self._pair is not None
        said, empty = self._pair
        if self._changed(index) is not None:  # what was predicted is for another text
            (said,) = self._predict(net.predict, self._latent, t, c)
        self.latent = self._ddim(self._latent, t, said, empty)

    def where(self, index: int) -> str:
        entry = self.table[index]
        return f"step {entry.step} of {self.method.steps}, concept {self.concepts[entry.concept].name!r}"

    def state(self) -> dict[str, Tensor]:
        return {} if self.latent is None else {"latent": self.team.gather(self.latent)}

    def load(self, state: dict[str, Tensor]) -> None:
        whole = state.get("latent")
        self.latent = None if whole is None else whole[self.share]

    @property
    def _latent(self) -> Tensor:
        assert self.latent is not None
        return self.latent

    def _predict(self, ask: Callable[..., Tensor], z: Tensor, t: Tensor, *rows: Tensor) -> Sequence[Tensor]:
        """One call for several texts at the same latents -> a prediction (b, c, h, w) a text."""
        stacked = torch.cat([r.expand(len(z), -1, -1) for r in rows])  # (k b, L, d)
        return ask(z.repeat(len(rows), 1, 1, 1), t, Context({"rows": stacked})).chunk(len(rows))

    def _dynamic(self, step: int) -> float:
        slope = _set(self.method.slope)
        if self.method.rule == "index":
            return schedules.by_index(step, slope)
        return schedules.by_time(int(self.times[step]), slope, self.levels)

    def _check_signal(self, index: int, p: Tensor, q: Tensor) -> None:
        """At the first update of a concept: a model that does not tell it from its anchor has nothing to unlearn."""
        number = self.table[index].concept
        if any(e.concept == number for e in self.table[:index]):
            return
        if float((p - q).square().mean()) <= SIGNAL * float(q.square().mean()):
            raise NothingChanged(
                f"the model predicts the same for {self.concepts[number].name!r} and for its anchor "
                f"{self.anchors[number]!r}; name another concept or anchor"
            )

    # --- latents ---------------------------------------------------------------------------------------------------

    def draw(self, index: int) -> Tensor:
        """Noise (b, c, h, w) of a start at update `index`, float32 on CPU."""
        named, shape = self.method.noise == "named", (_set(self.method.batch), *self.model.card.latent)
        seeded = torch.Generator().manual_seed(self.work.seed + index)
        return torch.randn(shape, generator=self.work.rng(f"noise {index}") if named else seeded)

    @torch.no_grad()
    def _start(self, net: Net, index: int) -> Tensor:
        """Fresh noise, denoised up to the update's step."""
        entry = self.table[index]
        z = self.draw(index)[self.share].to(self.device, self.dtype)
        ask = net.predict if self.method.prefix == "tuned" else net.reference
        for t in self.times[: entry.step]:
            z = self._ddim(z, t, *self._predict(ask, z, t, self.rows[self._text(entry)], self.rows[""]))
        return z

    def _ddim(self, z: Tensor, t: Tensor, concept: Tensor, empty: Tensor) -> Tensor:
        """One deterministic step under guidance."""
        guided = empty + _set(self.method.guidance) * (concept - empty)
        return self.scheduler.step(guided, t, z, eta=0.0).prev_sample

    # --- texts -----------------------------------------------------------------------------------------------------

    def _text(self, entry: KeyStep) -> str:
        texts = self.texts[entry.concept]
        return texts[entry.visit % len(texts)]

    def _kept(self, index: int) -> list[str]:
        """The kept text of this update, if any."""
        if not self.kept:
            return []
        return [self.kept[schedules.pick(self.work.rng(f"kept {index}"), len(self.kept))]]

    def _changed(self, index: int) -> Tensor | None:
        """Rows (1, L, d) of an augmented text with a little noise, late in training; else None."""
        if self.pools is None or index < self.augmented:
            return None
        rng, pool = self.work.rng(f"augmentation {index}"), self.pools[self.table[index].concept]
        rows = self.rows[pool[schedules.pick(rng, len(pool))]]
        return rows + 1e-5 * torch.randn(rows.shape, generator=rng).to(rows)

    def _pools(self) -> list[list[str]]:
        """Augmented texts by concept, those that the model's window holds; encoded here."""
        rng, window = self.work.rng("augmentation"), self.model.sizes("")[1]
        pools = [ten_texts(c, own, rng) for c, own in zip(self.concepts, self.texts, strict=True)]
        if self.method.pool == "mixed":
            pools = [mixed_texts(self.concepts, self.texts, rng)] * len(pools)
        pools = [
            [t for t in pool if self.model.sizes(t)[0] <= window] or list(own)
            for pool, own in zip(pools, self.texts, strict=True)
        ]
        new = sorted({t for pool in pools for t in pool} - self.rows.keys())
        for encoded in self.model.encode(new) if new else ():
            self.rows[encoded.text] = encoded.rows[None].to(self.device, self.dtype)
        return pools

    @property
    def table_hash(self) -> str:
        """Of every update's concept, step and text."""
        entries = [(self.concepts[e.concept].name, e.step, self._text(e)) for e in self.table]
        return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]

    def numbers(self, net: Net) -> dict[str, Any]:
        """For the recipe; nothing that varies between runs."""
        return {
            "updates": len(self.table),
            "table": self.table_hash,
            "concepts": [c.name for c in self.concepts],
            "jumps": len(self.starts),
            "rows": asdict(net.counts),
            "rows_per_update": round(net.counts.forward / len(self.table) / _set(self.method.batch), 3),
            "trained": sum(p.numel() for p in net.parameters),
            "moved": round(net.moved(), 6),
        }


# --- augmented texts -------------------------------------------------------------------------------------------------


def ten_texts(concept: Concept, own: Sequence[str], rng: torch.Generator) -> list[str]:
    """The ten augmented texts of a concept (second release). A sensitive concept has its own complete prompts only."""
    if concept.kind == "sensitive":
        return list(own)
    base = prompts.load("kscu")["augment"]["style" if concept.kind == "style" else "object"]
    return [schedules.augmented(sentence, concept.name, i % 4, rng) for i, sentence in enumerate(base)]


def mixed_texts(concepts: Sequence[Concept], texts: Sequence[Sequence[str]], rng: torch.Generator) -> list[str]:
    """The pool of the first release: 200 texts of all concepts, four in five the bare names."""
    pool = []
    for i in range(200):
        concept, own = concepts[i % len(concepts)], texts[i % len(concepts)]
        if i < 160 or concept.kind == "sensitive":
            pool.append(own[i // len(concepts) % len(own)])
            continue
        base = prompts.load("kscu")["augment"]["style" if concept.kind == "style" else "generic"]
        sentence, operation = base[schedules.pick(rng, len(base))], schedules.pick(rng, 4)
        # each operation is done with probability 0.2, and one of the four results is taken
        changed = float(torch.rand(1, generator=rng)) < 0.2
        text = schedules.augmented(sentence, concept.name, operation, rng, False)
        pool.append(text if changed else sentence.format(concept.name))
    return pool
