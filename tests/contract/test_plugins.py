"""A plug-in of any kind is new files and no edit elsewhere: by entry point, and by the file layout."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import pytest

import efface
from conftest import Cli
from efface import registry
from efface.errors import UnknownName
from efface.model import Model

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


JUDGE = '''
"""A throw-away judge: says how bright a picture is."""
import numpy as np
from efface.judges import Verdict, pictures
from efface.judges.panel import LabelPanel


class Bright:
    name, version, role, objects, styles = "bright", "1", "reporting", ("rocket", "pizza"), ()
    card = {"name": "bright", "role": "reporting", "thresholds": "half"}

    def look(self, images):
        share = pictures(images).mean(axis=(1, 2, 3)) / 255
        both = np.stack([share, 1 - share], 1).astype(np.float32)
        return Verdict(both, both >= 0.5, both)


def panel(where, brief):
    return LabelPanel.beside(Bright(), None)


PLUGIN = panel
'''

METRIC = '''
"""A throw-away metric: the share of bright pictures."""
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from efface.metrics import Metric, Scored
from efface.scores.cells import rate_cell
from efface.scores.readings import Readings


@dataclass(frozen=True)
class Light(Metric):
    """above: from where a picture is bright."""
    above: float = 0.5
    direction: ClassVar[str] = "up"

    def score(self, specimen):
        share = float(specimen.image.mean() / 255)
        return Scored(hit=share > self.above, value=share)

    def aggregate(self, rows):
        some = [r for r in rows if r.state == "ok"]
        hits = np.asarray([float(sum(bool(r.hit) for r in some))])
        return [rate_cell("bright", hits, np.asarray([float(len(some))]))]


PLUGIN = Light
'''

SUITE = '''
"""A throw-away suite: each concept twice."""
from dataclasses import dataclass
from typing import ClassVar
from efface.gallery.shot import Ask, Item, Shot
from efface.judges.panel import Brief
from efface.suites import Plan


@dataclass(frozen=True)
class Pairs:
    """seeds: pictures of each concept."""
    seeds: int = 2
    version: ClassVar[str] = "1"
    judge: ClassVar[str] = "world"
    private: ClassVar[bool] = False
    brief: ClassVar[Brief] = Brief()

    def plan(self, request, known):
        pairs = [(c.name, seed) for c in request.concepts for seed in range(self.seeds)]
        return Plan(tuple(Item(Shot(f"a {name}", seed), (Ask("target", name),)) for name, seed in pairs))


PLUGIN = Pairs
'''

GUARD = '''
"""A throw-away guard: turns the latents down after each step."""
from dataclasses import dataclass
from efface.evidence.needs import Needs
from efface.patch import Answer, Guard


@dataclass(frozen=True)
class Hush:
    """factor: what is left of the latents."""
    factor: float = 0.5

    def ask(self, request, card):
        return Needs()

    def solve(self, model, evidence, request, work):
        return Answer((Guard("hush", {"factor": self.factor}),))


@dataclass(frozen=True)
class Rule:
    settings: dict
    values: dict
    strength: float
    place: str = "latent"

    def start(self, call):
        return None

    def at(self, step, state, value, site):
        return value * (1 - self.strength * (1 - self.settings["factor"]))


PRESETS = {"efface": Hush(), "world": Hush()}
PLUGIN = Hush
'''

ENGINE = '''
"""A throw-away engine: the last shard first."""
from dataclasses import dataclass
from efface.engines import opened


@dataclass(frozen=True)
class Backwards:
    reach = "process"

    def run(self, job, shards, work, label):
        do = job.here or opened(job)
        for shard in work.progress(shards[::-1], label):
            yield do(shard)


PLUGIN = Backwards
'''

FAMILY = '''
"""A throw-away family: Stable Diffusion under another pipeline's name."""
from efface.families.stable_diffusion import StableDiffusion


class Toy(StableDiffusion):
    name = "toy"
    pipelines = ("ToyPipeline",)


