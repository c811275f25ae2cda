"""Captions of scenes: named, by synonym, by clue, by category, alone or in pairs (texts in captions.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from efface.errors import BadRequest, UnknownName
from efface.world import Object, objects, styles

Half = Literal["tune", "report"]
KINDS = ("plain", "style", "background", "style background", "empty", "style alone")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (230, 60, 60),
    "orange": (250, 155, 50),
    "yellow": (250, 220, 80),
    "green": (90, 185, 90),
    "blue": (70, 130, 225),
    "purple": (155, 100, 205),
    "pink": (250, 170, 195),
    "brown": (150, 105, 70),
    "gray": (170, 170, 175),
}  # no black: it swallows the monochrome style
WORDINGS = ("name", "synonym", "clue", "category")


@dataclass(frozen=True)
class Template:
    """One wording; `half` is "tune" for an even index and "report" for an odd one."""

    kind: str
    index: int
    text: str

    @property
    def half(self) -> Half:
        return "report" if self.index % 2 else "tune"


@cache
def _data() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("captions.json").read_text(encoding="utf-8"))


def templates(kind: str, half: Half | None = None) -> tuple[Template, ...]:
    """Templates of one of `KINDS`, all or one half; `UnknownName` for another kind."""
    if kind not in KINDS:
        raise UnknownName("kind of caption", kind, KINDS)
    found = (Template(kind, k, text) for k, text in enumerate(_data()[kind]))
    return tuple(t for t in found if half in (None, t.half))


def with_article(name: str, *, english: bool = False) -> str:
    """Put "a" before a name: "a dog"; plural names stand alone.

    Models of the world are trained with "a" before names; `english` writes "an" before a vowel.
    """
    if name in _data()["plural"]:
        return name
    return f"{'an' if english and name[0] in 'aeiou' else 'a'} {name}"


def wordings(thing: Object, wording: str, half: Half | None = None, *, english: bool = False) -> tuple[str, ...]:
    """Phrases for one object: its name, its synonyms, clues that do not name it, or its category's words.

    Empty when the object has none; `half` keeps the phrases of even (tune) or odd (report) index, but where
    there is a single phrase both halves share it.
    """
    if wording not in WORDINGS:
        raise UnknownName("wording", wording, WORDINGS)
    if wording == "clue":
        phrases = tuple(_data()["clues"].get(thing.name, ()))
    else:
        words = {"name": (thing.name,), "synonym": thing.synonyms, "category": _categories(thing)}[wording]
        phrases = tuple(with_article(word, english=english) for word in words)
    if half is None or len(phrases) < 2:
        return phrases
    return phrases[half == "report" :: 2]


def _categories(thing: Object) -> tuple[str, ...]:
    return tuple(_data()["category words"][thing.category])


def write(
    template: Template, things: Sequence[str] = (), *, style: str | None = None, background: str | None = None
) -> str:
    """One caption; `things` are one or two phrases from `wordings`.

    Raises `BadRequest` when the template asks for something that is not given.
    """
    phrase = " and ".join(things)
    bare = phrase.removeprefix("a ").removeprefix("an ")
    fields = {"thing": phrase, "name": bare, "style": style or "", "background": background or ""}
    missing = [word for word, value in fields.items() if f"{{{word}}}" in template.text and not value]
    if missing:
        raise BadRequest(f"Expected a {missing[0]} for the caption {template.text!r}, got none; give one.")
    return template.text.format(**fields)


@dataclass(frozen=True)
class Caption:
    """A caption and what makes it true: for each phrase the objects that it fits, and what else it says."""

    text: str
    phrases: tuple[frozenset[str], ...]
    style: str | None
    background: str | None


def caption(
    shown: Sequence[Object],
    style: str | None,
    background: str,
    generator: torch.Generator,
    *,
    half: Half | None = None,
    english: bool = False,
    without: frozenset[str] = frozenset(),
) -> Caption:
    """A random true caption of a scene, for training: shares are in `SHARES`.

    `shown` holds no, one or two objects; every draw comes from `generator`. Phrases in `without` are never used.
    """
    if (style not in styles() and shown) or background not in BACKGROUNDS:
        raise BadRequest(f"Expected a style and a background of the world, got {style!r} and {background!r}.")
    kind = _choose(list(SHARES["kind"]), generator, list(SHARES["kind"].values())) if shown else "empty"
    options = templates(kind, half)
    template = options[int(torch.randint(len(options), (1,), generator=generator))]
    phrases = [_phrase(thing, generator, half, english, without) for thing in shown]
    text = write(template, phrases, style=style, background=background)
    told = tuple(fits(phrase) for phrase in phrases) if "{thing}" in template.text or "{name}" in template.text else ()
    says_style, says_background = "{style}" in template.text, "{background}" in template.text
    return Caption(text, told, style if says_style else None, background if says_background else None)


@cache
def _meanings() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for thing in objects():
        for wording in WORDINGS:
            for english in (False, True):
                for phrase in wordings(thing, wording, english=english):
                    found.setdefault(phrase, set()).add(thing.name)
    return {phrase: frozenset(names) for phrase, names in found.items()}


def fits(phrase: str) -> frozenset[str]:
    """Names of the objects that a phrase of `wordings` is true of: one for a name, many for a category word."""
    return _meanings()[phrase]


def words_of(thing: Object) -> frozenset[str]:
    """Every phrase that means this object and no other: what a model that never saw it must not have read."""
    phrases = (p for w in ("name", "synonym", "clue") for e in (False, True) for p in wordings(thing, w, english=e))
    return frozenset(phrases)


# half of the captions and more name the style: it is the harder thing to learn
SHARES: dict[str, dict[str, float]] = {
    "kind": {"plain": 0.22, "style": 0.40, "background": 0.12, "style background": 0.22, "style alone": 0.04},
    "wording": {"name": 0.72, "synonym": 0.14, "clue": 0.08, "category": 0.06},
}


def _choose(words: list[str], generator: torch.Generator, weights: list[float]) -> str:
    return words[int(torch.multinomial(torch.tensor(weights), 1, generator=generator))]


def _phrase(
    thing: Object, generator: torch.Generator, half: Half | None, english: bool, without: frozenset[str]
) -> str:
    wording = _choose(list(WORDINGS), generator, list(SHARES["wording"].values()))
    options = [p for p in wordings(thing, wording, half, english=english) if p not in without]
    options = options or list(wordings(thing, "name", english=english))
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def find(name: str) -> Object:
    """The object of that name; `UnknownName` with the nearest names otherwise."""
    for thing in objects():
        if thing.name == name:
            return thing
    raise UnknownName("object", name, [o.name for o in objects()], "efface list concepts")
