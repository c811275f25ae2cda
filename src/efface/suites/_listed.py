"""Suites over a closed list of names: a sentence a class, many seeds. The lists are data in `prompts/`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NotRequired, TypedDict, cast

from efface.errors import BadRequest
from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import Brief
from efface.request import Request
from efface.suites import Known, Plan

__all__ = ["Listed", "read"]

ATTACKS = "attacks: this suite runs none"


class ClassRow(TypedDict):
    """One name of a list."""

    name: str
    index: NotRequired[int]
    """Of ImageNet-1k."""
    group: NotRequired[str]
    """Names of one group are neighbours."""
    aliases: NotRequired[list[str]]
    """Other ways to write it."""
    titles: NotRequired[list[str]]
    """Works of a painter."""


class ListFile(TypedDict):
    """A bundled list."""

    name: str
    version: str
    templates: list[str]
    classes: list[ClassRow]
    neutral: NotRequired[list[str]]
    """Names of nobody beside those of a closed set of styles."""


@cache
def read(name: str) -> ListFile:
    """A list by the name of its file. It is ours, so its form is that of `ListFile`."""
    file = Path(__file__).parent.parent / "prompts" / f"{name}.toml"
    return cast("ListFile", tomllib.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Listed:
    """Every class is drawn alike; the classes that the request names are targets, the others are kept.

    With groups, kept classes of a target's group are neighbours.
    """

    images: int = 50
    wording: Literal["protocol", "many", "titles"] = "protocol"
    first_seed: int = 0
    data: ClassVar[str]
    kind: ClassVar[str]
    judge: ClassVar[str]
    template: ClassVar[str] = ""
    private: ClassVar[bool] = False

    @property
    def version(self) -> str:
        return read(self.data)["version"]

    @property
    def labels(self) -> Mapping[str, tuple[int, ...]] | tuple[str, ...]:
        """What the judge is asked for: class indices of ImageNet-1k, or names and in place of them neutral ones.

        Without neutral names the likeliest of five is right in one picture of five at least.
        """
        classes = read(self.data)["classes"]
        if self.kind == "style":
            return (*(c["name"] for c in classes), *read(self.data).get("neutral", ()))
        return {c["name"]: (c["index"],) for c in classes if "index" in c}

    @property
    def brief(self) -> Brief:
        """The judge is asked for the whole list."""
        return Brief(self.labels, self.template)

    def plan(self, request: Request, known: Known) -> Plan:
        """Raises BadRequest when the request names no class of the list, and for titles where the list has none."""
        data = read(self.data)
        classes = data["classes"]
        erased = {c["name"] for c in classes if _is_asked(c, request)}
        if not erased:
            some = ", ".join(c["name"] for c in classes[:5])
            raise BadRequest(
                f"no concept of the request is in {self.data} ({some}, ...); name one of its classes with -c"
            )
        groups = {c["group"] for c in classes if "group" in c and c["name"] in erased}
        made = tuple(item for c in classes for item in self._of(c, self._role(c, erased, groups), data["templates"]))
        one = (
            (f"other wordings: each class has one sentence, {data['templates'][0]!r}",)
            if self.wording == "protocol"
            else ()
        )
        return Plan(made, self._absent(made, erased, classes), (ATTACKS, *one, *_strangers(request, classes)))

    def _absent(self, made: tuple[Item, ...], erased: set[str], classes: list[ClassRow]) -> dict[str, str]:
        """Kept roles of this list without a class."""
        drawn = {a.role for i in made for a in i.asks}
        roles = ["other-style" if self.kind == "style" else "other"]
        roles += ["neighbour"] if any("group" in c for c in classes) else []
        why = "every class of the suite is erased" if len(erased) == len(classes) else "no class of this kind is left"
        return {role: why for role in roles if role not in drawn}

    def _role(self, row: ClassRow, erased: set[str], groups: set[str]) -> str:
        if row["name"] in erased:
            return "style" if self.kind == "style" else "target"
        if row.get("group") in groups:
            return "neighbour"
        return "other-style" if self.kind == "style" else "other"

    def _of(self, row: ClassRow, role: str, templates: list[str]) -> list[Item]:
        texts = self._titled(row) if self.wording == "titles" else templates
        texts = texts[:1] if self.wording == "protocol" else texts
        ask = (Ask(role, row["name"]),)
        return [
            Item(Shot(_written(texts[k % len(texts)], row["name"]), self.first_seed + k // len(texts)), ask)
            for k in range(self.images)
        ]

    def _titled(self, row: ClassRow) -> list[str]:
        """Templates with the titles of a painter's works. Raises BadRequest for a list without titles."""
        if "titles" not in row:
            raise BadRequest(f"{self.data} has no titles of {row['name']}; take wording=protocol or wording=many")
        return [f"{title} by {{name}}" for title in row["titles"]]


def _written(template: str, name: str) -> str:
    article = "an" if name[0].lower() in "aeiou" else "a"
    return template.format(name=name, one=f"{article} {name}")


def _is_asked(row: ClassRow, request: Request) -> bool:
    names = {row["name"].casefold(), *(a.casefold() for a in row.get("aliases", ()))}
    return any(
        {c.name.casefold(), c.label.casefold(), *map(str.casefold, c.synonyms)} & names for c in request.concepts
    )


def _strangers(request: Request, classes: list[ClassRow]) -> tuple[str, ...]:
    known = {n.casefold() for c in classes for n in (c["name"], *c.get("aliases", ()))}
    strange = [c.name for c in request.concepts if c.name.casefold() not in known and c.label.casefold() not in known]
    return (f"concepts that the suite does not list: {', '.join(strange)}",) if strange else ()
