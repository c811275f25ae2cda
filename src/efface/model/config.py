"""Config: one configuration file of a model, read value by value with its type."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from efface.errors import EffaceError, WrongFile
from efface.untrusted import short

__all__ = ["Config", "bounded", "sentences"]

# Of what a network or a schedule is built of: the largest known models stay far below each.
BOUNDS = (
    (re.compile(r"num_train_timesteps|steps"), 100_000),
    (re.compile(r".*layers.*|.*_blocks|.*depth.*"), 256),
    (re.compile(r"sample_size|size|image_size|resolution"), 16_384),
)
WIDEST = 10_000_000  # any other whole number, a vocabulary's size among them
LONGEST_LIST = 100_000
MOST_LAYERS = 2_000


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
        return float(value) if math.isfinite(value) else self._refuse(key, "a number that is finite")

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
        raise WrongFile(f"{self.where}: {key!r} must be {wanted}, got {short(value)}; mend the file")


def bounded(config: Config) -> Config:
    """The configuration, if nothing in it is too large to be built. Raises WrongFile."""
    for key, value in _numbers(config.values):
        most = next((most for name, most in BOUNDS if name.fullmatch(key)), WIDEST)
        if abs(value) > most:
            raise WrongFile(f"{config.where}: {key!r} is {short(value)}, expected at most {most}; mend the file")
    for key, value in config.values.items():
        if isinstance(value, list) and len(value) > LONGEST_LIST:
            raise WrongFile(f"{config.where}: {key!r} is a list of {len(value)}, too long; mend the file")
    layers = math.prod(_largest(config.values.get(key)) for key in ("layers_per_block", "transformer_layers_per_block"))
    blocks = config.values.get("block_out_channels")
    count = layers * (len(blocks) if isinstance(blocks, list) else 1)
    if count > MOST_LAYERS:
        raise WrongFile(f"{config.where} describes {count} layers, expected at most {MOST_LAYERS}; mend the file")
    return config


def _largest(value: object) -> int:
    whole = [n for _, n in _numbers({"": value})]
    return max((n for n in whole if n > 0), default=1)


def _numbers(values: Mapping[str, object]) -> Iterator[tuple[str, int]]:
    """Every whole number at any depth, with the nearest name above it."""
    stack = list(values.items())
    while stack:
        key, value = stack.pop()
        if isinstance(value, dict):
            stack += value.items()
        elif isinstance(value, list | tuple):
            stack += [(key, v) for v in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value


@contextmanager
def sentences(where: object) -> Iterator[None]:
    """What a library says of a configuration or of weights that it cannot use, as one sentence. Raises WrongFile."""
    try:
        yield
    except (EffaceError, MemoryError):
        raise
    except Exception as error:  # configurations come from strangers: every kind of error was seen
        first = (str(error).splitlines() or [""])[0].strip() or type(error).__name__
        raise WrongFile(f"{where} cannot be loaded ({first[:160]}); fetch the model again") from None
