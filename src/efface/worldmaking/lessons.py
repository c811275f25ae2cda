"""What a model of the world learns from: scenes of every sprite with captions, less what is withheld from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface.errors import BadRequest, UnknownName
from efface.world.captions import BACKGROUNDS, Caption, caption, find, with_article, words_of
from efface.worldmaking.scenes import Scenes
from efface.worldmaking.sizes import Size

__all__ = ["COLOURS", "Labels", "Withheld", "Writer", "meanings", "pairs", "said", "true_of"]

COLOURS = tuple(BACKGROUNDS)
TRIES = 8


@dataclass(frozen=True)
class Withheld:
    """Objects and styles that a model never sees: no picture of them and no caption that means them."""

    objects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str], size: Size) -> Withheld:
        """Names of objects and styles ("noto" or "noto style"). Raises BadRequest, UnknownName."""
        things: list[str] = []
        families: list[str] = []
        for name in names:
            bare = name.strip().removesuffix(" style")
            chosen, known = (families, size.styles) if bare in size.styles else (things, size.objects)
            if bare not in known:
                raise UnknownName(f"object or style of {size.name}", name, (*size.objects, *size.styles))
            if bare in chosen:
                raise BadRequest(f"{bare!r} is withheld twice; name it once")
            chosen.append(bare)
        if len(things) >= len(size.objects) - 1 or len(families) >= len(size.styles) - 1:
            raise BadRequest(f"expected to keep at least two objects and two styles of {size.name}; withhold fewer")
        return cls(tuple(sorted(things)), tuple(sorted(families)))

    @property
    def phrases(self) -> frozenset[str]:
        return frozenset(p for name in self.objects for p in words_of(find(name)))

    @property
    def slug(self) -> str:
        return "-".join(w.replace(" ", "_") for w in (*self.objects, *(f"{s}_style" for s in self.styles)))

    def __bool__(self) -> bool:
        return bool(self.objects or self.styles)


@dataclass(frozen=True)
class Labels:
    """What scenes show, as numbers in the size's lists; -1 where there is nothing. Each int64 (n,)."""

    first: torch.Tensor
    second: torch.Tensor
    style: torch.Tensor
    background: torch.Tensor

    @classmethod
    def of(cls, scenes: Scenes, leading: torch.Tensor | None = None) -> Labels:
        """`leading`: the object that each scene was drawn for; it comes first."""
        many, last = scenes.objects.long(), scenes.objects.shape[1] - 1
        first, second = many.argmax(1), last - many.flip(1).argmax(1)
        none = torch.full_like(first, -1)
        shown = many.sum(1)
        colour = torch.tensor([COLOURS.index(b) for b in scenes.backgrounds])
        style = torch.where(scenes.styles.any(1), scenes.styles.long().argmax(1), none)
        if leading is not None:
            first, second = leading, torch.where(first == leading, second, first)
        return cls(torch.where(shown > 0, first, none), torch.where(shown > 1, second, none), style, colour)

    def __len__(self) -> int:
        return len(self.first)

    def at(self, rows: torch.Tensor) -> Labels:
        return Labels(*(v[rows] for v in vars(self).values()))

    def allowed(self, withheld: Withheld, size: Size) -> torch.Tensor:
        """bool (n,): scenes that show nothing withheld."""
        fine = torch.ones(len(self), dtype=torch.bool)
        for name in withheld.objects:
            number = size.objects.index(name)
            fine &= (self.first != number) & (self.second != number)
        for name in withheld.styles:
            fine &= self.style != size.styles.index(name)
        return fine


