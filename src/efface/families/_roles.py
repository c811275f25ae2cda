"""Sites by role, from a network without memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from efface.errors import Unavailable
from efface.model.card import Site, freeze
from efface.model.family import Config

__all__ = ["Roles", "schedule_of", "sites_of"]

Roles = tuple[tuple[str, str], ...]
"""Role by the end of a module's name; the first match wins."""


def sites_of(
    cls: Any, config: Config, roles: Roles, doors: Mapping[str, str], classes: Iterable[type]
) -> tuple[Site, ...]:
    """Every weight of these module classes in a denoiser. doors: role -> the door that text rows come through."""
    with torch.device("meta"):
        network: Any = cls.from_config(dict(config))
    found = []
    for name, module in network.named_modules():
        if isinstance(module, tuple(classes)):
            role = next(role for pattern, role in roles if re.search(pattern, name))
            found.append(Site(name, role, tuple(module.weight.shape), doors.get(role), module.bias is not None))
    return tuple(sorted(found, key=lambda s: s.name))


def schedule_of(name: str, config: Config, known: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """The scheduler's configuration, hashable. Raises Unavailable for a class that the family does not know."""
    known = tuple(known)
    if (named := config.get("_class_name")) not in known:
        raise Unavailable(f"{name} names a scheduler {str(named)[:60]!r}; known: {', '.join(known)}")
    return freeze(config.items())
