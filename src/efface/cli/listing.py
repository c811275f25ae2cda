"""`efface list`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from efface.cli import options as o

KINDS = ("methods", "attacks", "metrics", "judges", "suites", "models", "families", "engines", "concepts")


def command(
    kind: Annotated[str, typer.Argument(metavar="|".join(KINDS))],
    model: Annotated[str, typer.Option(help="Whose concepts.")] = "mini",
    json: o.Json = False,
    offline: o.Offline = False,
) -> None:
    """List methods, attacks, metrics, judges, suites, models, families, engines, or the concepts a model knows."""
    from efface.errors import UnknownName

    if kind not in KINDS:
        raise UnknownName("list", kind, KINDS)
    if kind == "concepts":
        rows = _concepts(model, offline)
        lines = [f"{r['name']:<20} {r['kind']:<7} {r['category']:<22} {r['half']:<7} {_rate(r)}" for r in rows]
        o.emit({"concepts": rows}, json, lines)
        return
    if kind == "models":
        from efface import world

        names = list(world.models())
    else:
        from efface import registry

        names = registry.names(kind)
    o.emit({kind: names}, json, names or [f"no {kind} yet"])


def _concepts(model: str, offline: bool) -> list[dict[str, Any]]:
    o.prepare(offline=offline)
    from efface.model import load

    keys = ("name", "kind", "category", "half", "base_rate", "n", "qualified")
    return [{k: c[k] for k in keys} for c in load(model, "cpu", "float32", offline).concepts]


def _rate(row: dict[str, Any]) -> str:
    if row["base_rate"] is None:
        return "not measured"
    return f"{row['base_rate']:6.1%} of {row['n']}{'' if row['qualified'] else ', not qualified'}"
