"""A new method is new files and no edit elsewhere: by entry point, and by the file layout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest

import efface
import efface.methods
from conftest import Cli
from efface import registry
from efface.errors import UnknownName

METHOD = '''
"""A throw-away method: turns every value of cross-attention down."""
from __future__ import annotations
from dataclasses import dataclass
from efface.evidence.needs import Needs
from efface.patch import Answer, Dense


@dataclass(frozen=True)
class Dim:
    """Multiply the values by factor."""
    factor: float = 0.5

    def ask(self, request, card):
        return Needs(texts=tuple(c.name for c in request.concepts))

    def solve(self, model, evidence, request, work):
        assert evidence.text(request.concepts[0].name).main.rows.ndim == 2
        sites = [s.name for s in model.card.select("cross.v")]
        return Answer(tuple(Dense(s, (self.factor - 1) * model.weight(s)) for s in work.progress(sites, "sites")))


PRESETS = {"efface": Dim(), "world": Dim(0.25)}
PLUGIN = Dim
'''


@pytest.fixture(params=["entry-point", "file"])
def plugged(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a throw-away method that was added one of the two ways."""
    home = tmp_path / "plugin"
    home.mkdir()
    if request.param == "entry-point":
        (home / "outside_dim.py").write_text(METHOD)
        info = home / "outside_dim-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-dim\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[efface.methods]\ndim_values = outside_dim:Dim\n")
        monkeypatch.syspath_prepend(str(home))
    else:
        (home / "dim_values.py").write_text(METHOD)
        monkeypatch.setattr(efface.methods, "__path__", [*efface.methods.__path__, str(home)])
    invalidate_caches()
    yield "dim-values"
    for module in ("outside_dim", "efface.methods.dim_values"):
        sys.modules.pop(module, None)
    vars(efface.methods).pop("dim_values", None)


def test_it_is_listed_with_the_others(plugged: str, cli: Cli) -> None:
    assert cli("list", "methods", "--json").json()["methods"] == registry.names("methods")
    assert {plugged, "uce", "scapre"} <= set(registry.names("methods"))


@pytest.mark.parametrize("spelling", ["dim-values", "dim_values", "DIM-values"])
def test_it_solves_under_every_spelling(plugged: str, spelling: str, tiny_folder: Path) -> None:
    model = efface.load(tiny_folder, "cpu")
    patch = efface.erase(model, ["dog"], method=spelling)
    assert patch.sites == tuple(s.name for s in model.card.select("cross.v"))
    for site in patch.sites:
        assert patch.weight(site, model.weight(site)).equal(model.weight(site) * 0.5)
    assert (patch.recipe["method"], patch.recipe["settings"]) == (plugged, {"factor": 0.5})


def test_its_presets_and_settings_work_on_the_command_line(
    plugged: str, cli: Cli, tiny_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    said = cli("erase", tiny_folder, "-c", "dog", "--method", plugged, "--preset", "world", "-o", out)
    assert said.code == 0, said.err
    assert cli("inspect", out, "--json").json()["settings"] == {"factor": 0.25}
    said = cli("erase", tiny_folder, "-c", "dog", "--method", plugged, "--set", "factor=0.75", "-o", out, "--overwrite")
    assert cli("inspect", out, "--json").json()["settings"] == {"factor": 0.75}
    said = cli("erase", tiny_folder, "-c", "dog", "--method", plugged, "--set", "facter=1", "-o", tmp_path / "q")
    assert said.code == 2
    assert "'factor'" in said.err


def test_it_is_gone_without_the_plug_in() -> None:
    assert "dim-values" not in registry.names("methods")
    with pytest.raises(UnknownName, match="efface list methods"):
        registry.find("methods", "dim-values")
