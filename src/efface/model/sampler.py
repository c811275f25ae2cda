"""The sampler: one loop over diffusers' schedulers, the same pixels as the pipeline.

Every image has its own CPU generator, so its initial latents are bit-equal whatever the batch. The loop names five
places where rules act (`efface.model.places`), and lets a tap read the inputs and outputs of any site.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efface.errors import BadRequest, EffaceError
from efface.model.places import Call, Prediction, Rows, Rule, Step, make
from efface.work import Work

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["BATCH", "Tap", "latents", "sample"]

BATCH = 16  # images at once: as many as still gain on two cores; a GPU takes the same
Tap = Callable[[Step, str, torch.Tensor, torch.Tensor], None]
"""(step, site, inputs (r, ..., d), outputs (r, ..., o))"""


def latents(model: Model, seeds: Sequence[int]) -> tuple[torch.Tensor, list[torch.Generator]]:
    """Initial noise (n, c, h, w) in the model's dtype, one CPU generator an image, and the generators."""
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    shape = (1, *model.card.latent)
    noise = torch.cat([torch.randn(shape, generator=g, dtype=model.dtype) for g in generators])
    return noise.to(model.device), generators


def sample(
    model: Model,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = BATCH,
    taps: dict[str, Tap] | None = None,
    calls: int | None = None,
    work: Work | None = None,
) -> np.ndarray:
    """One image for each prompt and seed -> (n, height, width, 3) uint8.

    steps, guidance: default of the card; guidance <= 1 is off. taps: by site, called at every step. calls: stop after
    so many calls of the denoiser and decode nothing (black images), for taps that look no further. Raises BadRequest
    for lists of unequal length and for prompts longer than the window.
    """
    if len(prompts) != len(seeds):
        raise BadRequest(f"one seed a prompt is needed, got {len(prompts)} prompts and {len(seeds)} seeds")
    steps = model.card.steps if steps is None else steps
    guidance = model.card.guidance if guidance is None else guidance
    if steps < 1:
        raise BadRequest(f"steps must be at least 1, got {steps}")
    height, width = model.card.size
    images = np.zeros((len(prompts), height, width, 3), np.uint8)
    work = work or Work()
    gates = [p.edits[0].gate.strengths(model, prompts) for p in model.gated if p.edits[0].gate]
    for strengths, group in _grouped(gates, len(prompts)).items():
        with model.gates_open(strengths):
            for start in range(0, len(group), batch):
                work.check()
                chosen = group[start : start + batch]
                call = Call(model, tuple(prompts[i] for i in chosen), steps, guidance)
                images[chosen] = _batch(call, [seeds[i] for i in chosen], taps or {}, calls, work)
    return images


def _grouped(gates: list[list[float]], n: int) -> dict[tuple[float, ...], list[int]]:
    """Images by the strengths of their gates; without gates one group."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for image in range(n):
        groups.setdefault(tuple(g[image] for g in gates), []).append(image)
    return groups


@torch.inference_mode()
def _batch(call: Call, seeds: list[int], taps: dict[str, Tap], calls: int | None, work: Work) -> np.ndarray | np.uint8:
    model = call.model
    scheduler = model.scheduler()
    scheduler.set_timesteps(call.steps, device=model.device)
    noise, generators = latents(model, seeds)
    x = noise * scheduler.init_noise_sigma
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    rules = _Rules(call)
    rows = rules.prompt(_rows(call))
    pointer = _Pointer()
    with ExitStack() as stack:
        stack.enter_context(_hooks(model, rules, taps, pointer))
        for index, timestep in enumerate(scheduler.timesteps[:calls]):
            work.check()
            step = Step(index, int(timestep), rows.roles, rows.images)
            pointer.step = step
            scaled = scheduler.scale_model_input(x, timestep)[list(rows.images)]  # (r, c, h, w)
            said = model.part("unet")(_laid_out(scaled), timestep, encoder_hidden_states=rows.values).sample
            guided = rules.prediction(step, Prediction(said, _guide(said, rows, call.guidance)))
            x = rules.latent(step, scheduler.step(guided, timestep, x, **extra).prev_sample)
    return _pixels(model, x) if calls is None else np.uint8(0)


def _laid_out(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _rows(call: Call) -> Rows:
    """Unconditional rows first, as the pipeline stacks them; without guidance only the prompts'."""
    n = len(call.prompts)
    encoded = call.model.encode(["", *call.prompts])
    cond = torch.stack([e.rows for e in encoded[1:]])  # (n, L, d)
    values, roles, images = cond, ("cond",) * n, tuple(range(n))
    if call.guidance > 1:
        values = torch.cat([encoded[0].rows.expand_as(cond), cond])  # (2n, L, d)
        roles, images = ("uncond",) * n + roles, images + images
    return Rows(values.to(call.model.device, call.model.dtype), roles, images)


