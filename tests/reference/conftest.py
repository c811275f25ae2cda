"""Numbers of the authors' own code, one case a pair of files: `<method>/<case>.json` and `.safetensors`.

A test marked `cases("uce/*")` runs once for every case found here and, marked slow, once for every further
case of the folder named in EFFACE_REFERENCE. Texts and weights belong to the pipeline `tiny-sd`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from efface.families._text import clip_spans
from efface.model.text import Encoded, Encoding

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One run of the authors' code."""

    name: str
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def parameters(self) -> dict[str, Any]:
        return self.facts["parameters"]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors by the rest of their name."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def bound(self, group: str) -> float:
        """The stated tolerance of a group of tensors, relative or absolute as the case says."""
        entry = self.facts["tolerance"][group]
        return entry["rtol"] or entry["atol"]


def encoded(text: str, rows: Tensor, count: int) -> Encoded:
    """A text of `count` tokens, both ends among them, in the one stream of a CLIP encoder."""
    return Encoded(text, {"text": Encoding(rows, clip_spans(count, len(rows)))})


def relative(found: Tensor, wanted: Tensor) -> float:
    """Relative Frobenius error."""
    assert found.shape == wanted.shape
    return float(torch.linalg.norm(found.double() - wanted.double()) / torch.linalg.norm(wanted.double()))


def absolute(found: Tensor, wanted: Tensor) -> float:
    """Largest difference."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).abs().max())


@cache
def _load(path: Path) -> Case:
    facts = json.loads(path.read_text())
    return Case(f"{path.parent.name}/{path.stem}", facts, load_file(path.with_suffix(".safetensors")))


@cache
def original_weights() -> dict[str, Tensor]:
    """Weights of the U-Net of tiny-sd by state-dict key, float64."""
    file = HERE / "tiny-sd" / "unet" / "diffusion_pytorch_model.safetensors"
    return {name: tensor.double() for name, tensor in load_file(file).items()}


def _found(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    names = {f"{p.parent.name}/{p.stem}": p for p in sorted(folder.glob("*/*.json"))}
    return {n: p for n, p in names.items() if any(fnmatch(n, pattern) for pattern in patterns)}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(*patterns): run once for every reference case that matches")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    bundled = _found(HERE, marker.args)
    further = os.environ.get("EFFACE_REFERENCE")
    more = _found(Path(further), marker.args) if further else {}
    params = [pytest.param(path, id=name) for name, path in bundled.items()]
    further_only = {name: path for name, path in more.items() if name not in bundled}
    params += [pytest.param(path, id=name, marks=pytest.mark.slow) for name, path in further_only.items()]
    metafunc.parametrize("case", params, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return _load(request.param)
