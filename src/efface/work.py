"""Work: everything long runs through it, so progress, Ctrl-C and exact resume are written once."""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from efface.errors import Cancelled, WrongFile
from efface.files import write_bytes

if TYPE_CHECKING:
    import torch

__all__ = ["Work", "seed_of"]

T = TypeVar("T")
_STATE = "state.safetensors"


def seed_of(*parts: object) -> int:
    """A 63-bit seed from names and numbers; the same on every machine."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Work:
    """Randomness by name, progress, cancellation and saved state of one long piece of work.

    folder: where `save` writes; None keeps the state in memory (it then lives as long as this object).
    """

    def __init__(self, seed: int = 0, folder: Path | None = None, quiet: bool = True) -> None:
        self.seed = seed
        self.folder = folder
        self.quiet = quiet
        self.cancelled = False
        self._memory: dict[str, torch.Tensor] | None = None
        self._line_open = False

    def rng(self, name: str) -> torch.Generator:
        """A fresh CPU generator that depends on the seed and this name alone."""
        import torch

        return torch.Generator().manual_seed(seed_of(self.seed, name))

    def cancel(self) -> None:
        self.cancelled = True

    def check(self) -> None:
        """Raise Cancelled if somebody asked to stop: call it between steps."""
        if self.cancelled:
            raise Cancelled("stopped before the end; the same command goes on from here")

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """The items, with a line on stderr once it takes over two seconds; checks for cancellation at each."""
        total = len(items) if total is None and isinstance(items, Sized) else total
        start, shown = time.monotonic(), 0.0
        for done, item in enumerate(items):
            self.check()
            yield item
            now = time.monotonic()
            if not self.quiet and now - start > 2 and (now - shown > 1 or done + 1 == total):
                shown, self._line_open = now, True
                print(f"\r{_line(label, done + 1, total, now - start)}", end="", file=sys.stderr, flush=True)
        self._end_line()
        self.check()

    def _end_line(self) -> None:
        """What is printed next starts on a line of its own."""
        if self._line_open:
            self._line_open = False
            print(file=sys.stderr)

    def save(self, state: dict[str, torch.Tensor]) -> None:
        """Keep the state so that `restore` finds it, also after this process was killed."""
        if self.folder is None:
            self._memory = {k: v.clone() for k, v in state.items()}
            return
        from safetensors.torch import save

        write_bytes(self.folder / _STATE, save({k: v.contiguous() for k, v in state.items()}), sync=False)

    def restore(self) -> dict[str, torch.Tensor] | None:
        """What was saved last, or None."""
        if self.folder is None:
            return None if self._memory is None else {k: v.clone() for k, v in self._memory.items()}
        file = self.folder / _STATE
        if not file.exists():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError:
            raise WrongFile(f"the saved state {file} is torn; delete it to start again") from None

    @contextmanager
    def interruptible(self) -> Iterator[Work]:
        """Ctrl-C asks politely at first (Cancelled at the next step), a second one ends the process at once."""

        def polite(number: int, frame: object) -> None:
            if self.cancelled:
                raise KeyboardInterrupt
            self.cancel()

        try:
            before = signal.signal(signal.SIGINT, polite)
        except ValueError:  # not the main thread: signals belong to somebody else
            yield self
            return
        try:
            yield self
        finally:
            self._end_line()
            signal.signal(signal.SIGINT, before)


def _line(label: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds
    if not total:
        return f"{label} {done} ({rate:.1f}/s)"
    left = (total - done) / rate if rate else 0.0
    return f"{label} {done}/{total} ({rate:.1f}/s, {left:.0f} s left)"
