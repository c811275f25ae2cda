"""Evidence: what came back for a method's needs. Gathered once, cached on disk, shared by methods.

Texts are encoded once. Statistics are taken while the prompt groups are drawn: one file a (group, site, step), or one
a (group, site) where they are folded over the steps, named by everything that can change it, memory-mapped when read.
Another threshold needs no sampling. Sampling stops after the last step that is looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from efface.errors import BadRequest, WrongFile
from efface.evidence.needs import Needs, PromptGroup, State, Statistics
from efface.files import VERSION, cache_folder, key_of, leftovers, write_bytes
from efface.model import Model, sampler
from efface.model.places import Step
from efface.model.text import Encoded
from efface.work import Work

__all__ = ["Evidence", "gather", "sweep"]


Key = tuple[str, str, str, int]
"""(name of the statistics, group, site, step)"""
FOLDED = -1  # the step of a state that is folded over all of them


@dataclass(frozen=True)
class Evidence:
    """texts: encoded, by text. files: where the state of a (statistics, group, site, step) lies."""

    texts: dict[str, Encoded] = field(default_factory=dict)
    files: dict[Key, Path] = field(default_factory=dict)

    def text(self, text: str) -> Encoded:
        if text not in self.texts:
            raise BadRequest(f"the text {text!r} was not asked for; a method lists it in its needs")
        return self.texts[text]

    def state(self, statistics: Statistics, group: str, site: str, step: int = FOLDED) -> State:
        """What the reducer made of one group, site and step, or the fold of all steps; memory-mapped."""
        return _read(self.files[statistics.name, group, site, step])


def gather(model: Model, needs: Needs, work: Work, cache: Path | None = None) -> Evidence:
    """Encode, draw and sum up whatever is not in the cache yet. The model is as before afterwards.

    What another process is drawing is waited for. Raises WrongFile for statistics that are not finite and a cache that
    cannot be written, BadRequest for a step that the sampler does not reach.
    """
    texts = {e.text: e for e in model.encode(needs.texts, needs.rows == "all")} if needs.texts else {}
    folder = (cache or cache_folder()) / "evidence"
    files: dict[Key, Path] = {}
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
    known: dict[Key, Path],
    work: Work,
) -> dict[Key, Path]:
    """Files of one group: those that exist are used, the others are made in one pass over its prompts."""
    steps = model.card.steps if needs.steps is None else needs.steps
    guidance = model.card.guidance if needs.guidance is None else needs.guidance
    about = key_of(
        efface=VERSION,
        torch=torch.__version__,
        device=model.device.type,
        model=model.identity,
        patch=model.in_force,
        prompts=group.prompts,
        seeds=group.seeds,
        steps=steps,
        guidance=guidance,
        dtype=str(model.dtype),
        reducer=statistics.name,
        reads=_read_key(statistics, known),
    )
    kept = (FOLDED,) if statistics.fold else statistics.steps
    files = {
        (statistics.name, group.name, site, step): folder
        / about
        / f"{'all' if step == FOLDED else f'{step:04d}'}-{site}.safetensors"
        for site in statistics.sites
        for step in kept
    }
    if all(_whole(f) for f in files.values()):
        return files
    with _held(folder / about, work):
        if missing := {k: f for k, f in files.items() if not _whole(f)}:  # another process may have made them meanwhile
            _Recorder(model, statistics, missing, known).draw(group, steps, guidance, work)
    return files


@contextmanager
def _held(place: Path, work: Work) -> Iterator[None]:
    """A folder of statistics, held against other processes; waits for the one that holds it. Raises WrongFile."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / ".lock")
        while not _taken(lock, 0.5):
            work.check()
    except OSError as error:
        raise WrongFile(
            f"cannot write {place}: {error.strerror or error}; name another cache folder in EFFACE_CACHE"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _taken(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _read_key(statistics: Statistics, known: dict[Key, Path]) -> str:
    if not statistics.reads:
        return ""
    folders = {f.parent.name for (_, g, _, _), f in known.items() if g == statistics.reads}
    if not folders:
        raise BadRequest(f"statistics read the prompt group {statistics.reads!r}, which comes later or is missing")
    return "+".join(sorted(folders))


class _Recorder:
    """Runs the sampler with taps; only the state of one site and step is in memory, and folds of a group's sites.

    The prompts of a batch advance together. The state of a (site, step) goes through a file from batch to batch and is
    finished, and folded, in the last one. Files get their names when all are there.
    """

    def __init__(self, model: Model, statistics: Statistics, files: dict[Key, Path], known: dict[Key, Path]) -> None:
        self.model, self.statistics, self.files = model, statistics, files
        self.earlier = {(s, t): f for (_, g, s, t), f in known.items() if g == statistics.reads}
        self.sites = sorted({k[2] for k in files})
        fold = statistics.fold is not None
        self.wanted = {(k[2], t) for k in files for t in (statistics.steps if fold else (k[3],))}
        self.offset, self.last = 0, False
        self._partial: dict[tuple[str, int], Path] = {}
        self._folds: dict[str, State] = {}
        self._done: set[tuple[str, int]] = set()

    def draw(self, group: PromptGroup, steps: int, guidance: float, work: Work) -> None:
        calls = max(t for _, t in self.wanted) + 1
        starts = range(0, len(group.prompts), sampler.BATCH)
        try:
            for start in work.progress(starts, f"statistics of {group.name}"):
                self.offset, self.last = start, start == starts[-1]
                chosen = slice(start, start + sampler.BATCH)
                taps = dict.fromkeys(self.sites, self.tap)
                how = {"steps": steps, "guidance": guidance, "work": work}
                self.model.observe(group.prompts[chosen], group.seeds[chosen], taps, calls, **how)
            self.finish(group.name, calls)
        finally:
            for file in self._partial.values():
                file.unlink(missing_ok=True)

    def tap(self, step: Step, site: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """One batch's rows of a site at a step."""
        if (site, step.index) not in self.wanted:
            return
        if inputs.device.type == "mps":  # it has no float64
            inputs, outputs = inputs.cpu(), outputs.cpu()
        reducer, place = self.statistics.reducer, (site, step.index)
        ids: Sequence[int] = [i + self.offset for i in step.images]
        earlier = self._earlier(*place)
        start = reducer.start(self.model.card.site(site))
        state = reducer.add(start, step.index, ids, step.roles, inputs, self._bare(site, outputs), earlier)
        if place in self._partial:
            state = reducer.merge(_read(self._partial[place]), state)
        if not self.last:
            self._put(place, state)
            return
        state = reducer.finish_step(step.index, state)
        _check_finite(state, *place)
        self._done.add(place)
        if self.statistics.fold is None:
            self._put(place, state)
            return
        weight = self.model.weight(site).cpu()
        self._folds[site] = self.statistics.fold.add(self._folds.get(site), step.index, state, earlier, weight)

    def _bare(self, site: str, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs, without the site's bias where that is asked for."""
        bias = None if self.statistics.bias else self.model.network.module(site).bias
        return outputs - bias if isinstance(bias, torch.Tensor) else outputs

    def _earlier(self, site: str, step: int) -> State | None:
        """The finished state of the group that is read, at a site and step."""
        file = self.earlier.get((site, step))
        return _read(file) if file else None

    def _put(self, place: tuple[str, int], state: State) -> None:
        own = next(iter(self.files.values())).parent / f"{place[1]:04d}-{place[0]}.partial"
        self._partial[place] = _write(own, state)

    def finish(self, group: str, calls: int) -> None:
        """Give the files their names."""
        if missed := self.wanted - self._done:
            site, step = min(missed)
            raise BadRequest(f"the sampler does not reach step {step} at {site} within {calls} calls; ask for fewer")
        for key, file in self.files.items():
            if key[3] == FOLDED:
                _write(file, self._folds.pop(key[2]))
            else:
                os.replace(self._partial.pop((key[2], key[3])), file)


def _check_finite(state: State, site: str, step: int) -> None:
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WrongFile(
                f"statistics hold NaN or infinity ({name!r} of {site} at step {step}); "
                "use an undamaged copy of the model or a wider dtype (--dtype float32)"
            )


def _write(file: Path, state: State) -> Path:
    return write_bytes(file, save({k: v.contiguous() for k, v in state.items()}), sync=False)


def _read(file: Path) -> State:
    with safe_open(file, "pt") as opened:
        return {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 (not a dict)


def _whole(file: Path) -> bool:
    """Whether a file is there and not torn; a torn one is deleted."""
    try:
        with safe_open(file, "pt"):
            return True
    except FileNotFoundError:
        return False
    except SafetensorError:
        file.unlink(missing_ok=True)
        return False


def sweep(days: float | None, dry: bool = False) -> list[Path]:
    """Delete partial sums of killed processes and, with `days`, statistics that none used so long. Returns their paths.

    What a process is making just now is left alone.
    """
    gone: list[Path] = []
    limit = time.time() - 86400 * (days or 0)
    for place in sorted((cache_folder() / "evidence").glob("*/")):
        lock = FileLock(place / ".lock")
        if not _taken(lock, 0):
            continue
        found = sorted(place.glob("*.partial")) + leftovers(place, 0)
        if days is not None:
            states = ((f, f.stat()) for f in place.glob("*.safetensors"))
            found += sorted(f for f, s in states if max(s.st_mtime, s.st_atime) < limit)
        for file in [] if dry else found:
            file.unlink(missing_ok=True)
        lock.release()
        gone += found
    return gone
