"""A network by its sites: what is known of it, where it comes from, how it draws."""

from efface.model.model import Model
from efface.model.opening import load

__all__ = ["Model", "load"]
