"""`efface inspect`: what is in a patch or a model, without loading weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from efface.cli import options as o

NAME = "inspect"


def command(
    target: Annotated[str, typer.Argument(help="A patch file or a model.")],
    json: o.Json = False,
    offline: o.Offline = False,
) -> None:
    """Print the recipe and edits of a patch, or the card of a model."""
    path = Path(target)
    found = _patch(path) if path.is_file() and path.suffix == ".safetensors" else _model(target, offline)
    o.emit(found, json, [line for key, value in found.items() for line in _lines(key, value)])


def _patch(path: Path) -> dict[str, Any]:
    from efface.patch import read_header

    header = read_header(path)
    recipe = header["recipe"]
    return {
        "format": header["format"],
        "bytes": path.stat().st_size,
        "strength": header["strength"],
        "base": header["base"].get("name"),
        "method": recipe.get("method"),
        "preset": recipe.get("preset"),
        "concepts": [c["name"] for c in recipe.get("request", {}).get("concepts", [])],
        "settings": recipe.get("settings", {}),
        "edits": header["edits"],
        "numbers": recipe.get("numbers", {}),
        "parts": header["base"].get("parts", {}),
    }


def _model(target: str, offline: bool) -> dict[str, Any]:
    o.prepare(offline=offline)
    from collections import Counter
    from dataclasses import asdict

    from efface.model import load

    card = load(target, "cpu", "float32", offline).card
    return {
        "model": card.name,
        "family": card.family,
        "prediction": card.prediction,
        "size": f"{card.size[0]} x {card.size[1]}",
        "steps": card.steps,
        "guidance": card.guidance,
        "preset": card.preset,
        "roles": dict(sorted(Counter(s.role for s in card.sites).items())),
        "streams": [asdict(s) for s in card.streams],
        "sites": [{"name": s.name, "role": s.role, "shape": list(s.shape)} for s in card.sites],
    }


def _lines(key: str, value: Any) -> list[str]:
    """One short line for people; --json has everything."""
    if isinstance(value, list):
        return [f"{key}: {', '.join(value) if value and isinstance(value[0], str) else len(value)}"]
    if not isinstance(value, dict):
        return [f"{key}: {value}"]
    plain = {k: v for k, v in value.items() if not isinstance(v, dict | list)}
    if key == "parts":
        return [f"{key}: {len(value)} hashes of the base"]
    return [f"{key}: {', '.join(f'{k} {v}' for k, v in plain.items())}"] if plain else []
