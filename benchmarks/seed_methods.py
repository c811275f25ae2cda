"""What ScaPre, FIA and KSCU cost beside their authors' code; prints ratios, each beside what is asked of it.

ScaPre: random weights and text rows of the shapes of real checkpoints, everything float64, all timings of one run side
by side, medians over rounds that alternate. FIA and KSCU: counted, on a network as small as they get with the sampler
of Stable Diffusion 1.x. Name the methods to run some of them; each is one function in METHODS. `--quick` is a check
that it runs: few matrices and concepts, and its ratios mean little.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import efface
from efface.cli.options import prepare
from efface.erasure import plan
from efface.evidence.gather import Evidence, gather
from efface.families._text import clip_spans
from efface.methods.scapre import LargeScale, ScaPre, System
from efface.model import Model, sampler
from efface.model.card import Card, Door, Site, Stream
from efface.model.text import Context, Encoded, Encoding
from efface.numerics import schedules
from efface.numerics.geometry import bures_step
from efface.numerics.spectral import right_side
from efface.patch import Dense, Mask, Patch
from efface.request import Concept, Request
from efface.training.loop import Net, train
from efface.work import Work

LENGTH = 77
# (count, rows) of the key matrices; values have the same shapes.
SD1 = ((5, 320), (5, 640), (6, 1280)), 768
SDXL = ((10, 640), (60, 1280)), 2048
QUICK = ((1, 320), (1, 640)), 768
PRODUCT = 3800  # columns of the product that the edit is compared with


@dataclass(frozen=True)
class Weights:
    """As much of a model as a method that looks at texts only asks for: sites and random weights in float32."""

    card: Card
    tensors: dict[str, Tensor]

    @classmethod
    def random(cls, shapes: tuple[tuple[int, int], ...], width: int) -> Weights:
        g, tensors = torch.Generator().manual_seed(0), {}
        for role in "kv":
            for count, rows in shapes:
                for i in range(count):
                    tensors[f"{rows}.{i}.to_{role}"] = torch.randn(rows, width, generator=g) / width**0.5
        sites = tuple(Site(n, f"cross.{n[-1]}", tuple(t.shape), "text") for n, t in tensors.items())
        stream = Stream("text", width, LENGTH, True)
        return cls(
            Card(
                "random",
                "",
                (stream,),
                (Door("text", ("text",), stream.width),),
                sites,
                "",
                (),
                (0, 0),
                (0, 0, 0),
                0,
                0.0,
            ),
            tensors,
        )

    def weight(self, site: str) -> Tensor:
        return self.tensors[site]

    @property
    def rows(self) -> int:
        return sum(len(t) for t in self.tensors.values())


def _encoded(text: str, rows: Tensor, count: int) -> Encoded:
    """A text of `count` tokens, both ends among them."""
    return Encoded(text, {"text": Encoding(rows, clip_spans(count, len(rows)))})


def evidence(m: int, width: int) -> tuple[Evidence, Request]:
    """m concepts of two tokens. Rows have entries of size one; tails of different texts have a cosine of 0.96."""
    g = torch.Generator().manual_seed(1)
    tail = torch.randn(LENGTH, width, generator=g)
    texts = {"": _encoded("", tail, 2)}
    for k in range(m):
        rows = 0.96**0.5 * tail + 0.2 * torch.randn(LENGTH, width, generator=g)
        rows[0], rows[1:3] = tail[0], torch.randn(2, width, generator=g)
        texts[f"concept {k}"] = _encoded(f"concept {k}", rows, 4)
    return Evidence(texts), Request(tuple(Concept(t, "object") for t in texts if t))


def verdict(what: str, value: float, bound: float, at_least: bool = False) -> None:
    """One ratio beside what is asked of it."""
    met = value >= bound if at_least else value <= bound
    asked = f"at {'least' if at_least else 'most'} {bound:g}"
    print(f"{what}: {value:.4g} (asked: {asked}) {'met' if met else 'MISSED'}", flush=True)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_megabytes(run: Callable[[], object]) -> float:
    """How far the resident memory rises above its start while something runs (Linux)."""

    def status(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


# --- ScaPre ----------------------------------------------------------------------------------------------------------


def scapre(options: argparse.Namespace) -> None:
    """The large-scale form with preset `code`."""
    shapes, width = QUICK if options.quick else SD1
    m = 8 if options.quick else 50
    model, method = Weights.random(shapes, width), LargeScale()
    found, request = evidence(m, width)
    print(f"ScaPre, preset code, {len(model.tensors)} matrices, {model.rows} rows, width {width}, {m} concepts")

    def edit(model: Weights = model, found: Evidence = found, request: Request = request) -> object:
        return method.solve(model, found, request, Work())  # pyright: ignore[reportArgumentType]

    edit()  # first calls load libraries
    rounds = [(seconds(edit), product_seconds(model.rows, width)) for _ in range(options.rounds)]
    ours = statistics.median(t for t, _ in rounds)
    product = statistics.median(t for _, t in rounds)
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"edit {ours:.3f} s; float64 product {model.rows} x {PRODUCT} x {width} {product:.3f} s")
    verdict("edit over product", ratio, 3)

    loop, released, errors = authors_structure(model, method, found, request, 2 if options.quick else 16)
    print(f"bare loop of one Cholesky solve a row, scaled: {loop:.1f} s; released structure: {released:.1f} s")
    verdict("bare loop over edit", loop / ours, 25, at_least=True)
    verdict("released structure over edit", released / ours, 100, at_least=True)
    verdict("largest relative difference of a solved row", errors[0], 1e-8)
    verdict("largest relative difference of a final row", errors[1], 1e-8)
    print(f"full Bures step beside it: {bures_seconds(model, shapes):.3f} s")
    patch = {}
    extra = peak_megabytes(lambda: patch.update(made=edit()))
    edits = patch.pop("made").edits
    stored = sum(t.numel() * t.element_size() for e in edits for t in e.tensors().values()) / 2**20
    dense = sum(isinstance(e, Dense) for e in edits)
    verdict(f"peak memory in MB, {stored:.0f} of it the edits ({dense} of {len(edits)} dense)", extra, 600)
    cost_table(edit, model, (1, 4, 8) if options.quick else (1, 10, 50, 100, 300, 1000))
    if not options.quick:
        del edits, patch
        large = Weights.random(*SDXL)
        taken = seconds(lambda: edit(large, *evidence(50, SDXL[1])))
        print(f"SDXL shapes, {len(large.tensors)} matrices, {large.rows} rows, width {SDXL[1]}: {taken:.1f} s")


def product_seconds(rows: int, width: int) -> float:
    """One float64 product, its memory ready."""
    left, right = torch.randn(rows, width).double(), torch.randn(width, PRODUCT).double()
    out = torch.zeros(rows, PRODUCT, dtype=torch.float64)
    return seconds(lambda: torch.mm(left, right, out=out))


def cost_table(edit: Callable[..., object], model: Weights, sizes: tuple[int, ...]) -> None:
    """Seconds by number of concepts; linear growth keeps the last column from rising."""
    print("concepts  seconds  seconds a concept")
    shares = []
    for m in sizes:
        taken = seconds(lambda made=evidence(m, model.card.streams[0].width): edit(model, *made))
        shares.append(taken / m)
        print(f"{m:8d}  {taken:7.3f}  {shares[-1]:.4f}", flush=True)
    verdict("seconds a concept of the most over those of the fewest", shares[-1] / shares[0], 1)


def bures_seconds(model: Weights, shapes: tuple[tuple[int, int], ...]) -> float:
    """The full step for all matrices, from one matrix of each shape."""
    total = 0.0
    for count, rows in shapes:
        W0 = model.weight(f"{rows}.0.to_k").double()
        W = W0 + 0.3 * model.weight(f"{rows}.0.to_v").double()
        total += 2 * count * seconds(lambda W=W, W0=W0: bures_step(W, W0, 0.3))
    return total


def authors_structure(
    model: Weights, method: ScaPre, found: Evidence, request: Request, sample: int
) -> tuple[float, float, tuple[float, float]]:
    """Seconds of the bare loop and of the released structure for all rows, from `sample` rows of each of two matrices,
    and the largest relative differences to ours: of solved rows, of final rows.

    What can be shared by the rows of a matrix is made outside the timing: texts, Gram matrices, noisy activations,
    means and deviations over the channels, entropies.
    """
    (door,) = model.card.doors
    c = System(method, found, request, door, Work())
    times, errors = [0.0, 0.0], [0.0, 0.0]
    names = [n for n in model.tensors if n.endswith(".0.to_k")][:2]
    for name in names:
        W0 = model.weight(name).double()
        edited = c.site(W0, name)
        mu = c.mu(c.channels.entropies(W0, name))
        assert abs(mu - edited.numbers["mu"]) < 1e-5
        masks, again = (c.channels.masks(W0, name, purpose).values for purpose in ("target", "decouple"))
        B, a = right_side(W0, c.target(W0, masks), method.lam + mu), method.erase_scale * again.amax(1)
        solved = c.shared.solve(B, mu, a)
        G = c.shared.gram + mu * torch.eye(len(c.shared.gram), dtype=torch.float64)
        projector = c.shared.span @ c.shared.span.T
        rows = torch.arange(sample) * len(W0) // sample
        for i in rows.tolist():
            start = time.perf_counter()
            w = torch.cholesky_solve(B[i, :, None], torch.linalg.cholesky(G + a[i] * projector))[:, 0]
            times[0] += time.perf_counter() - start
            errors[0] = max(errors[0], _relative(solved[i], w))
        released = Released(c, W0, name, G, projector, mu)
        for i in rows.tolist():
            start = time.perf_counter()
            w = released.row(i)
            times[1] += time.perf_counter() - start
            errors[1] = max(errors[1], _relative(edited.weight[i], w))
    scale = model.rows / (sample * len(names))
    return times[0] * scale, times[1] * scale, (errors[0], errors[1])


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Released:
    """The released structure: row by row, within a row concept by concept."""

    def __init__(self, c: System, W0: Tensor, name: str, G: Tensor, projector: Tensor, mu: float) -> None:
        self.c, self.W0, self.G, self.projector, self.mu = c, W0, G, projector, mu
        self.y = torch.tensor([1] * 5 + [0] * 5)
        self.activations, self.mean, self.std = {}, {}, {}
        for purpose in ("decouple", "target"):
            channels, sigma = c.channels, c.method.mask.sigma
            plus, minus = (channels.draws(name, purpose, side, 5, W0.shape[1]) for side in ("positive", "negative"))
            samples = [channels.concepts[:, None] + sigma * plus, channels.neutral + sigma * minus]
            samples = torch.cat(samples, 1)  # (m, 10, d)
            self.activations[purpose] = torch.stack([W0 @ x.T for x in samples])  # (m, o, 10)
            information = channels.masks(W0, name, purpose).information
            assert information is not None
            self.mean[purpose], std = information.mean(0), information.std(0)  # (m,)
            # where all channels are alike the deviation is rounding, and scores are zero as in ours
            self.std[purpose] = torch.where(std < 1e-12, torch.inf, std)

    def information(self, x: Tensor) -> Tensor:
        """Mutual information of one channel, activations x (10,)."""
        z = x > x.median()
        cells = {}
        for a in (0, 1):
            for b in (0, 1):
                cells[a, b] = (((z == a) & (self.y == b)).sum().double() + 1e-8) / len(x)
        total = torch.zeros((), dtype=torch.float64)
        for (a, b), p in cells.items():
            total = total + p * (p / ((cells[a, 0] + cells[a, 1]) * (cells[0, b] + cells[1, b]))).log()
        return total

    def mask(self, purpose: str, k: int, i: int) -> Tensor:
        score = self.information(self.activations[purpose][k, i]) - self.mean[purpose][k]
        return torch.sigmoid(score / (self.std[purpose][k] + 1e-8) / 0.7) ** self.c.method.mask.power

    def row(self, i: int) -> Tensor:
        """The final row i."""
        c, w0, m, eta = self.c, self.W0[i], len(self.c.rows.concepts), self.c.method.erase_scale
        pairs = c.rows.pairs
        a = eta * torch.stack([self.mask("decouple", k, i) for k in range(m)]).amax()
        b = (c.method.lam + self.mu) * w0
        for k in range(m):
            guided = pairs.guide[pairs.which[k]] @ w0  # (T,)
            b = b + eta * self.mask("target", k, i) * (guided @ pairs.context[k])
        w = torch.cholesky_solve(b[:, None], torch.linalg.cholesky(self.G + a * self.projector))[:, 0]
        lp, mu, u, u0, r = c.method.lam + self.mu, self.mu, w / w.norm(), w0 / w0.norm(), w.norm()
        for _ in range(c.method.geometry.iterations):
            kappa = (u @ u0).clamp(min=0)
            r = (lp * w.norm() + mu * w0.norm() * kappa) / (lp + mu)
            u = lp * w + mu * w0.norm() * kappa * u0
            u = u / u.norm()
        return r * u


# --- FIA and KSCU: a network that costs little ------------------------------------------------------------------------


def least(dtype: torch.dtype = torch.float32) -> Model:
    """The bundled pipeline around a random U-Net of a few channels, with the sampler of SD 1.x."""
    from diffusers import PNDMScheduler, UNet2DConditionModel

    pipe = efface.load("mini", "cpu").pipeline()
    few = {
        "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 2, "sample_size": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.unet = UNet2DConditionModel.from_config({**pipe.unet.config, **few}).eval().requires_grad_(False)  # pyright: ignore
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    return efface.load(pipe.to(dtype))


# --- FIA -------------------------------------------------------------------------------------------------------------

NAMES = ("dog", "cat", "house", "car", "tree", "bird", "boat", "lamp", "fish", "bell")
FIFTY = {"saliency_steps": 10, "inference_steps": 50, "alpha": "off"}


def fia(options: argparse.Namespace) -> None:
    """Evaluations of the denoiser: one is a guided call for one prompt, both halves."""
    model = least()
    schedule = model.network.scheduler()
    schedule.set_timesteps(50)
    published = 2 * 30 * len(schedule.timesteps)  # 30 pairs to the end
    print(f"FIA; the released schedule makes {published} evaluations a concept")
    pairs = 3 if options.quick else 30
    for what, names, preset, prompts, bound in (
        ("equal prompts, one concept", NAMES[:1], "code", pairs, 5),
        ("equal prompts, ten concepts", NAMES, "code", pairs, 9),
        ("the paper's five pairs, ten concepts", NAMES, "paper", 5, 50),
    ):
        each = evaluations(model, names, preset=preset, prompts=prompts, **FIFTY) / len(names)
        verdict(f"{what}: {each:g} a concept, times fewer", published / each, bound, at_least=True)
    stopping(model)
    lock_step(least(torch.float64))
    lock_step(model)
    steps = 1 if options.quick else 10
    for score in ("cosine", "norm"):  # the sheet's bound for the norm score is 100 MB
        script = str(Path(__file__).with_name("fia_memory.py"))
        ran = subprocess.run(
            [sys.executable, script, score, "--steps", str(steps)], check=True, capture_output=True, text=True
        )
        verdict(f"extra memory in MB at SD 1.x shapes, {score} score, {steps} steps", float(ran.stdout), 600)


def masks(model: Model, names: tuple[str, ...], folder: str | None = None, **settings: Any) -> Patch:
    """Drawn anew: nothing is taken from an earlier run's cache."""
    with tempfile.TemporaryDirectory() as place:
        return efface.erase(model, names, method="fia", cache=Path(folder or place), **settings)


