"""A task that draws nothing: to try an engine, to measure what it costs and to see what it does when work fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from efface.engines import Do, Task, Values
from efface.errors import BadRequest, WrongFile

__all__ = ["TASKS", "rehearsal"]


def rehearsal(common: Values, files: Sequence[Path]) -> Do:
    """Answers each shard with a word of its own. common: `log`, a file that gets a line for every shard begun."""
    texts = [file.read_text(encoding="utf-8") for file in files]

    def do(shard: object) -> object:
        word, _, number = str(shard).partition(" ")
        if log := common.get("log"):
            with Path(str(log)).open("a", encoding="utf-8") as stream:
                stream.write(f"{os.getpid()} {shard}\n")
        return _acted(word, number) or {"shard": shard, "files": texts, "worker": os.getpid()}

    return do


def _acted(word: str, number: str) -> None:
    """`wait S`: seconds; `fail` and `break`: a sentence, a fault; `die [FILE]`: killed, once where FILE is named."""
    if word == "wait":
        time.sleep(float(number.partition(" ")[0]))
    elif word == "fail":
        raise WrongFile("this shard was told to fail; give it another word")
    elif word == "break":
        raise ValueError("this shard was told to break")
    elif word == "die" and not (number and Path(number).exists()):
        Path(number or os.devnull).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif word not in ("die", "say"):
        raise BadRequest(f"a shard of the rehearsal is wait, say, fail, break or die, got {word!r}")


TASKS: dict[str, Task] = {"rehearsal": rehearsal}
