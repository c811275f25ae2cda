"""Text constraints, written once: concepts, their wordings, anchors and kept texts become pairs of rows.

A closed form asks for texts (`Texts.pairs`, `Texts.kept`) and solves one equation a **door**: the sites whose input
rows are the same. `erased` and `kept` give the rows of a door. Where the parts of a text lie among its rows is known
here and in `numerics/rows.py` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from efface.errors import BadRequest, WrongFile
from efface.numerics.rows import RowRule, end_row, last_row, paired_rows, without_start
from efface.prompts import styled, wordings
from efface.request import read_lines

if TYPE_CHECKING:
    from efface.evidence.gather import Evidence
    from efface.model.card import Card, Door
    from efface.model.text import Encoded, Encoding
    from efface.request import Concept, Request

__all__ = [
    "Block", "Pair", "Projections", "Texts", "anchor_of", "by_door", "chosen", "complete_prompts", "erased", "finite",
    "kept", "meaning", "nearest_anchors", "rows_of", "unstyled",
]  # fmt: skip

STYLE = " style"  # how a style is named: its bare name and this

# --- names -----------------------------------------------------------------------------------------------------------


def unstyled(text: str) -> str:
    """A style by its bare name."""
    return text.removesuffix(STYLE)


def anchor_of(concept: Concept, guide: str) -> str:
    """What a concept shall become: its own anchor, else the guide of those that name none."""
    return guide if concept.anchor is None else concept.anchor


class Kept(NamedTuple):
    """What a request keeps, sorted, so that its order does not matter."""

    things: list[str]
    styles: list[str]
    """By their bare names."""

    @classmethod
    def of(cls, request: Request) -> Kept:
        texts = sorted(request.kept_texts)
        return cls([t for t in texts if not t.endswith(STYLE)], [unstyled(t) for t in texts if t.endswith(STYLE)])


class ReadsPrompts(Protocol):
    """Settings with a file of complete prompts."""

    @property
    def prompt_file(self) -> str: ...


def complete_prompts(settings: ReadsPrompts, request: Request) -> list[str]:
    """What the one concept of kind sensitive stands for: the lines of setting `prompt_file`; [] without such a concept.

    No template is filled in for that kind. Raises BadRequest when kind and file do not come together, WrongFile.
    """
    file, name = settings.prompt_file, type(settings).__name__
    sensitive = sum(c.kind == "sensitive" for c in request.concepts)
    if sensitive > 1 or (sensitive and not file):
        raise BadRequest(
            "kind 'sensitive' expands no template: one concept a request, and its complete prompts come from your "
            "own file; write --set prompt_file=FILE with one prompt a line"
        )
    if file and not sensitive:
        raise BadRequest(f"setting 'prompt_file' of {name} serves a concept of kind sensitive; the request has none")
    lines = read_lines(file) if sensitive else []
    if sensitive and not lines:
        raise BadRequest(f"setting 'prompt_file' of {name}: {file} holds no prompt; write one a line")
    if gaps := [line for line in lines if "{" in line or "}" in line]:
        raise BadRequest(f"setting 'prompt_file' of {name} takes complete prompts, {gaps[0]!r} has a place to fill in")
    return lines


# --- texts -----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """One text and the text whose outputs it shall have."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Texts:
    """What is said of a concept, and which of its rows count."""

    rows: RowRule = "tail"
    """Which rows of a text are sent to those of its anchor: from the last content row on, that row alone, the content
    rows, or all but the start's; the last two are paired by role."""
    expand: Literal["none", "code", "sentence"] = "none"
    """The name alone, or also the templates that UCE and ScaPre released, or short sentences around it (ours)."""
    guide: str = ""
    """Anchor of concepts that name none."""
    prompt_file: str = ""
    """File of complete prompts, one a line: what a concept of kind sensitive stands for."""

    def pairs(self, concept: Concept, request: Request, companions: int = 0) -> list[Pair]:
        """Every text of a concept with its anchor: name and synonyms, then their wordings.

        companions: how many kept things an erased style is taken away from, in place of other wordings.
        """
        anchor = anchor_of(concept, self.guide)
        if concept.kind == "sensitive":
            return [Pair(line, anchor) for line in complete_prompts(self, request)]
        pairs = [Pair(text, anchor) for text in concept.texts]
        if self.expand == "none":
            return pairs
        names = list(concept.texts)
        if concept.kind == "style":  # the wordings say the word themselves
            names, anchor = [unstyled(text) for text in names], unstyled(anchor)
        things = Kept.of(request).things if self.expand == "sentence" and concept.kind == "style" else []
        if things and companions:
            # taken away from things that stay, a style leaves them as they are; alone it would take them along
            n = min(companions, len(things))
            spread = [things[i * len(things) // n] for i in range(n)]
            return [Pair(styled(thing, name), styled(thing, anchor)) for name in names for thing in spread]
        return pairs + [Pair(w.filled(n), w.filled(anchor)) for n in names for w in self._wordings(concept.kind)]

    def _wordings(self, kind: str) -> Sequence[Any]:
        if self.expand == "code":
            return wordings("released", kind)
        return wordings("sentences", kind)[1:]  # the first is the name itself

    def kept(self, request: Request) -> dict[str, float]:
        """Texts that keep their outputs, and their weights; a kept thing in all kept styles weighs as one sentence."""
        if self.expand != "sentence":
            return dict.fromkeys(sorted(request.kept_texts), 1.0)
        things, styles = Kept.of(request)
        found: dict[str, float] = {}
        for kind, names in (("object", things), ("style", styles)):
            found |= {w.filled(n): 1.0 for n in names for w in wordings("sentences", kind)}
        return found | {styled(t, s): 1 / len(styles) for t in things for s in styles}

    def check(self, request: Request) -> None:
        """Raise BadRequest for settings that contradict the request, WrongFile for a file that cannot be read."""
        for concept in request.concepts:
            if concept.anchor is None and self.guide in concept.texts:
                raise BadRequest(f"setting 'guide' is {self.guide!r}, which is to be erased; name another guide")
        things, styles = Kept.of(request)
        product = things and (styles or any(c.kind == "style" for c in request.concepts))
        if complete_prompts(self, request) and self.expand == "sentence" and product:
            raise BadRequest(
                "kind 'sensitive' cannot be combined with a product of two lists, and kept things are worded in every "
                "style of the request; erase or keep styles in a request of their own, or set expand=none"
            )


def nearest_anchors(request: Request, evidence: Evidence) -> Request:
    """Every object and scene without an anchor of its own goes to the kept thing whose text is closest to it.

    A person never becomes another named one.
    """
    things = Kept.of(request).things
    if not things:
        return request
    kept = torch.stack([meaning(evidence.text(text)) for text in things])  # (k, d)

    def settled(concept: Concept) -> Concept:
        if concept.kind in ("style", "person", "sensitive") or concept.anchor is not None:
            return concept
        closest = int((kept @ meaning(evidence.text(concept.name))).argmax())
        return replace(concept, anchor=things[closest])

    return replace(request, concepts=tuple(settled(c) for c in request.concepts))


# --- rows of a text --------------------------------------------------------------------------------------------------

Projections = Literal["both", "keys", "values"]


def chosen(card: Card, door: Door, projections: Projections) -> list[str]:
    """The sites of a door that a setting names; where keys and values have one common site, it belongs to both."""
    without = {"both": (), "keys": ("cross.v",), "values": ("cross.k",)}[projections]
    return [s.name for s in card.through(door, without)]


def by_door(found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Numbers of a recipe: those of the only door, else by door."""
    return next(iter(found.values())) if len(found) == 1 else {"doors": dict(found)}


def finite(encoded: Encoded) -> Encoded:
    """The same text. Raises WrongFile where its rows hold NaN or infinity."""
    if not all(bool(e.rows.isfinite().all()) for e in encoded.streams.values()):
        raise WrongFile(f"the text encoder makes NaN or infinity of {encoded.text!r}; use an undamaged copy")
    return encoded


def rows_of(encoded: Encoded, door: Door) -> tuple[Encoding, ...]:
    """A text's rows at a door, one entry a stream. Raises WrongFile where they hold NaN or infinity."""
    return finite(encoded).at(door)


def meaning(encoded: Encoded) -> Tensor:
    """The last content row at unit length, less the start's: what is common to all texts tells nothing. (d,)"""
    return torch.nn.functional.normalize(encoded.main.meaning.double(), dim=0)


# --- rows of a request -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One text in one stream: its rows and those that they shall become."""

    text: str
    anchor: str
    rows: Tensor  # (T, d)
    guides: Tensor  # (T, d)
    last: Tensor  # (d,) the last content row
    goal: Tensor  # (d,) the guide row of it
    neutral: Tensor  # (1, d) the anchor's last content row, of the empty text its end
    share: float
    """Of its concept: one over the number of the concept's texts."""

    @property
    def weight(self) -> float:
        """What its rows are multiplied by, so that every concept weighs the same."""
        return self.share**0.5

    def check(self) -> None:
        """Raise BadRequest for an anchor that means what the text means."""
        if torch.equal(self.rows, self.guides):
            raise BadRequest(
                f"anchor {self.anchor!r} means the same as {self.text!r} to this model; name another anchor"
            )


def erased(evidence: Evidence, request: Request, texts: Texts, door: Door, companions: int = 0) -> list[Block]:
    """What is to be erased at a door, in the order of the request."""
    found: list[Block] = []
    for concept in request.concepts:
        pairs = texts.pairs(concept, request, companions)
        found += [b for pair in pairs for b in _blocks(evidence, pair, texts.rows, door, 1 / len(pairs))]
    return found


def _blocks(evidence: Evidence, pair: Pair, rule: RowRule, door: Door, share: float) -> Iterator[Block]:
    both = (rows_of(evidence.text(text), door) for text in pair)
    for own, other in zip(*both, strict=True):
        rows, guides, goal = paired_rows(rule, own.rows, own.spans, other.rows, other.spans)
        pick = last_row if pair.anchor else end_row
        yield Block(*pair, rows, guides, last_row(own.rows, own.spans)[0], goal, pick(other.rows, other.spans), share)


def kept(evidence: Evidence, texts: Iterable[str], rule: RowRule, door: Door) -> list[list[Tensor]]:
    """Rows (T, d) of texts that keep their outputs, one entry a text, in it one a stream.

    "last" takes one row a text, "tail" all, the other rules all but the start's.
    """
    found = [rows_of(evidence.text(text), door) for text in texts]
    return [[_kept(rows, rule) for rows in streams] for streams in found]


def _kept(own: Encoding, rule: RowRule) -> Tensor:
    if rule == "last":
        return last_row(own.rows, own.spans)
    return own.rows if rule == "tail" else without_start(own.rows, own.spans)
