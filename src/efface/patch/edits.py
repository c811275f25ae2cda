"""Edits by site: five kinds, each with its change of a weight, and gates that say for which prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from efface.errors import BadRequest
from efface.model import Model


@dataclass(frozen=True)
class Gate:
    """When an edit is on, by prompt.

    rule ``contains``: strength 1 for prompts that hold one of the texts as whole words, else 0. ``similar``:
    strength 1 where the cosine of the last content rows of prompt and text is at least `threshold`.
    """

    texts: tuple[str, ...]
    rule: str = "contains"
    threshold: float = 0.0

    RULES: ClassVar[tuple[str, ...]] = ("contains", "similar")

    def __post_init__(self) -> None:
        if self.rule not in self.RULES:
            raise BadRequest(f"rule of a gate: expected one of {self.RULES}, got {self.rule!r}")
        object.__setattr__(self, "texts", tuple(self.texts))

    def strengths(self, model: Model, prompts: Sequence[str]) -> list[float]:
        """One strength a prompt, 0 or 1."""
        if self.rule == "contains":
            words = [re.compile(rf"(?<!\w){re.escape(t)}(?!\w)", re.IGNORECASE) for t in self.texts]
            return [float(any(w.search(p) for w in words)) for p in prompts]
        own = _last_rows(model, self.texts)  # (texts, d)
        cosines = _last_rows(model, prompts) @ own.T  # (prompts, texts)
        return (cosines.amax(1) >= self.threshold).double().tolist()


def _last_rows(model: Model, texts: Sequence[str]) -> torch.Tensor:
    """Last content row of each text, at unit length."""
    rows = torch.stack([e.main.last for e in model.encode(texts, whole=False)])
    return torch.nn.functional.normalize(rows, dim=1)


@dataclass(frozen=True, eq=False)
class Operator:
    """`W <- W + W left right^T` for every named site of one door."""

    stream: str  # the door; named so in the file
    left: torch.Tensor  # (d, r)
    right: torch.Tensor  # (d, r)
    sites: tuple[str, ...]
    gate: Gate | None = None
    kind: ClassVar[str] = "operator"

    def delta(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        wide = weight.double()
        return (wide @ self.left.to(wide)) @ self.right.to(wide).T  # (o, d)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"left": self.left, "right": self.right}


@dataclass(frozen=True, eq=False)
class LowRank:
    """`W <- W + up down` at one site."""

    site: str
    up: torch.Tensor  # (o, r)
    down: torch.Tensor  # (r, d)
    gate: Gate | None = None
    kind: ClassVar[str] = "low-rank"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    def delta(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        flat = self.up.to(weight.device, torch.float64) @ self.down.to(weight.device, torch.float64)
        return flat.reshape(weight.shape)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"up": self.up, "down": self.down}


@dataclass(frozen=True, eq=False)
class Dense:
    """`W <- W + change` at one site; the change is kept in float32."""

    site: str
    change: torch.Tensor  # the shape of the weight
    gate: Gate | None = None
    kind: ClassVar[str] = "dense"

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    def delta(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        return self.change.to(weight.device, torch.float64)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"change": self.change}


@dataclass(frozen=True, eq=False)
class Mask:
    """`W <- W - W * mask` at one site: marked entries go to zero. Stored as bits, row-major, padded to a byte."""

    site: str
    bits: torch.Tensor  # (ceil(size / 8),) uint8
    shape: tuple[int, ...]
    gate: Gate | None = None
    kind: ClassVar[str] = "mask"

    @classmethod
    def pack(cls, site: str, mask: torch.Tensor, gate: Gate | None = None) -> Mask:
        """From a boolean tensor of the weight's shape."""
        import numpy as np

        packed = np.packbits(mask.cpu().numpy().astype(bool).reshape(-1))
        return cls(site, torch.from_numpy(packed), tuple(mask.shape), gate)

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    def unpack(self) -> torch.Tensor:
        import numpy as np

        size = math.prod(self.shape)
        flat = np.unpackbits(self.bits.cpu().numpy(), count=size)
        return torch.from_numpy(flat.astype(bool)).reshape(self.shape)

    def delta(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        return -weight.double() * self.unpack().to(weight.device)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"bits": self.bits}


@dataclass(frozen=True, eq=False)
class Guard:
    """Something the sampler does: a rule by name (`efface.model.places`), its tensors and plain settings."""

    rule: str
    settings: dict[str, Any] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    gate: Gate | None = None
    kind: ClassVar[str] = "guard"

    def delta(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        raise BadRequest(f"guard {self.rule!r} changes no weight; it acts in Efface's sampler")

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.values)


Edit = Operator | LowRank | Dense | Mask | Guard


_KINDS: dict[str, type[Any]] = {k.kind: k for k in (Operator, LowRank, Dense, Mask, Guard)}


def fits(edit: Edit, shape: tuple[int, ...]) -> bool:
    """Whether an edit's tensors have the shape that a weight needs."""
    if isinstance(edit, Operator):
        return edit.left.shape[0] == edit.right.shape[0] == shape[-1] and len(shape) == 2
    if isinstance(edit, LowRank):
        return edit.up.shape[0] == shape[0] and edit.down.shape[1] == math.prod(shape[1:])
    if isinstance(edit, Dense):
        return tuple(edit.change.shape) == shape
    return isinstance(edit, Mask) and edit.shape == shape


def described(edit: Edit) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": edit.kind, "sites": list(edit.sites)}
    if edit.gate:
        row["gate"] = {
            "texts": list(edit.gate.texts),
            "rule": edit.gate.rule,
            "threshold": edit.gate.threshold,
        }
    if isinstance(edit, Operator):
        row["stream"] = edit.stream
    if isinstance(edit, Mask):
        row["shape"] = list(edit.shape)
    if isinstance(edit, Guard):
        row |= {"rule": edit.rule, "settings": edit.settings}
    return row


def edit_of(row: dict[str, Any], own: Mapping[str, torch.Tensor]) -> Edit:
    """An edit from its row of the header and its tensors. Raises ValueError, LookupError."""
    if row["kind"] not in ("mask", "guard") and not all(t.is_floating_point() for t in own.values()):
        raise ValueError(f"a {row['kind']} edit of whole numbers")
    gate = Gate(**row["gate"]) if row.get("gate") else None
    sites = tuple(str(s) for s in row["sites"])
    kind = row["kind"]
    if kind == Operator.kind:
        left, right = own["left"], own["right"]
        if left.ndim != 2 or left.shape != right.shape:
            raise ValueError(f"operator with shapes {tuple(left.shape)} and {tuple(right.shape)}")
        return Operator(row["stream"], left, right, sites, gate)
    if kind == LowRank.kind:
        up, down = own["up"], own["down"]
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise ValueError(f"low-rank edit with shapes {tuple(up.shape)} and {tuple(down.shape)}")
        return LowRank(sites[0], up, down, gate)
    if kind == Dense.kind:
        return Dense(sites[0], own["change"], gate)
    if kind == Mask.kind:
        shape = tuple(int(n) for n in row["shape"])
        size = (math.prod(shape) + 7) // 8 if min(shape, default=0) > 0 else -1
        if own["bits"].dtype != torch.uint8 or own["bits"].numel() != size:
            raise ValueError(f"mask of shape {shape} with {own['bits'].numel()} bytes")
        return Mask(sites[0], own["bits"], shape, gate)
    if kind == Guard.kind:
        return Guard(row["rule"], dict(row["settings"]), dict(own), sites, gate)
    raise ValueError(f"unknown kind of edit {kind!r}")
