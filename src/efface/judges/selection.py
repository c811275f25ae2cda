"""The bundled selection judge: patches mixed in place, one map of evidence a label; for methods and attacks alone.

It differs from the reporting judge in architecture, seed and augmentation (world/train_judge.py makes both), so
that what fools the one need not fool the other.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
from torch import nn

from efface.errors import Unavailable, WrongFile
from efface.judges import world as reporting
from efface.judges.panel import PLAIN, Brief, LabelPanel, Panel

__all__ = ["Net", "SelectionJudge", "load", "panel"]

FOLDER = "selection"
EARLY, LATE, DEPTH = 64, 192, (3, 3)


class Mix(nn.Module):
    """Depth-wise mixing of places, then a two-layer mixing of channels, each added to its input."""

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.places = nn.Conv2d(width, width, reach, padding=reach // 2, groups=width)
        self.norm = nn.GroupNorm(8, width)
        self.channels = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU(), nn.Conv2d(2 * width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.places(x)
        return x + self.channels(self.norm(x))


class Net(nn.Module):
    """Every place votes for every object; an object's logit is the log of the mean exponential over places.

    So two objects at two places do not have to share one summary. Outputs as those of the reporting judge's net:
    object logits, style logits, extra logits (n, 2: empty, broken), features (n, 258).
    """

    def __init__(self, objects: int, styles: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Conv2d(3, EARLY, 4, 4), nn.GroupNorm(8, EARLY), nn.GELU())
        self.early = nn.Sequential(*(Mix(EARLY, 3) for _ in range(DEPTH[0])))
        self.down = nn.Sequential(nn.Conv2d(EARLY, LATE, 2, 2), nn.GroupNorm(8, LATE))
        self.late = nn.Sequential(*(Mix(LATE, 5) for _ in range(DEPTH[1])), nn.GroupNorm(8, LATE))
        self.object_head = nn.Conv2d(LATE, objects, 1)
        self.style_head = nn.Sequential(nn.Linear(EARLY + LATE, 96), nn.GELU(), nn.Linear(96, styles))
        self.extra_head = nn.Linear(EARLY + 2 * LATE, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        early = self.early(self.patches(x))  # (n, 64, 16, 16)
        late = self.late(self.down(early))  # (n, 192, 8, 8)
        votes = self.object_head(late).flatten(2)  # (n, objects, 64)
        named = votes.logsumexp(2) - math.log(votes.shape[2])
        means = torch.cat([early.mean((2, 3)), late.mean((2, 3))], 1)  # (n, 256)
        extra = self.extra_head(torch.cat([means, late.amax((2, 3))], 1))
        return named, self.style_head(means), extra, torch.cat([means, extra], 1)


class SelectionJudge(reporting.WorldJudge):
    """Weights and card of the selection judge; see `efface.judges.Judge`."""

    name = "selection"
    role = "selection"


def load(folder: Path | None = None) -> SelectionJudge:
    """The bundled selection judge, or the one in `folder` (model.safetensors and card.json).

    Raises `Unavailable` when there is none and `WrongFile` when weights and card do not belong together.
    """
    from efface import world

    folder = folder or world.folder(FOLDER)
    weights, card_file = folder / "model.safetensors", folder / "card.json"
    if not (weights.is_file() and card_file.is_file()):
        raise Unavailable(
            f"Expected model.safetensors and card.json in {folder}, found no judge; train one with "
            "`efface world train judge`."
        )
    data, card = weights.read_bytes(), json.loads(card_file.read_text(encoding="utf-8"))
    if hashlib.sha256(data).hexdigest() != card["weights_sha256"]:
        raise WrongFile(f"Expected the weights that {card_file} was measured on, got others; train the judge again.")
    judge = SelectionJudge(rebuilt(data, card), card, reporting.version(card))
    reporting.self_test(judge)
    return judge


def panel(where: Path | str = "", brief: Brief = PLAIN) -> Panel:
    """A panel that may not report."""
    return LabelPanel.of(load(Path(where)) if where else load(), brief)


def rebuilt(data: bytes, card: reporting.WorldCard) -> Net:
    """The net of float16 safetensors bytes, in float32."""
    from safetensors.torch import load as decode

    net = Net(len(card["objects"]), len(card["styles"]))
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in decode(data).items()})
    return net


PLUGIN = panel
