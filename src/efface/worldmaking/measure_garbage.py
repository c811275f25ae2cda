"""Fit the garbage detector on base pictures and measure it; fields: docs/judges.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efface.judges import Judge, sized
from efface.judges import garbage as detector
from efface.judges import world as reporting
from efface.judges.garbage import RATE, STATISTICS, Garbage, deviation, fit, statistics
from efface.world.captions import BACKGROUNDS
from efface.worldmaking.check import drawn
from efface.worldmaking.corruptions import HELD_OUT, NOISY, SEEN
from efface.worldmaking.half_redrawn import model_folder, unfinished
from efface.worldmaking.judge_scenes import Source
from efface.worldmaking.measure_drawings import add_to_card
from efface.worldmaking.measure_drawings import measure as measure_drawings
from efface.worldmaking.measure_judge import crisp, share, soft
from efface.worldmaking.scenes import to_uint8
from efface.worldmaking.sittings import DONE, Go, Part, write_json
from efface.worldmaking.sizes import MICRO

RANDOM, UNFINISHED = "VAE decode of a random latent", "denoised for 40 % of the steps"


def corrupted(images: np.ndarray, vae: Any | None, seed: int = 5) -> dict[str, np.ndarray]:
    """Every kind of garbage made from uint8 (n, 64, 64, 3); random latents only with a VAE."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    made = {name: to_uint8(kind(x, generator)).numpy() for name, kind in (SEEN | NOISY | HELD_OUT).items()}
    made["empty background"] = _backgrounds(len(images), generator)
    if vae is not None:
        with torch.inference_mode():
            side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
            shape = (len(images), vae.config.latent_channels, side, side)
            latents = torch.randn(shape, generator=generator) / vae.config.scaling_factor
            decoded = torch.cat([vae.decode(part).sample for part in latents.split(16)])
        made[RANDOM] = sized(to_uint8(decoded / 2 + 0.5).numpy())
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
    broken: dict[str, np.ndarray] | None = None,
) -> tuple[Garbage, dict[str, Any]]:
    """Fit on four fifths of `base` and on `extra`, measure on the held-out fifth of `base`.

    `extra`: proper pictures of kinds that `base` lacks (two objects, colours); uint8 (n, 64, 64, 3).
    `controls`: more proper pictures by name, whose flag rate is reported. `broken`: more garbage by name.
    """
    order = np.random.default_rng(3).permutation(len(base))
    held, used = base[order[: len(base) // 5]], base[order[len(base) // 5 :]]
    pictures = np.concatenate([used, extra])
    garbage = Garbage(fit(pictures, judge.look(pictures).features), judge.version)
    card: dict[str, Any] = {
        "base_pictures": len(used), "extra_pictures": len(extra),
        "base_flag_rate": _flagged(garbage, judge, held),
        "control_flag_rates": {k: _flagged(garbage, judge, v) for k, v in (controls or {}).items()},
        "caught": {}, "seen_by_the_judge_in_training": [*SEEN, *NOISY, "empty background", RANDOM, UNFINISHED],
    }  # fmt: skip
    for name, images in (corrupted(held[:200], vae) | (broken or {})).items():
        card["caught"][name] = _flagged(garbage, judge, images) | {"alone": _alone(garbage, judge, images)}
    return garbage, card


# --- the detectors of both models ------------------------------------------------------------------------------------


def garbage_parts(home: Path, source: Callable[[], Source]) -> tuple[Part, ...]:
    """One detector a model: its drawings are the reference. `garbage` lies beside the judge, as it is bundled."""

    def stamp() -> str:
        """The judge whose features the detector reads."""
        file = home / "reporting" / "card.json"
        return json.loads(file.read_text(encoding="utf-8"))["version"] if file.is_file() else ""

    def part(name: str, into: Path) -> Part:
        def run(go: Go) -> bool:
            judge = reporting.load(home / "reporting")
            found, card = fitted(name, judge, source(), go)
            detector.save(found, judge, card, into)
            write_json(into / DONE, {"made from": stamp(), **card["caught"]})
            return True

        return Part(f"garbage-{name}", into, f"{name}\n", 1, 900.0 if name == "mini" else 240.0, run, stamp)

    return part("mini", home / "garbage"), part("micro", home / "garbage-micro")


def fitted(name: str, judge: Judge, scenes: Source, go: Go) -> tuple[Garbage, dict[str, Any]]:
    """Draw with the model (tune seeds), fit, measure. Drawn images are kept, so that this can be stopped."""
    from efface.model import load

    model = load(str(model_folder(name)), "cpu", "float32", offline=True)
    objects = [c["name"] for c in model.concepts if c["kind"] == "object"]
    families = [c["name"] for c in model.concepts if c["kind"] == "style"]
    plain, turns = (2, 4) if len(objects) > 100 else (16, 1)  # about 570 pictures of the one, 480 of the other
    asked = [(f"a {thing}", k) for k in range(plain) for thing in objects]
    asked += [
        (f"a {thing} in {style} style", 100 + k)
        for k, style in enumerate(families) for number, thing in enumerate(objects) if (number + k) % turns == 0
    ]  # fmt: skip
    pictures = sized(drawn(model, asked, go.work))
    if name == "mini":
        add_to_card(scenes.home.parent / "reporting", measure_drawings(judge, pictures, [p for p, _ in asked]))
    vae = model.part("vae")
    if model.card.size[0] == MICRO.pixels:
        proper = scenes.small.images.numpy()
        extra, held, crispy = proper[0::2], proper[1::2], None
    else:
        extra = soft(scenes, scenes.home / "calibrate.npz", 900).images.numpy()
        held = soft(scenes, scenes.home / "test.npz", 901).images.numpy()
        crispy = crisp(scenes, 901, 1, 0).images.numpy()
    controls = {"renders through the VAE": held} | ({} if crispy is None else {"crisp renders": crispy})
    some = asked[:: max(1, len(asked) // 200)][:200]
    halves = sized(unfinished(model, [p for p, _ in some], [s for _, s in some]))
    return fit_and_measure(judge, pictures, extra, vae, controls, {UNFINISHED: halves})


def _flagged(garbage: Garbage, judge: Judge, images: np.ndarray) -> dict[str, Any]:
    return share(int(garbage.flags(images, judge.look(images)).sum()), len(images))


def _alone(garbage: Garbage, judge: Judge, images: np.ndarray) -> dict[str, float]:
    """Share caught by each statistic on its own, at the same threshold."""
    away = deviation(garbage.reference, statistics(garbage.reference, images, judge.look(images).features))
    known = garbage.reference.scores
    edge = known[int(np.ceil((1 - RATE) * (len(known) + 1))) - 1] if len(known) >= 99 else np.inf
    return {name: round(float((away[:, k] > edge).mean()), 3) for k, name in enumerate(STATISTICS)}
