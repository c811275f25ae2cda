"""What families share that read text with CLIP or T5: token ids, hidden states, spans."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from efface.model.family import Parts
from efface.model.text import Encoding
from efface.numerics.rows import Spans

__all__ = [
    "CLIP_TOKENIZERS",
    "T5_TOKENIZERS",
    "Said",
    "beside",
    "clip",
    "clip_keys",
    "clip_sizes",
    "clip_spans",
    "ids_of",
    "pooled",
    "read",
    "t5",
    "t5_sizes",
    "t5_spans",
]

CLIP_TOKENIZERS = (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))
T5_TOKENIZERS = (("transformers", "T5Tokenizer"), ("transformers", "T5TokenizerFast"))
CLIP_ENDS, T5_ENDS = 2, 1  # tokens that the tokenizers add: CLIP's BOS and EOS, T5's EOS
AT_ONCE = 64  # texts that go through an encoder together
T5_AT_ONCE = 8  # T5-XXL answers with 8 MB a text
States = Callable[[Any], tuple[torch.Tensor, ...]]
"""What an encoder said -> tensors with one entry a text first."""


def ids_of(net: Parts, tokenizer: str, text: str) -> list[int]:
    """Token ids of a text with its ends, neither cut nor padded; a token of several vectors stands for all of them."""
    reader = net.part(tokenizer)
    ids = list(reader(text, truncation=False, add_special_tokens=True).input_ids)
    added: dict[str, int] = reader.get_added_vocab()
    names = {number: name for name, number in added.items()}
    return [one for number in ids for one in (number, *_further(names.get(number), added))]


def _further(name: str | None, added: Mapping[str, int]) -> Iterator[int]:
    """The tokens `NAME_1`, `NAME_2` ... that pipelines say after an added token NAME."""
    for count in itertools.count(1):
        if name is None or f"{name}_{count}" not in added:
            return
        yield added[f"{name}_{count}"]


def clip_sizes(net: Parts, tokenizer: str, text: str, length: int) -> tuple[int, int]:
    """Tokens of the text's own, and how many of them an encoder of `length` rows reads."""
    return len(ids_of(net, tokenizer, text)) - CLIP_ENDS, length - CLIP_ENDS


def t5_sizes(net: Parts, tokenizer: str, text: str, length: int) -> tuple[int, int]:
    """Tokens of the text's own, and how many of them an encoder of `length` rows reads."""
    return len(ids_of(net, tokenizer, text)) - T5_ENDS, length - T5_ENDS


def clip_spans(count: int, length: int) -> Spans:
    """Of `count` tokens with BOS and EOS in `length` rows."""
    return Spans.of(count - 2, length)


def t5_spans(count: int, length: int) -> Spans:
    """Of `count` tokens with EOS in `length` rows: T5 has no BOS."""
    return Spans.of(count - 1, length, start=0)


def clip_keys(wrapped: bool = False) -> tuple[str, ...]:
    """Possible keys of CLIP's token embedding: library versions name it differently."""
    ending = "embeddings.token_embedding.weight"
    return (f"text_model.{ending}",) if wrapped else (f"text_model.{ending}", ending)


def pooled(vector: torch.Tensor) -> Encoding:
    """A vector (width,) as a stream of one row."""
    return Encoding(vector[None], Spans.of(1, 1, start=0, end=0))


@torch.inference_mode()
def read(
    net: Parts, encoder: str, ids: Sequence[tuple[int, ...]], states: States, at_once: int = AT_ONCE, **how: bool
) -> dict[tuple[int, ...], tuple[torch.Tensor, ...]]:
    """Padded ids of equal length -> what `states` makes of the encoder's answer, float32 on the CPU.

    Spellings with the same tokens share their rows, bit by bit. how: what the encoder is asked to say beside.
    """
    found: dict[tuple[int, ...], tuple[torch.Tensor, ...]] = {}
    for start in range(0, len(ids), at_once):
        batch = ids[start : start + at_once]
        said = states(net.part(encoder)(torch.tensor(batch, device=net.device), **how))
        found |= dict(zip(batch, zip(*(s.float().cpu() for s in said), strict=True), strict=True))
    return found


# --- one of several encoders ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a CLIP encoder says of one text of `count` tokens, those beyond its window cut off."""

    rows: torch.Tensor  # (length, width) of the layer before the last
    vector: torch.Tensor  # (width,)
    count: int


def clip(net: Parts, ending: str, texts: Sequence[str], length: int) -> list[Said]:
    """Texts through `text_encoder` and `tokenizer` of this ending."""
    cut = [_cut(ids_of(net, f"tokenizer{ending}", text), length) for text in texts]
    padded = _padded(cut, net.part(f"tokenizer{ending}").pad_token_id, length)
    rows = read(net, f"text_encoder{ending}", list(dict.fromkeys(padded)), _clip_states, output_hidden_states=True)
    return [Said(rows[key][0], rows[key][1], len(ids)) for key, ids in zip(padded, cut, strict=True)]


def t5(net: Parts, ending: str, texts: Sequence[str], length: int) -> list[Encoding]:
    """Texts through `text_encoder` and `tokenizer` of this ending: the last hidden state."""
    cut = [_cut(ids_of(net, f"tokenizer{ending}", text), length) for text in texts]
    padded = _padded(cut, net.part(f"tokenizer{ending}").pad_token_id, length)
    rows = read(net, f"text_encoder{ending}", list(dict.fromkeys(padded)), lambda said: (said[0],), T5_AT_ONCE)
    return [Encoding(rows[key][0], t5_spans(len(ids), length)) for key, ids in zip(padded, cut, strict=True)]


def beside(said: Sequence[Said], whole: bool) -> Encoding:
    """Rows of several encoders side by side. whole: every row, else they end with the last content row."""
    count, length = said[0].count, len(said[0].rows)
    size = length if whole else max(1, count - 1)
    return Encoding(torch.cat([s.rows[:size] for s in said], dim=1), clip_spans(count, size))


def _cut(ids: list[int], length: int) -> tuple[int, ...]:
    """As many tokens as the encoder reads, the last of them the end."""
    return tuple(ids if len(ids) <= length else (*ids[: length - 1], ids[-1]))


def _padded(cut: Sequence[tuple[int, ...]], pad: int, length: int) -> list[tuple[int, ...]]:
    return [ids + (pad,) * (length - len(ids)) for ids in cut]


def _clip_states(said: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer before the last, and the projected vector where the encoder projects, else the pooled one."""
    vector = said.text_embeds if "text_embeds" in said else said.pooler_output
    return said.hidden_states[-2], vector
