"""Any image classifier of transformers as a judge, by folder or hub id; with the Imagenette labels for ResNet-50.

Imagenette and ImageNet rates of the papers come from torchvision's ResNet-50; `microsoft/resnet-50` has other weights
(docs/judges.md). A softmax names one label: what such a judge says of two objects in one image is NA.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import torch
from scipy.special import softmax

from efface.errors import BadRequest, WrongFile
from efface.files import write_bytes
from efface.judges import Card, Share, Verdict, _pretrained, pictures, version_of
from efface.judges.panel import PLAIN, Brief, LabelPanel, Panel
from efface.numerics import calibration
from efface.numerics.intervals import clopper_pearson

__all__ = ["IMAGENETTE", "Classifier", "calibrate", "load", "panel", "save_card"]

# class indices of ImageNet-1k: lists of names spell these differently ("chain saw", "chainsaw")
IMAGENETTE: Mapping[str, tuple[int, ...]] = {
    "tench": (0,), "English springer": (217,), "cassette player": (482,), "chain saw": (491,), "church": (497,),
    "French horn": (566,), "garbage truck": (569,), "gas pump": (571,), "golf ball": (574,), "parachute": (701,),
}  # fmt: skip
Match = Literal["index", "substring"]


class ClassifierCard(_pretrained.PretrainedCard):
    """Of a classifier and the labels that it is asked for."""

    classes: dict[str, list[int]]
    match: Match
    temperature: float


class Said(Protocol):
    """What a classifier of transformers answers."""

    logits: torch.Tensor
    hidden_states: Sequence[torch.Tensor]


class Classifier:
    """One network with the labels it is asked for; see `efface.judges.Judge`.

    A hit is the likeliest of *all* classes being one of the label's. match: "index" takes the label's classes;
    "substring", as the papers' scripts, takes any class whose name contains the label or is contained in it.
    """

    styles: tuple[str, ...] = ()

    def __init__(self, net: torch.nn.Module, processor: _pretrained.Processor, card: ClassifierCard) -> None:
        self.card, self.name, self.role = cast("Card", card), card["name"], card["role"]
        classes = {label: tuple(at) for label, at in card["classes"].items()}
        self.objects, self.facts = tuple(classes), card
        self.version = version_of(self.card, "weights_sha256", "classes", "match", "temperature", "preprocessing")
        self.net, self.processor = net, processor
        self.member = _members(net, classes, card["match"])
        """Which classes count as which label, bool (labels, classes)."""

    def raw(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (n, classes) before temperature and penultimate features (n, f) of uint8 (n, h, w, 3)."""
        images = pictures(images)
        if not len(images):
            width = self.member.shape[1]
            return np.zeros((0, width), np.float32), np.zeros(
                (0, self.raw(np.zeros((1, 8, 8, 3), np.uint8))[1].shape[1])
            )

        def look(part: np.ndarray) -> tuple[torch.Tensor, ...]:
            said: Said = self.net(_pretrained.prepare(self.processor, part), output_hidden_states=True)
            last = said.hidden_states[-1]
            # a convolution's map is averaged; of a transformer's tokens the first one stands for the image
            return said.logits, last.mean((2, 3)) if last.ndim == 4 else last[:, 0]

        logits, features = _pretrained.batched(look, images)
        return logits, features

    def look(self, images: np.ndarray) -> Verdict:
        """Judge uint8 (n, h, w, 3) of any size; `BadRequest` for any other type or shape."""
        logits, features = self.raw(images)
        chance = softmax(logits / np.float32(self.facts["temperature"]), axis=1)
        hits = self.member.T[logits.argmax(1)] if len(logits) else np.zeros((0, len(self.objects)), bool)
        mine = chance @ self.member.T.astype(np.float32)
        return Verdict(mine.astype(np.float32), hits, features.astype(np.float32))


def load(
    name: str | Path = "microsoft/resnet-50",
    labels: Literal["all", "imagenette"] | Sequence[str] | Mapping[str, tuple[int, ...]] = "all",
    *,
    match: Match = "index",
    role: Literal["selection", "reporting"] = "reporting",
    card: Path | None = None,
    weights_sha256: str | None = None,
    offline: bool = False,
) -> Classifier:
    """A judge from a folder or hub id.

    labels: every class, the ten of Imagenette, names, or names with their class indices. card: a card made by
    `save_card`, with labels and calibration; weights, preprocessing and answers must be as it says. weights_sha256:
    refuse others. Raises Unavailable, WrongFile, and BadRequest for a label that is no class of the model.
    """
    from transformers import AutoModelForImageClassification

    folder, known = _pretrained.locate(name, offline), _pretrained.read_card(card)
    wanted = weights_sha256 or known.get("weights_sha256")
    net, weights = _pretrained.module(AutoModelForImageClassification, folder, wanted)
    processor = _pretrained.processor(folder)
    classes = _classes(_pretrained.config_of(net).id2label, known.get("classes", labels))
    facts: ClassifierCard = {
        "name": known.get("name", Path(name).name), "role": role, "architecture": type(net).__name__,
        "weights_sha256": weights, "licence": known.get("licence", "see the model's page"),
        "classes": {k: list(v) for k, v in classes.items()}, "multi_label": False,
        "thresholds": "likeliest class", "match": known.get("match", match),
        "temperature": known.get("temperature", 1.0),
        "preprocessing": _pretrained.preprocessing(processor), "calibration": known.get("calibration"),
        "self_test": [],
    }  # fmt: skip
    if known and known.get("preprocessing") != facts["preprocessing"]:
        raise WrongFile(f"Expected the preprocessing in {card}, the model's own differs; fetch it anew or make a card.")
    judge = Classifier(net, processor, facts)
    answers = _pretrained.self_test(net, processor, lambda x: judge.raw(x)[0], known)
    facts["self_test"] = np.round(answers, 5).tolist()
    return judge


