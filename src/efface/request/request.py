"""What a user asks for: concepts, where they shall go, what must stay.

Text form, the same in Python and on the command line: ``[KIND:]NAME[=ANCHOR]``. ``NAME=`` is the empty
anchor, ``NAME`` alone leaves the anchor to the method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from efface.errors import BadRequest, UnknownName
from efface.untrusted import printable, short

__all__ = ["KINDS", "Concept", "Request"]

KINDS = ("object", "style", "person", "scene", "sensitive")
# Blanks and line breaks; other control characters that count as blanks are ones that a tokenizer knows.
_BLANKS = re.compile(r"[^\S\x0b\x0c\x1c-\x1f\x85]+")
_LONGEST = 10_000  # characters of one text


@dataclass(frozen=True)
class Concept:
    """One thing to erase.

    name: as written in prompts. kind: one of `KINDS`, or "" until `Request.settle` decides. anchor: the text it
    shall become ("" is the empty text, None leaves it to the method). synonyms: other wordings, erased with it.
    keep: texts to protect because of this concept; one text may stand for a tuple of one. label: what judges call it
    (default: the bare name). Blanks at the ends and double ones are taken out. Raises BadRequest, UnknownName.
    """

    name: str
    kind: str = ""
    anchor: str | None = None
    synonyms: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        name = _plain(self.name, "name")
        if not name:
            raise BadRequest("a concept needs a name, got an empty text; write for example -c dog")
        kind = _plain(self.kind, "kind")
        if kind and kind not in KINDS:
            raise UnknownName("kind", kind[:60], KINDS)
        anchor = None if self.anchor is None else _plain(self.anchor, "anchor")
        if anchor is not None and anchor.casefold() == name.casefold():
            raise BadRequest(f"concept {name!r} has itself as anchor, so nothing would change; name another anchor")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "anchor", anchor)
        synonyms = _all_plain(self.synonyms, "synonyms")
        if "" in synonyms:
            raise BadRequest(f"concept {name!r} has an empty synonym; leave it out")
        object.__setattr__(self, "synonyms", synonyms)
        object.__setattr__(self, "keep", _all_plain(self.keep, "keep"))
        object.__setattr__(self, "label", _plain(self.label, "label") or _bare(name, self.kind))

    @classmethod
    def parse(cls, text: str) -> Concept:
        """`[KIND:]NAME[=ANCHOR]` -> Concept. Raises BadRequest or UnknownName."""
        head, colon, tail = text.partition(":")
        kind, rest = (head.strip(), tail) if colon and " " not in head.strip() else ("", text)
        if kind and kind not in KINDS:
            raise UnknownName("kind", kind, KINDS)
        name, equals, anchor = rest.partition("=")
        return cls(name=name, kind=kind, anchor=anchor if equals else None)

    @property
    def texts(self) -> tuple[str, ...]:
        """The name, then its synonyms: all of them are erased."""
        return (self.name, *self.synonyms)

    def with_kind(self, kind: str) -> Concept:
        return replace(self, kind=kind, label=_bare(self.label, kind))


def _plain(text: object, field: str) -> str:
    """A text without blanks at its ends and double ones. Raises BadRequest for anything else, control characters too.

    What is kept may hold control characters: a prompt is a prompt.
    """
    if not isinstance(text, str):
        raise BadRequest(f"{field!r} takes text, got {short(text)}; in a file, put it in quotes")
    if len(text) > _LONGEST:
        raise BadRequest(f"{field!r} takes at most {_LONGEST} characters, got {len(text)}; write a shorter text")
    plain = _BLANKS.sub(" ", text).strip(" ")
    if any("\ud800" <= c <= "\udfff" for c in plain):
        raise BadRequest(f"{field!r} holds bytes that are no text ({short(plain)}); write it as UTF-8")
    if field != "keep" and printable(plain) != plain:
        raise BadRequest(f"{field!r} holds a control character ({short(plain)}); write it without")
    return plain


def _all_plain(texts: object, field: str) -> tuple[str, ...]:
    """One text or several -> several."""
    if not isinstance(texts, Iterable):
        raise BadRequest(f"{field!r} takes texts, got {short(texts)}")
    return tuple(_plain(t, field) for t in ([texts] if isinstance(texts, str) else texts))


def _bare(name: str, kind: str) -> str:
    return name.removesuffix(" style") if kind == "style" else name


@dataclass(frozen=True)
class Request:
    """Concepts to erase and texts to keep. `preset` None leaves it to the model's card."""

    concepts: tuple[Concept, ...]
    keep: tuple[str, ...] = ()
    seed: int = 0
    preset: str | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.concepts:
            raise BadRequest("no concept was given; name at least one, for example -c dog")
        object.__setattr__(self, "keep", tuple(dict.fromkeys(_all_plain(self.keep, "keep"))))
        seen: dict[str, str] = {}
        for concept in self.concepts:
            for text in concept.texts:
                if text.casefold() in seen:
                    raise BadRequest(f"concept {text!r} is listed twice; remove one of them")
                seen[text.casefold()] = concept.name
        for text in (*self.keep, *(k for c in self.concepts for k in c.keep)):
            if text.casefold() in seen:
                raise BadRequest(f"{text!r} is to be erased and kept at the same time; remove it from one list")
        if {"sensitive", "person"} <= {c.kind for c in self.concepts}:
            raise BadRequest("kind 'sensitive' cannot be combined with kind 'person' in one request")

    @classmethod
    def build(
        cls,
        concepts: Iterable[str | Concept],
        keep: Iterable[str] = (),
        seed: int = 0,
        preset: str | None = None,
    ) -> Request:
        """Texts or Concepts -> Request."""
        if isinstance(concepts, str):
            concepts = [concepts]
        parsed = tuple(c if isinstance(c, Concept) else Concept.parse(c) for c in concepts)
        return cls(concepts=parsed, keep=_all_plain(keep, "keep"), seed=seed, preset=preset)

    def settle(self, kinds: Mapping[str, str]) -> Request:
        """Give every concept its kind: its own, else the model's list `kinds`, else by its name."""
        return replace(self, concepts=tuple(c if c.kind else c.with_kind(_kind(c.name, kinds)) for c in self.concepts))

    @property
    def kept_texts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.keep, *(k for c in self.concepts for k in c.keep))))

    def asdict(self) -> dict[str, Any]:
        out = asdict(self)
        del out["notes"]
        return out

    def lists_in_one(self, known: Iterable[str] = ()) -> tuple[str, ...]:
        """Names and kept texts that look like several in one argument: `cat; dog`, `cat, dog`. known: real names."""
        real = {n.casefold() for n in known}
        texts = (*(t for c in self.concepts for t in c.texts), *self.kept_texts)
        return tuple(t for t in texts if t.casefold() not in real and _is_list(t))


def _kind(name: str, kinds: Mapping[str, str]) -> str:
    folded = {k.casefold(): v for k, v in kinds.items()}
    known = folded.get(name.casefold()) or folded.get(name.casefold().removesuffix(" style"))
    if known == "style" or name.casefold().endswith(" style"):
        return "style"
    return known or "object"


def _is_list(text: str) -> bool:
    """Whether a text looks like short names with a sign between them."""
    parts = [p.strip() for p in re.split("[;,]", text)]
    return len(parts) > 1 and all(len(p.split()) <= 4 for p in parts) and (";" in text or all(parts))
