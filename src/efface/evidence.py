"""Evidence: what came back for a method's needs. Gathered once, cached on disk, shared by methods.

Texts are encoded once. Statistics are taken while the prompt groups are drawn: one file a (group, site, step), named
by everything that can change it, memory-mapped when read. Another threshold needs no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save

from efface.errors import BadRequest
from efface.needs import Needs, PromptGroup, State, Statistics
from efface.store import key_of, write_bytes
from efface.work import Work, cache_folder

if TYPE_CHECKING:
    from efface.guards import Step
    from efface.model import Encoded, Model

__all__ = ["Evidence", "gather"]


@dataclass(frozen=True)
class Evidence:
    """texts: encoded, by text. files: where the state of a (reducer, group, site, step) lies."""

    texts: dict[str, Encoded] = field(default_factory=dict)
    files: dict[tuple[str, str, str, int], Path] = field(default_factory=dict)

    def text(self, text: str) -> Encoded:
        if text not in self.texts:
            raise BadRequest(f"the text {text!r} was not asked for; a method lists it in its needs")
        return self.texts[text]

    def state(self, statistics: Statistics, group: str, site: str, step: int) -> State:
        """What the reducer made of one group, site and step; memory-mapped."""
        return _read(self.files[repr(statistics.reducer), group, site, step])


def gather(model: Model, needs: Needs, work: Work, cache: Path | None = None) -> Evidence:
    """Encode, draw and sum up whatever is not in the cache yet. The model is as before afterwards."""
    texts = {e.text: e for e in model.encode(needs.texts, needs.rows)} if needs.texts else {}
    folder = (cache or cache_folder()) / "evidence"
    files: dict[tuple[str, str, str, int], Path] = {}
    for statistics in needs.statistics:
        for name in statistics.groups:
            files |= _group(model, needs, statistics, needs.group(name), folder, files, work)
    return Evidence(texts, files)


def _group(
    model: Model,
    needs: Needs,
    statistics: Statistics,
    group: PromptGroup,
    folder: Path,
    known: dict[tuple[str, str, str, int], Path],
    work: Work,
) -> dict[tuple[str, str, str, int], Path]:
    """Files of one group: those that exist are used, the others are made in one pass over its prompts."""
    steps = model.card.steps if needs.steps is None else needs.steps
    guidance = model.card.guidance if needs.guidance is None else needs.guidance
    about = key_of(
        model=model.identity,
        patch=model.in_force,
        prompts=group.prompts,
        seeds=group.seeds,
        steps=steps,
        guidance=guidance,
        dtype=str(model.dtype),
        reducer=repr(statistics.reducer),
        reads=_read_key(statistics, known),
    )
    reducer = repr(statistics.reducer)
    files = {
        (reducer, group.name, site, step): folder / about / f"{step:04d}-{site}.safetensors"
        for site in statistics.sites
        for step in statistics.steps
    }
    if missing := {k: f for k, f in files.items() if not f.exists()}:
        sites = sorted({k[2] for k in missing})
        recorder = _Recorder(model, statistics, missing, _earlier(statistics, known))
        recorder.draw(sites, group, steps, guidance, work)
    return files


def _read_key(statistics: Statistics, known: dict[tuple[str, str, str, int], Path]) -> str:
    if not statistics.reads:
        return ""
    folders = {f.parent.name for (_, g, _, _), f in known.items() if g == statistics.reads}
    if not folders:
        raise BadRequest(f"statistics read the prompt group {statistics.reads!r}, which comes later or is missing")
    return "+".join(sorted(folders))


def _earlier(
    statistics: Statistics, known: dict[tuple[str, str, str, int], Path]
) -> Callable[[str, int], State | None]:
    """The finished state of the group that is read, at a site and step."""
    by_place = {(s, t): f for (_, g, s, t), f in known.items() if g == statistics.reads}
    return lambda site, step: _read(by_place[site, step]) if (site, step) in by_place else None


class _Recorder:
    """Runs the sampler with taps; only the current step's states are in memory.

    All prompts of a group go through the sampler in batches; the partial state of a (site, step) is merged into its
    file's predecessor, so that a step's state is in memory only while that step runs.
    """

    def __init__(
        self,
        model: Model,
        statistics: Statistics,
        files: dict[tuple[str, str, str, int], Path],
        earlier: Callable[[str, int], State | None],
    ) -> None:
        self.model, self.statistics, self.files, self.earlier = model, statistics, files, earlier
        self._offset = 0
        self._partial: dict[tuple[str, str, str, int], Path] = {}

    def draw(self, sites: list[str], group: PromptGroup, steps: int, guidance: float, work: Work) -> None:
        from efface.sampler import BATCH, sample

        try:
            starts = range(0, len(group.prompts), BATCH)
            for start in work.progress(starts, f"statistics of {group.name}"):
                self._offset = start
                end = start + BATCH
                taps = {s: lambda step, site, a, out: self._tap(group.name, step, site, a, out) for s in sites}
                sample(
                    self.model,
                    group.prompts[start:end],
                    group.seeds[start:end],
                    steps=steps,
                    guidance=guidance,
                    taps=taps,
                    work=work,
                )
            self._finish()
        finally:
            for file in self._partial.values():
                file.unlink(missing_ok=True)

    def _tap(self, group: str, step: Step, site: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        key = (repr(self.statistics.reducer), group, site, step.index)
        if key not in self.files:
            return
        ids: Sequence[int] = [i + self._offset for i in step.images]
        reducer = self.statistics.reducer
        state = reducer.start(self.model.card.site(site))
        earlier = self.earlier(site, step.index)
        state = reducer.add(state, step.index, ids, step.roles, inputs, outputs, earlier)
        if key in self._partial:
            state = reducer.merge(_read(self._partial[key]), state)
        partial = self.files[key].with_suffix(".partial")
        write_bytes(partial, save({k: v.contiguous() for k, v in state.items()}), sync=False)
        self._partial[key] = partial

    def _finish(self) -> None:
        for key, partial in self._partial.items():
            state = self.statistics.reducer.finish_step(key[3], _read(partial))
            write_bytes(self.files[key], save({k: v.contiguous() for k, v in state.items()}), sync=False)


def _read(file: Path) -> State:
    with safe_open(file, "pt") as opened:
        return {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 (not a dict)
