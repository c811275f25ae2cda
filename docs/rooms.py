"""Write the table of rooms into docs/flow.md: `python docs/rooms.py` (`--check` only compares).

A room is a folder of the package or a file at its top. Its sentence is the first one of its docstring, its floor
stands in `benchmarks/structure.py`; nothing of the package is run.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from structure import FLOORS, FRONT, rooms  # noqa: E402 (a script beside this one's folder)

PAGE = ROOT / "docs" / "flow.md"
SRC = ROOT / "src" / "efface"
BETWEEN = re.compile(r"(<!-- rooms -->\n).*?(<!-- end of rooms -->)", re.DOTALL)


def sentence(room: str, src: Path = SRC) -> str:
    """The first sentence of a room's docstring; empty for a room that has none."""
    fronts = (src / "__init__.py",) if room == FRONT else (src / room / "__init__.py", src / f"{room}.py")
    for front in fronts:
        if front.is_file():
            words = ast.get_docstring(ast.parse(front.read_text(encoding="utf-8"))) or ""
            return re.split(r"(?<=\.)\s", " ".join(words.split()), maxsplit=1)[0]
    return ""


def mute(src: Path = SRC) -> list[str]:
    """Rooms that do not say what they are."""
    return [room for room in sorted(rooms(src)) if not sentence(room, src)]


def table(src: Path = SRC, floors: Mapping[str, int] = FLOORS) -> str:
    """Every room, the lowest floor first."""
    lines = ["| floor | room | what it is |", "|---|---|---|"]
    for room in sorted(rooms(src), key=lambda r: (floors.get(r, 0), r)):
        lines.append(f"| {floors.get(room, '')} | `{_shown(room, src)}` | {sentence(room, src)} |")
    return "\n".join(lines)


def _shown(room: str, src: Path) -> str:
    if room == FRONT:
        return "__init__.py"
    return f"{room}/" if (src / room).is_dir() else f"{room}.py"


def main() -> None:
    before = PAGE.read_text(encoding="utf-8")
    after = BETWEEN.sub(lambda m: f"{m[1]}{table()}\n{m[2]}", before)
    if "--check" in sys.argv[1:]:
        sys.exit("docs/flow.md is stale; run python docs/rooms.py" if after != before else 0)
    PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
