"""Shards in this process, one after the other, with what is open here already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from efface.engines import Job, opened
from efface.work import Work

__all__ = ["Inline"]


@dataclass(frozen=True)
class Inline:
    """No worker at all."""

    @property
    def reach(self) -> Literal["process"]:
        return "process"

    def run(self, job: Job, shards: Sequence[object], work: Work, label: str) -> Iterator[object]:
        do = job.here or opened(job)
        for shard in work.progress(shards, label):
            yield do(shard)


PLUGIN = Inline
