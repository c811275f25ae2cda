"""Run exactly the README's shell commands in a fresh clone and time each; prints a transcript.

Python blocks are run too, each in a process of its own. Nothing is skipped: the first failure ends the run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, body) of every sh and python block, in order."""
    return re.findall(r"```(sh|python)\n(.*?)```", text, flags=re.DOTALL)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "efface"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
        environment["EFFACE_CACHE"] = str(Path(folder) / "cache")
        for language, body in blocks((clone / "README.md").read_text(encoding="utf-8")):
            commands = body.strip().splitlines() if language == "sh" else [body]
            for command in commands:
                code = _run(language, command, clone, environment)
                if code:
                    return code
    return 0


def _run(language: str, command: str, clone: Path, environment: dict[str, str]) -> int:
    start = time.monotonic()
    if language == "python":
        done = subprocess.run([clone / ".venv/bin/python", "-c", command], cwd=clone, env=environment, check=False)
        shown = "python: " + next(line for line in command.splitlines() if line.strip() and "import" not in line)
    else:
        # every command in a shell of its own, with the environment that the second line of "Install" activates
        active = "test -f .venv/bin/activate && . .venv/bin/activate; "
        done = subprocess.run(["bash", "-c", active + command], cwd=clone, env=environment, check=False)
        shown = command
    print(f"{time.monotonic() - start:7.1f} s  exit {done.returncode}  {shown}", flush=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
