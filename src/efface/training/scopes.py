"""Which weights are trained: a scope names them by their roles, in the file of the model's family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from efface.errors import BadRequest
from efface.registry import find

if TYPE_CHECKING:
    from efface.model.card import Card

__all__ = ["sites_of"]


def sites_of(card: Card, scope: str, *, biases: bool) -> tuple[str, ...]:
    """Names of a scope's weights, sorted, with the biases beside them or without. Raises BadRequest for none."""
    roles = find("families", card.family)().scopes.get(scope, ())
    chosen = [s for s in card.sites if s.role in roles]
    if not chosen:
        raise BadRequest(f"setting 'scope': {card.name} has no module of scope {scope!r}; take another")
    beside = [f"{s.name}.bias" for s in chosen if s.bias and biases]
    return tuple(sorted([*(s.name for s in chosen), *beside]))
