"""The loop that every part of the world learns in: resumable to the same weights, in sittings of bounded length."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save as serialise
from torch import nn

from efface.errors import BadRequest, Cancelled, WrongFile
from efface.files import write_bytes
from efface.work import Work

__all__ = [
    "DONE", "RESULT", "SETTINGS", "Go", "Part", "Phase", "keep", "knows_bfloat16", "learn", "progress_of", "read",
    "share_of", "write_json",
]  # fmt: skip

RESULT, EMA_FILE, DONE, CURVE = "result.safetensors", "ema.safetensors", "done.json", "curve.json"
SETTINGS = "settings.txt"  # what a part was begun with
LONGEST = 150  # minutes at one go
SAVE_SECONDS = 120
B = TypeVar("B")


@dataclass(frozen=True)
class Phase:
    """One fall of the learning rate: linear warm-up over 5 % of the steps, then cosine to 1 % of the peak."""

    steps: int
    batch: int
    rate: float
    decay: float = 0.01
    ema: float = 0.0  # 0: none
    coarse: bool = False  # in bfloat16 where the processor computes in it; a GPU always does

    def on(self, device: str) -> Phase:
        """On a GPU eight times the batch in a quarter of the steps, at one and a half times the rate."""
        if not device.startswith("cuda"):
            return self
        return replace(self, steps=max(1, self.steps // 4), batch=8 * self.batch, rate=1.5 * self.rate)

    def rate_at(self, step: int, since: int = 0) -> float:
        """Learning rate of a step; `since`: where an optimiser without memory started, which warms up anew."""
        warm = max(1, int(0.05 * self.steps))
        fall = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, self.steps - warm)))
        return self.rate * min(1.0, (step - since + 1) / warm) * (0.01 + 0.99 * fall)


@dataclass
class Go:
    """One sitting: where it computes and when it stops."""

    work: Work
    minutes: float = LONGEST
    device: str = "cpu"
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= LONGEST:
            raise BadRequest(f"minutes must be above 0 and at most {LONGEST}, got {self.minutes:g}")

    @property
    def over(self) -> bool:
        return time.monotonic() - self.begun >= 60 * self.minutes


@dataclass(frozen=True)
class Part:
    """One thing to train, in a folder of its own. `settings`: what its result depends on, in words.

    `steps` and `seconds` (of a step, on two free cores) are for the plan; `run` is True when the part is done. `stamp`:
    what the result was made from, where that can change: a part that was made from something else is not done.
    """

    name: str
    home: Path
    settings: str
    steps: int
    seconds: float
    run: Callable[[Go], bool]
    stamp: Callable[[], str] | None = None

    @property
    def done(self) -> bool:
        file = self.home / DONE
        if self.stamp is None or not file.is_file():
            return file.is_file()
        return json.loads(file.read_text(encoding="utf-8")).get("made from") == self.stamp()

    @property
    def share(self) -> float:
        """How much of the part is done, 0 to 1."""
        return 1.0 if self.done else share_of(self.home)

    @property
    def minutes_left(self) -> float:
        """From the seconds of the steps already done here, where there are any."""
        facts = progress_of(self.home)
        here = facts.get("step", 0) - facts.get("since", 0)
        if here >= 20 and not self.done:
            return (facts["steps"] - facts["step"]) * facts["seconds"] / here / 60
        return (1 - self.share) * self.steps * self.seconds / 60

    def claim(self) -> None:
        """Refuse (WrongFile) to go on with a part that was begun with other settings."""
        file = self.home / SETTINGS
        if file.is_file() and file.read_text(encoding="utf-8") != self.settings:
            raise WrongFile(f"{self.home} was begun with other settings; move that folder away to train anew")
        write_bytes(file, self.settings.encode())


def share_of(home: Path) -> float:
    """How much of its training a folder holds, 0 to 1; steps are counted by the device they were made on."""
    facts = progress_of(home)
    return facts["step"] / max(1, facts["steps"]) if facts else 0.0


class _Run:
    """A net with its optimiser, its running mean and its losses: all that a resumed run needs."""

    def __init__(self, net: nn.Module, phase: Phase, device: str, layout: torch.memory_format) -> None:
        self.net, self.phase, self.device = net, phase, device
        self.step, self.since, self.seconds = 0, 0, 0.0
        self.losses: list[torch.Tensor] = []
        if device == "cpu":
            net.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        net.to(device)
        self.learnt = [p for p in net.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.learnt, lr=phase.rate, weight_decay=phase.decay, betas=(0.9, 0.99), fused=True
        )
        self.mean = [p.detach().clone() for p in self.learnt] if phase.ema else []

    def state(self) -> dict[str, torch.Tensor]:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in enumerate(self.mean)}
        for number, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{k}": v for k, v in values.items()}
        tensors["losses"] = torch.stack(self.losses).float() if self.losses else torch.zeros(0)
        place = [self.step, self.since, self.seconds, self.phase.steps]
        tensors["place"] = torch.tensor(place, dtype=torch.float64)
        return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}

    def take(self, state: dict[str, torch.Tensor]) -> None:
        self.net.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("net.")})
        adam: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, number, word = key.split(".")
                adam.setdefault(int(number), {})[word] = _laid_like(self.learnt[int(number)], value)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": adam, "param_groups": groups})
        self.mean = [_laid_like(p, state[f"ema.{k}"].to(self.device)) for k, p in enumerate(self.learnt) if self.mean]
        self.losses = list(state["losses"].to(self.device))
        self.step, self.since = int(state["place"][0]), int(state["place"][1])
        self.seconds = float(state["place"][2])

    def start_from(self, weights: dict[str, torch.Tensor], step: int) -> None:
        """fp16 weights of the running mean alone: the optimiser starts without memory and warms up again."""
        self.net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        self.step = self.since = step
        self.mean = [p.detach().clone() for p in self.learnt] if self.phase.ema else []

    def update(self, value: torch.Tensor) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.phase.rate_at(self.step, self.since)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(self.learnt, 1.0)
        self.optimiser.step()
        self.step += 1
        self.losses.append(value.detach())
        if self.mean:
            rate = 1 - min(self.phase.ema, (1 + self.step - self.since) / (10 + self.step - self.since))
            torch._foreach_lerp_(self.mean, [p.detach() for p in self.learnt], rate)

    def weights(self) -> dict[str, torch.Tensor]:
        """float16 weights, those of the running mean where there is one."""
        found = dict(self.net.state_dict())
        if self.mean:
            names = [k for k, p in self.net.named_parameters() if p.requires_grad]
            found |= dict(zip(names, self.mean, strict=True))
        return {
            k: (v.half() if v.is_floating_point() else v).detach().cpu().contiguous().clone() for k, v in found.items()
        }


def _laid_like(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` in the memory layout of `weight`: the fused optimiser walks memory, not indices."""
    if value.shape != weight.shape:  # a count of steps
        return value
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