def evaluations(model: Model, names: tuple[str, ...], **settings: Any) -> float:
    """As many as really pass the denoiser."""
    rows: list[int] = []
    handle = model.part("unet").register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    masks(model, names, **settings)
    handle.remove()
    return sum(rows) / 2


def stopping(model: Model) -> None:
    """Stopped after the last step that is looked at, against the whole schedule."""
    few = {"preset": "paper", "prompts": 3, "saliency_steps": 3, "inference_steps": 10}
    short, sample = masks(model, NAMES[:1], **few), sampler.sample

    def whole(*given: Any, calls: int, **more: Any) -> Any:
        return sample(*given, **more)

    with mock.patch("efface.model.sampler.sample", whole):
        full = masks(model, NAMES[:1], **few)
    verdict("masks with early stop, patches that differ from the whole schedule's", short.hash != full.hash, 0)


def lock_step(model: Model) -> None:
    """Prompts one by one against sixteen at once: masks, and the relative difference of the statistics."""
    few = {"preset": "paper", "saliency_steps": 3, "inference_steps": 10, "keep_steps": True}
    patches, states = [], []
    for batch in (1, 16):
        with tempfile.TemporaryDirectory() as place, mock.patch("efface.model.sampler.BATCH", batch):
            patches.append(masks(model, NAMES[:2], place, **few))
            states.append([load_state(f) for f in sorted(Path(place).rglob("*.safetensors"))])
    apart = max(_relative(a, b) for a, b in zip(*states, strict=True))
    name = str(model.dtype).removeprefix("torch.")
    verdict(f"lock-step, {name}: largest relative difference of a statistic", apart, 1e-5)
    one, many = ({(e.site, i) for e in p.edits if isinstance(e, Mask) for i in marked(e)} for p in patches)
    jaccard = len(one & many) / len(one | many)
    verdict(f"lock-step, {name}: Jaccard index of the masks", jaccard, 1 if name == "float64" else 0.995, True)


