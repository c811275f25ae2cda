"""Write docs/presets.md, what every preset of every method sets: `python docs/presets.py` (`--check` only compares).

The values come from `PRESETS` in the methods' files; a value of several parts is shown part by part.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efface import registry

PAGE = Path(__file__).parent / "presets.md"
INTRO = """# Presets

`python docs/presets.py` writes this page from the methods' files. `--preset NAME` chooses a preset, \
`--set NAME=VALUE` changes one setting of it. The pages of the methods say what a setting means.

A preset by kind is written `NAME/KIND`. It is used when every concept of a request has that kind, and changes only \
what stands in its line.
"""


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name, value in values.items():
        inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)} if _several(value) else value
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _several(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def shown(value: Any) -> str:
    """A value as it is written behind `--set NAME=`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("|", "\\|") if value != "" else '""'


def section(name: str) -> Iterator[str]:
    """One method: a table of its presets, and a line for each preset by kind."""
    found = getattr(sys.modules[registry.find("methods", name).__module__], "PRESETS", {})
    presets = {p: dict(flat(v)) for p, v in found.items()}
    if not any(presets.values()):
        yield f"\n## `{name}`\n\nIts presets ({', '.join(f'`{p}`' for p in presets)}) set nothing."
        return
    whole = [p for p in presets if "/" not in p]
    settings = dict.fromkeys(s for p in whole for s in presets[p])
    yield f"\n## `{name}`\n\n| setting | {' | '.join(f'`{p}`' for p in whole)} |\n|{'---|' * (len(whole) + 1)}"
    for setting in settings:
        values = (shown(presets[p][setting]) if setting in presets[p] else "" for p in whole)
        yield f"| `{setting}` | {' | '.join(values)} |"
    if kinds := [p for p in presets if "/" in p]:
        yield ""
        yield from (f"- `{p}`: {', '.join(f'`{s}` {shown(v)}' for s, v in presets[p].items())}" for p in kinds)


def page() -> str:
    return "\n".join([INTRO.rstrip("\n"), *(line for n in registry.names("methods") for line in section(n))]) + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        sys.exit(0 if fresh else "docs/presets.md is stale; run python docs/presets.py")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
