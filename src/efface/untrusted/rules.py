"""Names that are paths, links, configurations that ask for code, table cells, printed lines.

Model folders, judges' folders and run folders are read by these rules (SECURITY.md says against what).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface.errors import WrongFile
from efface.untrusted.documents import read_json

__all__ = ["cell", "contained", "escaped", "owned", "plain_name", "printable", "refuse_code", "refuse_links", "short"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "use_kernels")
_ATTENTION = re.compile(r"_?(\w+_)?attn_implementation(_\w+)?")
# What a spreadsheet takes for a formula at the beginning of a cell.
_FORMULA = ("=", "+", "-", "@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What moves a terminal's cursor, colours it or turns its lines around: C0, C1, and the marks of direction.
_UNPRINTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CUT = 60  # characters of a stranger's value in a message


def plain_name(name: object, where: object) -> str:
    """`name`, where it is the name of one part and no path. Raises WrongFile."""
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise WrongFile(f"{where} names a part {str(name)[:60]!r}; a part has a plain name, so this folder is not used")


def refuse_code(folder: Path) -> None:
    """Raise WrongFile where a configuration in the folder asks for code that it brings along or that a hub holds."""
    for file in sorted(folder.glob("*config.json")):
        content = read_json(file, "fetch the model again", numbers=False)
        for key, value in _entries(content):
            if key in _CODE or (_ATTENTION.fullmatch(key) and isinstance(value, str) and "/" in value):
                raise WrongFile(f"{file} asks for code of its own ({key}), which Efface never runs; use another copy")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every table in it, at any depth, with a value that says something."""
    stack = [content]
    while stack:
        at = stack.pop()
        if isinstance(at, dict):
            yield from ((k, v) for k, v in at.items() if v not in (None, False, {}, []))
            stack += at.values()
        elif isinstance(at, list):
            stack += at


def contained(file: Path, root: Path) -> Path:
    """`file`, if it lies in `root` after every link is followed. Raises WrongFile.

    A folder of the hub's cache may link into the blobs that belong to it.
    """
    home, found = root.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    if found.is_relative_to(home) or (home.parent.name == "snapshots" and found.is_relative_to(blobs)):
        return file
    raise WrongFile(f"{file} is a link that leaves {root}; put a copy of what it means in its place")


def refuse_links(run: Path) -> None:
    """Raise WrongFile for a run folder that holds a link: writing into it would write somewhere else."""
    stack = [run]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise WrongFile(f"{entry.path} is a link; a run folder holds none, so delete it or take a copy")
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))


def owned(file: Path) -> Path:
    """`file`, if it may be appended to: a file of one name, or nothing yet. Raises WrongFile."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return file
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return file
    raise WrongFile(f"{file} is a link or has a second name, so it is not written; put a copy in its place")


def cell(value: Any) -> Any:
    """A value for a CSV: text on one line, with an apostrophe before what a spreadsheet would compute."""
    if not isinstance(value, str):
        return value
    text = _CONTROL.sub(" ", value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def short(value: object) -> str:
    """A value for a message: on one line, cut, in quotes where it is a text."""
    if isinstance(value, dict | list | tuple) and len(value) > 20:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value[: 2 * _CUT] if isinstance(value, str | bytes) else value)
    except (ValueError, RecursionError):  # a whole number without end, a list in itself
        text = f"a {type(value).__name__}"
    return text if len(text) <= _CUT else f"{text[: _CUT - 3]}..."


def printable(line: str) -> str:
    """A line for the terminal: what would move its cursor or cannot be encoded is shown as an escape."""
    return _UNPRINTED.sub(lambda m: ascii(m[0])[1:-1], line)


def escaped(text: str) -> str:
    """JSON for the terminal: the same, as JSON writes it."""
    return _UNPRINTED.sub(lambda m: f"\\u{ord(m[0]):04x}", text)
