"""Judging: one record an image of one side under one panel: judged, or NA or ERROR with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from efface.gallery.gallery import Gallery
from efface.gallery.images import pixel_hash
from efface.gallery.shot import Item, Shot
from efface.judges.panel import Finding, Panel, Question
from efface.scores.records import Record, Records
from efface.work import Work

__all__ = ["Judging"]

PIXELS = 256 * 64 * 64  # of the pictures that are looked at together
AT_LEAST = 8  # pictures


@dataclass(frozen=True)
class Judging:
    """Who looks, and where it is written down."""

    records: Records
    panel: Panel
    private: bool = False
    """Prompts stand in the records as hashes."""

    def mine(self) -> list[Record]:
        """What this panel has said so far."""
        versions = self.panel.versions
        return [r for r in self.records if r.key == versions.record(r.side, r.image)]

    def void_failed(self, gallery: Gallery) -> None:
        """Take out of force what failed in an earlier run: it is tried again."""
        for record in self.mine():
            if record.side == gallery.side.name and record.state == "error":
                self.records.void(record.key, "it failed, and is tried again")

    def failed(self, gallery: Gallery, items: Iterable[Item], why: Mapping[str, str]) -> None:
        """Images that could not be drawn stand in the records as ERROR. why: the reason, by key."""
        bad = [(i, gallery.key(i.shot)) for i in items]
        lost = [(i, key, Finding(state="error", reason=why[key])) for i, key in bad if key in why]
        self.records.extend(
            self._record(gallery, item, key, "", finding) for item, key, finding in lost
            if self._key(gallery, key) not in self.records
        )  # fmt: skip

    def judge(self, gallery: Gallery, items: Iterable[Item], work: Work) -> int:
        """One record an image that is kept; returns how many were judged. Judged images are not judged again."""
        todo = [i for i in items if self._key(gallery, gallery.key(i.shot)) not in self.records]
        held = set(gallery.held(i.shot for i in todo))
        todo = [i for i in todo if i.shot in held]
        height, width = gallery.side.model.card.size
        chunk = max(AT_LEAST, PIXELS // (height * width))
        parts = [todo[start : start + chunk] for start in range(0, len(todo), chunk)]
        for part in work.progress(parts, f"judging {gallery.side.name} (x{chunk})"):
            self.records.extend(self._judged(gallery, part))
        return len(todo)

    def void_changed(self, gallery: Gallery, shots: Sequence[Shot]) -> None:
        """Take records out of force whose images were drawn again with other pixels (another batch: 1/255)."""
        held = gallery.held(shots)
        now = {gallery.key(shot): pixel_hash(gallery.pixels([shot])[0]) for shot in held}
        for record in list(self.records) if now else ():
            if now.get(record.image, record.pixels) != record.pixels != "":
                self.records.void(record.key, "the image was damaged and drawn again with other pixels")

    def _judged(self, gallery: Gallery, items: Sequence[Item]) -> list[Record]:
        pixels = gallery.pixels(i.shot for i in items)
        found = self.panel.findings(pixels, [Question(i.shot.prompt, tuple(a.label for a in i.asks)) for i in items])
        return [
            self._record(gallery, item, gallery.key(item.shot), pixel_hash(image), finding)
            for item, image, finding in zip(items, pixels, found, strict=True)
        ]

    def _record(self, gallery: Gallery, item: Item, image: str, pixels: str, finding: Finding) -> Record:
        return Record(
            side=gallery.side.name,
            shot=item.shot.veiled() if self.private else item.shot,
            key=self._key(gallery, image),
            image=image,
            pixels=pixels,
            judge=self.panel.name,
            judge_version=self.panel.versions.judge,
            **vars(finding),
        )

    def _key(self, gallery: Gallery, image: str) -> str:
        return self.panel.versions.record(gallery.side.name, image)