def learn(
    net: nn.Module,
    phase: Phase,
    batch: Callable[[int], B],
    loss: Callable[[B], torch.Tensor],
    home: Path,
    go: Go,
    *,
    label: str,
    save_seconds: float = SAVE_SECONDS,
    layout: torch.memory_format = torch.channels_last,
) -> bool:
    """Train until the phase ends (True) or the sitting is over (False); continues from what lies in `home`.

    layout: of weights on a CPU.

    batch(k) depends on k alone and is drawn on a second thread while the step before trains. A run that was killed
    and started again ends with the same weights as one that was not. At the end `home` holds `result.safetensors`
    (float16, the running mean), at any stop `ema.safetensors`, with which alone another machine goes on. Raises
    WrongFile for a torn state and for a full disk.
    """
    run, saved = _Run(net, phase, go.device, layout), Work(folder=home)
    state = saved.restore()
    if state is not None and int(state["place"][3]) == phase.steps:
        run.take(state)
    elif (home / EMA_FILE).is_file():  # from another machine, or begun on another device
        weights, facts = read(home / EMA_FILE)
        run.start_from(weights, round(facts["step"] / facts["steps"] * phase.steps))
    first, begun, before, kept = run.step, time.monotonic(), run.seconds, time.monotonic()
    net.train()
    kind = go.device.partition(":")[0]
    fast = kind == "cuda" or (phase.coarse and knows_bfloat16())
    precise = torch.autocast(kind, torch.bfloat16) if fast else nullcontext()
    try:
        for _, given in go.work.progress(
            _ahead(batch, range(run.step, phase.steps), go), label, max(0, phase.steps - first)
        ):
            with precise:
                value = loss(given)
            run.update(value)
            run.seconds = before + time.monotonic() - begun
            if time.monotonic() - kept >= save_seconds:
                _save(saved, run, home)
                kept = time.monotonic()
    except Cancelled:  # between two steps; anything else may have come in the middle of one
        _save(saved, run, home)
        raise
    _save(saved, run, home)
    if run.step < phase.steps:
        return False
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in run.weights().items()})
    net.eval()
    keep(home / RESULT, run.weights(), step=run.step, steps=phase.steps)
    return True


