"""Which weights are trained: a scope names them by their roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from efface.errors import BadRequest

if TYPE_CHECKING:
    from efface.model.card import Card, Site

__all__ = ["SCOPES", "sites_of"]

# Name -> whether a role belongs to it.
SCOPES: dict[str, Callable[[str], bool]] = {
    "xattn": lambda role: role.startswith("cross."),
    "noxattn": lambda role: not role.startswith("cross."),
    "selfattn": lambda role: role.startswith("self."),
}


def sites_of(card: Card, scope: str, *, biases: bool) -> tuple[str, ...]:
    """Names of a scope's weights, sorted, with the biases beside them or without. Raises BadRequest for none."""
    chosen: list[Site] = [s for s in card.sites if SCOPES[scope](s.role)]
    if not chosen:
        raise BadRequest(f"setting 'scope': {card.name} has no module of scope {scope!r}; take another")
    beside = [f"{s.name}.bias" for s in chosen if s.bias and biases]
    return tuple(sorted([*(s.name for s in chosen), *beside]))
