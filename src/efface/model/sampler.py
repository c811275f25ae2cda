"""The sampler: one loop over diffusers' schedulers, the same pixels as the pipeline.

Every image has its own CPU generator, so its initial latents are bit-equal whatever the batch. The loop names five
places where rules act (`efface.model.places`), and lets a tap read the inputs and outputs of any site. It is a
generator: drawing decodes its last step, evidence stops where it has seen enough.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from efface.errors import BadRequest, EffaceError
from efface.model.devices import exact
from efface.model.network import Network
from efface.model.places import Call, Prediction, Rows, Rule, Step
from efface.model.reach import is_called
from efface.model.text import Context
from efface.work import Work

__all__ = ["BATCH", "Tap", "Walked", "pixels", "walk"]

BATCH = 16  # images at once: as many as still gain on two cores; a GPU takes the same
Tap = Callable[[Step, str, torch.Tensor, torch.Tensor], None]
"""(step, site, inputs (r, ..., d), outputs (r, ..., o))"""


@dataclass(frozen=True)
class Walked:
    """One step that was made: where, the guided prediction and the latents after it."""

    step: Step
    guided: torch.Tensor
    latents: torch.Tensor


def walk(
    call: Call, seeds: Sequence[int], rules: Sequence[Rule], taps: Mapping[str, Tap], work: Work
) -> Iterator[Walked]:
    """The steps of one batch, one seed a prompt. taps: by site, called at every step; rules in the order they act."""
    net = call.network
    with torch.inference_mode():
        scheduler = net.scheduler()
        times = net.family.times(net, scheduler, call.steps)
        noise, generators = net.noise(seeds)
        x = net.family.start(net, noise, scheduler)
        given = {"generator": generators, "eta": 0.0}  # as pipelines hand them to every scheduler that takes them
        extra = {k: v for k, v in given.items() if k in inspect.signature(scheduler.step).parameters}
        acting = _Rules(call, rules)
        rows = acting.prompt(_rows(call))
        pointer = _Pointer()
    with _hooks(net, acting, taps, pointer):
        for index, time in enumerate(times):
            work.check()
            step = Step(index, float(time), rows.roles, rows.images)
            pointer.step = step
            with torch.inference_mode(), exact():
                scaled = _scaled(scheduler, x, time)[list(rows.images)]  # (r, ...)
                said = net.predict(_laid_out(scaled), time, rows.context)
                guided = acting.prediction(step, Prediction(said, _guide(said, rows, call.guidance)))
                x = acting.latent(step, scheduler.step(guided, time, x, **extra).prev_sample)
            yield Walked(step, guided, x)


def pixels(net: Network, x: torch.Tensor) -> np.ndarray:
    """Latents -> (n, height, width, 3) uint8. Raises EffaceError for NaN."""
    with torch.inference_mode():
        decoded = net.decode(x)
    if not bool(torch.isfinite(decoded).all()):
        raise EffaceError("the model drew NaN; use a wider dtype (--dtype float32) or an undamaged model")
    shares = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return (shares * 255).round().astype(np.uint8)  # (n, h, w, 3)


def _scaled(scheduler: Any, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """Latents as the network expects them; flow schedulers leave them as they are."""
    return scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    """Convolutions on CPU are about a tenth faster with channels last; the numbers are the same."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" and x.ndim == 4 else x


def _rows(call: Call) -> Rows:
    """Unconditional rows first, as the pipeline stacks them; without guidance only the prompts'."""
    net, n = call.network, len(call.prompts)
    cond, blank = net.family.sides(net, call.prompts, call.guidance > 1)
    context, roles, images = cond, ("cond",) * n, tuple(range(n))
    if blank is not None:
        context = Context.cat([blank.take([0] * n), cond])
        roles, images = ("uncond",) * n + roles, images + images
    return Rows(net.family.told(net, context.to(net.device, net.dtype), call.guidance), roles, images)


def _guide(said: torch.Tensor, rows: Rows, guidance: float) -> torch.Tensor:
    cond = said[rows.where("cond")]
    uncond = said[rows.where("uncond")]
    return uncond + guidance * (cond - uncond) if len(uncond) else cond


class _Rules:
    """The rules in force, started for one call and sorted by place."""

    def __init__(self, call: Call, rules: Sequence[Rule]) -> None:
        self._by_place: dict[str, list[tuple[Rule, Any]]] = {}
        for rule in rules:
            self._by_place.setdefault(rule.place, []).append((rule, rule.start(call)))

    def has(self, place: str) -> bool:
        return place in self._by_place

    def at(self, place: str, step: Step, value: Any, site: str = "") -> Any:
        for rule, state in self._by_place.get(place, ()):
            value = rule.at(step, state, value, site)
        return value

    def prompt(self, rows: Rows) -> Rows:
        return self.at("prompt", Step(-1, -1.0, rows.roles, rows.images), rows)

    def prediction(self, step: Step, value: Prediction) -> torch.Tensor:
        for rule, state in self._by_place.get("prediction", ()):
            value = replace(value, guided=rule.at(step, state, value, ""))
        return value.guided

    def latent(self, step: Step, x: torch.Tensor) -> torch.Tensor:
        return self.at("latent", step, x)


class _Pointer:
    """The step that hooks see."""

    step: Step


def _tapped(pointer: _Pointer, tap: Tap, site: str, given: torch.Tensor, out: torch.Tensor) -> None:
    tap(pointer.step, site, given, out)


def _ruled(
    pointer: _Pointer, rules: _Rules, place: str, told: str, given: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    return rules.at(place, pointer.step, out, told)


@contextmanager
def _hooks(net: Network, rules: _Rules, taps: Mapping[str, Tap], pointer: _Pointer) -> Iterator[None]:
    """Forward hooks for rules inside the denoiser and for taps; without any the network is left alone."""
    with ExitStack() as stack:

        def watch(name: str, hook: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]) -> None:
            def told(_: torch.nn.Module, given: Any, out: Any) -> Any:
                return hook(given[0], out)

            if not is_called(net.denoiser, name):
                raise BadRequest(f"{name} is fused with others, so it cannot be watched; unfuse_qkv_projections first")
            stack.callback(net.module(name).register_forward_hook(told).remove)

        for site, tap in taps.items():
            watch(site, partial(_tapped, pointer, tap, site))
        for place in ("key-value", "attention"):
            for seat in net.family.seats(net.card, place) if rules.has(place) else ():
                watch(seat.module, partial(_ruled, pointer, rules, place, seat.told))
        yield