@cache
def knows_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; where it does not, that is many times slower than float32."""
    ask = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest torch that is supported
    able = ask() if ask else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _ahead(batch: Callable[[int], B], steps: range, go: Go) -> Iterator[tuple[int, B]]:
    """Draw the next batch on a second thread; the order stays the same. Ends early when the sitting is over.

    That thread computes on its own: with a pool of its own beside the training's, each waits for the other.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as worker:
            coming = worker.submit(batch, steps.start) if len(steps) else None
            for step in steps:
                assert coming is not None
                if go.over:
                    coming.result()
                    return
                given = coming.result()
                if step + 1 < steps.stop:
                    coming = worker.submit(batch, step + 1)
                yield step, given
    finally:
        torch.set_num_threads(threads)  # for threads to come, which would follow the last one set


def _save(saved: Work, run: _Run, home: Path) -> None:
    if not all(bool(torch.isfinite(p).all()) for p in run.learnt):
        raise WrongFile(f"the training in {home} met NaN or infinity; delete the folder and lower the rate")
    try:
        saved.save(run.state())
    except (OSError, SafetensorError) as error:
        for torn in home.glob(".*.tmp"):
            torn.unlink(missing_ok=True)
        raise WrongFile(
            f"cannot save the training in {home} ({error}); free some space there, then run the same command again"
        ) from None
    keep(home / EMA_FILE, run.weights(), step=run.step, steps=run.phase.steps)
    values = torch.stack(run.losses).float().cpu().tolist() if run.losses else []
    width = max(1, len(values) // 400)
    means = [sum(v) / len(v) for v in (values[k : k + width] for k in range(0, len(values), width))]
    facts = {
        "step": run.step, "steps": run.phase.steps, "seconds": round(run.seconds, 1), "since": run.since,
        "every": width, "loss": [round(v, 5) for v in means],
    }  # fmt: skip
    write_json(home / CURVE, facts)
    write_bytes(home / "curve.png", _drawn(means))


def _drawn(values: list[float], width: int = 640, height: int = 360) -> bytes:
    """The loss curve as a PNG, logarithmic, with its first, last and least value in words."""
    import io

    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    logs = [math.log(max(v, 1e-8)) for v in values] or [0.0]
    low, high = min(logs), max(max(logs), min(logs) + 1e-6)
    across = (width - 40) / max(1, len(logs) - 1)
    points = [(20 + k * across, 30 + (high - v) / (high - low) * (height - 50)) for k, v in enumerate(logs)]
    if len(points) > 1:
        pen.line(points, fill=(30, 90, 170), width=2)
    if values:
        pen.text((20, 8), f"loss: first {values[0]:.4g}, last {values[-1]:.4g}, least {min(values):.4g}", fill="black")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def progress_of(home: Path) -> dict[str, Any]:
    """What `home` says of its training: step, steps, seconds; empty before the first save. Raises WrongFile."""
    file = home / CURVE
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise WrongFile(f"{file} cannot be read ({error}); delete it and run the same command again") from None


def keep(path: Path, tensors: dict[str, torch.Tensor], **facts: int) -> Path:
    """Tensors as safetensors under a temporary name, then renamed; `facts` go into its header."""
    whole = {k: v.contiguous() for k, v in tensors.items()}
    return write_bytes(path, serialise(whole, {k: str(v) for k, v in facts.items()}))


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Tensors and facts of a file of `keep`. Raises WrongFile."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, "pt") as file:
            facts = {k: int(v) for k, v in (file.metadata() or {}).items()}
        return load_file(path), facts
    except (SafetensorError, OSError, ValueError) as error:
        raise WrongFile(f"{path} cannot be read ({error}); delete it and run the same command again") from None


def write_json(path: Path, content: dict[str, Any]) -> Path:
    return write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
