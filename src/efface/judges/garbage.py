"""Statistics-only garbage detector: a broken picture must not count as an erased concept (docs/judges.md).

Source: split conformal prediction (Vovk, Gammerman and Shafer 2005) on one-image statistics, combined after Fisher
1932; Mahalanobis distance of features after Lee et al. 2018 and nearest-neighbour distance after Sun et al. 2022.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efface.errors import BadRequest, Unavailable, WrongFile
from efface.files import write_bytes
from efface.judges import Card, Judge, Verdict, sized

__all__ = ["Garbage", "Reference", "fit", "load", "save"]

STATISTICS = (
    *("mahalanobis", "residual", "neighbours"),  # of features
    *("total variation", "coding length", "sharpness"),  # of pixels
    *("empty", "broken"),  # the judge's own extra outputs
)
RATE = 0.01  # share of base pictures flagged
TAIL = 0.05  # share of base pictures in either tail of a statistic
NEIGHBOURS = 5
AXES = 64  # principal axes of the features that carry the distances


def pixel_statistics(images: np.ndarray) -> np.ndarray:
    """Total variation, coding length (bits a value) and log sharpness of uint8 (n, h, w, 3): (n, 3).

    Coding length is the entropy of differences between neighbours: what the size of a PNG measures, without
    depending on the version of a compressor.
    """
    x = images.astype(np.int16)
    across, down = np.diff(x, axis=2), np.diff(x, axis=1)
    variation = (np.abs(across).mean((1, 2, 3)) + np.abs(down).mean((1, 2, 3))) / 255
    length = np.asarray([_entropy(row) for row in across.reshape(len(x), -1)])
    curve = np.abs(np.diff(across.astype(np.float64), axis=2)).mean((1, 2, 3))
    sharpness = np.log((curve + 0.05) / (np.abs(across).mean((1, 2, 3)) + 0.05))
    return np.stack([variation, length, sharpness], 1).reshape(len(x), 3)


def _entropy(differences: np.ndarray) -> float:
    share = np.bincount(differences.astype(np.int64) + 255, minlength=511) / len(differences)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def constant(images: np.ndarray) -> np.ndarray:
    """bool (n,): pictures of one colour, black included (all values within 2 of the channel mean)."""
    x = images.astype(np.float32)
    return (np.abs(x - x.mean((1, 2), keepdims=True)) <= 2).all((1, 2, 3))


@dataclass(frozen=True)
class Reference:
    """What base pictures look like: whitened principal axes, neighbours, and the tails of each statistic."""

    mean: np.ndarray  # float32 (f,)
    axes: np.ndarray  # float32 (f, 64): features to whitened coordinates
    basis: np.ndarray  # float32 (f, 64): orthonormal, for the residual
    neighbours: np.ndarray  # float32 (m, 64)
    edges: np.ndarray  # float32 (2, statistics): where the lower and the upper tail begin
    excess: np.ndarray  # float32 (2, statistics): mean distance beyond the edge
    scores: np.ndarray  # float32 (k,), sorted: score of each calibration picture


def placed(reference: Reference, pixels: np.ndarray, features: np.ndarray, *, self_at: int = 0) -> np.ndarray:
    """All statistics of n pictures, (n, 8) as in `STATISTICS`; `self_at=1` skips a picture's own row.

    pixels: their `pixel_statistics` (n, 3).
    """
    centred = features[:, :-2] - reference.mean  # the last two features are the empty and broken logits
    place = centred @ reference.axes  # (n, 64)
    residual = np.linalg.norm(centred - (centred @ reference.basis) @ reference.basis.T, axis=1)
    apart = (place**2).sum(1)[:, None] - 2 * place @ reference.neighbours.T + (reference.neighbours**2).sum(1)
    near = np.sort(np.sqrt(np.maximum(apart, 0)), 1)[:, self_at : self_at + NEIGHBOURS].mean(1)
    distances = np.stack([np.linalg.norm(place, axis=1), residual, near], 1)
    return np.concatenate([distances, pixels, features[:, -2:]], 1).astype(np.float32)


def statistics(reference: Reference, images: np.ndarray, features: np.ndarray) -> np.ndarray:
    """All statistics of n pictures uint8 (n, h, w, 3), (n, 8)."""
    return placed(reference, pixel_statistics(images), features)


def deviation(reference: Reference, values: np.ndarray) -> np.ndarray:
    """How far beyond the nearer tail's edge, in mean excesses of that tail: (n, statistics), negative inside.

    For an exponential tail that is minus the logarithm of its probability, up to a constant: statistics with long and
    with short tails become alike.
    """
    (low, high), (below, above) = reference.edges, reference.excess
    return np.maximum((low - values) / below, (values - high) / above)


def score(reference: Reference, values: np.ndarray) -> np.ndarray:
    """Sum of what lies beyond the edges (n,): Fisher's way to combine tail probabilities."""
    return deviation(reference, values).clip(min=0).sum(1)


def fit(images: np.ndarray, features: np.ndarray, seed: int = 0) -> Reference:
    """Reference from base pictures uint8 (n, h, w, 3) and a judge's features (n, f); n >= 300.

    One part (60 %) gives axes, neighbours and tails, the other gives the conformal scores: the flag rate of
    further base pictures is then about 1 %. Raises `BadRequest` for fewer pictures.
    """
    if len(images) < 300 or len(images) != len(features):
        raise BadRequest(
            f"Expected at least 300 base pictures with their features, got {len(images)} and "
            f"{len(features)}; draw more of them."
        )
    return fitted(pixel_statistics(images), features, seed)


