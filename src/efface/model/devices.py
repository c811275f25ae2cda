"""Devices and processes: where a model lies, and who shares a training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from efface.errors import BadRequest, Unavailable, UnknownName

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Team:
    """The processes of one run: alone unless `accelerate launch` or torchrun started several.

    Each takes its share of every batch; gradients are averaged, so all hold the same weights.
    """

    size: int = field(default_factory=lambda: int(os.environ.get("WORLD_SIZE", "1")))
    rank: int = field(default_factory=lambda: int(os.environ.get("RANK", "0")))

    @cached_property
    def _accelerator(self) -> Any:
        try:
            from accelerate import Accelerator
        except ImportError:
            raise Unavailable(f"{self.size} processes need accelerate; pip install 'efface[train]'") from None
        return Accelerator(cpu=not torch.cuda.is_available())

    def share(self, batch: int) -> slice:
        """Which rows of a batch are this process's. Raises BadRequest when they cannot be shared evenly."""
        if batch % self.size:
            raise BadRequest(f"batch {batch} cannot be shared by {self.size} processes; make it a multiple of that")
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def device(self, name: str) -> str:
        """A device as named; "cuda" is the one of this process where there are several."""
        return name if self.size == 1 or name != "cuda" else str(self._accelerator.device)

    def mean(self, tensor: Tensor) -> Tensor:
        return tensor if self.size == 1 else self._accelerator.reduce(tensor, reduction="mean")

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, in the order of `share`. Every process has to call it."""
        return tensor if self.size == 1 else self._accelerator.gather(tensor.contiguous())


def device_of(name: str | None) -> str:
    """A device by name: cpu, cuda, cuda:N, mps; None: cuda where there is one, else cpu.

    Raises UnknownName, BadRequest for one that this machine does not have.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in there or (":" in name and not number.isdecimal()):
        raise UnknownName("device", name, there)
    if int(number or 0) >= there[kind]:
        raise BadRequest(f"there is no device {name!r} on this machine; leave it out or pass --device cpu")
    from efface.model.devices import Team

    return Team().device(name)


def dtype_of(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if device.startswith("cpu") else torch.float16
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in known:
        raise UnknownName("dtype", dtype, known)
    return known[dtype]


@contextmanager
def exact() -> Iterator[None]:
    """With autocast off, whatever the caller switched on: numbers are those of the dtype that was asked for."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
