"""Augmented texts of KSCU: sentences around a name with a word moved, gone or letters beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from efface import prompts
from efface.numerics import schedules

if TYPE_CHECKING:
    from efface.request import Concept

__all__ = ["mixed_texts", "ten_texts"]


def ten_texts(concept: Concept, own: Sequence[str], rng: torch.Generator) -> list[str]:
    """The ten augmented texts of a concept (second release). A sensitive concept has its own complete prompts only."""
    if concept.kind == "sensitive":
        return list(own)
    base = prompts.load("kscu")["augment"]["style" if concept.kind == "style" else "object"]
    return [schedules.augmented(sentence, concept.name, i % 4, rng) for i, sentence in enumerate(base)]


def mixed_texts(concepts: Sequence[Concept], texts: Sequence[Sequence[str]], rng: torch.Generator) -> list[str]:
    """The pool of the first release: 200 texts of all concepts, four in five the bare names."""
    pool = []
    for i in range(200):
        concept, own = concepts[i % len(concepts)], texts[i % len(concepts)]
        if i < 160 or concept.kind == "sensitive":
            pool.append(own[i // len(concepts) % len(own)])
            continue
        base = prompts.load("kscu")["augment"]["style" if concept.kind == "style" else "generic"]
        sentence, operation = base[schedules.pick(rng, len(base))], schedules.pick(rng, 4)
        # each operation is done with probability 0.2, and one of the four results is taken
        changed = float(torch.rand(1, generator=rng)) < 0.2
        text = schedules.augmented(sentence, concept.name, operation, rng, False)
        pool.append(text if changed else sentence.format(concept.name))
    return pool
