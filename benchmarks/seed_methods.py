"""What ScaPre costs beside its authors' structure, at the shapes of real checkpoints; prints ratios.

Random weights and random text rows of the right shapes, everything float64, all timings of one run side by side,
medians over rounds that alternate. Each method is one function in METHODS. `--quick` is a check that it runs: few
matrices and concepts, and its ratios mean little.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from efface.evidence import Evidence
from efface.methods.scapre import PRESETS, ScaPre, _Context
from efface.model import Encoded
from efface.numerics.geometry import bures_step
from efface.numerics.spectral import right_side
from efface.patch import Dense
from efface.request import Concept, Request
from efface.sites import Card, Site, Stream
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
        return cls(Card("random", "", (stream,), sites, "", (), (0, 0), (0, 0, 0), 0, 0.0), tensors)

    def weight(self, site: str) -> Tensor:
        return self.tensors[site]

    @property
    def rows(self) -> int:
        return sum(len(t) for t in self.tensors.values())


def evidence(m: int, width: int) -> tuple[Evidence, Request]:
    """m concepts of two tokens. Rows have entries of size one; tails of different texts have a cosine of 0.96."""
    g = torch.Generator().manual_seed(1)
    tail = torch.randn(LENGTH, width, generator=g)
    texts = {"": Encoded("", tail, 2)}
    for k in range(m):
        rows = 0.96**0.5 * tail + 0.2 * torch.randn(LENGTH, width, generator=g)
        rows[0], rows[1:3] = tail[0], torch.randn(2, width, generator=g)
        texts[f"concept {k}"] = Encoded(f"concept {k}", rows, 4)
    return Evidence(texts), Request(tuple(Concept(t, "object") for t in texts if t))


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
    model, method = Weights.random(shapes, width), ScaPre(**PRESETS["code"])
    found, request = evidence(m, width)
    print(f"ScaPre, preset code, {len(model.tensors)} matrices, {model.rows} rows, width {width}, {m} concepts")

    def edit(model: Weights = model, found: Evidence = found, request: Request = request) -> object:
        return method.solve(model, found, request, Work())  # pyright: ignore[reportArgumentType]

    edit()  # first calls load libraries
    rounds = [(seconds(edit), product_seconds(model.rows, width)) for _ in range(options.rounds)]
    ours = statistics.median(t for t, _ in rounds)
    product = statistics.median(t for _, t in rounds)
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"edit {ours:.3f} s; float64 product {model.rows} x {PRODUCT} x {width} {product:.3f} s; ratio {ratio:.2f}")

    loop, released, errors = authors_structure(model, method, found, request, 2 if options.quick else 16)
    print(f"bare loop of one Cholesky solve a row, scaled: {loop:.1f} s, {loop / ours:.0f} times the edit")
    print(f"released structure a row, scaled: {released:.1f} s, {released / ours:.0f} times the edit")
    print(f"largest relative difference of a solved row {errors[0]:.1e}, of a final row {errors[1]:.1e}")
    print(f"full Bures step beside it: {bures_seconds(model, shapes):.3f} s")
    patch = {}
    extra = peak_megabytes(lambda: patch.update(made=edit()))
    edits = patch.pop("made").edits
    stored = sum(t.numel() * t.element_size() for e in edits for t in e.tensors().values()) / 2**20
    dense = sum(isinstance(e, Dense) for e in edits)
    print(f"peak memory {extra:.0f} MB, {stored:.0f} MB of it the edits ({dense} of {len(edits)} dense)")
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
    for m in sizes:
        taken = seconds(lambda made=evidence(m, model.card.streams[0].width): edit(model, *made))
        print(f"{m:8d}  {taken:7.3f}  {taken / m:.4f}", flush=True)


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
    c = _Context(method, found, request, Work())
    times, errors = [0.0, 0.0], [0.0, 0.0]
    names = [n for n in model.tensors if n.endswith(".0.to_k")][:2]
    for name in names:
        W0 = model.weight(name).double()
        W, numbers = c.site(W0, name)
        mu = _entropy_mu(c, W0, name)
        assert abs(mu - numbers["mu"]) < 1e-5
        masks, again = (c._masks(W0, name, purpose)[0] for purpose in ("target", "decouple"))
        B, a = right_side(W0, c._target(W0, masks), c.lam + mu), c.eta * again.amax(1)
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
            errors[1] = max(errors[1], _relative(W[i], w))
    scale = model.rows / (sample * len(names))
    return times[0] * scale, times[1] * scale, (errors[0], errors[1])


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _entropy_mu(c: _Context, W0: Tensor, name: str) -> float:
    from efface.numerics.information import entropy_factor

    draws = c._draws(name, "entropy", "", c.method.samples or 20, W0.shape[1])
    e = entropy_factor(W0, c.concepts, draws, c.sigma, c.method.bins or 20)
    return float((1 - e).clamp(0, 1).mean())


class Released:
    """The released structure: row by row, within a row concept by concept."""

    def __init__(self, c: _Context, W0: Tensor, name: str, G: Tensor, projector: Tensor, mu: float) -> None:
        self.c, self.W0, self.G, self.projector, self.mu = c, W0, G, projector, mu
        self.y = torch.tensor([1] * 5 + [0] * 5)
        self.activations, self.mean, self.std = {}, {}, {}
        for purpose in ("decouple", "target"):
            plus, minus = (c._draws(name, purpose, side, 5, W0.shape[1]) for side in ("positive", "negative"))
            samples = torch.cat([c.concepts[:, None] + c.sigma * plus, c.neutral + c.sigma * minus], 1)  # (m, 10, d)
            self.activations[purpose] = torch.stack([W0 @ x.T for x in samples])  # (m, o, 10)
            information = c._masks(W0, name, purpose)[1]
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
        return torch.sigmoid(score / (self.std[purpose][k] + 1e-8) / 0.7) ** (self.c.method.power or 1.0)

    def row(self, i: int) -> Tensor:
        """The final row i."""
        c, w0, m = self.c, self.W0[i], len(self.c.concepts)
        a = c.eta * torch.stack([self.mask("decouple", k, i) for k in range(m)]).amax()
        b = (c.lam + self.mu) * w0
        for k in range(m):
            guided = c.pairs.guide[c.pairs.which[k]] @ w0  # (T,)
            b = b + c.eta * self.mask("target", k, i) * (guided @ c.pairs.context[k])
        w = torch.cholesky_solve(b[:, None], torch.linalg.cholesky(self.G + a * self.projector))[:, 0]
        lp, mu, u, u0, r = c.lam + self.mu, self.mu, w / w.norm(), w0 / w0.norm(), w.norm()
        for _ in range(c.method.iterations or 1):
            kappa = (u @ u0).clamp(min=0)
            r = (lp * w.norm() + mu * w0.norm() * kappa) / (lp + mu)
            u = lp * w + mu * w0.norm() * kappa * u0
            u = u / u.norm()
        return r * u


METHODS: dict[str, Callable[[argparse.Namespace], None]] = {"scapre": scapre}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(METHODS), help="one method instead of all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.rounds = 1
    warnings.simplefilter("ignore")  # masks of the preset code are saturated; docs/methods/scapre.md says why
    print(f"{torch.get_num_threads()} threads")
    for name, run in METHODS.items():
        if options.only in (None, name):
            run(options)


if __name__ == "__main__":
    main()