def _guide(said: torch.Tensor, rows: Rows, guidance: float) -> torch.Tensor:
    cond = said[rows.where("cond")]
    uncond = said[rows.where("uncond")]
    return uncond + guidance * (cond - uncond) if len(uncond) else cond


def _pixels(model: Model, x: torch.Tensor) -> np.ndarray:
    vae = model.part("vae")
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    decoded = vae.decode(x / vae.config.scaling_factor + shift).sample.float()
    if not bool(torch.isfinite(decoded).all()):
        raise EffaceError("the model drew NaN; use a wider dtype (--dtype float32) or an undamaged model")
    pixels = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return (pixels * 255).round().astype(np.uint8)  # (n, h, w, 3)


class _Rules:
    """The guards in force, started for one call and sorted by place."""

    def __init__(self, call: Call) -> None:
        self._by_place: dict[str, list[tuple[Rule, Any]]] = {}
        for guard, strength in call.model.guards:
            if strength:
                made = make(guard, strength)
                self._by_place.setdefault(made.place, []).append((made, made.start(call)))

    def has(self, place: str) -> bool:
        return place in self._by_place

    def at(self, place: str, step: Step, value: Any, site: str = "") -> Any:
        for rule, state in self._by_place.get(place, ()):
            value = rule.at(step, state, value, site)
        return value

    def prompt(self, rows: Rows) -> Rows:
        return self.at("prompt", Step(-1, -1, rows.roles, rows.images), rows)

    def prediction(self, step: Step, value: Prediction) -> torch.Tensor:
        for rule, state in self._by_place.get("prediction", ()):
            value = replace(value, guided=rule.at(step, state, value, ""))
        return value.guided

    def latent(self, step: Step, x: torch.Tensor) -> torch.Tensor:
        return self.at("latent", step, x)


class _Pointer:
    """The step that hooks see."""

    step: Step


@contextmanager
def _hooks(model: Model, rules: _Rules, taps: dict[str, Tap], pointer: _Pointer) -> Iterator[None]:
    """Forward hooks for key/value and attention rules and for taps; without any the network is left alone."""
    unet, handles = model.part("unet"), []

    def watch(name: str, hook: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]) -> None:
        module = unet.get_submodule(name)
        handles.append(module.register_forward_hook(lambda _m, args, out: hook(args[0], out)))

    try:
        for site, tap in taps.items():
            watch(site, lambda a, out, tap=tap, site=site: tap(pointer.step, site, a, out))
        if rules.has("key-value"):
            for site in model.card.select("cross.k", "cross.v"):
                watch(site.name, lambda a, out, s=site.name: rules.at("key-value", pointer.step, out, s))
        if rules.has("attention"):
            for site in model.card.select("cross.k"):
                block = site.name.rpartition(".")[0]
                watch(block, lambda a, out, s=block: rules.at("attention", pointer.step, out, s))
        yield
    finally:
        for handle in handles:
            handle.remove()
