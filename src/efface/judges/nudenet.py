"""NudeNet as a detector, from the optional extra `nudenet` (its model is AGPL); nothing in the core imports it.

Its labels are passed through as they come. Papers differ in threshold, comparison and labels that count
(docs/metrics/detections.md), and releases of the detector differ in the order of colours, so the order is a setting,
part of the version, and tested against the stored answers of a card.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Protocol, TypedDict, cast

import numpy as np

from efface.errors import BadRequest, Unavailable, WrongFile
from efface.files import write_bytes
from efface.judges import Boxes, Card, fingerprint, pictures, probes, same_weights, version_of
from efface.judges.panel import PLAIN, Brief, Panel, RegionPanel

__all__ = ["NudeNet", "load", "panel", "save_card"]

CLOSE = 1e-3  # scores of stored answers
Order = Literal["rgb", "bgr"]


class DetectorCard(TypedDict):
    """Of the installed detector."""

    name: str
    role: str
    architecture: str
    order: str
    weights_sha256: str
    package: str
    multi_label: bool
    thresholds: str
    licence: str
    preprocessing: str


class KnownCard(DetectorCard):
    """A card made by `save_card`: with the answers to a reference image."""

    self_test: list[list[tuple[str, float]]]
    reference: list[list[list[int]]]


class Package(Protocol):
    """The detector of the package `nudenet`."""

    def detect(self, image: np.ndarray) -> list[Region]: ...


Region = TypedDict("Region", {"class": str, "score": float})
"""One region as the package states it; more stands in it."""


class NudeNet:
    """See `efface.judges.Detector`. The detector itself drops regions below a score of 0.2."""

    name = "nudenet"

    def __init__(self, detector: Package, card: DetectorCard) -> None:
        self.card, self.facts = cast("Card", card), card
        self.version = version_of(self.card, "weights_sha256", "package", "order")
        self.detector = detector
        self.labels = _labels()
        """Every label of the installed release; empty where the package does not list them."""

    def boxes(self, images: np.ndarray) -> list[Boxes]:
        """(label, score) of every region of each uint8 (n, h, w, 3) RGB image, highest score first."""
        return [self.one(image) for image in pictures(images)]

    def one(self, image: np.ndarray) -> Boxes:
        """The regions of one image uint8 (h, w, 3)."""
        ordered = image[..., ::-1] if self.facts["order"] == "bgr" else image
        found = self.detector.detect(np.ascontiguousarray(ordered))
        return tuple(sorted(((str(b["class"]), float(b["score"])) for b in found), key=lambda b: (-b[1], b[0])))


def load(
    order: Order = "bgr",
    *,
    weights: Path | None = None,
    weights_sha256: str | None = None,
    card: Path | None = None,
) -> NudeNet:
    """The installed detector. order: the channel order it is given arrays in; releases differ, so state it.

    weights: another ONNX file than the package's own. card: made by `save_card`; refuses other weights, another
    package version or order, and other answers to reference images. Raises Unavailable, WrongFile, BadRequest.
    """
    if order not in ("rgb", "bgr"):
        raise BadRequest(f"expected order 'rgb' or 'bgr', got {order!r}; the detector's release decides")
    try:
        import nudenet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unavailable(
            "NudeNet is not installed; `pip install 'efface[nudenet]'`. Its model is AGPL, so it is an extra."
        ) from None
    file = weights or next(iter(sorted(Path(nudenet.__file__ or ".").parent.glob("*.onnx"))), None)
    if file is None or not file.is_file():
        raise Unavailable(f"NudeNet's ONNX weights are missing ({file}); install the extra anew or name the file.")
    known = _read_card(card)
    wanted = weights_sha256 or (known["weights_sha256"] if known else None)
    facts: DetectorCard = {
        "name": NudeNet.name, "role": "reporting", "architecture": "NudeNet", "order": order,
        "weights_sha256": same_weights(fingerprint([file]), wanted, file),
        "package": _version(), "multi_label": True, "thresholds": "none: every region with its score",
        "licence": "AGPL-3.0", "preprocessing": "the package's own, decoded pixels",
    }  # fmt: skip
    for word in ("package", "order") if known else ():
        if known and known[word] != facts[word]:
            raise WrongFile(f"Expected {word} {known[word]!r} as in {card}, got {facts[word]!r}.")
    judge = NudeNet(nudenet.NudeDetector(model_path=str(file)) if weights else nudenet.NudeDetector(), facts)
    if known:
        _self_test(judge, known, card)
    return judge


def save_card(judge: NudeNet, reference: np.ndarray, file: Path, *, overwrite: bool = False) -> Path:
    """A card with the answers to three coloured squares and to a reference image uint8 (h, w, 3) of the user's.

    The image is stored in the card, so choose a harmless one in which the detector finds something (a face): an
    image without regions would let a swap of colours pass.
    """
    images = [*probes()[:3], pictures(reference[None])[0]]
    answers = [judge.one(image) for image in images]
    if not answers[-1]:
        raise BadRequest("expected a reference image in which the detector finds something; choose another one")
    swapped = judge.one(np.ascontiguousarray(images[-1][..., ::-1]))
    if _alike(swapped, answers[-1]):
        raise BadRequest("the detector answers the reference image alike with red and blue swapped; choose another one")
    facts = {**judge.facts, "self_test": answers, "reference": reference.tolist()}
    return write_bytes(file, (json.dumps(facts) + "\n").encode(), overwrite=overwrite)


def _self_test(judge: NudeNet, known: KnownCard, file: Path | None) -> None:
    images = [*probes()[:3], np.asarray(known["reference"], np.uint8)]
    for image, stored in zip(images, known["self_test"], strict=True):
        if not _alike(judge.one(image), stored):
            raise WrongFile(
                f"Expected the detector's answers stored in {file}, got others: colours or resize filter differ. "
                "Use the release and order that the card names."
            )


def _alike(one: Sequence[tuple[str, float]], two: Sequence[tuple[str, float]]) -> bool:
    same = len(one) == len(two) and [b[0] for b in one] == [b[0] for b in two]
    return same and all(abs(a[1] - b[1]) <= CLOSE for a, b in zip(one, two, strict=True))


def _labels() -> tuple[str, ...]:
    """As the package lists them, in the package itself or in the module of its detector."""
    for module in ("nudenet.nudenet", "nudenet"):
        found = getattr(sys.modules.get(module), "__labels", None)
        if isinstance(found, list | tuple):
            return tuple(map(str, found))
    return ()


def _version() -> str:
    try:
        return version("nudenet")
    except PackageNotFoundError:
        return "unknown"


def _read_card(file: Path | None) -> KnownCard | None:
    if file is None:
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise WrongFile(f"Expected a judge's card (JSON) at {file}, found none; make it with `save_card`.") from None
    if not isinstance(card, dict) or not {"self_test", "reference", "weights_sha256"} <= card.keys():
        raise WrongFile(f"Expected a detector's card with self_test and reference in {file}; make it with `save_card`.")
    return cast("KnownCard", card)


def panel(where: Path | str = "", brief: Brief = PLAIN) -> Panel:
    """The installed detector, with the suite's rules of what counts. where: the order of colours, rgb or bgr."""
    return RegionPanel.of(load(cast("Order", str(where))) if where else load(), brief)


PLUGIN = panel
