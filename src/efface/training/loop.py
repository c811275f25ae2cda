"""The training loop of methods: those that fine-tune are objectives over it.

`Net` is the denoiser with trained tensors over a base that stays untouched: dense float32 copies of the trained weights
stand in the modules' place while it is entered, or low-rank adapters hang on them; the base prediction is the same
network with these taken out, so there is no second one. `train` makes the updates, saves and resumes exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import BadRequest, Cancelled, EffaceError, NothingChanged
from efface.model.devices import Team
from efface.model.reach import is_called
from efface.model.text import Context
from efface.patch import Dense, Edit, LowRank

if TYPE_CHECKING:
    from efface.model import Model
    from efface.work import Work

__all__ = ["Combine", "Net", "Objective", "Update", "train"]

State = dict[str, Tensor]
Gradients = Sequence[Tensor]
"""One a trained tensor, in the order of `Net.parameters`."""
Combine = Callable[[dict[str, Gradients]], Gradients]
"""Gradients by term of the loss -> the gradients of the update."""


class Objective(Protocol):
    """What a method adds to the loop. Every random draw is keyed by the update's number, so no generator is saved."""

    def terms(self, net: Net, index: int) -> dict[str, Tensor]:
        """Weighted scalars; the loss of update `index` is their sum."""
        ...

    def after(self, net: Net, index: int) -> None:
        """What follows the optimiser's step: next latents, masks, learners of its own."""
        ...

    def where(self, index: int) -> str:
        """The update in words, for messages."""
        ...

    def state(self) -> State:
        """What `load` needs to go on after the update just made, of all processes together (`Team.gather`)."""
        ...

    def load(self, state: State) -> None: ...


@dataclass(frozen=True)
class Update:
    """What one update was: its number from 0, the loss and the terms it is the sum of."""

    index: int
    loss: float
    terms: dict[str, float]


@dataclass
class Counts:
    """Rows (one image through the denoiser once) by kind; `backward` are those of `tuned` that carry a gradient."""

    frozen: int = 0
    tuned: int = 0
    backward: int = 0

    @property
    def forward(self) -> int:
        return self.frozen + self.tuned


# --- the network -----------------------------------------------------------------------------------------------------


