"""What all tests share: small seeded pipelines, a cache of their own, the command line, parts of the slow tests.

EFFACE_SLOW_PART=K (0 to 9) keeps, of the tests marked slow, those with sha256(nodeid) % 10 == K. The part of a test
depends on its name alone, so it is the same before and after a commit; CI runs one fixed part (`make ci`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tiny_families import MakePipe, make_pipe

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:
    from efface.model import Model

ROOT = Path(__file__).parent.parent


def slow_part(nodeid: str) -> int:
    """Which tenth of the slow tests a test belongs to."""
    return int(hashlib.sha256(nodeid.encode()).hexdigest(), 16) % 10


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = os.environ.get("EFFACE_SLOW_PART")
    if not wanted:
        return
    out = [i for i in items if i.get_closest_marker("slow") and slow_part(i.nodeid) != int(wanted)]
    config.hook.pytest_deselected(items=out)
    left = {id(i) for i in out}
    items[:] = [i for i in items if id(i) not in left]


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    import torch

    from efface.cli.options import prepare

    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))
    prepare()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that only this test sees."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("EFFACE_CACHE", str(folder))
    return folder


# --- models --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_pipe() -> MakePipe:
    """`tiny_pipe(seed=0, dtype=None, scheduler="dpm", **unet)` -> a fresh random pipeline."""
    return make_pipe


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline of seed 0 as a diffusers folder in float32. Tests read it and never write to it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float16 copy of `tiny_folder`."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-half"
    make_pipe(dtype=torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> Model:
    """A fresh Model of `tiny_folder`; nothing of it is open yet."""
    import efface

    return efface.load(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def _mini() -> Model:
    import efface

    return efface.load("mini", device="cpu")


@pytest.fixture
def mini(_mini: Model) -> Iterator[Model]:
    """The bundled model, opened once a session; a test has to leave it without patches."""
    yield _mini
    assert not _mini.in_force


def bits(module: Any) -> dict[str, bytes]:
    """Every tensor of a module as bytes."""
    return {k: v.cpu().numpy().tobytes() for k, v in module.state_dict().items()}


def all_bits(model: Model) -> dict[str, bytes]:
    """Every weight of a model as bytes; opens all parts."""
    return {f"{p}.{k}": v for p in model.network.weighed for k, v in bits(model.part(p)).items()}


# --- the command line ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What a command returned."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Said]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("erase", "mini", ...)` runs the command in this process."""
    from efface.cli import main

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        text = capsys.readouterr()
        return Said(int(stopped.value.code or 0), text.out, text.err)

    return run
