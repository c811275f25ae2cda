"""Schedules of methods that train at chosen denoising steps: which step of which concept comes when, and its targets.

KSCU: Zhang, Lin, Zhao, Yang, Wang, Shen, "Concept Unlearning by Modeling Key Steps of Diffusion Process", arXiv
2507.06526. Step index 0 is the noisiest of E. Random draws are arguments.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = [
    "KeyStep",
    "augmented",
    "augmented_from",
    "by_index",
    "by_noise",
    "by_time",
    "concept_target",
    "empty_target",
    "forward_rows",
    "jumps",
    "key_steps",
    "last_start",
    "pick",
]


@dataclass(frozen=True)
class KeyStep:
    """One update: concept number, step index, and how often the concept was visited before (its pass, from 0)."""

    concept: int
    step: int
    visit: int


def last_start(steps: int) -> int:
    """ceil(0.9 E) - 1, the latest first step of the second release: strictly below 0.9 E. Exact in integers."""
    return -(-9 * steps // 10) - 1


def key_steps(
    updates: int,
    steps: int,
    first: int,
    loops: int,
    concepts: int = 1,
    cap: int | None = None,
    order: Callable[[int], Sequence[int]] | None = None,
) -> list[KeyStep]:
    """The key step table: `updates` entries.

    A pass visits every concept in turn, each at `first`, ..., `steps` - 1; after `loops` passes the start moves up by
    one, at most to `cap` (default: `last_start`). order: pass number -> order of the concepts, default as numbered.
    Raises ValueError that names the argument.
    """
    for name, value in (("updates", updates), ("steps", steps), ("loops", loops), ("concepts", concepts)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= first < steps:
        raise ValueError(f"first_step must be in 0..{steps - 1}, the schedule's {steps} steps, got {first}")
    most = last_start(steps) if cap is None else min(cap, steps - 1)
    if first > most:
        raise ValueError(f"first_step {first} is above the latest start {most} of a schedule of {steps} steps")
    table: list[KeyStep] = []
    number = 0
    while len(table) < updates:
        start = min(first + number // loops, most)
        for concept in range(concepts) if order is None else order(number):
            table += [KeyStep(concept, step, number) for step in range(start, steps)]
        number += 1
    return table[:updates]


def jumps(table: Sequence[KeyStep]) -> list[int]:
    """Updates that start a new trajectory: the first, a change of concept, and every step that is not the next one."""
    followed = {i + 1 for i, (a, b) in enumerate(pairwise(table)) if (a.concept, a.step + 1) == (b.concept, b.step)}
    return [i for i in range(len(table)) if i not in followed]


def forward_rows(
    table: Sequence[KeyStep], *, fresh: bool = False, lagged: bool = False, augmented: int | None = None
) -> int:
    """Rows through the denoiser in a whole run at batch 1, forward only.

    4 an update, 2 a step of a prefix, 2 an advance (lagged: none, but 1 after an update from `augmented` on).
    fresh: every update starts a trajectory.
    """
    starts = set(range(len(table)) if fresh else jumps(table))
    rows = 4 * len(table) + sum(2 * table[i].step for i in starts)
    walked = [i for i in range(1, len(table)) if i not in starts]
    if not lagged:
        return rows + 2 * len(walked)
    return rows + sum(augmented is not None and i - 1 >= augmented for i in walked)


def augmented_from(updates: int, share: float, *, strict: bool = False) -> int:
    """First augmented update. int((1 - share) L); strict (the first release): the first above (1 - share) L."""
    edge = (1 - share) * updates
    return int(edge) + 1 if strict else int(edge)


def by_time(t: float, slope: float, steps: int = 1000) -> float:
    """lambda_1 of the second release: slope (T - t), t in training steps, cut to 0..T."""
    return (steps - min(max(t, 0), steps)) * slope


def by_index(i: int, slope: float) -> float:
    """lambda_1 of the first release: slope i, i the step index."""
    return i * slope


def by_noise(sigma: float, most: float) -> float:
    """lambda_1 for flow models: most (1 - sigma), the noise level cut to 0..1."""
    return (1 - min(max(sigma, 0.0), 1.0)) * most


def concept_target(concept: Tensor, anchor: Tensor, guidance: float) -> Tensor:
    """anchor - guidance (concept - anchor), any shape: negative guidance. The anchor of KSCU is the empty text."""
    return anchor - guidance * (concept - anchor)


def empty_target(concept: Tensor, empty: Tensor, dynamic: float) -> Tensor:
    """empty - dynamic (concept - empty), any shape: where the prediction for the empty text goes."""
    return empty - dynamic * (concept - empty)


# --- augmented texts -------------------------------------------------------------------------------------------------


def pick(rng: torch.Generator, n: int) -> int:
    """A number from 0 to n - 1."""
    return int(torch.randint(n, (1,), generator=rng))


def augmented(sentence: str, name: str, operation: int, rng: torch.Generator, protect: bool = True) -> str:
    """The sentence around `name` after one operation: 0 shuffles its words, 1 deletes one (protect: never one of the
    name's), 2 puts one to three random letters or digits in front, 3 behind.
    """
    words = sentence.format(name).split()
    if operation == 0:
        return " ".join(words[i] for i in torch.randperm(len(words), generator=rng).tolist())
    if operation == 1:
        own = set(name.split()) if protect else set()
        free = [i for i, w in enumerate(words) if w not in own]
        gone = free[pick(rng, len(free))] if free else -1
        return " ".join(w for i, w in enumerate(words) if i != gone)
    letters = string.ascii_letters + string.digits
    extra = "".join(letters[pick(rng, len(letters))] for _ in range(1 + pick(rng, 3)))
    return f"{extra} {' '.join(words)}" if operation == 2 else f"{' '.join(words)} {extra}"
