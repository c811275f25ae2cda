"""Numbers of the authors' own code, one case a pair of files: `<method>/<case>.json` and `.safetensors`.

A test marked `cases("uce/*")` runs once for every case found here and, marked slow, once for every further
case of the folder named in EFFACE_REFERENCE, whatever its name: what kind of case it is stands in its facts. A folder
without such a case stops the tests. Texts and weights belong to the pipeline `tiny-sd`.
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


# what tells the kinds of one method's cases apart, first match first: a parameter that the others lack
KINDS = {
    "kscu": (("training", "iterations"), ("tables", "settings")),
    "scapre": (("functions", "calls"), ("bures", "bures_iters"), ("plain", "concepts")),
}


def kind_of(method: str, facts: dict[str, Any]) -> str:
    """`kscu/training`, or the method alone where all of its cases are of one kind."""
    own = (kind for kind, parameter in KINDS.get(method, ()) if parameter in facts["parameters"])
    return f"{method}/{next(own, '')}".rstrip("/")


@cache
def found_in(folder: Path) -> dict[str, tuple[str, Path]]:
    """Every case of a folder by `method/name`: its kind and its file. What has no tensors beside it is no case."""
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        facts = json.loads(path.read_text()) if path.with_suffix(".safetensors").is_file() else None
        if isinstance(facts, dict) and "parameters" in facts:
            found[f"{path.parent.name}/{path.stem}"] = (kind_of(path.parent.name, facts), path)
    return found


def further_in(folder: Path) -> dict[str, tuple[str, Path]]:
    """Cases that are not bundled; one of a bundled name counts as further where its tensors differ."""
    bundled, more = found_in(HERE), {}
    for name, (kind, path) in found_in(folder).items():
        tensors = path.with_suffix(".safetensors").read_bytes()
        if name not in bundled or bundled[name][1].with_suffix(".safetensors").read_bytes() != tensors:
            more[name if name not in bundled else f"{name} (further)"] = (kind, path)
    return more


def chosen(cases: dict[str, tuple[str, Path]], patterns: tuple[str, ...]) -> dict[str, Path]:
    """Those whose kind or name matches."""
    fits = {n: p for n, (kind, p) in cases.items() if any(fnmatch(w, q) for w in (kind, n) for q in patterns)}
    return {n: p for n, p in fits.items() if p.parent.name in {q.partition("/")[0] for q in patterns}}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cases(*patterns): run once for every reference case that matches")


def _further() -> dict[str, tuple[str, Path]]:
    """Raises UsageError for a folder that holds no case: a wrong path must not look like success."""
    folder = os.environ.get("EFFACE_REFERENCE")
    if folder and not found_in(Path(folder)):
        raise pytest.UsageError(f"EFFACE_REFERENCE={folder} holds no case METHOD/NAME.json with NAME.safetensors")
    return further_in(Path(folder)) if folder else {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("cases")
    if marker is None:
        return
    params = [pytest.param(path, id=name) for name, path in chosen(found_in(HERE), marker.args).items()]
    params += [pytest.param(path, id=name, marks=pytest.mark.slow)
               for name, path in chosen(_further(), marker.args).items()]  # fmt: skip
    metafunc.parametrize("case", params, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return _load(request.param)
