"""How much memory FIA takes beyond the model, at the shapes of Stable Diffusion 1.x; prints MB.

The 16 second feed-forward matrices with random weights (198 MB, not counted) and synthetic activations of two prompts:
base and one concept are recorded, then solved. What is counted is anonymous resident memory above its start; files
that are mapped are left out. Run for one score a process, since freed memory may stay with a process. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import PNDMScheduler

from efface import registry
from efface.evidence.gather import Evidence, _Recorder
from efface.model.card import Card, Site, Stream
from efface.model.places import Step
from efface.registry import choose, resolve
from efface.request import Request
from efface.work import Work

SHAPES = [(320, 1280)] * 5 + [(640, 2560)] * 5 + [(1280, 5120)] * 6


class FeedForwards:
    """These layers as a Model; nothing can be drawn from it."""

    device = torch.device("cpu")
    family = registry.find("families", "stable-diffusion")()

    def __init__(self) -> None:
        sites = tuple(Site(f"block.{i:02d}", "ff.out", shape) for i, shape in enumerate(SHAPES))
        schedule = (("_class_name", "PNDMScheduler"),)
        self.card = Card(
            "feed-forwards", "stable-diffusion", (Stream("text", 768, 77, True),), (), sites, "epsilon", schedule,
            (512, 512), (4, 64, 64), 50, 7.5,
        )  # fmt: skip
        self.weights = {s.name: torch.randn(s.shape, generator=torch.Generator().manual_seed(1)) for s in sites}

    def weight(self, site: str) -> torch.Tensor:
        return self.weights[site]

    @property
    def network(self) -> FeedForwards:
        return self

    def module(self, site: str) -> Any:
        return SimpleNamespace(bias=None)

    def scheduler(self) -> PNDMScheduler:
        return PNDMScheduler(skip_prk_steps=True)


class Watch:
    """The most anonymous memory of this process in a block, in MB above its start."""

    def __enter__(self) -> Watch:
        self.start = self.most = self._now()
        self.on = True
        self.thread = threading.Thread(target=self._poll)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.on = False
        self.thread.join()
        self.extra = self.most - self.start

    def _poll(self) -> None:
        while self.on:
            self.most = max(self.most, self._now())
            time.sleep(0.001)

    @staticmethod
    def _now() -> float:
        text = Path("/proc/self/status").read_text()
        return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def extra_memory(score: str, steps: int, folder: Path) -> float:
    """MB beyond the weights while one concept is recorded and solved; files go into `folder`."""
    model: Any = FeedForwards()
    model.network.scheduler().set_timesteps(50)  # what the first use loads is no memory of the method
    request = Request.build("dog", preset="efface").settle({})
    chosen = choose("fia", {"score": score, "prompts": 2, "saliency_steps": steps})
    method = resolve(chosen, request, model.card)
    files: dict[Any, Path] = {}
    with Watch() as watch:
        for statistics in method.ask(request, model.card).statistics:
            kept = (-1,) if statistics.fold else statistics.steps
            own = {
                (statistics.name, g, s, t): folder / g / f"{t}-{s}.safetensors"
                for g in statistics.groups
                for s in statistics.sites
                for t in kept
            }
            recorder = _Recorder(model, statistics, own, files)
            recorder.last = True
            _record(recorder, model, steps, seed=len(files))
            files |= own
        patch = method.solve(model, Evidence({}, files), request, Work())
    assert len(patch.edits) == len(SHAPES)
    return watch.extra


def _record(recorder: _Recorder, model: FeedForwards, steps: int, seed: int) -> None:
    for t in range(steps):
        for i, (_, d) in enumerate(SHAPES):
            X = torch.randn(4, 8, d, generator=torch.Generator().manual_seed(1000 * t + i + seed))  # two prompts
            step = Step(t, t, ("uncond", "uncond", "cond", "cond"), (0, 1, 0, 1))
            recorder.tap(step, f"block.{i:02d}", X, X @ model.weight(f"block.{i:02d}").T)
    recorder.finish("", steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("score", choices=["cosine", "norm"])
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(f"{extra_memory(options.score, options.steps, Path(place)):.0f}")


if __name__ == "__main__":
    main()
