"""Train both judges from fresh scenes: two networks, two seeds, two augmentations; resumable to the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from efface.errors import Unavailable, WrongFile
from efface.files import cache_folder, write_bytes
from efface.judges.world import prepare
from efface.world import folder, judged, styles
from efface.worldmaking import through_vae as softened
from efface.worldmaking.judge_plans import SECONDS, Cycle, Plan
from efface.worldmaking.judge_scenes import Batch, Source
from efface.worldmaking.sheet import grid
from efface.worldmaking.sittings import DONE, RESULT, Go, Part, learn, read, write_json

__all__ = ["cycle_part", "load_net", "loss", "predict", "same_scenes", "train_phase", "vaes"]


def loss(net: Any, batch: Batch, style: float, device: str = "cpu") -> torch.Tensor:
    """Every label on its own, plus a softmax over labels: it tells neighbours apart and speeds up early steps."""
    batch = Batch(**{k: v.to(device) for k, v in vars(batch).items()})
    objects, styled, extra, _ = (v.float() for v in net(batch.images))
    known = batch.style_known[:, None]
    shown = batch.objects.sum(1)
    share = batch.objects / shown.clamp_min(1)[:, None]
    named = (-(share * F.log_softmax(objects, 1)).sum(1)).sum() / len(objects)
    seen = batch.object_known[:, None]
    flags = (F.binary_cross_entropy_with_logits(objects, batch.objects, reduction="none") * seen).sum(1).mean()
    marks = (F.binary_cross_entropy_with_logits(styled, batch.styles, reduction="none") * known).sum(1).mean()
    family = F.cross_entropy(styled[batch.judge_style], batch.styles[batch.judge_style].argmax(1))
    rest = F.binary_cross_entropy_with_logits(extra, batch.extra, reduction="none").sum(1).mean()
    return flags + 0.5 * named + style * (marks + 0.5 * family) + 0.5 * rest


def train_phase(plan: Plan, number: int, batches: Callable[[int], Batch], homes: Callable[[int], Path], go: Go) -> bool:
    """Cycle `number` of a judge, from the weights of the cycle before; resumable."""
    torch.manual_seed(plan.seed)
    net, cycle = plan.net(len(judged()), len(styles())), plan.cycles[number]
    torch.nn.init.constant_(net.object_head.bias, -4.0)
    if number:
        weights, _ = read(homes(number - 1) / RESULT)
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    label = f"{plan.judge} judge, cycle {number + 1}"
    done = learn(
        net, cycle.phase, batches, lambda b: loss(net, b, cycle.style, go.device), homes(number), go, label=label,
        layout=plan.layout,
    )  # fmt: skip
    if done:
        shown(load_net(plan, homes(number)), batches(-1), homes(number) / "sheet.png")
        write_json(homes(number) / DONE, {"steps": cycle.phase.steps})
    return done


def load_net(plan: Plan, home: Path) -> Any:
    """The trained net of a plan, float32, in evaluation mode."""
    net = plan.net(len(judged()), len(styles()))
    weights, _ = read(home / RESULT)
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return net.eval()


def vaes() -> tuple[Any, Any, str]:
    """The VAEs that soften scenes, of `mini` and `micro`, and a digest of both.

    A freshly trained one comes before the bundled one. Raises Unavailable when there is none of a size.
    """
    found, digest = [], hashlib.sha256()
    for name in ("mini", "micro"):
        from efface.worldmaking import sizes, train_vae

        home = train_vae.finished_vae(cache_folder() / "train" / name)
        if home is not None:
            found.append(train_vae.load_vae(sizes.size(name), home))
            digest.update((home / RESULT).read_bytes())
            continue
        try:
            bundled = folder(name) / "vae"
        except Unavailable:
            raise Unavailable(
                f"judges learn from scenes through the VAE of {name}, which there is none of yet; "
                f"train it first: efface world train {name}"
            ) from None
        found.append(softened.load_vae(bundled))
        for file in sorted(bundled.glob("*.safetensors")):
            digest.update(file.read_bytes())
    return found[0], found[1], digest.hexdigest()[:12]


def cycle_part(plan: Plan, number: int, cycle: Cycle, home: Path, source: Callable[[], Source]) -> Part:
    """Cycle `number` of a judge, in a folder beside those of the others."""

    def place(k: int) -> Path:
        return home / f"{plan.judge}-{k + 1}"

    def run(go: Go) -> bool:
        scenes = source()
        same_scenes(place(number), scenes.pictures_of(cycle))
        with go.work.interruptible():
            scenes.draw_pools(cycle)
        return train_phase(plan, number, lambda step: scenes.batch(step, plan, cycle), place, go)

    settings = json.dumps([plan.judge, str(plan), number])
    return Part(f"{plan.judge}-{number + 1}", place(number), settings, cycle.phase.steps, SECONDS[plan.judge], run)


def same_scenes(home: Path, name: str) -> None:
    """Refuse (WrongFile) to go on where other VAEs softened the scenes, or other models drew them anew."""
    file = home / "scenes.txt"
    if file.is_file() and file.read_text(encoding="utf-8") != name:
        raise WrongFile(
            f"{home} was begun on scenes through other models than those of today; move that folder away to train anew"
        )
    write_bytes(file, name.encode())


def shown(net: Any, batch: Batch, path: Path) -> None:
    """A sheet of one batch, those first in which the judge takes an object for another or misses one."""
    pixels = ((batch.images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    said = predict(net, pixels)[0].sigmoid() >= 0.5
    wrong = (said != batch.objects.bool()).any(1)
    grid(list(pixels[torch.argsort(~wrong, stable=True)].numpy()), 12, path)


@torch.inference_mode()
def predict(net: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Object and style logits of uint8 (n, 64, 64, 3), in evaluation mode."""
    net.eval()
    parts = [net(prepare(images[k : k + 64]))[:2] for k in range(0, len(images), 64)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
