"""Train the reporting judge from fresh scenes; two cores, no GPU, resumable to the same weights."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from efface.judges.world import Net, prepare
from efface.world import judged, softened, styles
from efface.world.artwork import Sprites, cache_folder
from efface.world.corruptions import SEEN, blur
from efface.world.scenes import Scenes, Stage, to_uint8


@dataclass(frozen=True)
class Cycle:
    """One fall of the learning rate, with the pictures it trains on."""

    steps: int
    rate: float
    two: float  # share of crisp scenes with two objects
    pools: int  # softened scenes of every sprite
    style: float  # weight of the style terms


# Single objects first; then pairs and styles, which are learnt late.
CYCLES = (Cycle(1900, 4e-3, 0.12, 3, 1.0), Cycle(1800, 3e-3, 0.30, 5, 2.0))


@dataclass(frozen=True)
class Plan:
    """Settings of one training run. `crisp`, `soft`, `empty`, `broken` are pictures a batch."""

    cycles: tuple[Cycle, ...] = CYCLES
    decay: float = 0.02
    crisp: int = 38
    soft: int = 22
    empty: int = 2
    broken: int = 2
    strangers: float = 0.08  # share of crisp scenes with an object that the judge must not name
    seed: int = 11
    save_every: int = 100

    @property
    def steps(self) -> int:
        return sum(cycle.steps for cycle in self.cycles)

    def cycle_at(self, step: int) -> tuple[Cycle, int]:
        """The cycle of a step and the step within it; the last one beyond the end."""
        for cycle in self.cycles:
            if step < cycle.steps:
                return cycle, step
            step -= cycle.steps
        return self.cycles[-1], self.cycles[-1].steps


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor  # float32 (n, 3, 64, 64) in [-1, 1]
    objects: torch.Tensor  # float32 (n, objects)
    styles: torch.Tensor  # float32 (n, styles)
    extra: torch.Tensor  # float32 (n, 2): empty, broken
    judge_style: torch.Tensor  # bool (n,): False where no style is shown


class Source:
    """All pictures of a training run: step k gives the same batch in every run, so resuming is exact."""

    def __init__(self, sprites: Sprites, vae: Any, home: Path, plan: Plan) -> None:
        self.plan, self.stage = plan, Stage(sprites)
        self.known = torch.tensor([sprites.object_names.index(o.name) for o in judged()])
        own = torch.isin(self.stage.objects, self.known)
        self.rows, self.strange = torch.nonzero(own).flatten(), torch.nonzero(~own).flatten()
        per_style = [self.rows[self.stage.styles[self.rows] == s] for s in range(len(styles()))]
        self.per_style = [rows for rows in per_style if len(rows)]
        self.soft = [
            softened.pool(home / f"pool-{k}.npz", self.stage, self.rows, vae, seed=100 + k, rough=0.15)
            for k in range(max(cycle.pools for cycle in plan.cycles))
        ]
        of_style = self.stage.styles[self.rows]
        self.soft_rows = [torch.nonzero(of_style == s).flatten() for s in of_style.unique()]

    def batch(self, step: int) -> Batch:
        plan, generator = self.plan, torch.Generator().manual_seed(self.plan.seed * 1_000_003 + step)
        cycle, _ = plan.cycle_at(step)
        crisp = self.stage.draw(plan.crisp, generator, rows=self._sprites(generator), two=cycle.two)
        soft = self._softened(generator, cycle.pools)
        empty = self.stage.empty(plan.empty, generator)
        whole = _unit(torch.cat([crisp.images, soft.images, empty]))
        kinds = list(SEEN.values())
        kind = kinds[int(torch.randint(len(kinds), (1,), generator=generator))]
        images = torch.cat([augment(whole, generator), kind(whole[: plan.broken], generator)])
        blank = plan.empty + plan.broken
        objects = torch.cat([crisp.objects, soft.objects])[:, self.known].float()
        shown = torch.cat([crisp.styles, soft.styles]).float()
        extra = torch.zeros(len(images), 2)
        extra[len(shown) : len(shown) + plan.empty, 0] = 1
        extra[len(shown) + plan.empty :, 1] = 1
        visible = torch.arange(len(images)) < len(shown)
        return Batch(images * 2 - 1, F.pad(objects, (0, 0, 0, blank)), F.pad(shown, (0, 0, 0, blank)), extra, visible)

    def _sprites(self, generator: torch.Generator) -> torch.Tensor:
        """Balanced over styles, mostly objects that the judge names."""
        luck = torch.rand(2, self.plan.crisp, generator=generator)
        turn = torch.randperm(self.plan.crisp, generator=generator).tolist()
        rows = []
        for k, (odd, place) in enumerate(luck.T.tolist()):
            pool = self.strange if odd < self.plan.strangers else self.per_style[turn[k] % len(self.per_style)]
            rows.append(pool[int(place * len(pool))])
        return torch.stack(rows)

    def _softened(self, generator: torch.Generator, pools: int) -> Scenes:
        pool = self.soft[int(torch.randint(pools, (1,), generator=generator))]
        luck = torch.rand(self.plan.soft, generator=generator).tolist()
        turn = torch.randperm(self.plan.soft, generator=generator).tolist()
        rows = [self.soft_rows[t % len(self.soft_rows)] for t in turn]
        pick = torch.stack([r[int(u * len(r))] for r, u in zip(rows, luck, strict=True)])
        return Scenes(pool.images[pick], pool.objects[pick], pool.styles[pick], (), pool.two[pick])


def _unit(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).float() / 255


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift by up to 3 pixels, a third blurred, colour gains, a little noise; (n, 3, 64, 64) in [0, 1]."""
    n = len(x)
    move = torch.randint(0, 7, (n, 2), generator=generator).tolist()
    padded = F.pad(x, (3, 3, 3, 3), mode="replicate")
    x = torch.stack([padded[k, :, dy : dy + 64, dx : dx + 64] for k, (dy, dx) in enumerate(move)])
    luck = torch.rand(n, 4, generator=generator)
    soft = torch.where(luck[:, 0] < 0.35, 0.3 + 0.8 * luck[:, 1], torch.zeros(()))
    rows = soft > 0
    if bool(rows.any()):
        x[rows] = blur(x[rows], soft[rows])
    gain = 1 + 0.16 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    shake = torch.where(luck[:, 2] < 0.3, 0.03 * luck[:, 3], torch.zeros(()))[:, None, None, None]
    noise = torch.randn(x.shape, generator=generator) * shake
    return _unit(to_uint8(x * gain + noise))