def fitted(pixels: np.ndarray, features: np.ndarray, seed: int = 0, *, among: bool = False) -> Reference:
    """As `fit`, from the `pixel_statistics` (n, 3) of the pictures.

    among: it will also be asked about these very pictures; each is its own neighbour, so that near ones are no news.
    """
    order = np.random.default_rng(seed).permutation(len(pixels))
    first, second = order[: int(0.6 * len(order))], order[int(0.6 * len(order)) :]
    base = features[first, :-2].astype(np.float64)
    mean = base.mean(0)
    _, singular, rows = np.linalg.svd(base - mean, full_matrices=False)
    k = min(AXES, len(singular))
    scale = singular[:k] / np.sqrt(len(base) - 1) + 1e-6
    basis = rows[:k].T.astype(np.float32)
    axes = (rows[:k].T / scale).astype(np.float16).astype(np.float32)
    points = ((base - mean) @ axes).astype(np.float16).astype(np.float32)
    width = len(STATISTICS)
    blank = Reference(
        mean.astype(np.float32), axes, basis.astype(np.float16).astype(np.float32), points,
        np.zeros((2, width), np.float32), np.ones((2, width), np.float32), np.zeros(0, np.float32),
    )  # fmt: skip
    values = placed(blank, pixels[first], features[first], self_at=1)
    edges = np.quantile(values, [TAIL, 1 - TAIL], axis=0).astype(np.float32)
    if among:
        edges[0, STATISTICS.index("neighbours")] = -np.inf
    beyond = np.stack([edges[0] - values, values - edges[1]]).clip(min=0)  # (2, n, statistics)
    excess = np.maximum(beyond.sum(1) / (beyond > 0).sum(1).clip(min=1), 1e-4).astype(np.float32)
    edged = Reference(blank.mean, axes, blank.basis, points, edges, excess, blank.scores)
    scores = score(edged, placed(edged, pixels[second], features[second]))
    return Reference(blank.mean, axes, blank.basis, points, edges, excess, np.sort(scores).astype(np.float32))


def tail(reference: Reference, values: np.ndarray) -> np.ndarray:
    """Conformal p-value of each row of statistics (n,): share of base pictures that deviate as much, two-sided."""
    known = reference.scores
    above = len(known) - np.searchsorted(known, score(reference, values), side="left")
    return (1 + above) / (1 + len(known))


class Garbage:
    """The detector for one judge's features; `version` changes with the reference or with the judge."""

    def __init__(self, reference: Reference, judge_version: str, card: Card | None = None) -> None:
        self.reference, self.card = reference, card or {}
        digest = hashlib.sha256(judge_version.encode())
        for array in vars(reference).values():
            digest.update(np.ascontiguousarray(array).tobytes())
        self.version = digest.hexdigest()[:12]

    def p_values(self, images: np.ndarray, verdict: Verdict) -> np.ndarray:
        """Conformal p-value of each picture (n,): share of base pictures that deviate as much, two-sided."""
        images = sized(images)
        if not len(images):
            return np.zeros(0)
        return tail(self.reference, statistics(self.reference, images, verdict.features))

    def flags(self, images: np.ndarray, verdict: Verdict) -> np.ndarray:
        """bool (n,): True for garbage. `verdict` is the judge's on the same pictures."""
        return constant(sized(images)) | (self.p_values(images, verdict) <= RATE)


def load(judge: Judge, folder: Path | None = None) -> Garbage:
    """The bundled detector; refuses (`WrongFile`) a judge other than the one it was fitted with."""
    from safetensors.numpy import load_file

    from efface import world

    folder = folder or world.folder("judge")
    tensors, card = folder / "garbage.safetensors", folder / "garbage.json"
    if not (tensors.is_file() and card.is_file()):
        raise Unavailable(
            f"Expected garbage.safetensors and garbage.json in {folder}, found none; fit them with "
            "`efface world train judge`."
        )
    facts = json.loads(card.read_text(encoding="utf-8"))
    if facts["judge_version"] != judge.version:
        raise WrongFile(
            f"Expected judge {facts['judge_version']} beside this garbage detector, got {judge.version}; fit it again."
        )
    arrays = {k: v.astype(np.float32) for k, v in load_file(tensors).items()}
    return Garbage(Reference(**arrays), judge.version, facts)


def save(garbage: Garbage, judge: Judge, card: Card, folder: Path) -> None:
    """garbage.safetensors and garbage.json in `folder`; temporary names, then renames. Raises WrongFile."""
    from safetensors.numpy import save as serialise

    half = {"axes", "basis", "neighbours"}  # already rounded to float16 by `fit`
    # safetensors writes memory as it lies: a transposed view would come back scrambled
    arrays = {
        k: np.ascontiguousarray(v, np.float16 if k in half else np.float32) for k, v in vars(garbage.reference).items()
    }
    facts = {
        "judge_version": judge.version,
        "version": garbage.version,
        "statistics": STATISTICS,
        "rate": RATE,
        **card,
    }
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    for name, content in (("garbage.safetensors", serialise(arrays)), ("garbage.json", text.encode())):
        write_bytes(folder / name, content)
