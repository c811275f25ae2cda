"""Panels: a judge, the garbage detector that fits it, and their rules; together they say one thing of a picture.

Every kind of judge has a panel of its own: one that names what it sees, one that finds regions, one that compares a
picture with its sentence. A judge that is not on this machine leaves an empty seat, which says how to get it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from efface.errors import BadRequest, EffaceError, Unavailable, WrongFile
from efface.files import key_of
from efface.judges import Boxes, Card, Detector, Judge, Known, TextImage, Verdict, garbage, pictures
from efface.judges._asked import Brief, Finding, Question, Seat, Versions
from efface.judges._heads import TwoHeads, counted, spelled
from efface.judges._own_garbage import OwnGarbage
from efface.numerics.distances import clip_scores
from efface.registry import find

__all__ = [
    "AND", "NO_DETECTOR", "Brief", "EmptyPanel", "FeaturesPanel", "Finding", "LabelPanel", "Panel", "Question",
    "RegionPanel", "Seat", "TextPanel", "Versions", "seated",
]  # fmt: skip

AND = " + "  # between the judges of one panel
PLACES = ("styles", "objects")
DETECTOR = "garbage detector"  # the role of its seat
NO_DETECTOR = "one colour"  # the version of what finds images of one colour and nothing else


PLAIN = Brief()
Seating = Callable[[Path | str, Brief], "Panel"]
"""PLUGIN of a judge's file: the judge at a folder or hub id ("": its default) on its panel. Raises Unavailable."""


