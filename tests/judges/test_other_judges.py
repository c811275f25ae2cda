"""LPIPS, features for FID, the optional detector: loading, refusing, formulas, on small stand-ins. No network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from efface.errors import BadRequest, OutputExists, Unavailable, WrongFile
from efface.judges import fingerprint, lpips, nudenet, torchmetrics_features
from efface.judges.lpips import SCALE, SHIFT
from efface.metrics import Specimen
from efface.metrics.detections import Detections
from small_judges import stand_in_detector


def noise(seed: int, n: int = 2, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


# --- LPIPS -----------------------------------------------------------------------------------------------------------


def alexnet() -> torch.nn.Sequential:
    """The convolutions as torchvision lists them, so that names of tensors agree."""
    nn = torch.nn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(),
            nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
        ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lpips")
    net = {f"features.{k}": v.contiguous() for k, v in alexnet().state_dict().items()}
    save_file({**net, "classifier.1.weight": torch.zeros(2, 2)}, folder / "alexnet.safetensors")
    draw = torch.Generator().manual_seed(1)
    heads = {f"lin{k}.model.1.weight": torch.rand(1, c, 1, 1, generator=draw)
             for k, c in enumerate((64, 192, 384, 256, 256))}  # fmt: skip
    save_file(heads, folder / "lpips-alex.safetensors")
    return folder


def test_lpips_is_that_of_its_definition(lpips_folder: Path) -> None:
    judge = lpips.load(lpips_folder)
    x, y = noise(0), noise(1)
    heads = load_file(lpips_folder / "lpips-alex.safetensors")
    wanted = np.zeros(2)
    with torch.inference_mode():
        maps = []
        for pictures in (x, y):
            at = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 * 2 - 1
            at = (at - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
            found = []
            for layer in alexnet():
                at = layer(at)
                if isinstance(layer, torch.nn.ReLU):
                    found.append(at)
            maps.append(found)
        for k, (a, b) in enumerate(zip(*maps, strict=True)):
            a, b = (torch.nn.functional.normalize(m, dim=1) for m in (a, b))
            weighed = torch.nn.functional.conv2d((a - b) ** 2, heads[f"lin{k}.model.1.weight"])
            wanted += weighed.mean((1, 2, 3)).numpy()
    assert judge.distances(x, y) == pytest.approx(wanted, rel=1e-4)
    assert judge.distances(x, y) == pytest.approx(judge.distances(y, x))
    assert judge.distances(x, x) == pytest.approx(np.zeros(2))
    assert judge.distances(x[:0], y[:0]).shape == (0,)


def test_lpips_refuses_small_and_unequal_pictures(lpips_folder: Path) -> None:
    for x, y in ((noise(0, size=32), noise(1, size=32)), (noise(0, 2), noise(1, 3))):
        with pytest.raises(BadRequest, match="63 pixels"):
            lpips.load(lpips_folder).distances(x, y)


def test_lpips_says_how_to_get_its_weights_and_refuses_others(lpips_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"alexnet\.safetensors"):
        lpips.load(tmp_path)
    with pytest.raises(WrongFile, match="sha256"):
        lpips.load(lpips_folder, weights_sha256="0" * 64)
    wrong = {f"lin{k}.model.1.weight": -torch.ones(1, c, 1, 1) for k, c in enumerate((64, 192, 384, 256, 256))}
    net = {f"features.{k}": v.contiguous() for k, v in alexnet().state_dict().items()}
    save_file(net, tmp_path / "alexnet.safetensors")
    for heads, said in (({"x": torch.zeros(1)}, "lin0"), (wrong, "none negative")):
        save_file(heads, tmp_path / "lpips-alex.safetensors")
        with pytest.raises(WrongFile, match=said):
            lpips.load(tmp_path)
    (tmp_path / "lpips-alex.safetensors").write_bytes(b"torn")
    with pytest.raises(WrongFile, match="cannot be read"):
        lpips.load(tmp_path)


# --- features --------------------------------------------------------------------------------------------------------


class Pool(torch.nn.Module):
    """uint8 (n, 3, h, w) to (n, 12), with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)


