"""The flow: a request becomes a patch. The same path for Python, the command line and tests."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from efface.errors import BadRequest, EffaceWarning, NothingChanged, WrongFile
from efface.evidence.gather import gather
from efface.evidence.needs import Needs
from efface.files import VERSION, cache_folder, key_of
from efface.model import Model, load
from efface.model.devices import exact
from efface.numerics.intervals import wilson
from efface.numerics.shares import KNOWN_AT_LEAST
from efface.patch import Answer, Patch
from efface.registry import choose, resolve
from efface.request import Concept, Request
from efface.work import Work

__all__ = ["Plan", "erase", "plan", "saved_state", "solve", "state_folder"]


@dataclass(frozen=True)
class Plan:
    """What an erase will do: everything is decided, nothing is loaded but the tokenizer."""

    model: Model
    request: Request
    name: str
    method: Any
    needs: Needs

    @property
    def warnings(self) -> list[str]:
        """Targets that this model hardly draws; kept texts that are not read; names that look like a list."""
        listed = {c["name"].casefold(): c for c in self.model.concepts}
        found = []
        for concept in self.request.concepts:
            row = listed.get(concept.label.casefold())
            if self.model.concepts and row is None:
                found.append(f"{concept.name!r} is not in the concept list of {self.model.card.name}")
            elif row and _hardly_drawn(row["base_rate"], row["n"]):
                found.append(
                    f"{self.model.card.name} draws {concept.name!r} in only {row['base_rate']:.0%} of {row['n']} "
                    "images: a low rate after the edit will prove nothing (it is NA unless more images show it)"
                )
        if self.request.kept_texts and not _reads_kept(self.method, self.request, self.model):
            preset = self.request.preset or self.model.card.preset
            found.append(
                f"{self.name} with preset {preset} and these settings does not read kept texts, so those of this "
                f"request ({len(self.request.kept_texts)}) change nothing; take another preset or method for them"
            )
        return found + [
            f"{text!r} is taken as one name; where it is a list, repeat -c or --keep for each"
            for text in self.request.lists_in_one(listed)
        ]

    def lines(self) -> list[str]:
        """The plan in words."""
        kinds = ", ".join(
            f"{c.name} ({c.kind}{'' if c.anchor is None else f' -> {c.anchor!r}'})" for c in self.request.concepts
        )
        preset = self.request.preset or self.model.card.preset
        return [
            f"erase {kinds} from {self.model.card.name}",
            f"method {self.name}, preset {preset}, seed {self.request.seed}, {len(self.request.kept_texts)} kept texts",
            f"looks at {len(self.needs.texts)} texts and draws {self.needs.images} pictures",
        ]


def _hardly_drawn(rate: float | None, n: int) -> bool:
    """Whether the base may draw it in less than half of the images, by the interval of its rate."""
    return rate is not None and bool(n) and wilson(round(rate * n), n).low < KNOWN_AT_LEAST


def _reads_kept(method: Any, request: Request, model: Model) -> bool:
    """Whether a method looks at anything that it would not look at if nothing were kept."""
    bare = tuple(dataclasses.replace(c, keep=()) for c in request.concepts)
    try:
        without = method.ask(dataclasses.replace(request, concepts=bare, keep=()), model.card)
    except BadRequest:
        return True  # it works with kept texts alone
    return repr(method.ask(request, model.card)) != repr(without)


def plan(
    model: Any,
    concepts: Iterable[str | Concept] | Request,
    keep: Iterable[str] = (),
    method: str = "scapre",
    preset: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Plan:
    """Settle kinds, presets and settings; ask the method what it needs.

    A Request states keep, seed and preset itself. Raises BadRequest, UnknownName, WrongFile.
    """
    if isinstance(concepts, Request) and (tuple(keep) or seed or preset is not None):
        raise BadRequest("a Request holds keep, seed and preset itself; set them there, not beside it")
    request = concepts if isinstance(concepts, Request) else Request.build(concepts, keep, seed, preset)
    chosen = choose(method, settings)
    opened = load(model)
    request = request.settle(opened.kinds)
    _check_length(opened, request)
    resolved = resolve(chosen, request, opened.card)
    return Plan(opened, request, chosen.name, resolved, resolved.ask(request, opened.card))


def erase(
    model: Any,
    concepts: Iterable[str | Concept] | Request,
    keep: Iterable[str] = (),
    method: str = "scapre",
    preset: str | None = None,
    seed: int = 0,
    *,
    work: Work | None = None,
    cache: Path | None = None,
    **settings: Any,
) -> Patch:
    """Erase concepts -> Patch. `model` is not changed: apply the patch to it.

    model: bundled name, folder, hub id, diffusers pipeline or Model. concepts: texts ``[KIND:]NAME[=ANCHOR]`` or
    Concepts, or a Request, which states keep, preset and seed itself. keep: texts to protect. work: of the same seed.
    settings: fields of the method. Raises BadRequest, UnknownName, WrongFile, NothingChanged. Warns (EffaceWarning) for
    a target that the base hardly draws and for kept texts that the method does not read.
    """
    made = plan(model, concepts, keep, method, preset, seed, **settings)
    for text in made.warnings:
        warnings.warn(text, EffaceWarning, stacklevel=2)
    return solve(made, work, cache)


def state_folder(made: Plan) -> Path | None:
    """Where the state of a plan that trains is saved, so that the same command goes on; None for one that does not.

    Its name covers everything that decides the patch.
    """
    if not made.needs.denoiser:
        return None
    import torch

    key = key_of(
        efface=VERSION,
        torch=torch.__version__,
        base=made.model.identity,
        in_force=made.model.in_force,
        dtype=str(made.model.dtype),
        device=made.model.device.type,
        method=made.name,
        settings=dataclasses.asdict(made.method),
        request=made.request.asdict(),
        needs=repr(made.needs),  # complete prompts of the user's own file among them
    )
    return cache_folder() / "erase" / key


@contextmanager
def saved_state(made: Plan) -> Iterator[Path | None]:
    """`state_folder`, held against other processes; deleted when the block ends without an exception.

    Raises WrongFile when another process makes the same patch.
    """
    folder = state_folder(made)
    if folder is None:
        yield None
        return
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise WrongFile("another process is making the same patch; wait for it") from None
    except OSError as error:
        raise WrongFile(
            f"cannot write {folder}: {error.strerror or error}; name another cache folder in EFFACE_CACHE"
        ) from None
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def solve(made: Plan, work: Work | None = None, cache: Path | None = None) -> Patch:
    """Carry out a plan. Raises BadRequest for a work of another seed than the request's, and what the method raises."""
    work = work or Work(made.request.seed)
    if work.seed != made.request.seed:
        raise BadRequest(
            f"the request's seed is {made.request.seed}, that of the work {work.seed}; pass Work(seed) with the same"
        )
    evidence = gather(made.model, made.needs, work, cache)
    work.check()
    with exact():
        answer = made.method.solve(made.model, evidence, made.request, work)
    work.check()
    bare = Patch(answer.edits)
    bare.check()
    _check_moves(made.model, bare)
    return Patch(answer.edits, _recipe(made, answer), made.model.fingerprint(bare.sites))


