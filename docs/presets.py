"""Write docs/presets.md, what every preset of every method sets: `python docs/presets.py` (`--check` only compares).

The values come from `PRESETS` in the methods' files; a group of settings is shown setting by setting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efface import registry

PAGE = Path(__file__).parent / "presets.md"
INTRO = """# Presets

`python docs/presets.py` writes this page from the methods' files. `--preset NAME` chooses a preset, \
`--set NAME=VALUE` changes one setting of it. The last word of a setting's name is enough where no other setting has \
it. The pages of the methods say what a setting means. An empty cell: the preset has no such setting.

A preset by kind is written `NAME/KIND`. It is used when every concept of a request has that kind. Its line says what \
it has otherwise than `NAME`.
"""


def shown(value: Any) -> str:
    """A value as it is written behind `--set NAME=`."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("|", "\\|") if value != "" else '""'


def section(name: str) -> Iterator[str]:
    """One method: a table of its presets, and a line for each preset by kind."""
    presets = {p: registry.flat(v) for p, v in registry.presets_of(registry.find("methods", name)).items()}
    whole = [p for p in presets if "/" not in p]
    settings = dict.fromkeys(s for p in whole for s in presets[p])
    yield f"\n## `{name}`\n\n| setting | {' | '.join(f'`{p}`' for p in whole)} |\n|{'---|' * (len(whole) + 1)}"
    for setting in settings:
        values = (shown(presets[p][setting]) if setting in presets[p] else "" for p in whole)
        yield f"| `{setting}` | {' | '.join(values)} |"
    if kinds := [p for p in presets if "/" in p]:
        yield ""
    for kind in kinds:
        usual = presets[kind.partition("/")[0]]
        other = (f"`{s}` {shown(v)}" for s, v in presets[kind].items() if usual.get(s) != v)
        yield f"- `{kind}`: {', '.join(other)}"


def page() -> str:
    return "\n".join([INTRO.rstrip("\n"), *(line for n in registry.names("methods") for line in section(n))]) + "\n"


def main() -> None:
    if "--check" in sys.argv[1:]:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        sys.exit(0 if fresh else "docs/presets.md is stale; run python docs/presets.py")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
