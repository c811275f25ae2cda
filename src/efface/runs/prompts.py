"""Prompts that fit: the part of a prompt that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from efface.model import Model

__all__ = ["fitted"]


def fitted(model: Model, prompt: str) -> str:
    """The longest run of whole words that the model reads, then of characters where the next word alone is longer.

    So a prompt without spaces loses its end, as in the tokenizer, and never becomes the empty prompt.
    """
    words, window = prompt.split(" "), model.sizes("")[1]

    def fits(text: str) -> bool:
        return len(text.encode()) <= window or model.sizes(text)[0] <= window  # a token holds a byte or more

    if fits(prompt):
        return prompt
    n = _most(len(words), lambda k: fits(" ".join(words[:k])))
    if fits(words[n]):
        return " ".join(words[:n])
    head = " ".join([*words[:n], ""])
    return (head + words[n][: _most(len(words[n]), lambda k: fits(head + words[n][:k]))]).rstrip(" ")


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """Of `count` pieces as many from the start as fit, given that all of them do not."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
