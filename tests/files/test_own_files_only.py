"""Writing never takes what is somebody else's, never leaves a wrong output, and sweeps after dead writers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import efface
from conftest import Cli
from efface.errors import BadRequest, OutputExists, WrongFile
from efface.files import HOST, cache_folder, is_dead, leftovers, new_folder, write_bytes
from efface.gallery.images import Images
from efface.patch import Dense, Patch


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill() -> None:
        with new_folder(out, False, lambda there: True) as made:
            (made / "mine").write_text("x")
            out.mkdir()
            (out / "theirs").write_text("y")

    with pytest.raises(OutputExists):
        fill()
    assert [f.name for f in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_is_replaced_is_asked_about_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(WrongFile), new_folder(out, True, lambda there: False):
        (out / "theirs").write_text("y")
    assert (out / "theirs").read_text() == "y"


def test_a_link_that_leads_nowhere_is_kept(tmp_path: Path) -> None:
    (tmp_path / "p").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists):
        write_bytes(tmp_path / "p", b"x", overwrite=False)
    with pytest.raises(OutputExists), new_folder(tmp_path / "p", False, lambda there: True):
        pass
    assert (tmp_path / "p").is_symlink()


def test_a_writer_sweeps_after_dead_ones_and_nobody_else(dead: int, tmp_path: Path) -> None:
    gone = [tmp_path / f".p.{word}{dead}-{HOST}.tmp" for word in ("", "old")]
    for folder in gone:
        folder.mkdir()
        (folder / "weights").write_bytes(b"large")
    kept = [f".p.{os.getppid()}-{HOST}.tmp", f".q.{dead}-{HOST}.tmp", f".p.{dead}-ffffff.tmp", ".p.txt", ".p.7.tmp"]
    for name in kept:
        (tmp_path / name).write_bytes(b"x")
    assert [is_dead(f.name) for f in gone] == [True, True]
    write_bytes(tmp_path / "p", b"new")
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([*kept, "p"])
    assert [f.name for f in leftovers(tmp_path)] == [f".q.{dead}-{HOST}.tmp"]


def test_notes_beside_a_patch_never_replace_a_file_of_the_user(cli: Cli, tmp_path: Path) -> None:
    notes = tmp_path / "notes.json"
    notes.write_text('{"mine": 1}')
    for more in ((), ("--overwrite",)):
        said = cli("erase", "micro", "-c", "dog", "--method", "uce", "-o", tmp_path / "notes", *more)
        assert said.code == 1
        assert "notes.json" in said.err
    assert notes.read_text() == '{"mine": 1}'
    assert not (tmp_path / "notes").exists()


@pytest.mark.parametrize("strength", ["1e38", "inf", "nan", "-inf"])
def test_a_strength_is_a_number_within_bounds(strength: str, cli: Cli, tiny: efface.Model, tmp_path: Path) -> None:
    patch = efface.erase(tiny, ["dog"], ["cat"], method="uce").save(tmp_path / "p.safetensors")
    said = cli("apply", tiny.folder, patch, f"--strength={strength}", "-o", tmp_path / "out")
    assert said.code == 2
    assert "strength" in said.err
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadRequest):
        Patch.load(patch).scaled(float(strength))


def test_a_weight_that_overflows_is_refused_with_site_and_strength(
    cli: Cli, tiny: efface.Model, tiny_half: Path, tmp_path: Path
) -> None:
    site = tiny.card.select("cross.v")[0].name
    change = Dense(site, torch.full(tuple(tiny.card.site(site).shape), 1e6))
    Patch((change,), {}, tiny.fingerprint([site])).save(tmp_path / "p.safetensors")
    said = cli("apply", tiny_half, tmp_path / "p.safetensors", "-o", tmp_path / "out")
    assert said.code == 1
    assert site in said.err
    assert "strength 1" in said.err
    assert sorted(f.name for f in tmp_path.iterdir() if f.name != "cache") == ["p.safetensors"]
    half = efface.load(tiny_half, "cpu", "float16")
    with pytest.raises(WrongFile, match="NaN or infinity"), Patch.load(tmp_path / "p.safetensors").applied(half):
        pass
    assert not half.in_force


def test_generate_draws_torn_pictures_of_the_cache_again(cli: Cli, cache: Path, tmp_path: Path) -> None:
    command = ("generate", "micro", "--prompt", "a dog", "--seeds", "0-1", "--steps", 1, "--quiet")
    assert cli(*command, "-o", tmp_path / "one").code == 0
    whole = {f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()}
    first, second = sorted((cache / "images").rglob("*.png"))
    first.write_bytes(first.read_bytes()[:100])
    second.write_bytes(b"")
    assert cli(*command, "-o", tmp_path / "two").code == 0
    assert {f.name: f.read_bytes() for f in (tmp_path / "two").iterdir()} == whole


def test_a_picture_that_unfolds_into_gigabytes_is_damaged(tmp_path: Path) -> None:
    from PIL import Image

    images = Images(tmp_path)
    images.path("a" * 32).parent.mkdir()
    Image.new("L", (20_000, 20_000)).save(images.path("a" * 32))
    assert not images.whole("a" * 32)
    with pytest.raises(WrongFile, match="damaged"):
        images.get("a" * 32)
    images.put("b" * 32, np.zeros((4, 4, 3), np.uint8))
    assert images.whole("b" * 32)


def test_without_a_home_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("EFFACE_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(WrongFile, match="EFFACE_CACHE"):
        cache_folder()


def test_a_terminal_gets_no_control_character(cli: Cli, tmp_path: Path) -> None:
    said = cli("inspect", tmp_path / "\x1b[2J\x9bx\u202e")
    assert said.code == 1
    assert "\\x1b[2J\\x9bx\\u202e" in said.err
    assert not set("\x1b\x9b\u202e") & set(said.err)


def test_output_that_is_not_utf8_is_escaped(tmp_path: Path) -> None:
    code = "from efface.cli import main; main(['list', 'caf\\u00e9-\\udce9'])"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "EFFACE_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "caf\\xe9" in done.stderr


BOMBS = {
    "scheduler/scheduler_config.json": {"num_train_timesteps": 10**9},
    "unet/config.json": {"layers_per_block": 5000},
    "text_encoder/config.json": {"num_hidden_layers": 100_000},
    "vae/config.json": {"block_out_channels": [10**9]},
    "efface.json": {"steps": 10**9},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_configuration_is_bounded_before_a_network_is_built(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | BOMBS[name]))
    with pytest.raises(WrongFile, match="expected at most") as refused:
        efface.load(tmp_path / "model", "cpu")
    assert str(file) in str(refused.value)


def test_a_patch_without_its_fingerprint_or_with_another_is_damaged(tiny: efface.Model, tmp_path: Path) -> None:
    patch = efface.erase(tiny, ["dog"], ["cat"], method="uce")
    parts = patch.base["parts"]
    first = next(iter(patch.sites))
    for base, words in (
        ({"name": "tiny", "parts": {}}, "its fingerprint lacks"),
        ({"name": "tiny", "parts": {k: v for k, v in parts.items() if k != first}}, "its fingerprint lacks"),
        ({"name": "tiny", "parts": parts | {"conv_in": "0"}}, "does not fit its edits"),
    ):
        Patch(patch.edits, patch.recipe, base).save(tmp_path / "p.safetensors")
        with pytest.raises(WrongFile, match=words):
            Patch.load(tmp_path / "p.safetensors")
