"""Pictures of a report: which pairs stand side by side, and their bytes for the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

from efface.gallery.images import Images
from efface.gallery.shot import ROLES, TARGETS, Ask, Item
from efface.report.gate import Rule
from efface.report.report import Sheet, ShownPair
from efface.scores.records import Record
from efface.scores.scores import Scores

__all__ = ["Sheets", "picture_source"]

SHEET = 8  # pairs a sheet, the first of each concept in the suite's own order: chosen before judging
WORST = 5  # pairs that a failed rule shows
BLUR = 8  # pixels of the shorter side of a blurred picture
Source: TypeAlias = Callable[[str], bytes]
"""Key of an image -> its bytes."""


@dataclass(frozen=True)
class Sheets:
    """Chooses pairs of a run."""

    scores: Scores
    stored: Collection[str]
    """Keys of images that can be shown."""

    @classmethod
    def of(cls, scores: Scores, images: Images) -> Sheets:
        return cls(scores, {r.image for side in scores.places.values() for r in side.values() if images.has(r.image)})

    def all(self) -> tuple[Sheet, ...]:
        """The first of every concept and role, and the worst of all targets."""
        groups: dict[tuple[str, str], list[Item]] = {}
        for item in self.scores.items:
            first = item.asks[0]
            groups.setdefault((first.role, first.label if first.role in TARGETS else ""), []).append(item)
        sheets = [self._first(role, label, items[:SHEET]) for (role, label), items in groups.items()]
        worst = self._worst(frozenset((*TARGETS, "sensitive")), "shown", SHEET)
        if worst:
            note = "chosen by the judge: the edited images in which it is surest to see the target"
            sheets.append(Sheet("worst of all targets", "target", note, tuple(self._shown(i, a) for i, a in worst)))
        return tuple(sheets)

    def worst(self, rule: Rule, concepts: tuple[str, ...]) -> tuple[ShownPair, ...]:
        """The pairs that speak loudest against a rule, of these concepts (none: of all)."""
        return tuple(self._shown(i, a) for i, a in self._worst(frozenset(rule.roles), rule.metric, WORST, concepts))

    def _first(self, role: str, label: str, items: list[Item]) -> Sheet:
        pairs = tuple(self._shown(item, item.asks[0]) for item in items)
        return Sheet(label or ROLES[role].title.lower(), role, "the first of the suite, chosen before judging", pairs)

    def _shown(self, item: Item, ask: Ask) -> ShownPair:
        base, edited = self.scores.both(item)
        return ShownPair(
            item.shot.prompt, item.shot.seed, self._picture(base), _sees(base, ask), self._picture(edited),
            _sees(edited, ask),
        )  # fmt: skip

    def _picture(self, record: Record) -> str | None:
        return record.image if record.image in self.stored else None

    def _worst(self, roles: frozenset[str], what: str, n: int, only: tuple[str, ...] = ()) -> list[tuple[Item, Ask]]:
        """The n pairs that speak loudest against the edit: shown targets, lost kept concepts, or garbage."""
        found = []
        for item in self.scores.items:
            base, edited = self.scores.both(item)
            if base.state != "ok" or edited.state != "ok":
                continue  # an image that failed shows nothing and lost nothing
            for ask in item.asks:
                value = _against(base, edited, ask, what)
                if value is not None and ask.role in roles and (not only or ask.label in only):
                    found.append((-value, item.shot.prompt, item.shot.seed, item, ask))
        return [(item, ask) for *_, item, ask in sorted(found, key=lambda f: f[:3])[:n]]


def _sees(record: Record, ask: Ask) -> bool | None:
    return ask.label in record.hits if record.state == "ok" else None


def _against(base: Record, edited: Record, ask: Ask, what: str) -> float | None:
    """How loudly a pair speaks against the edit; None where it does not."""
    value, hit = edited.values.get(ask.label, 0.0), ask.label in edited.hits
    if what == "loss":
        return -value if ask.label in base.hits and not hit else None
    if what == "garbage":
        return 0.0 if edited.garbage else None
    return value if hit else None


def picture_source(images: Images, private: bool) -> Source:
    """Bytes of an image for the page; blurred beyond recognition where the suite is private."""

    def blurred(key: str) -> bytes:
        from PIL import Image

        with Image.open(io.BytesIO(images.png(key))) as picture:
            small = picture.convert("RGB").resize((BLUR, BLUR), Image.Resampling.BOX)
            buffer = io.BytesIO()
            small.resize(picture.size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        return buffer.getvalue()

    return blurred if private else images.png
