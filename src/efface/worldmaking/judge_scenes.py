"""The pictures that judges learn from: crisp, softened, small, empty, broken and redrawn scenes, by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from efface.work import Work
from efface.world import judged, styles
from efface.worldmaking import judge_plans
from efface.worldmaking import through_vae as softened
from efface.worldmaking.artwork import Sprites
from efface.worldmaking.augmentation import corrupt
from efface.worldmaking.corruptions import NOISY
from efface.worldmaking.half_redrawn import Drawer, Redrawn, drawer
from efface.worldmaking.judge_plans import Cycle, Plan
from efface.worldmaking.scenes import Scenes, Stage
from efface.worldmaking.sizes import MICRO

__all__ = ["Batch", "Source"]


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor  # float32 (n, 3, 64, 64) in [-1, 1]
    objects: torch.Tensor  # float32 (n, objects)
    styles: torch.Tensor  # float32 (n, styles)
    extra: torch.Tensor  # float32 (n, 2): empty, broken
    judge_style: torch.Tensor  # bool (n,): False where no style is shown, or none that is certain
    style_known: torch.Tensor  # bool (n,): False where a style is shown that is not certain
    object_known: torch.Tensor  # bool (n,): False where an object may or may not show

    @classmethod
    def of(
        cls,
        pixels: torch.Tensor,
        objects: torch.Tensor,
        kinds: torch.Tensor,
        *,
        broken: bool,
        style_known: bool = True,
        object_known: bool = True,
    ) -> Batch:
        """Pictures (n, 3, 64, 64) in [0, 1] that are all alike in what is known of them."""
        extra = torch.tensor([[0.0, float(broken)]]).repeat(len(pixels), 1)
        told, certain, seen = (torch.full((len(pixels),), v) for v in (not broken, style_known, object_known))
        return cls(pixels * 2 - 1, objects, kinds, extra, told, certain, seen)

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


class Source:
    """All pictures of a training run: step k gives the same batch in every run, so resuming is exact.

    vae: softens scenes of 64 pixels; small_vae: those of 32, for the objects and styles of `micro`.
    """

    def __init__(self, sprites: Sprites, vae: Any, small_vae: Any, home: Path) -> None:
        self.home, self.vae, self.sprites = home, vae, sprites
        self.stage, self.little = Stage(sprites), Stage(sprites, MICRO.pixels)
        self.known = torch.tensor([sprites.object_names.index(o.name) for o in judged()])
        own = torch.isin(self.stage.objects, self.known)
        self.rows, self.strange = torch.nonzero(own).flatten(), torch.nonzero(~own).flatten()
        per_style = [self.rows[self.stage.styles[self.rows] == s] for s in range(len(styles()))]
        self.per_style = [rows for rows in per_style if len(rows)]
        pools = max(cycle.pools for plan in judge_plans.PLANS.values() for cycle in plan.cycles)
        self.soft = [
            softened.pool(home / f"pool-{k}.npz", self.stage, self.rows, vae, seed=100 + k, rough=0.15, two=0.4)
            for k in range(pools)
        ]
        of_style = self.stage.styles[self.rows]
        self.soft_rows = [torch.nonzero(of_style == s).flatten() for s in of_style.unique()]
        self.small = self._small_pool(sprites, small_vae)
        self._redrawn: dict[int, tuple[Redrawn, Redrawn]] = {}

    def _small_pool(self, sprites: Sprites, vae: Any) -> Scenes:
        """Scenes that `micro` could draw, through its VAE, each pixel doubled."""
        things = torch.tensor([name in MICRO.objects for name in sprites.object_names])
        kinds = torch.tensor([s in MICRO.styles for s in sprites.style_names])
        rows = torch.nonzero(things[self.little.objects] & kinds[self.little.styles]).flatten().repeat(12)
        return softened.doubled(
            softened.pool(self.home / "small.npz", self.little, rows, vae, seed=150, rough=0.15, two=0.3)
        )

    @cached_property
    def drawers(self) -> tuple[Drawer, Drawer]:
        """What draws scenes anew: `mini` and `micro`, the newest of each."""
        return drawer("mini", self.stage, self.sprites), drawer("micro", self.little, self.sprites)

    def redrawn(self, number: int) -> tuple[Redrawn, Redrawn]:
        """Pool `number` of scenes drawn anew by `mini` and by `micro`, made once."""
        if number not in self._redrawn:
            large, small = self.drawers
            self._redrawn[number] = (
                large.pool(self.home, 400 + number, 0.5),
                small.pool(self.home, 450 + number, 1.0, copies=3),
            )
        return self._redrawn[number]

    @cached_property
    def stopped(self) -> Scenes:
        """Unfinished drawings of both."""
        large, small = self.drawers
        return Scenes.joined([large.stopped(self.home, 480, 32), small.stopped(self.home, 481, 32)])

    def pictures_of(self, cycle: Cycle) -> str:
        """What the pictures of a cycle come from: it cannot go on with others."""
        drawers = self.drawers if cycle.redrawn else ()
        return " ".join([self.home.name, *(by.model.identity[:12] for by in drawers)])

    def draw_pools(self, cycle: Cycle) -> None:
        """Make the redrawn pictures of a cycle now, which the first batch would otherwise wait for."""
        if cycle.redrawn:
            _ = self.stopped, [self.redrawn(number) for number in range(cycle.redrawn)]

    def batch(self, step: int, plan: Plan, cycle: Cycle) -> Batch:
        generator = Work(plan.seed).rng(f"{cycle} {step}")
        crisp = self.stage.draw(plan.crisp, generator, rows=self._sprites(plan, generator), two=cycle.two)
        anew = self._anew(plan, cycle, generator)
        soft = self._softened(plan.soft - plan.anew if cycle.redrawn else plan.soft, generator, cycle.pools)
        shown = [crisp, soft, *self._little(plan, generator), *(pool.scenes for pool in anew)]
        empty = self.stage.empty(plan.empty, generator).images
        whole = _unit(torch.cat([*(s.images for s in shown), empty]))
        things = F.pad(torch.cat([s.objects for s in shown])[:, self.known].float(), (0, 0, 0, plan.empty))
        kinds = F.pad(torch.cat([s.styles for s in shown]).float(), (0, 0, 0, plan.empty))
        fine = Batch.of(plan.augment(whole, generator), things, kinds, broken=False)
        fine.extra[len(whole) - plan.empty :, 0] = 1
        fine.judge_style[len(whole) - plan.empty :] = False
        if anew:
            doubts = torch.cat([pool.styled for pool in anew])
            rows = slice(len(whole) - plan.empty - len(doubts), len(whole) - plan.empty)
            fine.judge_style[rows] = fine.style_known[rows] = doubts
        pick = torch.randperm(len(whole) - plan.empty, generator=generator)[: plan.broken]
        return Batch.joined([fine, *self._broken(whole[pick], things[pick], bool(cycle.redrawn), generator)])

    def _broken(self, x: torch.Tensor, things: torch.Tensor, anew: bool, generator: torch.Generator) -> Iterator[Batch]:
        """Pictures to call broken: nothing shows in corrupted ones, things still do in noisy ones."""
        n = len(x) // 2 if anew else len(x)
        nothing = torch.zeros(n, len(styles()))
        yield Batch.of(corrupt(x[:n], generator), torch.zeros_like(things[:n]), nothing, broken=True)
        if not anew:
            return
        m = (len(x) - n) // 2
        noisy = next(iter(NOISY.values()))(x[n : n + m], generator)
        yield Batch.of(noisy, things[n : n + m], nothing[:m], broken=True, style_known=False)
        rows = torch.randint(len(self.stopped.images), (len(x) - n - m,), generator=generator)
        stopped = _unit(self.stopped.images[rows])
        some = len(stopped)
        yield Batch.of(
            stopped, torch.zeros(some, things.shape[1]), torch.zeros(some, len(styles())), broken=True,
            style_known=False, object_known=False,
        )  # fmt: skip

    def _sprites(self, plan: Plan, generator: torch.Generator) -> torch.Tensor:
        """Balanced over styles, mostly objects that the judge names."""
        luck = torch.rand(2, plan.crisp, generator=generator)
        turn = torch.randperm(plan.crisp, generator=generator).tolist()
        rows = []
        for k, (odd, place) in enumerate(luck.T.tolist()):
            pool = self.strange if odd < plan.strangers else self.per_style[turn[k] % len(self.per_style)]
            rows.append(pool[int(place * len(pool))])
        return torch.stack(rows)

    def _softened(self, count: int, generator: torch.Generator, pools: int) -> Scenes:
        pool = self.soft[int(torch.randint(pools, (1,), generator=generator))]
        luck = torch.rand(count, generator=generator).tolist()
        turn = torch.randperm(count, generator=generator).tolist()
        rows = [self.soft_rows[t % len(self.soft_rows)] for t in turn]
        return pool.at(torch.stack([r[int(u * len(r))] for r, u in zip(rows, luck, strict=True)]))

    def _anew(self, plan: Plan, cycle: Cycle, generator: torch.Generator) -> list[Redrawn]:
        """Scenes that the models drew anew, one in three by `micro`; none in a cycle without."""
        if not cycle.redrawn:
            return []
        pools = self.redrawn(int(torch.randint(cycle.redrawn, (1,), generator=generator)))
        counts = (plan.anew - plan.anew // 3, plan.anew // 3)
        return [
            pool.at(torch.randint(len(pool.styled), (count,), generator=generator))
            for pool, count in zip(pools, counts, strict=True)
        ]

    def _little(self, plan: Plan, generator: torch.Generator) -> tuple[Scenes, Scenes]:
        """Half of the small pictures crisp, of any judged object; half through the small VAE."""
        half = plan.small // 2
        rows = self.rows[torch.randint(len(self.rows), (half,), generator=generator)]
        crisp = softened.doubled(self.little.draw(half, generator, rows=rows, two=0.3))
        pick = torch.randint(len(self.small.images), (plan.small - half,), generator=generator)
        return crisp, self.small.at(pick)


def _unit(images: torch.Tensor) -> torch.Tensor:
    return images.permute(0, 3, 1, 2).float() / 255
