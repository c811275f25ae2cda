"""What families share that read text with CLIP or T5: token ids, hidden states, spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from efface.model.family import Parts
from efface.model.text import Encoding
from efface.numerics.rows import Spans

__all__ = ["CLIP_TOKENIZERS", "clip_spans", "ids_of", "pooled", "read", "t5_spans"]

CLIP_TOKENIZERS = (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))
AT_ONCE = 64  # texts that go through an encoder together
States = Callable[[Any], torch.Tensor]
"""What an encoder said -> rows (n, length, width)."""


def ids_of(net: Parts, tokenizer: str, text: str) -> list[int]:
    """Token ids of a text with its ends, neither cut nor padded."""
    return list(net.part(tokenizer)(text, truncation=False, add_special_tokens=True).input_ids)


def clip_spans(count: int, length: int) -> Spans:
    """Of `count` tokens with BOS and EOS in `length` rows."""
    return Spans.of(count - 2, length)


def t5_spans(count: int, length: int) -> Spans:
    """Of `count` tokens with EOS in `length` rows: T5 has no BOS."""
    return Spans.of(count - 1, length, start=0)


def pooled(vector: torch.Tensor) -> Encoding:
    """A vector (width,) as a stream of one row."""
    return Encoding(vector[None], Spans.of(1, 1, start=0, end=0))


@torch.inference_mode()
def read(
    net: Parts, encoder: str, ids: Sequence[tuple[int, ...]], state: States
) -> dict[tuple[int, ...], torch.Tensor]:
    """Padded ids of equal length -> what `state` makes of the encoder's answer, float32 on the CPU.

    Spellings with the same tokens share their rows, bit by bit.
    """
    found: dict[tuple[int, ...], torch.Tensor] = {}
    for start in range(0, len(ids), AT_ONCE):
        batch = ids[start : start + AT_ONCE]
        said = state(net.part(encoder)(torch.tensor(batch, device=net.device), output_hidden_states=True))
        found |= dict(zip(batch, said.float().cpu(), strict=True))
    return found