class Writer:
    """Captions and token ids for scenes; a caption that is too long for the window is drawn again."""

    def __init__(self, size: Size, tokenizer: Path, withheld: Withheld | None = None) -> None:
        from tokenizers import Tokenizer

        self.size, self.without = size, (withheld or Withheld()).phrases
        self.things = [find(name) for name in size.objects]
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def write(self, labels: Labels, generator: torch.Generator) -> tuple[list[Caption], torch.Tensor]:
        """One true caption a scene, and their ids (n, window)."""
        columns = (labels.first, labels.second, labels.style, labels.background)
        told = [self._one(a, b, c, d, generator) for a, b, c, d in torch.stack(columns, 1).tolist()]
        return told, self.ids([c.text for c in told])

    def ids(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids (n, window), cut and padded with the end token, 1."""
        rows = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        return torch.tensor([_window(r, self.size.window) for r in rows], dtype=torch.long)

    def words(self, ids: torch.Tensor) -> str:
        """The text of one row of ids."""
        return self._tokenizer.decode(ids.tolist()).strip()

    def _one(self, first: int, second: int, style: int, colour: int, generator: torch.Generator) -> Caption:
        shown = [self.things[k] for k in (first, second) if k >= 0]
        family = self.size.styles[style] if style >= 0 else None
        for _ in range(TRIES):
            luck = torch.rand(2, generator=generator).tolist()
            ordered = shown[::-1] if luck[0] < 0.5 else shown
            found = caption(ordered, family, COLOURS[colour], generator, english=luck[1] < 0.5, without=self.without)
            if len(self._tokenizer.encode(found.text).ids) <= self.size.window:
                return found
        names = [with_article(thing.name) for thing in shown]
        return Caption(" and ".join(names), tuple(frozenset([t.name]) for t in shown), None, None)


def _window(ids: list[int], length: int) -> list[int]:
    return [*ids[: length - 1], 1] if len(ids) > length else ids + [1] * (length - len(ids))


def meanings(told: Sequence[Caption], size: Size) -> torch.Tensor:
    """bool (n, 2, objects): what each phrase of a caption fits; a row of False where there is no phrase."""
    table = torch.zeros(len(told), 2, len(size.objects), dtype=torch.bool)
    place = {name: k for k, name in enumerate(size.objects)}
    for row, one in enumerate(told):
        for slot, phrase in enumerate(one.phrases):
            table[row, slot, [place[name] for name in phrase if name in place]] = True
    return table


def said(told: Sequence[Caption], size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Style and background that captions name, int64 (n,) each; one past the last where they name none."""
    style = [size.styles.index(c.style) if c.style else len(size.styles) for c in told]
    colour = [COLOURS.index(c.background) if c.background else len(COLOURS) for c in told]
    return torch.tensor(style), torch.tensor(colour)


def true_of(told: Sequence[Caption], labels: Labels, size: Size) -> torch.Tensor:
    """bool (captions, scenes): is the caption true of the scene? "a dog" is true of every scene with one dog."""
    table = meanings(told, size)  # (n, 2, objects)
    count = torch.tensor([len(c.phrases) for c in told])
    style, colour = said(told, size)
    fits = torch.cat([table, torch.zeros(len(told), 2, 1, dtype=torch.bool)], 2)  # -1 is fitted by nothing
    one, two = fits[:, 0], fits[:, 1]
    straight = one[:, labels.first] & two[:, labels.second]
    crossed = one[:, labels.second] & two[:, labels.first]
    shown = (labels.first >= 0).long() + (labels.second >= 0).long()
    named = torch.where((count == 2)[:, None], straight | crossed, one[:, labels.first])
    # a caption that names only a style or a colour: a style says that something is shown, a bare colour that not
    silent = torch.where((style < len(size.styles))[:, None], (shown > 0)[None], (shown == 0)[None])
    match = torch.where((count == 0)[:, None], silent, named & (count[:, None] == shown[None]))
    match &= (style == len(size.styles))[:, None] | (style[:, None] == labels.style[None])
    return match & ((colour == len(COLOURS))[:, None] | (colour[:, None] == labels.background[None]))


def pairs(count: int, drawn: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects and styles of `count` scenes, int64 each, from the table of what is drawn, bool (objects, styles).

    Styles are balanced, as a family may draw fewer objects; scenes 2k and 2k + 1 show one object in two styles, so
    that a batch tells styles apart where nothing else differs.
    """
    half = -(-count // 2)
    columns = torch.nonzero(drawn.any(0)).flatten()
    style = columns[torch.randint(len(columns), (half,), generator=generator)]
    thing = torch.multinomial(drawn[:, style].T.float(), 1, generator=generator)[:, 0]
    rest = drawn[thing].float()
    rest[torch.arange(half), style] = 1e-6  # the same style again where there is no other
    other = torch.multinomial(rest.clamp(min=0), 1, generator=generator)[:, 0]
    both = torch.stack([style, other], 1).flatten()
    return thing.repeat_interleave(2)[:count], both[:count]
