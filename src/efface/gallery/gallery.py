"""The pictures of one side, each named by all that decides its pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from efface.engines import Engine
from efface.gallery.drawing import SHARD, Sampling, Shard, Side, Tally, drawn
from efface.gallery.images import Images
from efface.gallery.shot import Shot
from efface.gallery.task import Row
from efface.work import Work

__all__ = ["Gallery"]


@dataclass(frozen=True)
class Gallery:
    """Pictures of one side at one sampling."""

    side: Side
    sampling: Sampling
    images: Images
    """Where they are kept."""
    shared: Images | None = None
    """Where they are drawn, and found again by whoever asks for the same; None: nothing is shared."""
    private: bool = False
    """Whether they are drawn where they are kept, and nowhere else."""
    _keys: dict[Shot, str] = field(default_factory=dict, repr=False, compare=False)

    def key(self, shot: Shot) -> str:
        """Hash of everything that can change the pixels, and of nothing else: another recipe draws nothing again."""
        if shot not in self._keys:
            own = {"model": self.side.model.identity, "patch": self.side.patch, "sampling": self.sampling.hash}
            self._keys[shot] = shot.key(**own)
        return self._keys[shot]

    def keys(self, shots: Iterable[Shot]) -> list[str]:
        """Of many, in their order."""
        return [self.key(shot) for shot in shots]

    def missing(self, shots: Iterable[Shot]) -> list[Shot]:
        """Those that are nowhere yet, each once."""
        return [shot for shot in dict.fromkeys(shots) if not self._has(self.key(shot))]

    def shards(self, shots: Iterable[Shot]) -> list[Shard]:
        """Shots in batches as they are drawn: `SHARD` at most, one guidance each, in the order given."""
        groups: dict[float | None, list[Row]] = {}
        for shot in shots:
            groups.setdefault(shot.guidance, []).append(self.row(shot))
        return [rows[i : i + SHARD] for rows in groups.values() for i in range(0, len(rows), SHARD)]

    def row(self, shot: Shot) -> Row:
        """A shot as it travels to who draws it."""
        return Row(shot.prompt, shot.seed, self.key(shot), shot.guidance)

    def draw(
        self,
        shards: Sequence[Shard],
        work: Work,
        tally: Tally | None = None,
        skip: Collection[str] = (),
        engine: Engine | None = None,
    ) -> int:
        """Draw what is missing, shard by shard; returns how many images were drawn.

        A shard with a missing image is drawn whole, so that the batches, and with them the pixels, are those of an
        uninterrupted run. tally: with one, images that fail are named in it, else the failure is raised. skip: keys
        not to try. engine: where it is drawn, else in this process or in workers, whichever is faster.
        """
        missing = [shard for shard in shards if not all(row.key in skip or self._has(row.key) for row in shard)]
        before = self._count(missing)
        if missing:
            place = self.images if self.private or self.shared is None else self.shared
            drawn(self.side, missing, self.sampling, place, work, tally or Tally(failed=None), engine)
        return self._count(missing) - before

    def hold(self, shots: Iterable[Shot]) -> None:
        """Keep what is shared, too: it is then safe from whoever sweeps there."""
        if self.shared is not None:
            self.images.adopt(self.shared, self.keys(shots))

    def held(self, shots: Iterable[Shot]) -> list[Shot]:
        """Those whose pictures are kept here."""
        return [shot for shot in shots if self.images.has(self.key(shot))]

    def pixels(self, shots: Iterable[Shot]) -> np.ndarray:
        """uint8 (n, h, w, 3) of pictures that are kept. Raises WrongFile for one that is gone or torn."""
        return np.stack([self.images.get(self.key(shot)) for shot in shots])

    def damaged(self, shots: Iterable[Shot], pixels: Mapping[str, str]) -> list[Shot]:
        """Delete pictures that are torn or no longer hold the pixels that were judged; returns their shots.

        pixels: hash by key, where it is known.
        """
        bad = [shot for shot in shots if not self._whole(self.key(shot), pixels.get(self.key(shot)))]
        for key in self.keys(bad):
            for place in self._places():
                place.drop(key)
        return bad

    def drop(self, shots: Iterable[Shot]) -> None:
        """Keep these no longer."""
        for key in self.keys(shots):
            self.images.drop(key)

    def _places(self) -> Iterator[Images]:
        yield self.images
        if self.shared is not None:
            yield self.shared

    def _has(self, key: str) -> bool:
        return any(place.has(key) for place in self._places())

    def _whole(self, key: str, pixels: str | None) -> bool:
        return all(place.whole(key, pixels) for place in self._places())

    def _count(self, shards: Sequence[Shard]) -> int:
        return sum(self._has(row.key) for shard in shards for row in shard)
