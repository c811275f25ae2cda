"""Config: one configuration file of a model, read value by value with its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from efface.errors import WrongFile

__all__ = ["Config"]


@dataclass(frozen=True)
class Config:
    """What a file says. Every reader takes a default for what the file leaves out or sets to null.

    All raise WrongFile for a value of another type, and for one that is left out and has no default.
    """

    where: str
    """What the file is called in messages."""
    values: Mapping[str, object] = field(default_factory=dict)
    """As the file has them."""

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            raise WrongFile(f"{self.where} is no table; fetch the model again")

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._found(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) else self._refuse(key, "a whole number")

    def number(self, key: str, default: float | None = None) -> float:
        value = self._found(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            self._refuse(key, "a number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._found(key, default)
        return value if isinstance(value, str) else self._refuse(key, "a text")

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._found(key, default)
        return value if isinstance(value, bool) else self._refuse(key, "true or false")

    def pair(self, key: str, default: tuple[int, int] | None = None) -> tuple[int, int]:
        """Two whole numbers, height first; one stands for both."""
        value = self._found(key, default)
        two = value if isinstance(value, list | tuple) else (value, value)
        whole = [n for n in two if isinstance(n, int) and not isinstance(n, bool) and n > 0]
        if len(two) != 2 or len(whole) != 2:
            self._refuse(key, "two numbers above 0, height first")
        return whole[0], whole[1]

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts, None where there is none."""
        value = self.values.get(key)
        if value is None:
            return None
        return tuple(map(str, value)) if isinstance(value, list | tuple) else self._refuse(key, "a list of texts")

    def size(self, key: str) -> int:
        """How long a list is."""
        value = self._found(key, None)
        return len(value) if isinstance(value, list | tuple) else self._refuse(key, "a list")

    def _found(self, key: str, default: object) -> object:
        value = self.values.get(key)
        return default if value is None else value

    def _refuse(self, key: str, wanted: str) -> NoReturn:
        value = self.values.get(key)
        raise WrongFile(f"{self.where}: {key!r} must be {wanted}, got {str(value)[:60]!r}; mend the file")