def loss(net: Net, batch: Batch, style: float = 1.0) -> torch.Tensor:
    """Sigmoid loss on every label, plus a softmax term that speeds up the early steps."""
    objects, styled, extra, _ = net(batch.images)
    shown = batch.objects.sum(1)
    share = batch.objects / shown.clamp_min(1)[:, None]
    named = (-(share * F.log_softmax(objects, 1)).sum(1)).sum() / len(objects)
    flags = F.binary_cross_entropy_with_logits(objects, batch.objects, reduction="none").sum(1).mean()
    marks = F.binary_cross_entropy_with_logits(styled, batch.styles, reduction="none").sum(1).mean()
    family = F.cross_entropy(styled[batch.judge_style], batch.styles[batch.judge_style].argmax(1))
    rest = F.binary_cross_entropy_with_logits(extra, batch.extra, reduction="none").sum(1).mean()
    return flags + 0.5 * named + style * (marks + 0.5 * family) + 0.3 * rest


def rate_at(step: int, plan: Plan) -> float:
    """In every cycle: linear warm-up over 6 % of the steps, then cosine to 1 % of the peak."""
    cycle, step = plan.cycle_at(step)
    warm = max(1, int(0.06 * cycle.steps))
    if step < warm:
        return cycle.rate * (step + 1) / warm
    fall = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, cycle.steps - warm)))
    return cycle.rate * (0.01 + 0.99 * fall)


def save_state(path: Path, net: Net, optimiser: torch.optim.AdamW, step: int) -> None:
    """Weights, optimiser and step in one safetensors file; temporary name, then rename."""
    tensors = {f"net.{k}": v.contiguous() for k, v in net.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{k}": v.contiguous() for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, staging, {"step": str(step)})
    os.replace(staging, path)


def load_state(path: Path, net: Net, optimiser: torch.optim.AdamW) -> int:
    """Fill net and optimiser from a checkpoint; the number of steps already done (0 without one)."""
    if not path.is_file():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
    whole, state = optimiser.state_dict(), {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, number, word = key.split(".")
            state.setdefault(int(number), {})[word] = value
    optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return step


def train(
    source: Source, home: Path | None = None, plan: Plan | None = None, log: Callable[[str], None] = print
) -> Net:
    """The trained net; continues from `home/checkpoint.safetensors` when there is one.

    A run that is killed and started again ends with the same weights as one that was not.
    """
    plan, home = plan or source.plan, home or cache_folder() / "train" / "judge"
    torch.manual_seed(plan.seed)
    net = Net(len(judged()), len(styles()))
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.nn.init.constant_(net.object_head.bias, -4.0)
    optimiser = torch.optim.AdamW(net.parameters(), lr=plan.cycles[0].rate, weight_decay=plan.decay)
    start = load_state(home / "checkpoint.safetensors", net, optimiser)
    net.train()
    begun, running = time.monotonic(), 0.0
    for step, batch in _ahead(source, range(start, plan.steps)):
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, plan)
        value = loss(net, batch, plan.cycle_at(step)[0].style)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
        running = 0.95 * running + 0.05 * value.item() if running else value.item()
        done = step + 1
        if done % plan.save_every == 0 or done == plan.steps:
            save_state(home / "checkpoint.safetensors", net, optimiser, done)
            left = (time.monotonic() - begun) / (done - start) * (plan.steps - done)
            log(f"judge: step {done} of {plan.steps}, loss {running:.3f}, {left / 60:.1f} min left")
    return net.eval()


def _ahead(source: Source, steps: range) -> Iterator[tuple[int, Batch]]:
    """Draw the next batch on a second thread while the present one trains; the order stays the same."""
    with ThreadPoolExecutor(1) as worker:
        coming = worker.submit(source.batch, steps.start) if len(steps) else None
        for step in steps:
            assert coming is not None
            batch = coming.result()
            coming = worker.submit(source.batch, step + 1)
            yield step, batch


def predict(net: Net, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Object and style logits of uint8 (n, 64, 64, 3), in evaluation mode."""
    net.eval()
    with torch.inference_mode():
        parts = [net(prepare(images[k : k + 64]))[:2] for k in range(0, len(images), 64)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
