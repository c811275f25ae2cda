"""Seeded damage: bytes that flip, move and go, and entries of a document that become something else."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 1e308, float("nan"), float("inf"), "", " ", "x", "\x00", "\x1b",
    "../../x", "\ud800", "é" * 300, [], {}, [[]], [{}], {"": {}}, ["x", 1], {"name": []}, "a" * 5000, -0.0, "NaN",
)  # fmt: skip
SOUP = (b"\x00", b"\xff\xfe", b"\n", b"\r", b'"', b";", b",", b"{", b"[[", b"\x1b", b"\xe2\x80\xa8", b"-1", b"9" * 400)


def bitten(data: bytes, rng: random.Random) -> bytes:
    """Bytes with one to four bites."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted(rng.randrange(len(found) + 1) for _ in range(2))
        what = rng.randrange(5)
        if what == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << rng.randrange(8)
        elif what == 1:
            del found[at : min(to, at + rng.choice((1, 8, 400)))]
        elif what == 2:
            found[at:at] = rng.choice(SOUP)
        elif what == 3:
            found[at:at] = found[at : min(to, at + 200)]
        else:
            del found[at if rng.random() < 0.2 else len(found) - rng.randint(0, 3) :]
    return bytes(found)


def bent(content: Any, rng: random.Random) -> Any:
    """A document in which one to three entries are another thing, gone, doubled or renamed."""
    root = [copy.deepcopy(content)]
    for _ in range(rng.randint(1, 3)):
        at, key = root, 0
        while isinstance(at[key], dict | list) and at[key] and rng.random() < 0.85:
            at = at[key]
            key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        what = rng.randrange(6)
        if what == 0 and at is not root:
            del at[key]
        elif what == 1 and isinstance(at, list) and at is not root:
            at.append(copy.deepcopy(at[key]))
        elif what == 2 and isinstance(at, dict):
            at[str(key) + "x"] = at.pop(key)
        else:
            at[key] = copy.deepcopy(rng.choice(ODD))
        if not isinstance(root[0], dict | list):
            break
    return root[0]


def bent_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with bent entries."""
    return json.dumps(bent(json.loads(data), rng)).encode("utf-8", "replace")
