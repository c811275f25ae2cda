"""Efface erases concepts from text-to-image diffusion models, measures how gone they are, and ships the result as a
small patch.

    import efface
    patch = efface.erase("mini", ["dog", "noto style"], keep=["cat"])
    with patch.applied(efface.load("mini")) as model:
        images = model.generate("a dog on a red background", seeds=[0])

Names are loaded at first use, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.erasure import erase, plan
    from efface.errors import EffaceWarning
    from efface.model import Model, load
    from efface.patch import Patch
    from efface.request import Concept, Request
    from efface.work import Work

__all__ = ["Concept", "EffaceWarning", "Model", "Patch", "Request", "Work", "erase", "load", "plan"]

_HOMES = {
    "Concept": "request",
    "EffaceWarning": "errors",
    "Model": "model",
    "Patch": "patch",
    "Request": "request",
    "Work": "work",
    "erase": "erasure",
    "load": "model",
    "plan": "erasure",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("efface.files").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'efface' has no attribute {name!r}")
    return getattr(import_module(f"efface.{_HOMES[name]}"), name)
