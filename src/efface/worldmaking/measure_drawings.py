"""What the judge says of a model's own drawings: the base before any erasure, by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efface.errors import BadRequest
from efface.files import write_bytes
from efface.judges import Judge
from efface.worldmaking.measure_judge import share


def asked(prompt: str) -> tuple[str, str | None]:
    """Object and style of "a NAME" or "a NAME in STYLE style"; `BadRequest` for another prompt."""
    name, _, tail = prompt.removeprefix("a ").partition(" in ")
    style = tail.removesuffix(" style") if tail else None
    if not prompt.startswith("a ") or (tail and not tail.endswith(" style")):
        raise BadRequest(f"Expected a prompt like 'a dog' or 'a dog in noto style', got {prompt!r}.")
    return name, style


def measure(judge: Judge, images: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    """Rates over drawings uint8 (n, 64, 64, 3), apart for prompts with and without a style.

    A wrong answer may be the model's or the judge's: these are not the judge's errors alone.
    """
    verdict, m = judge.look(images), len(judge.objects)
    pairs = [asked(str(p)) for p in prompts]
    known = [k for k, (name, _) in enumerate(pairs) if name in judge.objects]
    object_at = np.asarray([judge.objects.index(pairs[k][0]) for k in known])
    rows = np.asarray(known)
    styled = np.asarray([pairs[k][1] is not None for k in known])
    right = verdict.probabilities[rows, :m].argmax(1) == object_at
    hit = verdict.hits[rows, object_at]
    facts: dict[str, Any] = {}
    for word, part in (("object", ~styled), ("styled object", styled)):
        facts[f"{word} argmax"] = share(int(right[part].sum()), int(part.sum()))
        facts[f"{word} hit"] = share(int(hit[part].sum()), int(part.sum()))
    facts["objects named in a drawing"] = round(float(verdict.hits[rows, :m].sum(1).mean()), 3)
    family = verdict.probabilities[rows, m:].argmax(1)
    style_at = np.asarray([judge.styles.index(pairs[k][1] or judge.styles[0]) for k in known])
    for number, name in enumerate([*judge.styles, "all"]):
        part = styled & ((style_at == number) | (name == "all"))
        facts[f"style argmax, {name}"] = share(int((family == style_at)[part].sum()), int(part.sum()))
    return facts


def add_to_card(folder: Path, facts: dict[str, Any]) -> None:
    """Put `base_drawings` into card.json; the version does not change: it says nothing of decisions."""
    path = folder / "card.json"
    card = json.loads(path.read_text(encoding="utf-8")) | {"base_drawings": facts}
    rows = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in card.items()]
    write_bytes(path, ("{\n" + ",\n".join(rows) + "\n}\n").encode())
