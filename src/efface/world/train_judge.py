"""Train both judges from fresh scenes: two networks, two seeds, two augmentations; resumable to the same weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from efface.errors import Unavailable, WrongFile
from efface.judges import selection
from efface.judges import world as reporting
from efface.judges.world import prepare
from efface.store import write_bytes
from efface.work import Work, cache_folder
from efface.world import folder, judged, softened, styles
from efface.world.artwork import Sprites
from efface.world.augmentation import augment, augment_other, corrupt
from efface.world.corruptions import NOISY
from efface.world.learning import DONE, RESULT, Go, Part, Phase, learn, read, write_json
from efface.world.redrawn import Drawer, Redrawn, drawer
from efface.world.scenes import Scenes, Stage
from efface.world.sheet import grid
from efface.world.sizes import MICRO

__all__ = ["PLANS", "Plan", "Source", "cycle_part", "train_phase", "vaes"]


CALIBRATES, MEASURES = 2, 3  # pools of redrawn scenes; those before teach


@dataclass(frozen=True)
class Cycle:
    """One fall of the learning rate, with the pictures it trains on."""

    phase: Phase
    two: float  # share of crisp scenes with two objects
    pools: int  # softened scenes of every sprite
    style: float  # weight of the style terms
    # Pools of scenes that `mini` and `micro` drew anew: they take half of the softened ones' places, and what they
    # did not finish drawing and noisy scenes half of the broken ones'.
    redrawn: int = 0

    def __post_init__(self) -> None:
        if self.redrawn > CALIBRATES:
            raise ValueError(f"pools from {CALIBRATES} on calibrate and measure; redrawn is at most {CALIBRATES}")


@dataclass(frozen=True)
class Plan:
    """How one judge is trained. `crisp`, `soft`, `small`, `empty`, `broken` are pictures a batch."""

    judge: str
    cycles: tuple[Cycle, ...]
    seed: int
    crisp: int = 26
    soft: int = 18
    small: int = 8  # at half the size, each pixel doubled: what `micro` draws
    empty: int = 4
    broken: int = 8
    strangers: float = 0.08  # share of crisp scenes with an object that the judge must not name

    @property
    def anew(self) -> int:
        """Redrawn pictures a batch in a cycle that has them."""
        return self.soft // 2

    @property
    def net(self) -> Callable[[int, int], Any]:
        return {"reporting": reporting.Net, "selection": selection.Net}[self.judge]

    @property
    def layout(self) -> torch.memory_format:
        """Depth-wise convolutions in bfloat16 are a fifth slower with channels last; all others are faster."""
        return {"reporting": torch.channels_last, "selection": torch.contiguous_format}[self.judge]

    @property
    def augment(self) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]:
        return {"reporting": augment, "selection": augment_other}[self.judge]


# Single objects first; then pairs and styles, which are learnt late. The share of pairs is high: at 30 % the
# reporting judge named both objects of only 39 % of crisp two-object scenes, after two cycles of 81 %. Last what
# models draw: judges of scenes alone were blind to one clean drawing in ten.
PLANS = {
    "reporting": Plan(
        "reporting",
        (
            Cycle(Phase(3500, 64, 4e-3, 0.02, coarse=True), 0.3, 3, 1.0),
            Cycle(Phase(5000, 64, 3e-3, 0.02, coarse=True), 0.55, 5, 2.0),
            Cycle(Phase(6000, 64, 2e-3, 0.02, coarse=True), 0.85, 5, 2.0),
            Cycle(Phase(3000, 64, 1e-3, 0.02, coarse=True), 0.85, 5, 2.0, redrawn=2),
        ),
        seed=11,
    ),
    "selection": Plan(
        "selection",
        (
            Cycle(Phase(2500, 64, 2e-3, 0.05, coarse=True), 0.4, 3, 1.0),
            Cycle(Phase(3500, 64, 1.5e-3, 0.05, coarse=True), 0.5, 5, 2.0),
            Cycle(Phase(2000, 64, 8e-4, 0.05, coarse=True), 0.5, 5, 2.0, redrawn=2),
        ),
        seed=23,
    ),
}  # fmt: skip
SECONDS = {"reporting": 0.15, "selection": 0.25}  # of a step, on two free cores


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
        pools = max(cycle.pools for plan in PLANS.values() for cycle in plan.cycles)
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
        from efface.world import sizes, train_vae

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
