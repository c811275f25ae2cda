"""Which token rows of an encoded text a method looks at.

`Spans` says where the parts of a text lie among its rows; every rule here reads them and counts no tokens. CLIP has one
start row, the content tokens, one end row and padding; T5 has no start row.

Source: Gandikota et al., "Unified Concept Editing", WACV 2024 (last row; slices from the last row on);
Deng et al., "Forget Many, Forget Right" (ScaPre), ICLR 2026 (the same slices).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "RowRule",
    "Spans",
    "aligned_guide_index",
    "end_row",
    "last_row",
    "paired_rows",
    "tail_pairs",
    "without_start",
]

RowRule = Literal["tail", "last", "content", "content-to-end"]
"""From the last content row on, that row alone, all content rows, or all rows but those of the start."""


@dataclass(frozen=True)
class Spans:
    """Where the parts of one text lie in one stream: half-open (first, stop) pairs of row numbers, in this order."""

    start: tuple[int, int]
    """Rows before the text, which see nothing of it."""
    content: tuple[int, int]
    """Rows of the text's own tokens; none for an empty text."""
    end: tuple[int, int]
    """Rows of the token that closes the text."""
    padding: tuple[int, int]
    """Rows that fill the window."""

    @classmethod
    def of(cls, content: int, length: int, start: int = 1, end: int = 1) -> Spans:
        """Of a text of `content` tokens in a window of `length` rows. Raises ValueError for a negative count."""
        if content < 0:
            raise ValueError(f"content counts tokens and cannot be {content}")
        stop = start + content
        return cls((0, start), (start, stop), (stop, stop + end), (stop + end, max(length, stop + end)))

    @property
    def size(self) -> int:
        """How many content rows there are."""
        return self.content[1] - self.content[0]

    @property
    def last(self) -> int:
        """Number of the last content row; of an empty text the row before, or row 0."""
        return max(0, self.content[1] - 1)


def last_row(embedding: Tensor, spans: Spans) -> Tensor:
    """The last content row of a text (L, d), as (1, d)."""
    if spans.last >= len(embedding):
        raise ValueError(f"row {spans.last} is past the end of a text of {len(embedding)} rows")
    return embedding[spans.last].unsqueeze(0)


def end_row(embedding: Tensor, spans: Spans) -> Tensor:
    """The first row of the end of a text (L, d), as (1, d); of a vector, which has no end, its one row."""
    at = min(spans.end[0], len(embedding) - 1)
    return embedding[at : at + 1]


def without_start(embedding: Tensor, spans: Spans) -> Tensor:
    """All rows of a text (L, d) but those of the start."""
    return embedding[spans.content[0] :]


def tail_pairs(concept: Tensor, spans: Spans, guide: Tensor, guide_spans: Spans) -> tuple[Tensor, Tensor]:
    """Rows from the last content token on; concept and guide (L, d) paired from the start, equally long.

    f_o, f_n: start of either; far = max(f_o, f_n); slices [f_o, L - (far - f_o)) and [f_n, L - (far - f_n)).
    An empty guide starts at the row before its content, so a content token is paired with that one there.
    """
    if concept.shape != guide.shape:
        raise ValueError(f"concept {tuple(concept.shape)} and guide {tuple(guide.shape)} must have one shape")
    length = len(concept)
    f_o, f_n = spans.last, guide_spans.last
    far = max(f_o, f_n)
    if far >= length:
        raise ValueError(f"row {far} is past the end of a text of {length} rows")
    return concept[f_o : length - (far - f_o)], guide[f_n : length - (far - f_n)]


def aligned_guide_index(length: int, spans: Spans, guide: Spans) -> Tensor:
    """For every row of a concept but the start, the guide row of the same role: content to content, end to end.

    Content beyond the guide's last token meets that token; with an empty guide it meets the end, never the start.
    """
    row = torch.arange(spans.content[0], length)  # (L - start,)
    shifted = row - spans.content[0] + guide.content[0]
    as_content = shifted.clamp(max=guide.last) if guide.size else torch.full_like(row, guide.end[0])
    as_tail = (row - spans.content[1] + guide.content[1]).clamp(guide.content[0], length - 1)
    return torch.where(row < spans.content[1], as_content, as_tail)


def paired_rows(
    rule: str, concept: Tensor, spans: Spans, guide: Tensor, guide_spans: Spans
) -> tuple[Tensor, Tensor, Tensor]:
    """Context rows (T, d) and guide rows (T, d), and the guide row (d,) of the last content token; texts (L, d).

    rule: a `RowRule`; "content" and "content-to-end" pair by `aligned_guide_index`.
    """
    if rule == "last":
        x, g = last_row(concept, spans), last_row(guide, guide_spans)
        return x, g, g[0]
    if rule == "tail":
        x, g = tail_pairs(concept, spans, guide, guide_spans)
        return x, g, g[0]
    if rule not in ("content", "content-to-end"):
        raise ValueError(f"rows must be last, tail, content or content-to-end, not {rule!r}")
    g = guide[aligned_guide_index(len(concept), spans, guide_spans)]  # (L - start, d)
    size = spans.size if rule == "content" else len(g)
    return without_start(concept, spans)[:size], g[:size], g[: spans.size][-1]
