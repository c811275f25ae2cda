"""Enter the tests into docs/properties.md: `python docs/properties.py` (`--check` only compares).

A test belongs to a property if its docstring names the id. Names of tests that stand in the table without that are
kept while the test exists; words beside them are kept always.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "properties.md"
ID = re.compile(r"(?<![\d.])(1\.11-\d+|2\.9-\d+|3\.7-\d+|\d+\.P-\d+|E-\d+)(?!\d)")
NAME = re.compile(r"`(tests/\S+?::test_\w+)`")


def tests() -> dict[str, str]:
    """`tests/x/test_y.py::test_z` -> its docstring."""
    found = {}
    for file in sorted(ROOT.glob("tests/**/test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[f"{file.relative_to(ROOT).as_posix()}::{node.name}"] = ast.get_docstring(node) or ""
    return found


def entered(line: str, known: dict[str, str]) -> str:
    """A line of the table with its last cell brought up to date."""
    cells = line.split("|")
    if len(cells) != 5 or not ID.fullmatch(cells[1].strip()):
        return line
    here = [n for n in NAME.findall(cells[3]) if n in known]
    here += [n for n, text in known.items() if cells[1].strip() in ID.findall(text)]
    words = [part for part in cells[3].strip().split("<br>") if part and not NAME.fullmatch(part)]
    cells[3] = f" {'<br>'.join([f'`{n}`' for n in sorted(set(here))] + words)} "
    return "|".join(cells)


def main() -> None:
    before, known = PAGE.read_text(encoding="utf-8"), tests()
    after = "".join(f"{entered(line, known)}\n" for line in before.splitlines())
    if "--check" in sys.argv[1:]:
        sys.exit("docs/properties.md is stale; run python docs/properties.py" if after != before else 0)
    PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
