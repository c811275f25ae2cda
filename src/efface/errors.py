"""Every failure is one sentence: what was expected, what was given, what to do next.

A class names a cure, not a place in the code; `exit_code` is what the command line returns.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BadRequest",
    "Cancelled",
    "EffaceError",
    "GateFailed",
    "NothingChanged",
    "OutputExists",
    "Unavailable",
    "UnknownName",
    "WrongBase",
    "WrongFile",
    "nearest",
]


class EffaceError(Exception):
    """Something failed; the message says how to cure it."""

    exit_code = 1


class BadRequest(EffaceError):
    """What was asked for contradicts itself or names something that does not exist."""

    exit_code = 2


class UnknownName(BadRequest):
    """A name that is not in a list; the message holds the nearest ones."""

    def __init__(self, what: str, name: str, known: Iterable[str], see: str = "") -> None:
        names = sorted(known)
        close = nearest(name, names)
        hint = f"did you mean {' or '.join(repr(n) for n in close)}?" if close else f"known: {', '.join(names[:12])}"
        super().__init__(f"unknown {what} {name!r}; {hint}" + (f" ({see} lists all)" if see else ""))


class WrongFile(EffaceError):
    """A file or folder is missing, torn, hostile or of another kind."""


class WrongBase(EffaceError):
    """A patch meets a model that it was not made for."""


class NothingChanged(EffaceError):
    """An edit that would leave the model as it is."""


class Unavailable(EffaceError):
    """A part that is not installed or cannot be fetched here; the message says how to get it."""


class OutputExists(EffaceError):
    """The output is already there and --overwrite was not given."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path} already exists; name another output or pass --overwrite")


class GateFailed(EffaceError):
    """A report does not meet its gate."""

    exit_code = 3


class Cancelled(EffaceError):
    """Stopped by the user; the same command goes on from here."""

    exit_code = 130


def nearest(name: str, known: Iterable[str], k: int = 3) -> list[str]:
    """The at most `k` names closest in spelling, best first."""
    folded = {n.casefold(): n for n in known}
    return [folded[c] for c in get_close_matches(name.casefold(), list(folded), n=k, cutoff=0.6)]


class EffaceWarning(UserWarning):
    """Something the user should know before trusting a result."""
