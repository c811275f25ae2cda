"""Documents: bytes, JSON, TOML and YAML of whoever wrote them, within limits of size, depth, length and number.

A document is read whole or refused in one sentence that names the file and the place. What comes back holds tables
with texts as keys, lists, texts that can be written as UTF-8, finite numbers, and what TOML and YAML have beside.
"""

from __future__ import annotations

import json
import math
import stat
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from efface.errors import WrongFile

__all__ = ["DOCUMENTS", "bytes_of", "inspected", "parsed", "parsed_json", "read_document", "read_json", "text_of"]

LARGEST = 64 * 2**20  # bytes of a document
LARGEST_BY_HAND = {".yaml": 2**20, ".yml": 2**20, ".toml": 4 * 2**20}  # bytes; both are read by slow parsers
DEEPEST = 64  # lists and tables in one another
LONGEST = 2**24  # characters of one text; the header of a patch is one
MOST = 3_000_000  # entries: a list of empty lists takes some sixty bytes of memory for each of its own
DOCUMENTS = (".json", ".toml", ".yaml", ".yml")


def bytes_of(file: Path, most: int = LARGEST, cure: str = "check the path") -> bytes:
    """What a file holds. Raises WrongFile for what is absent, no file (a pipe would be waited for) or too large."""
    try:
        found = file.stat()
        if stat.S_ISDIR(found.st_mode):
            raise WrongFile(f"{file} is a folder; name a file")
        if not stat.S_ISREG(found.st_mode):
            raise WrongFile(f"{file} is no file (a pipe or a device); name a file")
        if found.st_size > most:
            raise WrongFile(f"{file} holds {found.st_size} bytes, more than the {most} of such a file; {cure}")
        return file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise WrongFile(f"there is no file {file}; {cure}") from None
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise WrongFile(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; {cure}") from None


def text_of(file: Path, most: int = LARGEST, cure: str = "check the path") -> str:
    """The text of a UTF-8 file, without a byte-order mark. Raises WrongFile with the line of the first wrong byte."""
    return decoded(bytes_of(file, most, cure), file)


def decoded(data: bytes, where: object) -> str:
    """UTF-8 without a byte-order mark. Raises WrongFile that names UTF-16, or the line of the first wrong byte."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or _every_other_is_zero(data):
        raise WrongFile(f"{where} is UTF-16 (some editors call that 'Unicode'); save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise WrongFile(f"{where}, line {line} is not UTF-8; save the file as UTF-8") from None


def _every_other_is_zero(data: bytes) -> bool:
    """Whether plain letters stand there as UTF-16 without a mark."""
    head = data[:2000]
    return len(head) >= 4 and any(head[k::2].count(0) > 0.7 * len(head[k::2]) for k in (0, 1))


def read_document(file: Path, cure: str = "check the path") -> object:
    """A JSON, TOML or YAML file by its ending, any other as JSON. Raises WrongFile."""
    ending = file.suffix.lower()
    most = LARGEST_BY_HAND.get(ending, LARGEST)
    return parsed(text_of(file, most, cure), ending, file, cure)


def read_json(file: Path, cure: str = "fetch it again", numbers: bool = True) -> object:
    """A JSON file. numbers: whether NaN and infinity are refused. Raises WrongFile."""
    return parsed_json(text_of(file, cure=cure), file, cure, numbers)


def parsed_json(text: str | bytes, where: object, cure: str, numbers: bool = True) -> object:
    """What a JSON text says. Raises WrongFile."""
    return parsed(decoded(text, where) if isinstance(text, bytes) else text, ".json", where, cure, numbers)


def parsed(text: str, ending: str, where: object, cure: str, numbers: bool = True) -> object:
    """What a text says, by the ending of its file. Raises WrongFile."""
    name, read = _PARSERS.get(ending, _PARSERS[".json"])
    try:
        if sum(map(text.count, ",[{\n")) > MOST:
            raise ValueError(f"more than {MOST} entries")
        found = read(text)
        return inspected(found, numbers)
    except RecursionError:
        raise WrongFile(f"{where} is nested too deeply; {cure}") from None
    except Exception as error:  # parsers of YAML raise whatever their values do
        raise WrongFile(f"{where} is no {name}: {_first(error)}; {cure}") from None


def _yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Without aliases: nine lines of them make a document of a billion entries."""

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise ValueError(f"line {self.peek_event().start_mark.line + 1} holds an alias (*), which is not read")
            return super().compose_node(parent, index)

    return yaml.load(text, Loader)


_PARSERS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    ".json": ("JSON", json.loads),
    ".toml": ("TOML", tomllib.loads),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
}


def _first(error: Exception) -> str:
    """What a parser says, on one line and with its line number."""
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or (str(error).splitlines() or [""])[0] or type(error).__name__
    return f"{said[:160]} (line {mark.line + 1})" if mark is not None else said[:160]


def inspected(content: object, numbers: bool = True) -> object:
    """`content`, if it keeps to the limits. Raises ValueError that names what does not."""
    stack, count = [(content, 0)], 0
    while stack:
        at, depth = stack.pop()
        if isinstance(at, dict):
            for key in at:
                _text(key)
            inner = list(at.values())
        elif isinstance(at, list):
            inner = at
        else:
            _single(at, numbers)
            continue
        count += len(inner)
        if depth >= DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} times")
        if count > MOST:
            raise ValueError(f"more than {MOST} entries")
        stack += [(value, depth + 1) for value in inner]
    return content


def _single(value: object, numbers: bool) -> None:
    if isinstance(value, str):
        _text(value)
    elif numbers and isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds NaN or infinity")
    elif numbers and isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("it holds a whole number of more than 64 bits")


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"a name in a table is {str(value)[:60]!r}, expected a text")
    if len(value) > LONGEST:
        raise ValueError(f"a text of more than {LONGEST} characters")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a character (a lone surrogate)") from None