def calibrate(judge: Classifier, images: np.ndarray, truth: Sequence[str], source: str) -> Classifier:
    """The same judge with a measured card: temperature, and per label sensitivity and specificity with intervals.

    images: uint8 (n, h, w, 3), each showing one of the judge's labels, truth (n,); source: where they come from.
    Temperature never changes the likeliest class. Measure on images that the judge never saw.
    """
    unknown = sorted({*truth} - {*judge.objects})
    if unknown or len(truth) != len(images) or len(truth) < 2:
        raise BadRequest(f"expected one of the judge's labels an image, got {unknown[:3] or len(truth)}; rename them")
    logits, _ = judge.raw(images)
    classes = judge.facts["classes"]
    # of a label with several classes, the likeliest one stands for it
    first = np.asarray([classes[t][int(row[classes[t]].argmax())] for row, t in zip(logits, truth, strict=True)])
    heat = calibration.temperature(logits, first)
    hits = judge.member.T[logits.argmax(1)]  # (n, labels)
    said = np.asarray(truth)
    labels = {name: _errors(hits[:, k], said == name) for k, name in enumerate(judge.objects)}
    right = logits.argmax(1) == first
    before, after = (softmax(logits.astype(np.float64) / t, axis=1) for t in (1.0, heat))
    card: ClassifierCard = {
        **judge.facts,
        "temperature": heat,
        "calibration": {
            "source": source,
            "n": len(truth),
            "labels": labels,
            "ece": [calibration.calibration_error(p.max(1), right) for p in (before, after)],
            "brier": [calibration.brier(p, first) for p in (before, after)],
        },
    }
    return Classifier(judge.net, judge.processor, card)


def save_card(judge: Classifier, file: Path, *, overwrite: bool = False) -> Path:
    """The judge's card as JSON, for `load(..., card=file)`. Raises OutputExists."""
    text = json.dumps(judge.card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return write_bytes(file, text.encode(), overwrite=overwrite)


def panel(where: Path | str = "", brief: Brief = PLAIN) -> Panel:
    """A panel that is asked for the suite's labels, else for every class."""
    opened = partial(load, where) if where else load
    return LabelPanel.of(opened(labels=brief.labels) if brief.labels else opened(), brief)


def _errors(hit: np.ndarray, shown: np.ndarray) -> dict[str, Share | None]:
    """Counts and exact intervals; null where nothing was measured."""
    found: dict[str, Share | None] = {}
    for word, right, whole in (("sensitivity", hit & shown, shown), ("specificity", ~hit & ~shown, ~shown)):
        k, n = int(right.sum()), int(whole.sum())
        found[word] = {"hits": k, "n": n, "rate": k / n, "interval": list(clopper_pearson(k, n))} if n else None
    return found


def _first_names(id2label: Mapping[int, str]) -> list[list[str]]:
    """Every class's names, folded, in the order of the classes."""
    return [[n.strip().casefold() for n in id2label[k].split(",")] for k in sorted(id2label)]


def _classes(
    id2label: Mapping[int, str], labels: str | Sequence[str] | Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    if isinstance(labels, str):
        if labels not in ("all", "imagenette"):
            raise BadRequest(f"expected labels 'all', 'imagenette' or a list of names, got {labels!r}")
        every = {id2label[k].split(",")[0].strip(): (k,) for k in sorted(id2label)}
        labels = IMAGENETTE if labels == "imagenette" else _merged(id2label) if len(every) < len(id2label) else every
    if isinstance(labels, Mapping):
        found = {name: tuple(int(i) for i in at) for name, at in labels.items()}
        wrong = [n for n, at in found.items() if not at or not {*at} <= {*id2label}]
    else:
        names = _first_names(id2label)
        found = {n: tuple(k for k, own in enumerate(names) if n.casefold() in own) for n in labels}
        wrong = [n for n, at in found.items() if not at]
    if wrong:
        raise BadRequest(
            f"label {wrong[0]!r} is no class of this model ({len(id2label)} classes); name its class index"
        )
    return found


def _merged(id2label: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Classes of one name, such as ImageNet's two cranes, are one label."""
    found: dict[str, tuple[int, ...]] = {}
    for k in sorted(id2label):
        name = id2label[k].split(",")[0].strip()
        found[name] = (*found.get(name, ()), k)
    return found


def _members(net: torch.nn.Module, classes: Mapping[str, tuple[int, ...]], match: Match) -> np.ndarray:
    """Which classes count as which label, bool (labels, classes)."""
    names = [own[0] for own in _first_names(_pretrained.config_of(net).id2label)]
    member = np.zeros((len(classes), len(names)), bool)
    for row, (label, at) in enumerate(classes.items()):
        if match == "index":
            member[row, list(at)] = True
        else:
            folded = label.casefold()
            member[row] = [folded in name or name in folded for name in names]
    return member


PLUGIN = panel
