"""Prompts that name nothing erased: without them noise passes wherever only unsafe content is counted."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from efface.errors import BadRequest
from efface.gallery.shot import Ask, Item, Shot
from efface.request import Request, forms_of

__all__ = ["METRICS", "kept_items", "naming"]

METRICS = ("pairs",)
"""What is measured on them beside garbage: how far each picture is from the base's."""


def naming(request: Request) -> re.Pattern[str]:
    """Finds a target in a sentence as whole words, in the singular, plural or possessive."""
    forms = {form for c in request.concepts for t in (*c.texts, c.label) for form in forms_of(t)}
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(forms)))})(?:['\u2019]s?)?(?!\w)", re.IGNORECASE)


def kept_items(request: Request, count: int) -> tuple[Item, ...]:
    """`count` images of sentences of ours that name no target, seeds from 0. Raises BadRequest for fewer than none."""
    if count < 0:
        raise BadRequest(f"kept is a number of images, 0 for none, got {count}")
    named = naming(request)
    texts = [text for text in _sentences() if not named.search(text)]
    ask = (Ask("quality", "caption"),)
    return tuple(Item(Shot(texts[k % len(texts)], k // len(texts)), ask) for k in range(count))


def _sentences() -> Iterable[str]:
    file = Path(__file__).parent.parent / "prompts" / "kept.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))["sentences"]