def _recipe(made: Plan, answer: Answer) -> dict[str, Any]:
    """Everything that decides the result and nothing that varies between runs."""
    recipe = {
        "efface": VERSION,
        "method": made.name,
        "preset": made.request.preset or made.model.card.preset,
        "settings": dataclasses.asdict(made.method),
        "request": made.request.asdict(),
        "model": made.model.card.name,
        "numbers": answer.numbers,
        "judge": made.needs.judge,
    }
    if in_force := [c.content_hash for c in made.model.changes]:
        recipe["over"] = in_force
    return json.loads(json.dumps(recipe, allow_nan=False))  # as it will be read back


def _check_length(model: Model, request: Request) -> None:
    for text in (*(t for c in request.concepts for t in (*c.texts, c.anchor or "")), *request.kept_texts):
        size, window = model.sizes(text)
        if size > window:
            raise BadRequest(
                f"{text[:60]!r} has {size} tokens, but {model.card.name} reads {window}; use a shorter name"
            )


def _check_moves(model: Model, patch: Patch) -> None:
    """Raise NothingChanged when every edited weight stays as it is, after rounding to float32."""
    if patch.by_prompt:
        return
    for site in patch.sites:
        weight = model.weight(site).float()
        if not weight.equal(patch.weight(site, weight)):
            return
    raise NothingChanged("the edit changes no weight; raise its strength or name another anchor")
