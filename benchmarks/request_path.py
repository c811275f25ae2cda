"""The way of one audit through the package: where its value goes, and how often it climbs.

Runs `efface audit` of the bundled model `micro` in this process, on a small suite, with the default gate, and watches
every call. The value is the Audit or Request that was asked, and everything that is made out of it on the way: what a
function that had the value in hand returned or yielded, as far as it is an object of a class of ours or a list, tuple
or dict, with the parts of it. So sides, sampling, items, plan, folder, records, judge and report are the value, under
whatever name. Models, patches, networks and Work are tools, not the value; so are numbers, texts, arrays and images.
A function has the value in hand when one of its arguments is it, is an object of ours that holds it as an attribute,
or is a list or tuple of such.

Stay: an entry, with the value in hand, into a function of another file than the caller's. The caller is the nearest
function of the package below it on the stack; a function inside another, a lambda or a comprehension counts as the
one that it stands in. The same caller and callee are one stay, however often it happens, so loops count once.

Climb: a stay on a higher floor than the stay before it, in order of first entry: the value was further down and comes
back up. A stay on a higher floor than its caller's is marked and counted apart: where imports run down, only a call
through a value, a class or a table can be one.

Handed on: a stay whose callee gets the value as an argument. In the other stays the value is asked a question of its
own: the function is a method of it, and nothing of the value goes along. Before the rooms the records were tables
without methods, so both counts are printed.

Floors are those of `structure.FLOORS`, by room; files that still lie where they lay before the rooms were made have
theirs from FORMER.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from structure import FLOORS, room_of

CONCEPTS, KEEP = ("dog", "monochrome style"), ("cat",)
SIZES = {"targets": 2, "styles": 2, "neighbours": 2, "others": 2, "other_styles": 2}
OPTIONS = ("--suite", "world-smoke", "--steps", "2", "--gate", "default", "--threads", "1", "--quiet", "--json")
UNDECIDED = 3  # the exit code of a gate that is not met; so few images cannot meet it

ASKED = {"Audit", "Request"}  # classes of the value as it is asked
# Rooms whose objects are what the request is carried out with.
TOOLS = {"model", "families", "patch", "work", "sites", "sources", "guards", "sampler"}
LOOKED_AT = 8  # elements of a list that are looked at; all of them are of one kind
# A file as it was called before the rooms -> the floor of the room that took it in; with a name: this part of it.
FORMER: dict[str, int] = {
    "store.py": 2,
    "guards.py": 4, "sampler.py": 4, "sites.py": 4, "sources.py": 4,
    "needs.py": 5, "reducers.py": 5, "stream.py": 5,
    "measure.py": 6, "run.py": 6, "train.py": 6,
    "measure.py:Watch": 4, "measure.py:judge_images": 8, "measure.py:record_failures": 8, "measure.py:record_key": 8,
    "tables.py": 8,
    "asked.py": 9, "runfolder.py": 9, "scores.py": 9,
    "compare.py": 10, "compare_page.py": 10, "evaluation.py": 10, "gate.py": 10,
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A function of the package: the path of its file inside the package, and its name."""

    file: str
    name: str

    @property
    def floor(self) -> int:
        """Its room's, or that of the room which took this part of a file in."""
        part = FORMER.get(f"{self.file}:{self.name.partition('.')[0]}", FORMER.get(self.file))
        room = room_of(self.file)
        if part is None and room not in FLOORS:
            raise SystemExit(f"room {room} has no floor; add it to FLOORS in structure.py")
        return FLOORS[room] if part is None else part

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


@dataclass(frozen=True)
class Stay:
    """One entry with the value in hand, and the arguments that were it."""

    caller: Place
    callee: Place
    hand: tuple[str, ...]

    @property
    def over_caller(self) -> bool:
        return self.callee.floor > self.caller.floor

    @property
    def handed_on(self) -> bool:
        return "self" not in self.hand


def climbs(stays: Iterable[Stay]) -> list[bool]:
    """Of each stay, whether it is on a higher floor than the one before; the first is on none before."""
    floors = [s.callee.floor for s in stays]
    return [i > 0 and floor > floors[i - 1] for i, floor in enumerate(floors)]


