"""The shape of the package, read from its source: lengths, fields, loose types, rooms, arrows and circles.

Nothing of the package is run. A room is the first part of a path inside it: a folder or a file at the top; the
package's own front, `__init__.py`, is the room `efface`. An arrow is an import from one room into another, counted
once. Every import counts: lazy ones, those for types alone, `import_module` with constant text, and the names in the
table of a front that loads at first use. `from efface.suites import world_full` points at that file,
`from efface.suites import Item` at the folder's front. A circle is a set of files, or of rooms, that all reach each
other. An arrow runs up when its end has a higher floor in FLOORS than its start; both ends on one floor are reported
apart. Rooms that FLOORS does not know have no floor, and their arrows run neither up nor down.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

__all__ = ["FLOORS", "FRONT", "Shape", "arrows", "circles", "file_arrows", "files", "room_of", "rooms", "shape", "up"]

SRC = Path(__file__).parent.parent / "src" / "efface"
FRONT = "efface"  # the room of the package's own front
MOST = 10  # dataclasses that are listed

# Room -> floor. A room imports from lower floors only; `worldmaking` is imported by `cli` alone.
FLOORS: dict[str, int] = {
    "errors": 1, "numerics": 1,
    "untrusted": 2,
    "files": 3, "registry": 3, "request": 3, "prompts": 3,
    "work": 4,
    "engines": 5, "world": 5,
    "model": 6, "judges": 6,
    "families": 7, "patch": 7, "evidence": 7,
    "erasure": 8, "training": 8, "gallery": 8,
    "methods": 9, "suites": 9,
    "scores": 10,
    "runs": 11, "metrics": 11, "attacks": 11,
    "report": 12,
    "audit": 13,
    FRONT: 14, "worldmaking": 14,
    "cli": 15, "ui": 15,
}  # fmt: skip

Graph = dict[str, set[str]]
"""Node -> the nodes that it points at."""

# --- files and rooms -------------------------------------------------------------------------------------------------


def files(src: Path = SRC) -> dict[str, Path]:
    """Every Python file by its path inside the package."""
    return {f.relative_to(src).as_posix(): f for f in sorted(src.rglob("*.py"))}


def room_of(place: str) -> str:
    """The room of a path inside the package."""
    first = place.partition("/")[0].removesuffix(".py")
    return FRONT if first == "__init__" else first


def rooms(src: Path = SRC) -> dict[str, list[str]]:
    """Room -> the files in it."""
    found: dict[str, list[str]] = {}
    for place in files(src):
        found.setdefault(room_of(place), []).append(place)
    return found


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _constant(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


# --- imports ---------------------------------------------------------------------------------------------------------


def _dotted(module: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """(module, name or "") of everything that is imported at any depth; relative ones are made absolute."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from ((a.name, "") for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            yield from ((base, a.name) for a in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called, text = getattr(node.func, "attr", getattr(node.func, "id", "")), _constant(node.args[0])
            if called in ("import_module", "__import__") and text:
                yield _absolute(text, package), ""


def _absolute(name: str, package: str) -> str:
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if not level:
        return name
    parents = package.split(".")
    return ".".join([*parents[: len(parents) - level + 1], *([rest] if rest else [])])


def _lazy_table(module: ast.Module, package: str) -> Iterator[tuple[str, str]]:
    """What stands in the tables of a front with a module `__getattr__`: modules, or names inside the package."""
    if not any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in module.body):
        return
    for node in module.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Dict):
            for text in filter(None, (_constant(n) for v in value.values for n in ast.walk(v))):
                yield (text, "") if text.split(".")[0] == FRONT else (f"{package}.{text.lstrip('.')}", "")


def _target(name: str, known: Mapping[str, Path]) -> str | None:
    """The file of a dotted name, None for what is no file of ours."""
    if name.split(".")[0] != FRONT:
        return None
    path = "/".join(name.split(".")[1:])
    candidates = (f"{path}.py", f"{path}/__init__.py") if path else ("__init__.py",)
    return next((c for c in candidates if c in known), None)


def file_arrows(src: Path = SRC) -> Graph:
    """File -> the files that it imports, itself left out."""
    known, found = files(src), {}
    for place, file in known.items():
        package = ".".join([FRONT, *Path(place).parent.parts])
        module = _tree(file)
        named = [*_dotted(module, package), *(_lazy_table(module, package) if place.endswith("__init__.py") else ())]
        ends = {(_target(f"{base}.{name}", known) if name else None) or _target(base, known) for base, name in named}
        found[place] = {end for end in ends if end and end != place}
    return found