PLUGIN = Toy
'''

SOURCES = {
    "methods": ("dim-values", METHOD, "Dim"),
    "judges": ("bright", JUDGE, "panel"),
    "metrics": ("light", METRIC, "Light"),
    "suites": ("pairs-of-pictures", SUITE, "Pairs"),
    "guards": ("hush", GUARD, "Hush"),
    "engines": ("backwards", ENGINE, "Backwards"),
    "families": ("toy", FAMILY, "Toy"),
}
DOORS = ("entry-point", "file")


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """`plug(kind, door)` adds a throw-away plug-in one of the two ways and returns its name."""
    home, modules = tmp_path / "plugin", []
    home.mkdir()

    def add(kind: str, door: str) -> str:
        name, source, thing = SOURCES[kind]
        room, stem = "methods" if kind == "guards" else kind, name.replace("-", "_")
        package = importlib.import_module(f"efface.{room}")
        if door == "entry-point":
            (home / f"outside_{stem}.py").write_text(source)
            info = home / f"outside_{stem}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: outside-{stem}\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(f"[efface.{room}]\n{stem} = outside_{stem}:{thing}\n")
            monkeypatch.syspath_prepend(str(home))
        else:
            (home / f"{stem}.py").write_text(source)
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(home)])
        modules.append((f"outside_{stem}", f"efface.{room}.{stem}", package, stem))
        invalidate_caches()
        return name

    yield add
    for outside, inside, package, stem in modules:
        sys.modules.pop(outside, None)
        sys.modules.pop(inside, None)
        package.__dict__.pop(stem, None)


@pytest.fixture(params=DOORS)
def plugged(request: pytest.FixtureRequest, plug: Callable[[str, str], str]) -> str:
    """The name of a throw-away method that was added one of the two ways."""
    return plug("methods", request.param)


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


# --- the other kinds -------------------------------------------------------------------------------------------------

both_doors = pytest.mark.parametrize("door", DOORS)
SMALL = ("--steps", 1, "--quiet", "--json")
FEW = [
    word for name in ("targets", "styles", "neighbours", "others", "other_styles") for word in ("--set", f"{name}=2")
]


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    """Of a rocket, for the smallest bundled model."""
    return efface.erase("micro", ["rocket"], keep=["pizza"], method="uce").save(tmp_path / "rocket.safetensors")


def audited(cli: Cli, patch: Path, out: Path, *words: object) -> Any:
    said = cli("audit", "micro", "--patch", patch, "-o", out, *SMALL, *words)
    assert said.code == 0, said.err
    return json.loads((out / "report.json").read_text())


@both_doors
def test_a_judge_reports(door: str, plug: Callable[[str, str], str], cli: Cli, patch: Path, tmp_path: Path) -> None:
    name = plug("judges", door)
    assert name in cli("list", "judges", "--json").json()["judges"]
    report = audited(cli, patch, tmp_path / "run", "--judge", name, *FEW, "--set", "targets=4")
    assert report["judges"][0]["name"] == "bright"
    assert {row["state"] for table in report["tables"][:1] for row in table["rows"]} == {"ok"}


@both_doors
def test_a_metric_counts(door: str, plug: Callable[[str, str], str], cli: Cli, patch: Path, tmp_path: Path) -> None:
    name = plug("metrics", door)
    report = audited(cli, patch, tmp_path / "run", "--metric", f"{name}:above=0.1", *FEW)
    assert "bright" in {cell["name"] for cell in report["metrics"]}


@both_doors
def test_a_suite_is_drawn(door: str, plug: Callable[[str, str], str], cli: Cli, patch: Path, tmp_path: Path) -> None:
    name = plug("suites", door)
    report = audited(cli, patch, tmp_path / "run", "--suite", name, "--set", "seeds=3")
    assert [row["base"]["n"] for row in report["tables"][0]["rows"]] == [3]


@both_doors
def test_a_guard_acts_in_the_sampler(door: str, plug: Callable[[str, str], str], tiny: Model, tmp_path: Path) -> None:
    made = efface.erase(tiny, ["dog"], method=plug("guards", door))
    before = tiny.sample(["a dog"], [0], steps=2)
    with efface.Patch.load(made.save(tmp_path / "hush.safetensors")).applied(tiny):
        assert not (tiny.sample(["a dog"], [0], steps=2) == before).all()
    assert (tiny.sample(["a dog"], [0], steps=2) == before).all()


@both_doors
def test_an_engine_draws(door: str, plug: Callable[[str, str], str], cli: Cli, tmp_path: Path) -> None:
    name, prompts = plug("engines", door), tmp_path / "prompts.txt"
    prompts.write_text("a rocket\na pizza\n")
    for out, engine in (("there", name), ("here", "inline")):
        said = cli("generate", "micro", "--prompts", prompts, "--steps", 1, "--engine", engine, "-o", tmp_path / out)
        assert said.code == 0, said.err
    here, there = ({f.name: f.read_bytes() for f in (tmp_path / d).glob("*.png")} for d in ("here", "there"))
    assert len(here) == 2
    assert here == there


@both_doors
def test_a_family_opens_its_folders(
    door: str, plug: Callable[[str, str], str], tiny_folder: Path, tmp_path: Path
) -> None:
    name, folder = plug("families", door), tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "ToyPipeline"}))
    model = efface.load(folder, "cpu")
    assert model.card.family == name
    patch = efface.erase(model, ["dog"], keep=["cat"], method="uce")
    before = model.sample(["a dog"], [0], steps=1)
    with patch.applied(model):
        assert not (model.sample(["a dog"], [0], steps=1) == before).all()


@pytest.mark.parametrize("kind", [k for k in SOURCES if k != "guards"])
def test_nothing_of_a_plug_in_stays(kind: str) -> None:
    assert SOURCES[kind][0] not in registry.names(kind)