class Eyes(Known, Protocol):
    """A judge that turns pictures into features and says nothing more."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 (n, f) of uint8 (n, h, w, 3)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Who looks at a run."""

    name: str
    """Of the judge."""
    versions: Versions
    """Of the judge and of the garbage detector."""
    seats: tuple[Seat, ...]
    """The judge and the garbage detector as reports list them."""
    role: str = "reporting"
    """selection: for methods alone."""
    why: str = ""
    """The reason, where there is no judge."""
    objects: tuple[str, ...] = ()
    """The judge's labels of things."""
    styles: tuple[str, ...] = ()
    """The judge's labels of styles."""
    eyes: Eyes | None = None
    """Who gives features of pictures, where a judge of features sits beside the other."""
    own: OwnGarbage | None = None
    """The garbage detector that is fitted on the run's base pictures."""
    decides: ClassVar[bool] = False
    """Whether it says yes or no to a label."""
    compares: ClassVar[bool] = False
    """Whether it scores a picture against its sentence, and says neither yes nor no."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the judge can name, objects first."""
        return (*self.objects, *self.styles)

    def known(self, asked: frozenset[str]) -> frozenset[str]:
        """Which of the labels asked for can be found; what cannot is NA."""
        return asked & frozenset(self.labels)

    def verdict(self, pixels: np.ndarray) -> Verdict | None:
        """What a judge with labels says of uint8 (n, h, w, 3), for metrics that want more than findings."""
        return None

    @property
    def features_of(self) -> str:
        """Whose features are compared: the name in its card."""
        return self.eyes.name if self.eyes else self.name

    def features(self, pixels: np.ndarray, verdict: Verdict | None) -> np.ndarray | None:
        """Features (n, f) of uint8 (n, h, w, 3); verdict: what this panel says of the same pictures."""
        if self.eyes:
            return self.eyes.features(pixels)
        return verdict.features if verdict else None

    @property
    def sees(self) -> bool:
        """Whether it has features that a garbage detector can be fitted on."""
        return self.eyes is not None

    def seen(self, pixels: np.ndarray) -> np.ndarray:
        """The features (n, f) that garbage is found by, of uint8 (n, h, w, 3)."""
        assert self.eyes is not None
        return self.eyes.features(pixels)

    def broken(self, pixels: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
        """bool (n,): which pictures are broken. seen: their features, where they are at hand."""
        if self.own is None:
            return garbage.constant(pixels)
        return self.own.flags(pixels, self.seen(pixels) if seen is None else seen)

    def guarded(self, own: OwnGarbage | None, note: str) -> Panel:
        """With this garbage detector, or without one; note: on what it is fitted, or why there is none."""
        seat = _detector_seat(None) if own is None else Seat("garbage", own.version, DETECTOR, "1 % of base images", "")
        seats = tuple(replace(seat, note=note) if s.role == DETECTOR else s for s in self.seats)
        versions = self.versions._replace(garbage=own.version) if own else self.versions
        return replace(self, own=own, seats=seats, versions=versions)

    def findings(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        """One of each picture, uint8 (n, h, w, 3); one by one where looking at all of them together fails."""
        try:
            return self.look(pixels, questions)
        except (EffaceError, RuntimeError, ValueError) as error:
            if len(questions) == 1:
                return [Finding(state="error", reason=f"the judge failed: {str(error)[:300]}")]
        return [f for k in range(len(questions)) for f in self.findings(pixels[k : k + 1], questions[k : k + 1])]

    def look(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        """Findings of all pictures together; each kind of panel has its own."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EmptyPanel(Panel):
    """Nobody: everything is NA with the way to get the judge."""

    @classmethod
    def of(cls, name: str, why: str) -> EmptyPanel:
        """why: what is missing and how to get it."""
        seat = Seat(name, "none", "unavailable", "", why)
        return cls(name=name, versions=Versions("none", NO_DETECTOR), seats=(seat,), why=why)

    def look(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        return [Finding(state="na", reason=self.why) for _ in questions]


@dataclass(frozen=True, kw_only=True)
class LabelPanel(Panel):
    """A judge that names what it sees."""

    judge: Judge
    detector: garbage.Garbage | None
    decides: ClassVar[bool] = True

    @classmethod
    def of(cls, judge: Judge, brief: Brief = PLAIN) -> LabelPanel:
        """With the garbage detector that was fitted with this judge: that of the base model, else the bundled one."""
        home = brief.home if brief.home and (brief.home / "garbage.json").is_file() else None
        try:
            return cls.beside(judge, garbage.load(judge, home), brief.asked)
        except (Unavailable, WrongFile):
            # fitted with another judge; pictures of one colour are still found
            return cls.beside(judge, None, brief.asked)

    @classmethod
    def beside(cls, judge: Judge, detector: garbage.Garbage | None, asked: tuple[str, ...] = ()) -> LabelPanel:
        """With this detector, or with none. asked: labels are spelled as these are."""
        selection = "selection" in (judge.role, _role(judge.card))
        return cls(
            name=judge.name,
            versions=Versions(judge.version, detector.version if detector else NO_DETECTOR),
            seats=(_seat(judge, judge.version, _thresholds(judge.card)), _detector_seat(detector)),
            role="selection" if selection else "reporting",
            objects=spelled(judge.objects, asked),
            styles=spelled(judge.styles, asked),
            judge=judge,
            detector=detector,
        )

    def verdict(self, pixels: np.ndarray) -> Verdict | None:
        return self.judge.look(pixels) if self.labels else None

    @property
    def sees(self) -> bool:
        return self.detector is None

    def seen(self, pixels: np.ndarray) -> np.ndarray:
        return self.judge.look(pixels).features

    def look(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        labels = self.labels
        column = {label: k for k, label in enumerate(labels)}
        verdict = self.judge.look(pixels)
        broken = self.detector.flags(pixels, verdict) if self.detector else self.broken(pixels, verdict.features)
        return [
            Finding(
                bool(broken[row]),
                tuple(labels[k] for k in np.flatnonzero(verdict.hits[row])),
                {w: round(float(verdict.probabilities[row, column[w]]), 6) for w in wanted if w in column},
            )
            for row, (_, wanted) in enumerate(questions)
        ]


@dataclass(frozen=True, kw_only=True)
class RegionPanel(Panel):
    """A detector: what is asked for is shown where one of its regions counts."""

    judge: Detector
    brief: Brief
    decides: ClassVar[bool] = True

    @classmethod
    def of(cls, judge: Detector, brief: Brief = PLAIN) -> RegionPanel:
        """Which regions count is part of the version. Raises BadRequest for a pattern that no label matches."""
        labels = judge.labels
        for pattern in brief.counts if labels else ():
            if not counted(labels, (pattern,)):
                raise BadRequest(
                    f"counts names {pattern!r}, which no label of {judge.name} matches "
                    f"(its labels: {', '.join(labels[:20])}); name one of them or a pattern with --set counts=..."
                )
        version = key_of(judge=judge.version, threshold=brief.threshold, counts=brief.counts)[:12]
        seat = _seat(judge, version, f"regions at {brief.threshold} and above")
        versions = Versions(version, NO_DETECTOR)
        return cls(name=judge.name, versions=versions, seats=(seat, _detector_seat(None)), judge=judge, brief=brief)

    def known(self, asked: frozenset[str]) -> frozenset[str]:
        return asked

    def look(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        found = zip(questions, self.judge.boxes(pixels), self.broken(pixels), strict=True)
        return [self._finding(question.labels, boxes, bool(flat)) for question, boxes, flat in found]

    def _finding(self, asked: tuple[str, ...], boxes: Boxes, flat: bool) -> Finding:
        counts = {*counted((label for label, _ in boxes), self.brief.counts)}
        top = max((score for label, score in boxes if label in counts), default=0.0)
        hits = asked if top >= self.brief.threshold else ()
        kept = tuple((label, round(score, 6)) for label, score in boxes)
        return Finding(flat, hits, dict.fromkeys(asked, round(top, 6)), kept)


@dataclass(frozen=True, kw_only=True)
class TextPanel(Panel):
    """A judge of image and text: 100 cos of each image and its prompt (Hessel et al. 2021, without clipping)."""

    judge: TextImage
    compares: ClassVar[bool] = True

    @classmethod
    def of(cls, judge: TextImage) -> TextPanel:
        seat = _seat(judge, judge.version, _thresholds(judge.card))
        versions = Versions(judge.version, NO_DETECTOR)
        return cls(name=judge.name, versions=versions, seats=(seat, _detector_seat(None)), judge=judge)

    @property
    def sees(self) -> bool:
        return True

    def seen(self, pixels: np.ndarray) -> np.ndarray:
        return self.judge.images(pixels)

    def look(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        prompts = list(dict.fromkeys(question.prompt for question in questions))
        vectors, cut = self.judge.texts(prompts)
        own = self.judge.images(pixels)
        scores, flat = clip_scores(own, vectors), self.broken(pixels, own)
        found = []
        for row, (prompt, labels) in enumerate(questions):
            column = prompts.index(prompt)
            values = dict.fromkeys(labels, round(float(scores[row, column]), 6))
            found.append(Finding(bool(flat[row]), (), values, cut=bool(cut[column])))
        return found


@dataclass(frozen=True, kw_only=True)
class FeaturesPanel(Panel):
    """A judge of features alone: it finds images of one colour, and answers no question."""

    @classmethod
    def of(cls, judge: Eyes) -> FeaturesPanel:
        seat = Seat(judge.name, judge.version, _role(judge.card), "", "features alone: no rates")
        versions = Versions(judge.version, NO_DETECTOR)
        return cls(name=judge.name, versions=versions, seats=(seat, _detector_seat(None)), eyes=judge)

    def look(self, pixels: np.ndarray, questions: Sequence[Question]) -> list[Finding]:
        return [Finding(bool(flat)) for flat in self.broken(pictures(pixels))]


def seated(text: str, brief: Brief = PLAIN) -> Panel:
    """The panel of the judge NAME or NAME:WHERE; WHERE is a folder or a hub id.

    Several stand with ` + ` between them: `styles=JUDGE` and `objects=JUDGE`, and one that gives features alone. An
    unavailable judge leaves an EmptyPanel. Raises UnknownName, WrongFile, and BadRequest for a selection judge.
    """
    found: dict[str, Panel] = {}
    for part in text.split(AND):
        head, equals, rest = part.partition("=")
        place, judge = (head, rest) if equals and head in PLACES else ("", part)
        panel = _seated(judge, brief)
        place = "features" if not place and isinstance(panel, FeaturesPanel) else place
        if place in found:
            raise BadRequest(f"two judges were named {('for ' + place) if place else 'to report'}; name one")
        found[place] = panel
    whole = _together(found, brief)
    eyes = found.get("features")
    if eyes is None or whole is eyes:
        return whole
    return eyes if eyes.why else replace(whole, eyes=eyes.eyes, seats=(*whole.seats, eyes.seats[0]))


def _together(found: Mapping[str, Panel], brief: Brief) -> Panel:
    """The panel that reports: the one judge, or those of styles and of objects as one."""
    heads = [found[p] for p in PLACES if p in found]
    if not heads:
        return found.get("", None) or found["features"]
    if len(heads) != len(PLACES) or "" in found:
        raise BadRequest("name one judge of styles and one of objects: --judge styles=NAME:WHERE --judge objects=...")
    if missing := next((p for p in heads if p.why), None):
        return missing
    if not all(isinstance(p, LabelPanel) for p in heads):
        raise BadRequest("judges of styles and of objects name labels; this one does not: take a classifier")
    styles, objects = (p for p in heads if isinstance(p, LabelPanel))
    made = LabelPanel.beside(TwoHeads(styles.judge, objects.judge), None, brief.asked)
    return replace(made, seats=(styles.seats[0], objects.seats[0], made.seats[1]))


def _seated(text: str, brief: Brief) -> Panel:
    """The panel of one judge."""
    kind, _, where = text.partition(":")
    seat: Seating = find("judges", kind)
    try:
        panel = seat(Path(where) if where and Path(where).exists() else where, brief)
    except Unavailable as error:
        return EmptyPanel.of(kind, str(error))
    if panel.role == "selection":
        raise BadRequest(f"judge {kind} is for selection: methods may ask it, so it may not report; name another")
    return panel


def _role(card: Card) -> str:
    return str(card.get("role", "reporting"))


def _thresholds(card: Card) -> str:
    stated = card.get("thresholds")
    return stated if isinstance(stated, str) else "per label, in its card"


def _seat(judge: Judge | Detector | TextImage, version: str, threshold: str) -> Seat:
    return Seat(judge.name, version, _role(judge.card), threshold, "docs/judges.md")


def _detector_seat(detector: garbage.Garbage | None) -> Seat:
    if detector is None:
        note = "no detector for this judge: only images of one colour are found"
        return Seat("garbage", NO_DETECTOR, DETECTOR, "", note)
    return Seat("garbage", detector.version, DETECTOR, "1 % of base images", "statistics only")