class Net:
    """The denoiser of a model, trained at some sites.

    sites: weights by name ("NAME.bias" for a bias). rank: 0 trains copies of the weights, else `up` (o, r) and `down`
    (r, d) a site, added to it. dtype: of trained tensors (default float32, float64 in a float64 model); the forward
    pass of a half-precision model, or with half-precision trained tensors, runs under bfloat16 autocast, which needs no
    loss scaler. checkpointing: recompute activations in the backward pass. Raises BadRequest for no site, WrongFile for
    weights that are not finite.
    """

    def __init__(
        self,
        model: Model,
        sites: Sequence[str],
        *,
        rank: int = 0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        rng: Callable[[str], torch.Generator] | None = None,
    ) -> None:
        if not sites:
            raise BadRequest("no site is to be trained; choose a scope that this model has")
        self.network: nn.Module = model.network.denoiser
        self._model = model
        self.sites, self.rank, self.checkpointing = tuple(sites), rank, checkpointing
        self.device = model.device
        if self.device.type == "cpu" and model.dtype == torch.float16:
            raise BadRequest("training on a CPU computes in float32 or bfloat16; load the model with --dtype float32")
        half = model.dtype in (torch.float16, torch.bfloat16) or dtype in (torch.float16, torch.bfloat16)
        wide = torch.float64 if model.dtype == torch.float64 else torch.float32
        self._autocast = half
        self.dtype = wide  # of latents, predictions and losses
        self.counts = Counts()
        self._base = {s: model.weight(s) for s in sites}  # the model's own tensors, also checked to be finite
        self._owner = {s: self._module_of(model.card.site(s).key) for s in sites}
        self._rng = rng
        self.trained = self._adapters(wide) if rank else self._copies(dtype or wide)
        self._entered = False
        self._on = False

    def _module_of(self, key: str) -> tuple[nn.Module, str]:
        name, _, leaf = key.rpartition(".")
        if not is_called(self.network, name):
            raise BadRequest(f"{name} is fused with others, so it cannot be trained; call unfuse_qkv_projections first")
        return self.network.get_submodule(name), leaf

    def _copies(self, dtype: torch.dtype) -> dict[str, nn.Parameter]:
        return {s: nn.Parameter(w.detach().to(dtype, copy=True)) for s, w in self._base.items()}

    def _adapters(self, dtype: torch.dtype) -> dict[str, nn.Parameter]:
        made = {}
        for site, weight in self._base.items():
            if weight.ndim < 2:
                raise BadRequest(f"an adapter needs a weight, {site} is a bias; name weights only")
            out, inner = len(weight), weight[0].numel()
            r = min(self.rank, out, inner)
            generator = self._rng(f"adapter {site}") if self._rng else None
            down = torch.randn(r, inner, generator=generator, dtype=torch.float64) / math.sqrt(inner)
            made[f"{site}/up"] = nn.Parameter(torch.zeros(out, r, dtype=dtype, device=self.device))
            made[f"{site}/down"] = nn.Parameter(down.to(self.device, dtype))
        return made

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.trained.values())

    # --- in force ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Net:
        """Trained tensors in force; everything is put back on leaving, also after an exception."""
        network: Any = self.network
        self._before = (network.training, bool(getattr(network, "is_gradient_checkpointing", False)))
        self._own = {s: module._parameters[leaf] for s, (module, leaf) in self._owner.items()}
        network.eval()
        if self.checkpointing and not self._before[1]:
            network.enable_gradient_checkpointing()
        self._hooks = [self._hook(s) for s in self.sites] if self.rank else []
        self._entered = True
        self._switch(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._switch(False)
        for hook in self._hooks:
            hook.remove()
        network: Any = self.network
        network.train(self._before[0])
        if self.checkpointing and not self._before[1]:
            network.disable_gradient_checkpointing()
        self._entered = False

    def _switch(self, on: bool) -> None:
        """Parameters are exchanged as objects: exchanging their data would hide a swap from the backward pass."""
        self._on = on
        if self.rank:
            return
        for site, (module, leaf) in self._owner.items():
            module._parameters[leaf] = self.trained[site] if on else self._own[site]

    def _hook(self, site: str) -> Any:
        """Adds the adapter to a module's output, unless it is switched off (then nothing is added, not zero)."""
        up, down = self.trained[f"{site}/up"], self.trained[f"{site}/down"]

        def add(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
            if not self._on:
                return None
            if isinstance(module, nn.Conv2d):
                kernel = down.reshape(len(down), *module.weight.shape[1:])  # (r, i, h, w)
                inner = F.conv2d(args[0], kernel, None, module.stride, module.padding, module.dilation)  # pyright: ignore
                return out + F.conv2d(inner, up[:, :, None, None])
            return out + F.linear(F.linear(args[0], down), up)

        return self._owner[site][0].register_forward_hook(add)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The base network inside the block, without gradients."""
        self._switch(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self._switch(True)

    # --- predictions ---------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Latents (r, c, h, w), timestep, a row of context each -> prediction of the network in training."""
        self.counts.tuned += len(x)
        self.counts.backward += len(x) if torch.is_grad_enabled() else 0
        return self._said(x, t, context)

    def reference(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """The same of the base, without gradient."""
        self.counts.frozen += len(x)
        with self.frozen():
            return self._said(x, t, context)

    def _said(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        if not self._entered:
            raise EffaceError("a network predicts inside `with net:` only")
        # Encoded texts are inference tensors, which autograd refuses to keep.
        x, context = x.clone() if x.is_inference() else x, context.clone()
        # One autocast block a call: its cache of rounded weights must not outlive an update or a switch.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            return self._model.network.predict(x, t, context).to(self.dtype)

    # --- result --------------------------------------------------------------------------------------------------

    def edits(self) -> tuple[Edit, ...]:
        """The change of every site that moved. Raises NothingChanged when none did."""
        found: list[Edit] = []
        for site, weight in self._base.items():
            if self.rank:
                up, down = (self.trained[f"{site}/{n}"].detach().float().cpu() for n in ("up", "down"))
                if bool(up.any()):
                    found.append(LowRank(site, up.contiguous(), down.contiguous()))
                continue
            trained = self.trained[site].detach()
            change = trained.to(self.dtype) - weight.to(trained.dtype).to(self.dtype)
            if bool(change.any()):
                found.append(Dense(site, change.float().cpu().contiguous()))
        if not found:
            raise NothingChanged("training moved no weight; raise the learning rate or the number of updates")
        return tuple(found)

    def moved(self) -> float:
        """Share of the trained numbers that differ from their start (with adapters: of `up`)."""
        pairs = [
            (p, torch.zeros_like(p)) if self.rank else (p, self._base[n].to(p.dtype))
            for n, p in self.trained.items()
            if not n.endswith("/down")
        ]
        return sum(int((p != start).sum()) for p, start in pairs) / sum(p.numel() for p, _ in pairs)


# --- several processes -----------------------------------------------------------------------------------------------


# --- the loop --------------------------------------------------------------------------------------------------------


def train(
    net: Net,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    updates: int,
    work: Work,
    about: dict[str, Any],
    *,
    every: int = 25,
    team: Team | None = None,
    combine: Combine | None = None,
) -> Generator[Update, None, None]:
    """Make the updates, one a yield; at every yield the model is as it was before.

    optimiser: over `net.parameters`. combine: what the terms' gradients become in place of their sum.
    about: plain data that decides the result; a saved state of another run is refused
    and the field named, as is one of another number of processes. The state is saved when cancelled and, where `work`
    has a folder, after `every` updates; what it resumes to is bit-equal to the uninterrupted run. Raises Cancelled,
    BadRequest, EffaceError for a loss that is not finite.
    """
    team = team or Team()
    about = about | {"processes": team.size}
    writes = not work.folder or not team.rank  # one file for all, or each its own memory
    first = _restore(net, objective, optimiser, work, about)
    done, own = first, objective.state()
    try:
        for index in work.progress(range(first, updates), "updates"):
            with torch.inference_mode(False), net:
                update = _update(net, objective, optimiser, index, team, combine)
            done, own = index + 1, objective.state()  # now, as not all may be there when one is cancelled
            yield update
            if work.folder and done % every == 0 and writes:
                work.save(_state(net, own, optimiser, done, about))
    except Cancelled:
        if writes:
            work.save(_state(net, own, optimiser, done, about))
        raise


def _update(
    net: Net, objective: Objective, optimiser: torch.optim.Optimizer, index: int, team: Team, combine: Combine | None
) -> Update:
    with torch.enable_grad():
        terms = objective.terms(net, index)
        loss = torch.stack([t.to(net.dtype) for t in terms.values()]).sum()
        if not bool(torch.isfinite(loss)):
            raise EffaceError(
                f"the loss is {float(loss.detach())} at update {index} ({objective.where(index)}); "
                "lower the learning rate or use an undamaged model"
            )
        # Named tensors only: the user's own parameters never get a gradient.
        if combine is None:
            gradients = torch.autograd.grad(loss, net.parameters, allow_unused=True)
            gradients = [None if g is None else team.mean(g) for g in gradients]
        else:
            gradients = combine({name: _gradients(term, net, team) for name, term in terms.items()})
    for parameter, gradient in zip(net.parameters, gradients, strict=True):
        parameter.grad = gradient
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        objective.after(net, index)
    return Update(index, float(loss.detach()), {k: float(v.detach()) for k, v in terms.items()})


def _gradients(term: Tensor, net: Net, team: Team) -> Gradients:
    """Of one term, zero for what it does not touch."""
    if not term.requires_grad:
        return [torch.zeros_like(p) for p in net.parameters]
    found = torch.autograd.grad(term, net.parameters, allow_unused=True, retain_graph=True)
    return [team.mean(torch.zeros_like(p) if g is None else g) for p, g in zip(net.parameters, found, strict=True)]


# --- saved state -----------------------------------------------------------------------------------------------------


def _state(net: Net, own: State, optimiser: torch.optim.Optimizer, done: int, about: dict[str, Any]) -> State:
    """Everything that the next update depends on, as tensors; `own`: the objective's."""
    text = json.dumps(about, sort_keys=True).encode()
    state = {
        "about": torch.tensor(list(text), dtype=torch.uint8),
        "done": torch.tensor([done, net.counts.frozen, net.counts.tuned, net.counts.backward]),
    }
    for name, parameter in net.trained.items():
        state[f"trained/{name}"] = parameter.detach()
        for key, value in optimiser.state[parameter].items():
            if value is not None:
                state[f"optimiser/{name}/{key}"] = torch.as_tensor(value)
    return state | {f"objective/{k}": v for k, v in own.items()}


def _restore(
    net: Net, objective: Objective, optimiser: torch.optim.Optimizer, work: Work, about: dict[str, Any]
) -> int:
    """Take up what was saved; returns the number of updates already made."""
    state = work.restore()
    if not state:
        return 0
    _check_about(state, about)
    done, net.counts.frozen, net.counts.tuned, net.counts.backward = (int(n) for n in state["done"])
    for name, parameter in net.trained.items():
        with torch.no_grad():
            parameter.copy_(state[f"trained/{name}"])
        prefix = f"optimiser/{name}/"
        for key, value in state.items():
            if key.startswith(prefix):
                like = parameter if value.shape == parameter.shape else value
                optimiser.state[parameter][key.removeprefix(prefix)] = torch.empty_like(like, dtype=value.dtype).copy_(
                    value
                )
    own = {k.removeprefix("objective/"): v for k, v in state.items() if k.startswith("objective/")}
    objective.load({k: v.to(net.device) for k, v in own.items()})
    return done


def _check_about(state: State, about: dict[str, Any]) -> None:
    text = bytes(state["about"].tolist()).decode() if "about" in state else "{}"
    before, now = {"processes": 1} | json.loads(text), json.loads(json.dumps(about, sort_keys=True))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise BadRequest(
                f"the saved state belongs to another run: its {key!r} is {str(before.get(key))[:80]}, "
                f"not {str(now.get(key))[:80]}; repeat that run or save elsewhere"
            )