def arrows(src: Path = SRC) -> Graph:
    """Room -> the other rooms that it imports."""
    found: Graph = {room: set() for room in rooms(src)}
    for place, ends in file_arrows(src).items():
        found[room_of(place)] |= {room_of(e) for e in ends} - {room_of(place)}
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of more than one node that all reach each other, the largest first."""
    reached = {node: _reached(graph, node) for node in graph}
    found = {tuple(sorted({n for n in reached[node] if node in reached[n]} | {node})) for node in graph}
    return sorted((list(c) for c in found if len(c) > 1), key=lambda c: (-len(c), c))


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found, todo = set(), [start]
    while todo:
        new = graph.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def up(graph: Mapping[str, set[str]], floors: Mapping[str, int] = FLOORS) -> list[tuple[str, str]]:
    """Arrows between rooms that run up."""
    return _by_floor(graph, floors, lambda start, end: end > start)


def _by_floor(
    graph: Mapping[str, set[str]], floors: Mapping[str, int], wanted: Callable[[int, int], bool]
) -> list[tuple[str, str]]:
    pairs = [(a, b) for a, ends in sorted(graph.items()) for b in sorted(ends) if a in floors and b in floors]
    return [(a, b) for a, b in pairs if wanted(floors[a], floors[b])]


# --- loose types -----------------------------------------------------------------------------------------------------

LOOSE = {"Any"}  # loose wherever they stand
BARE = {"dict", "Dict", "Mapping", "MutableMapping"}  # loose without what is in them


def _parsed(node: ast.AST) -> ast.AST:
    """An annotation that is written as text, read."""
    text = _constant(node)
    try:
        return ast.parse(text, mode="eval").body if text is not None else node
    except SyntaxError:
        return node


def _is_loose(node: ast.AST | None, aliases: set[str]) -> bool:
    """Whether an annotation holds `Any`, a bare dict or Mapping, or an alias that holds one."""
    if node is None:
        return False
    node = _parsed(node)
    if isinstance(node, ast.Name | ast.Attribute):
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        return name in LOOSE | BARE or name in aliases
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).rpartition(".")[2]
        if name == "Literal":
            return False
        inside = node.slice.elts[0] if name == "Annotated" and isinstance(node.slice, ast.Tuple) else node.slice
        return _is_loose(inside, aliases) or name in aliases
    return any(_is_loose(child, aliases) for child in ast.iter_child_nodes(node))


def _aliases(src: Path) -> dict[str, set[str]]:
    """File -> the names in it that stand for a loose type, those that it imports from our files included."""
    known = files(src)
    found: dict[str, set[str]] = {place: set() for place in known}
    before = -1
    while before != (before := sum(map(len, found.values()))):
        for place, file in known.items():
            found[place] |= _own_aliases(_tree(file), found[place])
            found[place] |= _taken_aliases(_tree(file), place, known, found)
    return found


def _own_aliases(module: ast.Module, aliases: set[str]) -> set[str]:
    """Names that are given a type at the top of the file: `Json = dict[str, Any]`."""
    found = set()
    for node in module.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Subscript | ast.Name | ast.BinOp) and _is_loose(value, aliases):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # pyright: ignore
            found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def _taken_aliases(
    module: ast.Module, place: str, known: Mapping[str, Path], found: Mapping[str, set[str]]
) -> set[str]:
    package = ".".join([FRONT, *Path(place).parent.parts])
    taken = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom):
            home = _target(_absolute("." * node.level + (node.module or ""), package), known)
            taken |= {a.asname or a.name for a in node.names if home and a.name in found[home]}
    return taken


def _functions(module: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def loose(src: Path = SRC) -> dict[str, int]:
    """File -> parameters and results of functions whose annotation holds a loose type; files without one left out."""
    aliases, found = _aliases(src), {}
    for place, file in files(src).items():
        stated = [
            node
            for function in _functions(_tree(file))
            for node in (*(a.annotation for a in _parameters(function.args)), function.returns)
        ]
        found[place] = sum(_is_loose(node, aliases[place]) for node in stated)
    return {place: n for place, n in found.items() if n}


def _parameters(given: ast.arguments) -> list[ast.arg]:
    stars = [a for a in (given.vararg, given.kwarg) if a]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *stars]


# --- dataclasses -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fields:
    """One dataclass: how many fields it has, those of its bases included.

    settings: whether it holds settings of a method, that is a public class of a file in `methods`.
    """

    name: str
    file: str
    count: int
    settings: bool


def fields_of(src: Path = SRC) -> list[Fields]:
    """Every dataclass, the one with the most fields first."""
    classes = [
        (place, node)
        for place, file in files(src).items()
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.ClassDef)
    ]
    by_name: dict[str, list[tuple[str, ast.ClassDef]]] = {}
    for place, node in classes:
        by_name.setdefault(node.name, []).append((place, node))
    found = [
        Fields(n.name, place, len(_fields(place, n, by_name)), room_of(place) == "methods" and n.name[0] != "_")
        for place, n in classes
        if _is_dataclass(n)
    ]
    return sorted(found, key=lambda f: (-f.count, f.name, f.file))


def _is_dataclass(node: ast.ClassDef) -> bool:
    made = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(ast.unparse(d).rpartition(".")[2] == "dataclass" for d in made)


def _fields(place: str, node: ast.ClassDef, by_name: Mapping[str, list[tuple[str, ast.ClassDef]]]) -> set[str]:
    """Names of the fields; a base is looked for in the same file first, then anywhere in the package."""
    found: set[str] = set()
    for base in (ast.unparse(b).rpartition(".")[2] for b in node.bases):
        homes = sorted(by_name.get(base, []), key=lambda h: h[0] != place)
        if homes and homes[0][1] is not node and _is_dataclass(homes[0][1]):
            found |= _fields(*homes[0], by_name)
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            kind = ast.unparse(line.annotation).strip("'\"").partition("[")[0].rpartition(".")[2]
            if kind not in ("ClassVar", "KW_ONLY"):
                found.add(line.target.id)
    return found


# --- all of it -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Median, 95th percentile (the smallest value that is at least as large as 95 % of all) and the longest."""

    count: int
    median: float
    p95: int
    longest: int
    where: str

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, str]]) -> Spread:
        ordered = sorted(sizes)
        values = [n for n, _ in ordered]
        return cls(
            len(values),
            statistics.median(values),
            values[math.ceil(0.95 * len(values)) - 1],
            values[-1],
            ordered[-1][1],
        )

    def line(self, what: str) -> str:
        return f"{self.count} {what}: median {self.median:g}, p95 {self.p95}, longest {self.longest} ({self.where})"