class Mixing(Pool):
    """Looks at the whole batch, as batch norm in training mode does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        return found - found.mean(0)


def test_features_of_any_network_carry_the_hash_of_its_weights() -> None:
    judge = torchmetrics_features.load(Pool(), "pool")
    found = judge.features(noise(0, 5))
    assert found.shape == (5, 12)
    assert found[0] == pytest.approx(judge.features(noise(0, 5)[:1])[0], abs=1e-6)
    other = Pool()
    other.scale.data.add_(1e-3)
    assert torchmetrics_features.load(other, "pool").version != judge.version
    with pytest.raises(WrongFile, match="sha256"):
        torchmetrics_features.load(other, weights_sha256=judge.card["weights_sha256"])
    with pytest.raises(WrongFile, match="mixes images"):
        torchmetrics_features.load(Mixing())
    with pytest.raises(BadRequest, match="none"):
        judge.features(noise(0, 0))


@pytest.mark.skipif(importlib.util.find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_without_its_packages_inception_says_how_to_get_it() -> None:
    with pytest.raises(Unavailable, match=r"efface\[eval\]"):
        torchmetrics_features.load()


# --- the detector ----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return stand_in_detector(tmp_path / "package", monkeypatch)


def orange(n: int = 1) -> np.ndarray:
    return np.broadcast_to(np.asarray([230, 120, 80], np.uint8), (n, 8, 8, 3)).copy()


def test_without_the_extra_the_detector_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(Unavailable, match=r"efface\[nudenet\]"):
        nudenet.load()


def test_nothing_in_the_core_imports_the_detector() -> None:
    import efface

    source = Path(efface.__file__).parent
    guilty = [f for f in source.rglob("*.py") if "import nudenet" in f.read_text(encoding="utf-8")]
    assert guilty == [source / "judges" / "nudenet.py"]


def test_both_orders_of_colours_pass_labels_through(package: Path) -> None:
    found = {order: nudenet.load(order).boxes(orange())[0] for order in ("rgb", "bgr")}
    assert found["rgb"] == (("A", pytest.approx(230 / 255)), ("B", pytest.approx(80 / 255)))
    assert [label for label, _ in found["bgr"]] == ["B", "A"]
    assert nudenet.load("rgb").version != nudenet.load("bgr").version
    assert Detections().score(Specimen(orange()[0], boxes=found["rgb"])).value == 1
    with pytest.raises(BadRequest, match="order"):
        nudenet.load("grb")  # pyright: ignore[reportArgumentType]


def test_the_detectors_weights_are_hashed_and_others_refused(package: Path, tmp_path: Path) -> None:
    """E-9, E-34."""
    file = package / "small.onnx"
    before = nudenet.load(weights_sha256=fingerprint([file])).version
    file.write_bytes(b"weighty")
    assert nudenet.load().version != before
    with pytest.raises(WrongFile, match="sha256"):
        nudenet.load(weights_sha256=fingerprint([Path(__file__)]))
    (tmp_path / "own.onnx").write_bytes(b"mine")
    assert nudenet.load(weights=tmp_path / "own.onnx").detector.model_path == str(tmp_path / "own.onnx")
    file.unlink()
    with pytest.raises(Unavailable, match="ONNX"):
        nudenet.load()


def test_stored_answers_guard_against_swapped_colours(package: Path, tmp_path: Path) -> None:
    """E-34."""
    card = nudenet.save_card(nudenet.load("rgb"), orange()[0], tmp_path / "card.json")
    assert nudenet.load("rgb", card=card).boxes(orange())
    with pytest.raises(WrongFile, match="order"):
        nudenet.load("bgr", card=card)
    facts = json.loads(card.read_text())
    card.write_text(json.dumps({**facts, "order": "bgr"}))  # a release that reads arrays the other way round
    with pytest.raises(WrongFile, match="stored"):
        nudenet.load("bgr", card=card)
    with pytest.raises(OutputExists):
        nudenet.save_card(nudenet.load("rgb"), orange()[0], card)
    for useless in (np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)):
        with pytest.raises(BadRequest, match="another one"):
            nudenet.save_card(nudenet.load("rgb"), useless, tmp_path / "other.json")
    with pytest.raises(WrongFile, match="card"):
        nudenet.load(card=tmp_path / "none.json")
