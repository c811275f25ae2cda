"""The header of a patch as the file holds it: every entry has a type, and edits and fingerprint name the same sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from efface.request import KINDS
from efface.untrusted.forms import read

__all__ = ["checked"]

FORMAT = "efface-patch/1"
MOST_EDITS = 100_000


@dataclass(frozen=True)
class GateForm:
    """When an edit is on."""

    texts: tuple[str, ...]
    rule: Literal["contains", "similar"]
    threshold: float


@dataclass(frozen=True)
class EditForm:
    """One edit; what only some kinds have stands empty for the others."""

    kind: Literal["operator", "low-rank", "dense", "mask", "guard"]
    sites: tuple[str, ...]
    gate: GateForm | None = None
    stream: str = ""
    shape: tuple[int, ...] = ()
    rule: str = ""
    settings: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class BaseForm:
    """The model that the edits were made for."""

    name: str = ""
    family: str = ""
    parts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ConceptForm:
    """A concept of the request."""

    name: str
    kind: str
    anchor: str | None
    synonyms: tuple[str, ...]
    keep: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class RequestForm:
    """The request in a recipe."""

    concepts: tuple[ConceptForm, ...]
    keep: tuple[str, ...]
    seed: int
    preset: str | None


@dataclass(frozen=True)
class RecipeForm:
    """How the edits were made; methods add what they want."""

    method: str = ""
    preset: str | None = None
    request: RequestForm | None = None
    settings: dict[str, object] = field(default_factory=dict)
    numbers: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class HeaderForm:
    """All of it."""

    format: Literal["efface-patch/1"]
    strength: float
    edits: tuple[EditForm, ...]
    recipe: RecipeForm
    base: BaseForm


def checked(header: object) -> None:
    """Raise ValueError that names the first entry of a header that is wrong."""
    if not isinstance(header, Mapping):
        raise ValueError("its header is no table")
    if header.get("format") != FORMAT:
        raise ValueError(f"format {str(header.get('format'))[:60]!r}, expected {FORMAT!r}")
    form = read(HeaderForm, header, exact=True)
    if len(form.edits) > MOST_EDITS:
        raise ValueError(f"{len(form.edits)} edits, at most {MOST_EDITS} are read")
    for number, edit in enumerate(form.edits):
        if edit.kind != "guard" and not (edit.sites if edit.kind == "operator" else len(edit.sites) == 1):
            raise ValueError(f"edits.{number}: a {edit.kind} edit of {len(edit.sites)} sites")
    for concept in form.recipe.request.concepts if form.recipe.request else ():
        if concept.kind not in ("", *KINDS):
            raise ValueError(f"recipe.request: kind {concept.kind[:60]!r}")
    _sites_are_named(form)


def _sites_are_named(form: HeaderForm) -> None:
    """The fingerprint covers what is edited and nothing else, so no patch fits a base that it was not made for."""
    edited = {s for e in form.edits if e.kind != "guard" for s in e.sites}
    named = {p for p in form.base.parts if not p.startswith("stream:")}
    if edited - named:
        raise ValueError(f"its fingerprint lacks {min(edited - named)[:60]!r}, which it edits")
    guarded = {s for e in form.edits if e.kind == "guard" for s in e.sites}
    if other := named - edited - guarded:
        raise ValueError(f"the header does not fit its edits: its fingerprint names {min(other)[:60]!r} beside them")
