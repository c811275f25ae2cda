"""Ray's share of the time: the same shards in this process and through one Ray worker, both timed here.

`python benchmarks/ray_overhead.py [--model micro] [--shards 4] [--seconds 30]`. Steps are chosen so that a shard of 16
images takes about so many seconds. Starting a cluster and opening a worker cost the same for a minute and for a week of
drawing; they are stated apart and are no part of the share.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import efface
from efface.engines import Engine, engine_of
from efface.gallery.drawing import SHARD, Sampling, Side
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.gallery.shot import Shot
from efface.work import Work

BOUND = 0.05


class Watched:
    """An engine that notes when each result came."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.at: list[float] = []

    @property
    def reach(self) -> str:
        return self.engine.reach

    def run(self, *args: object) -> object:
        for result in self.engine.run(*args):
            self.at.append(time.perf_counter())
            yield result


def seconds(engine: Engine, model: efface.Model, steps: int, shards: int) -> tuple[float, float]:
    """From the start to the first shard's end, and of the shards after it, each."""
    shots = [Shot("a cat", seed) for seed in range(SHARD * shards)]
    watched, start = Watched(engine), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        gallery = Gallery(Side("base", model), Sampling.of(model, steps), Images(Path(place)))
        gallery.draw(gallery.shards(shots), Work(), engine=watched)
    return watched.at[0] - start, (watched.at[-1] - watched.at[0]) / (shards - 1)


def steps_for(model: efface.Model, wanted: float) -> int:
    """Steps with which a shard takes about so many seconds."""
    spent = seconds(engine_of("inline"), model, 10, 3)[1]
    return max(1, round(10 * wanted / spent))


def main(say: Callable[[str], None] = print) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="micro")
    options.add_argument("--shards", type=int, default=4)
    options.add_argument("--seconds", type=float, default=30.0)
    given = options.parse_args()
    torch.set_num_threads(1)
    model = efface.load(given.model, "cpu")
    model.identity  # noqa: B018 (opens every part)
    steps = steps_for(model, given.seconds)
    first, here = seconds(engine_of("inline"), model, steps, given.shards)
    opened, there = seconds(engine_of("ray:workers=1"), model, steps, given.shards)
    again, back = seconds(engine_of("inline"), model, steps, given.shards)
    usual = (here + back) / 2
    say(f"{given.shards} shards of {SHARD} images, {steps} steps: in this process {here:.2f} and {back:.2f} s a shard")
    say(f"through one Ray worker {there:.2f} s a shard: Ray's share {there / usual - 1:+.1%} (bound {BOUND:.0%})")
    say(f"once: cluster, worker and model {opened - min(first, again):.1f} s")


if __name__ == "__main__":
    main()