class Value:
    """Knows the value and everything that was made out of it. All of it is kept alive, so that no identity is reused.

    package: the name that the modules of our classes begin with.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.parts: dict[int, Any] = {}

    def holds(self, thing: Any) -> bool:
        """Whether this argument has the value in hand."""
        if self._has(thing):
            return True
        some = thing[:LOOKED_AT] if isinstance(thing, list | tuple) else ()
        return any(self._has(e) or (type(e) is tuple and any(map(self._is, e))) for e in some)

    def take(self, made: Any) -> None:
        """Something that was made out of the value becomes part of it, with its own parts."""
        todo = [made]
        while todo:
            thing = todo.pop()
            if id(thing) in self.parts:
                continue
            if self._ours(thing):
                todo += _attributes(thing)
            elif type(thing) in (list, tuple, dict) and thing:
                todo += thing.values() if isinstance(thing, dict) else thing
            else:
                continue
            self.parts[id(thing)] = thing

    def _is(self, thing: Any) -> bool:
        return id(thing) in self.parts or (type(thing).__name__ in ASKED and self._ours(thing))

    def _has(self, thing: Any) -> bool:
        return self._is(thing) or (self._ours(thing) and any(map(self._is, _attributes(thing))))

    def _ours(self, thing: Any) -> bool:
        first, _, rest = type(thing).__module__.partition(".")
        return first == self.package and rest.partition(".")[0] not in TOOLS


def _attributes(thing: Any) -> list[Any]:
    """What an object holds, in its dictionary and in slots."""
    slots = [name for cls in type(thing).__mro__ for name in getattr(cls, "__slots__", ())]
    return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name, None) for name in slots)]


class Watcher:
    """Sees every call in a package and notes the stays, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = f"{folder}{os.sep}"
        self.value = Value(folder.name)
        self.stays: dict[tuple[Place, Place], Stay] = {}
        self._with_value: set[int] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, made: Any) -> None:
        if event not in ("call", "return") or not self._in_package(frame.f_code):
            return
        if event == "call":
            self._enter(frame)
        elif id(frame) in self._with_value:
            self.value.take(made)

    def _enter(self, frame: FrameType) -> None:
        given = {name: frame.f_locals[name] for name in _arguments(frame.f_code) if name in frame.f_locals}
        hand = tuple(name for name, thing in given.items() if self.value.holds(thing))
        if not hand:
            self._with_value.discard(id(frame))
            return
        self._with_value.add(id(frame))
        caller, callee = self._caller(frame), self._place(frame.f_code)
        if caller and caller.file != callee.file:
            self.stays.setdefault((caller, callee), Stay(caller, callee, hand))

    def _caller(self, frame: FrameType) -> Place | None:
        below = frame.f_back
        while below and not self._in_package(below.f_code):
            below = below.f_back
        return self._place(below.f_code) if below else None

    def _in_package(self, code: CodeType) -> bool:
        """A function of a Python file of ours; what runs when a file is imported is none."""
        file = code.co_filename
        return file.startswith(self.folder) and file.endswith(".py") and code.co_name != "<module>"

    def _place(self, code: CodeType) -> Place:
        name = code.co_qualname.partition(".<")[0].strip("<>")
        return Place(code.co_filename.removeprefix(self.folder).replace(os.sep, "/"), name)


def _arguments(code: CodeType) -> tuple[str, ...]:
    """Names of all parameters, the starred ones included."""
    stars = sum(bool(code.co_flags & flag) for flag in (0x04, 0x08))
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + stars]


# --- the audit -------------------------------------------------------------------------------------------------------


def traced() -> list[Stay]:
    """Make a patch, audit it, and return the stays of the audit."""
    with tempfile.TemporaryDirectory() as place, _surroundings(Path(place)):
        import efface
        from efface.cli import main

        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            patch = efface.erase("micro", CONCEPTS, keep=KEEP, method="uce").save(Path(place) / "patch.safetensors")
        sizes = [word for name, n in SIZES.items() for word in ("--set", f"{name}={n}")]
        words = ["audit", "micro", "--patch", str(patch), "--out", str(Path(place) / "run"), *OPTIONS, *sizes]
        watcher = Watcher(Path(efface.__file__).parent)
        _run(main, words, watcher)
    if not watcher.stays:
        raise SystemExit(f"no object of a class {' or '.join(sorted(ASKED))} was seen; name the asked value in ASKED")
    return list(watcher.stays.values())


@contextlib.contextmanager
def _surroundings(place: Path) -> Iterator[None]:
    """A cache of its own, one thread."""
    before = dict(os.environ)
    os.environ |= {"EFFACE_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(main: Callable[[list[str]], None], words: list[str], watcher: Watcher) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), watcher.watching():
            main(words)
    except SystemExit as end:
        if end.code not in (0, UNDECIDED):
            raise SystemExit(f"the audit ended with code {end.code}: {said.getvalue()[-2000:]}") from None


# --- the page --------------------------------------------------------------------------------------------------------


def summary(stays: list[Stay]) -> dict[str, int]:
    return {
        "stays": len(stays),
        "climbs": sum(climbs(stays)),
        "stays over their caller": sum(s.over_caller for s in stays),
        "handed on": sum(s.handed_on for s in stays),
        "handed on, climbs": sum(climbs([s for s in stays if s.handed_on])),
        "rooms": len({room_of(s.callee.file) for s in stays}),
        "files": len({s.callee.file for s in stays}),
    }


def lines(stays: list[Stay]) -> list[str]:
    """One line a stay: its number, the floor, + for a climb, ^ where it is over its caller."""
    rows = enumerate(zip(stays, climbs(stays), strict=True), 1)
    return [
        f"{n:3} {s.callee.floor:3} {'+' if climb else ' '}{'^' if s.over_caller else ' '} "
        f"{s.caller} -> {s.callee} ({', '.join(s.hand)})"
        for n, (s, climb) in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="One JSON object instead of lines.")
    options = parser.parse_args()
    start = time.perf_counter()
    stays = traced()
    counts = summary(stays)
    if options.json:
        flags = zip(stays, climbs(stays), strict=True)
        rows = [asdict(s) | {"floor": s.callee.floor, "climb": c, "over_caller": s.over_caller} for s, c in flags]
        print(json.dumps({"counts": counts, "stays": rows}, indent=1))
        return
    print("\n".join(lines(stays)), end="\n\n")
    over = counts["stays over their caller"]
    print(f"stays: {counts['stays']}, in {counts['files']} files of {counts['rooms']} rooms")
    print(f"climbs: {counts['climbs']} (+, over the stay before); over their caller (^): {over}")
    print(f"handed on as an argument: {counts['handed on']}, of them climbs: {counts['handed on, climbs']}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
