"""What the suites of the emoji world share: wordings of a half, kept objects, styles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest

from efface.errors import BadRequest, UnknownName
from efface.gallery.shot import Ask, Item, Shot
from efface.request import Request
from efface.suites import Known
from efface.suites.world_smoke import kept_objects
from efface.world import Object, captions
from efface.world.captions import BACKGROUNDS

__all__ = ["Scene"]

HALVES = {"tune": 0, "report": 500}  # first seed of each half; a half has 500
# The first `mini` knew these templates and always wrote "a" (docs/world.md).
OLD_PLAIN = {
    "tune": ("{thing}", "a photo of {thing}"),
    "report": ("a picture of {thing}", "a drawing of {thing}", "an image of {thing}"),
}
OLD_STYLE = {"tune": "{thing} in {style} style", "report": "a {style} emoji of {thing}"}
COLOURS = tuple(c for c in BACKGROUNDS if c != "white")


@dataclass(frozen=True)
class Scene:
    """One request in one half of the world: who is a target, who is near, who is far, and how they are written."""

    request: Request
    known: Known
    half: str

    @classmethod
    def of(cls, suite: str, request: Request, known: Known, half: str) -> Scene:
        """Raises UnknownName for a half, BadRequest for a model without qualified objects of it."""
        if half not in HALVES:
            raise UnknownName("half", half, HALVES)
        made = cls(request, known, half)
        if not made.near + made.far:
            raise BadRequest(
                f"suite {suite} needs a model with qualified objects of the {half} half (efface list concepts shows "
                "them); this one has none"
            )
        return made

    @property
    def seed(self) -> int:
        return HALVES[self.half]

    @property
    def targets(self) -> list[str]:
        return [c.label for c in self.request.concepts if c.kind != "style"]

    @property
    def styles(self) -> list[str]:
        return [c.label for c in self.request.concepts if c.kind == "style"]

    @property
    def near(self) -> list[str]:
        return kept_objects(self.request, self.known.concepts, self.half)[0]

    @property
    def far(self) -> list[str]:
        return kept_objects(self.request, self.known.concepts, self.half)[1]

    def closest(self, n: int) -> list[str]:
        """Kept objects nearest to the targets: of each target's category in turn, then far ones."""
        category = {c["name"]: c["category"] for c in self.known.concepts if c["kind"] == "object"}
        own = dict.fromkeys(category.get(t, "") for t in self.targets)
        groups = [[name for name in self.near if category[name] == group] for group in own]
        turns = (name for turn in zip_longest(*groups) for name in turn if name)
        return list(islice((*turns, *self.far), n))

    @property
    def free_styles(self) -> list[str]:
        """Qualified styles that are kept."""
        rows = (c for c in self.known.concepts if c["kind"] == "style" and c["qualified"])
        return [c["name"] for c in rows if c["name"] not in self.styles]

    # --- texts -------------------------------------------------------------------------------------------------------

    @property
    def rich(self) -> bool:
        return self.known.captions is not None and "templates" in self.known.captions

    def phrase(self, name: str) -> str:
        return captions.with_article(name) if self.rich else f"a {name}"

    def prompts(self, phrase: str) -> list[str]:
        """Wordings of this half for one phrase (`a dog`, `the pet that barks`): eight or more on the report half."""
        if self.rich:
            plain = [captions.write(t, [phrase]) for t in captions.templates("plain", self._half)]
            place = captions.templates("background", self._half)
            on = [captions.write(place[k % len(place)], [phrase], background=c) for k, c in enumerate(COLOURS)]
            return [*plain, *on]
        plain = [text.format(thing=phrase) for text in OLD_PLAIN[self.half]]
        return [*plain, *(f"{phrase} on a {c} background" for c in COLOURS[self.half == "tune" :: 2])]

    def styled(self, name: str, style: str, k: int) -> str:
        """The k-th wording of an object in a style."""
        if self.rich:
            options = captions.templates("style", self._half)
            return captions.write(options[k % len(options)], [self.phrase(name)], style=style)
        return OLD_STYLE[self.half].format(thing=self.phrase(name), style=style)

    @property
    def _half(self) -> captions.Half:
        return "tune" if self.half == "tune" else "report"

    def words(self, name: str, wording: str) -> tuple[str, ...]:
        """Phrases of the world for one object that do not use its name; none for an object it does not list."""
        thing = self.thing(name)
        return captions.wordings(thing, wording, self._half) if thing else ()

    def thing(self, name: str) -> Object | None:
        try:
            return captions.find(name)
        except UnknownName:
            return None

    # --- items -------------------------------------------------------------------------------------------------------

    def plain(self, role: str, names: Sequence[str], n: int, more: tuple[Ask, ...] = ()) -> Iterator[Item]:
        """n images over these objects in turn; each object walks through its wordings, then through seeds."""
        prompts = {name: self.prompts(self.phrase(name)) for name in names}
        for k, name in enumerate(islice(cycle(names), n)):
            turn = k // len(names)
            prompt = prompts[name][turn % len(prompts[name])]
            yield Item(Shot(prompt, self.seed + turn), (Ask(role, name), *more))

    def described(self, role: str, wording: str, names: Sequence[str], n: int) -> Iterator[Item]:
        """n images over every phrase that stands for one of these objects without its name."""
        pairs = [(name, phrase) for name in names for phrase in self.words(name, wording)]
        for k, (name, phrase) in enumerate(islice(cycle(pairs), n)):
            turn, prompts = k // len(pairs), self.prompts(phrase)
            yield Item(Shot(prompts[turn % len(prompts)], self.seed + turn), (Ask(role, name),))

    def in_style(self, style: str, n: int) -> Iterator[Item]:
        """n kept objects in an erased style."""
        names = (self.near + self.far)[::-1]
        for k, name in enumerate(islice(cycle(names), n)):
            asks = (Ask("style", style), Ask("in-prompt", name))
            yield Item(Shot(self.styled(name, style, k), self.seed + k // len(names)), asks)
