"""Fit the garbage detector on base pictures and measure it; fields: docs/judges.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from efface.judges import Judge
from efface.judges.garbage import RATE, STATISTICS, Garbage, deviation, fit, statistics
from efface.world.corruptions import HELD_OUT, SEEN
from efface.world.measure_judge import share
from efface.world.scenes import BACKGROUNDS, to_uint8


def corrupted(images: np.ndarray, vae: Any | None, seed: int = 5) -> dict[str, np.ndarray]:
    """Every kind of garbage made from uint8 (n, 64, 64, 3); random latents only with a VAE."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    made = {name: to_uint8(kind(x, generator)).numpy() for name, kind in (SEEN | HELD_OUT).items()}
    made["empty background"] = _backgrounds(len(images), generator)
    if vae is not None:
        with torch.inference_mode():
            latents = torch.randn(len(images), 4, 16, 16, generator=generator) / vae.config.scaling_factor
            decoded = torch.cat([vae.decode(part).sample for part in latents.split(16)])
        made["VAE decode of a random latent"] = to_uint8(decoded / 2 + 0.5).numpy()
    return made


def _backgrounds(count: int, generator: torch.Generator) -> np.ndarray:
    """One colour with the faint unevenness of a drawn background."""
    colours = torch.tensor(list(BACKGROUNDS.values())).float() / 255
    chosen = colours[torch.randint(len(colours), (count,), generator=generator)]
    uneven = torch.nn.functional.interpolate(torch.randn(count, 3, 16, 16, generator=generator) * 0.015, (64, 64))
    return to_uint8(chosen[:, :, None, None] + uneven).numpy()


def fit_and_measure(
    judge: Judge,
    base: np.ndarray,
    extra: np.ndarray,
    vae: Any | None = None,
    controls: dict[str, np.ndarray] | None = None,
) -> tuple[Garbage, dict[str, Any]]:
    """Fit on four fifths of `base` and on `extra`, measure on the held-out fifth of `base`.

    `extra`: proper pictures of kinds that `base` lacks (two objects, colours); uint8 (n, 64, 64, 3).
    `controls`: more proper pictures by name, whose flag rate is reported.
    """
    order = np.random.default_rng(3).permutation(len(base))
    held, used = base[order[: len(base) // 5]], base[order[len(base) // 5 :]]
    pictures = np.concatenate([used, extra])
    garbage = Garbage(fit(pictures, judge.look(pictures).features), judge.version)
    card: dict[str, Any] = {
        "base_pictures": len(used), "extra_pictures": len(extra),
        "base_flag_rate": _flagged(garbage, judge, held),
        "control_flag_rates": {k: _flagged(garbage, judge, v) for k, v in (controls or {}).items()},
        "caught": {}, "seen_by_the_judge_in_training": [*SEEN, "empty background"],
    }  # fmt: skip
    for name, images in corrupted(held[:200], vae).items():
        card["caught"][name] = _flagged(garbage, judge, images) | {"alone": _alone(garbage, judge, images)}
    return garbage, card


def _flagged(garbage: Garbage, judge: Judge, images: np.ndarray) -> dict[str, Any]:
    return share(int(garbage.flags(images, judge.look(images)).sum()), len(images))


def _alone(garbage: Garbage, judge: Judge, images: np.ndarray) -> dict[str, float]:
    """Share caught by each statistic on its own, at the same threshold."""
    away = deviation(garbage.reference, statistics(garbage.reference, images, judge.look(images).features))
    known = garbage.reference.scores
    edge = known[int(np.ceil((1 - RATE) * (len(known) + 1))) - 1] if len(known) >= 99 else np.inf
    return {name: round(float((away[:, k] > edge).mean()), 3) for k, name in enumerate(STATISTICS)}
