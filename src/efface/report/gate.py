"""Gates: rules that a report must meet, as files: `gates/default.toml`, `gates/strict.toml`, the user's.

A rule compares a one-sided 95 % bound, never a bare estimate, with its limit. What a rule says of a report stands in
`ruling.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from efface.errors import BadRequest, UnknownName, WrongFile
from efface.gallery.shot import GONE, ROLES
from efface.untrusted.documents import parsed, text_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

__all__ = ["ERRORS", "Gate", "Rule", "load"]

FOLDER = Path(__file__).parent / "gates"
SMALLEST = 1e-6  # limit of an upper bound; at zero no number of images meets it
Measure: TypeAlias = Literal["shown", "garbage", "loss", "scored", "errors"]
Statistic: TypeAlias = Literal["upper", "lower", "estimate"]
ALLOWED: Mapping[str, tuple[str, ...]] = {"metric": get_args(Measure), "statistic": get_args(Statistic)}
ONLY_THESE = {"extra": "forbid"}


@dataclass(frozen=True)
class Rule:
    """One line of a gate."""

    name: str
    metric: Measure
    """shown and garbage are shares of edited images; loss is base minus edited in pairs; scored is the share of
    concepts that could be scored (at least the limit); errors is the share of failed images."""
    roles: tuple[str, ...]
    statistic: Statistic
    """A one-sided 95 % bound, or the bare estimate."""
    limit: float
    """A share: 0.05 is 5 per cent, or 5 points for a loss."""
    concepts: str | tuple[str, ...] = "pooled"
    """"pooled", "each" or names."""
    n_min: int | None = None
    """Images that an estimate of shown, garbage or loss needs."""
    optional: bool = False
    """NA does not fail; ERROR does."""
    __pydantic_config__: ClassVar = ONLY_THESE


# In every gate, whatever its file says: what failed to be measured is not safe.
ERRORS = Rule("errors among targets", "errors", GONE, "estimate", 0.0, optional=True)


@dataclass(frozen=True)
class Gate:
    """Rules, and the suite they were made for where the file names one."""

    name: str
    rules: tuple[Rule, ...]
    suite: str = ""
    version: str = ""


@dataclass(frozen=True)
class GateFile:
    """A gate as its file holds it."""

    rule: tuple[Rule, ...]
    name: str = ""
    suite: str = ""
    version: str = ""
    __pydantic_config__: ClassVar = ONLY_THESE


@cache
def _form() -> TypeAdapter[GateFile]:
    from pydantic import TypeAdapter

    return TypeAdapter(GateFile)


def load(name: str) -> Gate:
    """`default`, `strict` or a TOML file. Raises BadRequest, UnknownName: a gate that cannot be read never passes."""
    from pydantic import ValidationError

    bundled = {f.stem: f for f in FOLDER.glob("*.toml")}
    file = bundled.get(name) or Path(name)
    if not file.is_file():
        raise UnknownName("gate", name, bundled, "or name a TOML file; docs/gate.md")
    try:
        data = parsed(text_of(file, 2**20), ".toml", file, "docs/gate.md shows one", numbers=False)
        form = _form().validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise _refusal(error, file) from None
    except WrongFile as error:
        raise BadRequest(f"{error}; it is no gate") from None
    if not form.rule:
        raise BadRequest(_no_rule(file))
    rules = tuple(_checked(rule, f"rule {k} of {file}") for k, rule in enumerate(form.rule, 1))
    return Gate(form.name or file.stem, rules, form.suite, form.version)


def _no_rule(file: Path) -> str:
    return f"{file} has no rule; write at least one [[rule]] (docs/gate.md)"


def _refusal(error: ValidationError, file: Path) -> BadRequest:
    """The first thing that is wrong with a file, in one sentence."""
    first = error.errors()[0]
    loc, kind = first["loc"], first["type"]
    number = loc[1] + 1 if len(loc) > 1 and isinstance(loc[1], int) else 0
    names = [*map(str, loc), "", ""]
    where, key = (f"rule {number} of {file}", names[2]) if number else (str(file), names[0])
    if kind == "missing":
        needs = "every rule needs name, metric, roles, statistic and limit"
        return BadRequest(f"{where} names no {key}; {needs}" if number else _no_rule(file))
    if kind == "unexpected_keyword_argument":
        known = Rule if number else GateFile
        return UnknownName(f"entry of {where}", key, known.__dataclass_fields__)
    if kind == "literal_error" and key in ALLOWED:
        return UnknownName(f"{key} of {where}", str(first["input"]), ALLOWED[key])
    return BadRequest(f"{where} has {key} {str(first['input'])[:60]!r}: {first['msg'].lower()}; docs/gate.md shows one")


def _checked(rule: Rule, where: str) -> Rule:
    """A rule whose entries fit each other. Raises BadRequest, UnknownName."""
    for role in _texts(rule.roles, where):
        if role not in ROLES:
            raise UnknownName(f"role of {where}", role, ROLES)
    if not 0 <= rule.limit <= 1:
        raise BadRequest(f"{where} has limit {rule.limit:g}; expected a share between 0 and 1 (5 per cent is 0.05)")
    if rule.statistic == "upper" and rule.limit < SMALLEST:
        raise BadRequest(
            f"{where} has limit {rule.limit:g}: no number of images brings an upper bound there; "
            'raise it, or count hits with statistic = "estimate"'
        )
    if rule.concepts not in ("pooled", "each"):
        _texts(rule.concepts, where)
    counts = rule.metric in ("shown", "garbage", "loss")
    if counts and rule.statistic == "estimate" and rule.n_min is None:
        raise BadRequest(f"{where} judges a bare estimate; give n_min, the number of images it needs at least")
    if not counts and rule.statistic != "estimate":
        raise BadRequest(f'{where}: {rule.metric} has no bound; write statistic = "estimate"')
    return replace(rule, limit=float(rule.limit))


def _texts(value: str | tuple[str, ...], where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not value:
        raise BadRequest(f"{where} needs a list of texts, got {value!r}")
    return value