def load_state(file: Path) -> Tensor:
    from safetensors.torch import load_file

    state = load_file(file)
    return state.get("level", state.get("mean", torch.zeros(())))


def marked(edit: Mask) -> list[int]:
    return edit.unpack().flatten().nonzero()[:, 0].tolist()


# --- KSCU ------------------------------------------------------------------------------------------------------------


def kscu(options: argparse.Namespace) -> None:
    """Rows through the U-Net in a forward pass, an update: the whole published run, on a network that only counts."""
    model = least()
    print("KSCU; rows an update, forward, starts spread over the run")
    for kind, advance, bound in (
        ("object", "exact", 7), ("style", "exact", 8), ("object", "lagged", 5), ("style", "lagged", 6.1),
    ):  # fmt: skip
        counted, planned = rows_an_update(model, kind, advance)
        what = f"{'class' if kind == 'object' else kind} run, {advance} advance (by the table {planned:.4g})"
        verdict(what, counted, bound)
    old = plan(model, [Concept("dog", "object")], method="kscu", preset="code-2025").method
    updates = old.schedule.total(1)
    fresh = schedules.forward_rows(old.table(updates, 1), fresh=True) / updates
    print(f"first release, class run, by the table: {fresh:.4g} in single rows, {fresh + 4:.4g} as released")


