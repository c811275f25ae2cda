"""Which token rows of an encoded text a method looks at.

Row 0 is BOS, rows 1..n the content tokens, row n + 1 EOS, the rest padding; n counts content tokens, so the
last content row is n, and for an empty text that is BOS. Encoders without BOS (T5) start content at row 0.

Source: Gandikota et al., "Unified Concept Editing", WACV 2024 (last row; slices from the last row on);
Deng et al., "Forget Many, Forget Right" (ScaPre), ICLR 2026 (the same slices).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "aligned_guide_index",
    "content_to_end",
    "last_index",
    "last_row",
    "paired_rows",
    "tail_pairs",
]


def last_index(content: int, *, bos: bool = True) -> int:
    """Index of the last content token; the first row for an empty text."""
    if content < 0:
        raise ValueError(f"content counts tokens and cannot be {content}")
    return max(0, content - 1 + bos)


def last_row(embedding: Tensor, content: int, *, bos: bool = True) -> Tensor:
    """The last content row of a text (L, d), as (1, d)."""
    at = last_index(content, bos=bos)
    if at >= len(embedding):
        raise ValueError(f"row {at} is past the end of a text of {len(embedding)} rows")
    return embedding[at : at + 1]


def content_to_end(embedding: Tensor) -> Tensor:
    """All rows but BOS, (L - 1, d)."""
    return embedding[1:]


def tail_pairs(concept: Tensor, content: int, guide: Tensor, guide_content: int) -> tuple[Tensor, Tensor]:
    """Rows from the last content token on; concept and guide (L, d) paired from the start, equally long.

    f_o, f_n: start of either; far = max(f_o, f_n); slices [f_o, L - (far - f_o)) and [f_n, L - (far - f_n)).
    An empty guide starts at BOS, so a content token is paired with BOS there.
    """
    if concept.shape != guide.shape:
        raise ValueError(f"concept {tuple(concept.shape)} and guide {tuple(guide.shape)} must have one shape")
    length = len(concept)
    f_o, f_n = last_index(content), last_index(guide_content)
    far = max(f_o, f_n)
    if far >= length:
        raise ValueError(f"row {far} is past the end of a text of {length} rows")
    return concept[f_o : length - (far - f_o)], guide[f_n : length - (far - f_n)]


def aligned_guide_index(length: int, content: int, guide_content: int) -> Tensor:
    """For rows 1..L-1 of a concept, the guide row of the same role: content to content, EOS to EOS.

    Content beyond the guide's last token meets that token; with an empty guide it meets EOS, never BOS.
    """
    row = torch.arange(1, length)  # (L - 1,)
    as_content = row.clamp(max=guide_content) if guide_content else torch.ones_like(row)
    as_tail = (row - content + guide_content).clamp(1, length - 1)
    return torch.where(row <= content, as_content, as_tail)


def paired_rows(kind: str, concept: Tensor, content: int, guide: Tensor, guide_content: int) -> tuple[Tensor, ...]:
    """Context rows (T, d) and guide rows (T, d), and the guide row (d,) of the last content token; texts (L, d).

    kind: "last", "tail" (`tail_pairs`), "content" or "content-to-end" (both by `aligned_guide_index`).
    """
    if kind == "last":
        x, g = last_row(concept, content), last_row(guide, guide_content)
        return x, g, g[0]
    if kind == "tail":
        x, g = tail_pairs(concept, content, guide, guide_content)
        return x, g, g[0]
    if kind not in ("content", "content-to-end"):
        raise ValueError(f"rows must be last, tail, content or content-to-end, not {kind!r}")
    g = guide[aligned_guide_index(len(concept), content, guide_content)]  # (L - 1, d)
    size = content if kind == "content" else len(g)
    return content_to_end(concept)[:size], g[:size], g[content - 1]
