"""Images per second through Efface and through plain diffusers, side by side in one run; prints ratios.

Both in float32, same scheduler, steps, guidance and threads. Rounds alternate, so that a change of the machine's
speed touches both; the ratio of each round is printed, then the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import efface
from efface.cli.options import prepare

PROMPTS = ["a dog", "a castle", "a pizza", "a rocket", "a violin", "a tulip", "a shark", "a bus"] * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    prepare()
    from diffusers import StableDiffusionPipeline

    from efface import world

    pipe = StableDiffusionPipeline.from_pretrained(world.folder("mini"), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    model = efface.load("mini", "cpu")
    prompts = PROMPTS[: options.images]
    seeds = list(range(len(prompts)))

    def plain(batch: int) -> np.ndarray:
        made = []
        for i in range(0, len(prompts), batch):
            generators = [torch.Generator().manual_seed(s) for s in seeds[i : i + batch]]
            made += pipe(
                prompts[i : i + batch],
                num_inference_steps=model.card.steps,
                guidance_scale=model.card.guidance,
                generator=generators,
            ).images
        return np.stack([np.asarray(image) for image in made])

    ours = model.sample(prompts[:2], seeds[:2])
    theirs = plain(len(prompts))[:2]
    print("largest difference of a pixel:", int(np.abs(ours.astype(int) - theirs.astype(int)).max()))
    noise = torch.randn(1, *model.card.latent, generator=torch.Generator().manual_seed(0))
    print("initial latents bit-equal:", bool(model.network.noise(seeds)[0][:1].equal(noise)))
    speeds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, run in (
            ("efface", lambda: model.sample(prompts, seeds)),
            ("pipeline, batch 1", lambda: plain(1)),
            ("pipeline, batch 4", lambda: plain(4)),
            ("pipeline, batch 8", lambda: plain(8)),
            ("pipeline, batch 16", lambda: plain(16)),
        ):
            speeds.setdefault(name, []).append(len(prompts) / _seconds(run))
    for name, found in speeds.items():
        print(f"{name:<20} {statistics.median(found):.3f} images/s")
    best = max((n for n in speeds if n.startswith("pipeline")), key=lambda n: statistics.median(speeds[n]))
    for name in ("pipeline, batch 1", best):
        ratios = [a / b for a, b in zip(speeds["efface"], speeds[name], strict=True)]
        print(f"efface / {name}: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