def rows_an_update(model: Model, kind: str, advance: str) -> tuple[float, float]:
    """Counted by the training loop, and what the key step table says."""
    made = plan(model, [Concept("dog", kind)], (), "kscu", "code", 0, advance=advance)
    request, work, method = made.request, Work(0), made.method
    net = Net(model, ("conv_out.bias",))
    steps = method.objective(model, gather(model, made.needs, work), request, net, work)
    table = steps.table
    with mock.patch.object(model.network, "predict", Hollow(model.network.denoiser)):
        for _ in train(net, steps, torch.optim.SGD(net.parameters, lr=0.0), len(table), work, {}):
            pass
    planned = schedules.forward_rows(table, lagged=advance == "lagged", augmented=steps.augmented)
    return net.counts.forward / len(table), planned / len(table)


class Hollow:
    """Stands for the denoiser's prediction: it depends on the text and on a bias, and costs nothing."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser

    def __call__(self, x: Tensor, time: Tensor, context: Context) -> Tensor:
        return context.tensors["rows"][:, 1, :1, None, None] + 0 * x + self.denoiser.conv_out.bias.sum()


METHODS: dict[str, Callable[[argparse.Namespace], None]] = {"scapre": scapre, "fia": fia, "kscu": kscu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"some of {', '.join(METHODS)} instead of all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.methods) - set(METHODS):  # with "*", Python 3.11 holds the empty list against `choices`
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(METHODS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.rounds = 1
    prepare()
    warnings.simplefilter("ignore")  # masks of the preset code are saturated; docs/methods/scapre.md says why
    print(f"{torch.get_num_threads()} threads")
    for name, run in METHODS.items():
        if name in (options.methods or METHODS):
            taken = seconds(lambda run=run: run(options))
            print(f"{name}: {taken:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