@dataclass(frozen=True)
class Shape:
    """Everything that is counted."""

    functions: Spread
    files: Spread
    dataclasses: list[Fields]
    loose: dict[str, int]
    rooms: list[str]
    arrows: int
    arrows_up: list[tuple[str, str]]
    arrows_level: list[tuple[str, str]]
    no_floor: list[str]
    circles_of_files: list[list[str]]
    circles_of_rooms: list[list[str]]

    def lines(self) -> list[str]:
        made = [self.functions.line("functions, lines each"), self.files.line("files, lines each"), "", "fields:"]
        made += [f"{f.count:5} {f.name} ({f.file}){' settings' * f.settings}" for f in self.dataclasses]
        most = sorted(self.loose.items(), key=lambda i: (-i[1], i[0]))[:5]
        named = ", ".join(f"{place} {n}" for place, n in most)
        made += ["", f"loose types: {sum(self.loose.values())} parameters and results (most: {named})", ""]
        made.append(f"{len(self.rooms)} rooms, {self.arrows} arrows, {len(self.arrows_up)} up")
        made += [f"      up: {a} -> {b}" for a, b in self.arrows_up]
        made += [f"on one floor: {a} -> {b}" for a, b in self.arrows_level]
        made += [f"no floor: {', '.join(self.no_floor)}"] if self.no_floor else []
        for what, found in (("files", self.circles_of_files), ("rooms", self.circles_of_rooms)):
            made.append(f"circles of {what}: {len(found)}")
            made += [f"{len(c):5}: {', '.join(c)}" for c in found]
        return made


def shape(src: Path = SRC, floors: Mapping[str, int] = FLOORS) -> Shape:
    """Count everything."""
    known, graph = files(src), arrows(src)
    spans = [
        ((f.end_lineno or 0) - f.lineno + 1, f"{place}: {f.name}")
        for place, file in known.items()
        for f in _functions(_tree(file))
    ]
    sizes = [(len(f.read_text(encoding="utf-8").splitlines()), place) for place, f in known.items()]
    return Shape(
        functions=Spread.of(spans),
        files=Spread.of(sizes),
        dataclasses=fields_of(src)[:MOST],
        loose=loose(src),
        rooms=sorted(graph),
        arrows=sum(map(len, graph.values())),
        arrows_up=up(graph, floors),
        arrows_level=_by_floor(graph, floors, lambda start, end: end == start),
        no_floor=sorted(set(graph) - set(floors)),
        circles_of_files=circles(file_arrows(src)),
        circles_of_rooms=circles(graph),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=SRC, help="The package's folder.")
    parser.add_argument("--json", action="store_true", help="One JSON object instead of lines.")
    options = parser.parse_args()
    found = shape(options.src)
    print(json.dumps(asdict(found), indent=1) if options.json else "\n".join(found.lines()))


if __name__ == "__main__":
    main()
