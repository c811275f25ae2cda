"""Prompt sets and sentence forms as data, one TOML file each, source and licence in its header; and the user's own."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, UnknownName, WrongFile
from efface.untrusted.tables import entries

__all__ = ["Form", "Wording", "forms", "load", "read_pairs", "styled", "wordings"]


@dataclass(frozen=True)
class Form:
    """One sentence. text: with {concept}. plain: without it. neutral: a word for anything, in the concept's place."""

    text: str
    plain: str
    neutral: str

    def filled(self, concept: str) -> str:
        return self.text.replace("{concept}", concept)


@dataclass(frozen=True)
class Wording:
    """A name in a wording: how a text speaks of it."""

    form: str
    """With {} where the name stands."""
    nothing: str
    """What is said in its place where the name is empty."""

    def filled(self, name: str) -> str:
        return self.form.format(name) if name else self.nothing


@cache
def load(name: str) -> dict[str, Any]:
    """A file of this folder."""
    return tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def wordings(group: str, kind: str) -> tuple[Wording, ...]:
    """The wordings of a group for a kind of concept: styles have their own, all else is worded as an object."""
    return tuple(Wording(*pair) for pair in load("wordings")[group]["style" if kind == "style" else "object"])


def styled(thing: str, style: str) -> str:
    """A thing in a style, or the thing alone where the style is empty."""
    said = load("wordings")["styled"]
    return said["form"].format(thing=thing, style=style) if style else said["nothing"].format(thing=thing)


def forms(name: str, group: str, kind: str, n: int) -> list[Form]:
    """The first n sentences for a kind of concept; a kind without sentences of its own takes those of objects.

    Raises UnknownName for a group, BadRequest when there are fewer.
    """
    data = load(name)
    if not isinstance(data.get(group), dict):
        raise UnknownName("prompt set", group, (k for k, v in data.items() if isinstance(v, dict)))
    own = data[group].get(kind) or data[group]["object"]
    rows, neutral = own["forms"], own["neutral"]
    most = len(rows) * min(len(r["words"]) for r in rows)
    if n > most:
        raise BadRequest(f"setting 'prompts' must be at most {most} for kind {kind!r} of {group!r}, got {n}")
    found = []
    for i in range(n):
        row = rows[i % len(rows)]
        word = row["words"][i // len(rows)]
        found.append(Form(row["text"].replace("{word}", word), row["plain"].replace("{word}", word), neutral))
    return found


def read_pairs(path: str | Path) -> dict[str, list[tuple[str, str]]]:
    """A table with the columns concept and base (complete prompts) and, optional, name -> pairs by folded name.

    Rows without a name stand under "". Nothing is filled in: braces are refused. Raises WrongFile.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in entries(path, ("pairs",), short_rows=True, lines_as=".csv"):
        cells = [entry.cells.get(k) for k in ("concept", "base", "name")]
        concept, base, name = (c.strip() if isinstance(c, str) else "" for c in cells)
        if not concept or not base:
            raise WrongFile(f"{entry.where}: both columns, concept and base, need a complete prompt")
        if set("{}") & set(concept + base):
            raise WrongFile(f"{entry.where}: no template is filled in here; write complete prompts")
        found.setdefault(name.casefold(), []).append((concept, base))
    if not found:
        raise WrongFile(f"{path} holds no pair of prompts; write the columns concept and base")
    return found
