"""The command line: bad input in at most two lines and nothing half-written, one JSON object, Ctrl-C, help."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

import efface
from conftest import Cli, Said
from efface import registry
from efface.erasure import state_folder
from efface.model import Model
from tiny_families import make_pipe

COMMANDS = (
    "demo", "erase", "apply", "generate", "audit", "report", "compare", "status", "gc", "inspect", "list", "world",
)  # fmt: skip
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def copied(folder: Path, into: Path) -> Path:
    shutil.copytree(folder, into)
    return into


def _missing_part(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()


def _truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _nan(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name in tensors:
        if "attn2.to_" in name:
            tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def _other_class(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')


MODELS: dict[str, Callable[[Path], object]] = {
    "missing": shutil.rmtree,
    "no-index": lambda f: (f / "model_index.json").unlink(),
    "torn-index": _index,
    "no-config": _missing_part,
    "other-class": _other_class,
    "truncated": _truncated,
    "pickled": _pickle,
    "no-weights": _no_weights,
    "nan": _nan,
}


@pytest.fixture
def place(tiny_folder: Path, tmp_path: Path) -> Callable[[str], str]:
    """`@NAME` in an argument -> a file or folder made for it; the output folder is `tmp_path / "out"`."""
    (tmp_path / "out").mkdir()
    made = tmp_path / "in"
    made.mkdir()

    def patch(change: Callable[[bytes], bytes] = lambda d: d, model: Any = tiny_folder) -> Path:
        file = made / "p.safetensors"
        file.write_bytes(change(efface.erase(model, ["dog"]).to_bytes()))
        return file

    def text(name: str, content: bytes) -> Path:
        (made / name).write_bytes(content)
        return made / name

    files: dict[str, Callable[[], Path]] = {
        "tiny": lambda: tiny_folder,
        "out": lambda: tmp_path / "out",
        "in": lambda: made,
        "patch": patch,
        "other-patch": lambda: patch(model="mini"),
        "lying": lambda: patch(lambda d: (2**40).to_bytes(8, "little") + d[8:]),
        "cut": lambda: patch(lambda d: d[: len(d) // 2]),
        "json": lambda: text("c.json", b"{"),
        "picture": lambda: text("c.txt", b"\x89PNG\x00\xff\xfe"),
        "checkpoint": lambda: text("model.ckpt", b"\x80\x04"),
        "single": lambda: text("model.safetensors", b"12345678"),
    }

    def find(argument: str) -> str:
        for name in sorted((*files, *MODELS), key=len, reverse=True):
            if f"@{name}" not in argument:
                continue
            if name in files:
                return argument.replace(f"@{name}", str(files[name]()))
            folder = copied(tiny_folder, made / "model")
            MODELS[name](folder)
            return argument.replace(f"@{name}", str(folder))
        return argument

    return find


ERASE = "erase @tiny -o @out/p.safetensors"
# name -> (command, words the message has to hold, exit code)
BAD: dict[str, tuple[str, str, int]] = {
    "unknown command": ("eraze mini", "eraze", 2),
    "unknown option": (f"{ERASE} -c dog --kep cat", "--kep", 2),
    "missing argument": ("erase", "MODEL", 2),
    "missing value": (f"{ERASE} -c", "-c", 2),
    "a number that is none": (f"{ERASE} -c dog --seed many", "--seed", 2),
    "unknown method": (f"{ERASE} -c dog --method scaprey", "'scapre'", 2),
    "unknown setting": (f"{ERASE} -c dog --set lamb=1", "'lam'", 2),
    "setting without value": (f"{ERASE} -c dog --set lam", "key=value", 2),
    "setting of the wrong type": (f"{ERASE} -c dog --set lam=much", "'lam'", 2),
    "setting out of its choices": (f"{ERASE} -c dog --preset code --set mask=on", "'mask'", 2),
    "setting of a group out of its choices": (f"{ERASE} -c dog --preset code --set mask.information=on", "on", 2),
    "setting of another form": (f"{ERASE} -c dog --preset efface --set mask.power=5", "'mask.power'", 2),
    "unknown preset": (f"{ERASE} -c dog --preset wrold", "'world'", 2),
    "unknown kind": (f"{ERASE} -c styl:noto", "'style'", 2),
    "unknown list": ("list method", "'methods'", 2),
    "unknown dtype": ("generate @tiny --prompt dog --steps 1 --dtype float61 -o @out/d", "'float16'", 2),
    "unknown device": ("generate @tiny --prompt dog --steps 1 --device gpu -o @out/d", "'cpu'", 2),
    "absent device": ("generate @tiny --prompt dog --steps 1 --device cuda:99 -o @out/d", "'cuda:99'", 2),
    "erased into a folder": ("erase @tiny -c dog --overwrite -o @out", "is a folder", 1),
    "drawn where nothing can be": ("generate @tiny --prompt dog --steps 1 -o @picture/d", "c.txt", 1),
    "unknown suite": ("audit mini --patch @other-patch --suite world-smok -o @out/run", "'world-smoke'", 2),
    "no concept": (ERASE, "no concept", 2),
    "empty concept": (f"{ERASE} -c =cat", "empty", 2),
    "duplicate concept": (f"{ERASE} -c dog -c Dog", "twice", 2),
    "concept equal to its anchor": (f"{ERASE} -c dog=dog", "anchor", 2),
    "concept kept": (f"{ERASE} -c dog --keep dog", "kept", 2),
    "concept too long": (f"{ERASE} -c {'dog_' * 40}", "tokens", 2),
    "torn concept file": (f"{ERASE} --concepts @json", "c.json", 1),
    "binary concept file": (f"{ERASE} --concepts @picture", "c.txt", 1),
    "missing concept file": (f"{ERASE} --concepts @in/none.toml", "none.toml", 1),
    "binary keep file": (f"{ERASE} -c dog --keep-file @picture", "c.txt", 1),
    "misspelt bundled model": ("erase minni -c dog -o @out/p.safetensors", "'mini'", 1),
    "a checkpoint file": ("erase @checkpoint -c dog -o @out/p.safetensors", "pickle", 1),
    "a single file": ("erase @single -c dog -o @out/p.safetensors", "folder", 1),
    "a hub id without the hub": ("erase nobody/none -c dog --offline -o @out/p.safetensors", "nobody/none", 1),
    **{f"model {n}": (f"erase @{n} -c dog -o @out/p.safetensors", "", 1) for n in MODELS},
    **{f"{n} drawn": (f"generate @{n} --prompt dog --steps 1 -o @out/d", "", 1) for n in MODELS},
    "no prompt": ("generate @tiny -o @out/d", "--prompt", 2),
    "wrong seeds": ("generate @tiny --prompt dog --seeds 1-b -o @out/d", "1-b", 2),
    "backward seeds": ("generate @tiny --prompt dog --seeds 5-3 -o @out/d", "5-3", 2),
    "prompt too long": (f"generate @tiny --prompt {'dog_' * 40} --steps 1 -o @out/d", "tokens", 2),
    "no steps": ("generate @tiny --prompt dog --steps 0 -o @out/d", "steps", 2),
    "patch for another base": ("apply @tiny @other-patch -o @out/m", "'mini'", 1),
    "patch for another base, drawn": ("generate @tiny --patch @other-patch --prompt dog -o @out/d", "'mini'", 1),
    "header lies": ("apply @tiny @lying -o @out/m", "p.safetensors", 1),
    "cut patch": ("apply @tiny @cut -o @out/m", "p.safetensors", 1),
    "missing patch": ("apply @tiny @in/none.safetensors -o @out/m", "none.safetensors", 1),
    "inspect a lying patch": ("inspect @lying", "p.safetensors", 1),
    "audit of nothing": ("audit @tiny -o @out/run", "--patch", 2),
    "audit without a list": ("audit @tiny --patch @patch -o @out/run", "concept list", 2),
    "report of nothing": ("report @in", "report.json", 1),
}  # fmt: skip


def run(cli: Cli, place: Callable[[str], str], command: str) -> Said:
    return cli(*(place(word).replace("_", " ") if word.startswith("dog_") else place(word) for word in command.split()))


def said_last(said: Said) -> list[str]:
    """The lines of the message; the plan may stand before it."""
    lines = said.err.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("efface: ")) :]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_two_lines_and_leaves_nothing(
    name: str, cli: Cli, place: Callable[[str], str], tmp_path: Path
) -> None:
    command, words, code = BAD[name]
    said = run(cli, place, command)
    assert said.code == code, said.err
    message = said_last(said)
    assert 1 <= len(message) <= 2, said.err
    assert words in " ".join(message)
    assert said.out == ""
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "command",
    ["erase @tiny -c dog -o {}", "apply @tiny @patch -o {}", "generate @tiny --prompt dog --steps 1 -o {}",
     "audit mini --patch @other-patch -o {}"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_that_exists_is_refused_and_kept(
    kind: str, command: str, cli: Cli, place: Callable[[str], str], tmp_path: Path
) -> None:
    there = tmp_path / "out" / "there"
    if kind == "folder":
        there.mkdir()
    inside = there / "mine" if kind == "folder" else there
    inside.write_text("mine")
    said = run(cli, place, command.format(there))
    assert said.code == 1
    assert "already exists" in said.err
    assert "--overwrite" in said.err
    assert len(said.err.strip().splitlines()) <= 2
    assert inside.read_text() == "mine"
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["there"]


def test_overwrite_replaces_it(cli: Cli, place: Callable[[str], str], tmp_path: Path) -> None:
    file = tmp_path / "out" / "p.safetensors"
    file.write_text("mine")
    assert run(cli, place, f"{ERASE} -c dog --overwrite").code == 0
    assert efface.Patch.load(file).sites


def test_overwrite_replaces_drawings_and_no_folder_of_the_users(
    cli: Cli, place: Callable[[str], str], tmp_path: Path
) -> None:
    command = "generate @tiny --prompt dog --steps 1 --overwrite -o @out/d"
    assert run(cli, place, command).code == run(cli, place, f"{command} --seeds 1").code == 0
    assert [f.name for f in (tmp_path / "out" / "d").iterdir()] == ["0000-1.png"]
    (tmp_path / "out" / "d" / "holiday.png").write_text("mine")
    drawn = len(list((tmp_path / "cache").rglob("*.png")))
    said = run(cli, place, f"{command} --seeds 2")
    assert said.code == 1
    assert "not made by this command" in said.err
    assert len(list((tmp_path / "cache").rglob("*.png"))) == drawn  # refused before anything is drawn
    assert {f.name for f in (tmp_path / "out" / "d").iterdir()} == {"0000-1.png", "holiday.png"}


@pytest.mark.parametrize("command", ["generate @tiny --prompt dog --steps 1", "apply @tiny @patch"])
def test_the_folder_one_stands_in_is_not_replaced(
    command: str, cli: Cli, place: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "out")
    for more in ("", " --overwrite"):
        said = run(cli, place, f"{command}{more} -o .")
        assert said.code == 2
        assert "no name for a new folder" in said.err
    assert list((tmp_path / "out").iterdir()) == []


def test_what_the_system_refuses_is_one_sentence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface import world

    def locked() -> None:
        raise PermissionError(13, "Permission denied", "some/place")

    monkeypatch.setattr(world, "models", locked)
    said = cli("list", "models")
    assert said.code == 1
    assert said.err.startswith("efface: some/place: Permission denied")
    assert len(said.err.splitlines()) == 1


# --- what commands say -----------------------------------------------------------------------------------------------


def test_json_is_one_object_on_stdout_and_nothing_else(cli: Cli, place: Callable[[str], str], tmp_path: Path) -> None:
    for command, keys in {
        f"{ERASE} -c dog --json": {"patch", "hash", "bytes", "sites", "warnings"},
        "inspect @patch --json": {"method", "settings", "edits", "base", "concepts"},
        "inspect @tiny --json": {"model", "family", "sites", "streams"},
        "apply @tiny @patch -o @out/m --json": {"folder", "sites"},
        "generate @tiny --prompt dog --seeds 0,5 --steps 1 -o @out/d --json": {"folder", "images"},
        "list methods --json": {"methods"},
        "list suites --json": {"suites"},
        "list models --json": {"models"},
        "list families --json": {"families"},
        "list concepts --json": {"concepts"},
        "erase @tiny -c dog --dry-run --json -o @out/none": {"plan", "warnings"},
    }.items():
        said = run(cli, place, command)
        assert said.code == 0, said.err
        assert isinstance(said.json(), dict)
        assert keys <= set(said.json()), command
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"p.safetensors", "p.safetensors.json", "m", "d"}
    assert sorted(f.name for f in (tmp_path / "out" / "d").iterdir()) == ["0000-0.png", "0000-5.png"]


def test_the_concepts_of_mini_are_listed_with_exactly_these_keys_under_the_names_of_the_world(cli: Cli) -> None:
    from efface import world

    rows = cli("list", "concepts", "--json").json()["concepts"]
    assert all(set(r) == {"name", "kind", "category", "half", "base_rate", "n", "qualified"} for r in rows)
    drawn = {o.name for o in world.judged()}
    assert {r["name"] for r in rows if r["kind"] == "object"} == drawn
    assert {r["name"] for r in rows if r["kind"] == "style"} == set(world.styles())
    for r in rows:
        assert not r["qualified"] or (r["base_rate"] >= 0.8 and r["n"] >= 24)


def test_generate_draws_what_python_draws_and_patches_act_in_order(
    cli: Cli, place: Callable[[str], str], tmp_path: Path, tiny_folder: Path
) -> None:
    import numpy as np
    from PIL import Image

    said = run(cli, place, "generate @tiny --patch @patch --prompt dog --seeds 2-3 --steps 2 -o @out/d")
    assert said.code == 0, said.err
    model = efface.load(tiny_folder)
    with efface.erase(tiny_folder, ["dog"]).applied(model):
        wanted = model.generate("dog", seeds=[2, 3], steps=2)
    for seed, image in zip((2, 3), wanted, strict=True):
        found = Image.open(tmp_path / "out" / "d" / f"0000-{seed}.png")
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(image).astype(int))
        assert difference.max() <= 1  # the command draws with one thread, Python with the caller's


def test_strength_zero_applied_is_the_base(
    cli: Cli, place: Callable[[str], str], tmp_path: Path, tiny_folder: Path
) -> None:
    assert run(cli, place, "apply @tiny @patch --strength 0 -o @out/m").code == 0
    assert (tmp_path / "out" / "m" / WEIGHTS).read_bytes() == (tiny_folder / WEIGHTS).read_bytes()


def test_version_is_printed(cli: Cli) -> None:
    assert cli("--version").out.strip() == efface.__version__


@pytest.mark.parametrize("command", ["", *COMMANDS, "world build", "world train", "world train judge"])
def test_every_command_has_help(command: str, cli: Cli) -> None:
    said = cli(*command.split(), "--help")
    assert said.code == 0
    assert "Usage" in said.out
    assert command or all(c in said.out for c in COMMANDS)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_while_drawing_ends_with_130_and_the_same_command_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "out" / "d", tmp_path / "cache"
    command = [sys.executable, "-c", "from efface.cli import main; main()", "generate", str(tiny_folder),
               "--prompt", "a dog", "--seeds", "0-47", "--steps", "15", "-o", str(out)]  # fmt: skip
    env = {**os.environ, "EFFACE_CACHE": str(cache)}
    started = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not list(cache.rglob("*.png")):
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    said = started.communicate(timeout=240)
    assert started.returncode == 130, said
    assert said[1].splitlines()[-1].startswith("efface: "), said[1]
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    assert not list(cache.rglob("*.tmp"))
    kept = {f: f.stat().st_mtime_ns for f in cache.rglob("*.png")}
    assert 0 < len(kept) < 48
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stderr
    assert len(list(out.iterdir())) == 48
    assert {f: f.stat().st_mtime_ns for f in kept} == kept


def test_ctrl_c_in_an_erase_leaves_no_patch(cli: Cli, place: Callable[[str], str], tmp_path: Path) -> None:
    """The signal arrives while a site is solved."""
    default = type(registry.presets_of(registry.find("methods", "scapre"))["efface"])
    solve = default.solve

    def interrupted(self: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return solve(self, *args)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(default, "solve", interrupted)
        said = run(cli, place, f"{ERASE} -c dog")
    assert said.code == 130
    assert list((tmp_path / "out").iterdir()) == []
    assert run(cli, place, f"{ERASE} -c dog").code == 0


@pytest.mark.slow
def test_a_killed_erase_goes_on_from_its_last_checkpoint_to_the_same_bytes(
    cli: Cli, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.7-17 on the command line: SIGKILL after the first saved state, then the same command."""
    from efface.training import loop as train

    made: list[int] = []
    update = train._update
    monkeypatch.setattr(train, "_update", lambda *a: made.append(a[3]) or update(*a))
    command = ["erase", str(tiny_folder), "-c", "object:dog", "--method", "kscu", "--set", "updates=45", "--quiet",
               "--threads", "1", "-o"]  # fmt: skip
    out, states = tmp_path / "killed.safetensors", tmp_path / "cache" / "erase"
    words = [sys.executable, "-c", "from efface.cli import main; main()", *command, str(out)]
    started, deadline = subprocess.Popen(words), time.monotonic() + 240
    while not list(states.glob("*/state.safetensors")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    assert not out.exists()
    (kept,) = states.glob("*/state.safetensors")
    assert int(load_file(kept)["done"][0]) == 25
    threads = torch.get_num_threads()
    try:
        assert cli(*command, out).code == 0
        assert made == [*range(25, 45)]
        assert list(states.iterdir()) == []
        assert cli(*command, tmp_path / "whole.safetensors").code == 0
    finally:
        torch.set_num_threads(threads)
    assert made[20:] == [*range(45)]
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_saved_state_belongs_to_one_request_method_setting_seed_base_and_precision(tiny: Model) -> None:
    def place(
        concept: str = "object:dog", seed: int = 0, model: Model = tiny, method: str = "kscu", **more: Any
    ) -> Any:
        return state_folder(efface.plan(model, [concept], method=method, seed=seed, **more))

    other = efface.load(make_pipe(1))
    found = [place(), place("object:cat"), place(seed=1), place(model=other), place(updates="45"),
             place(model=efface.load(make_pipe(dtype=torch.bfloat16))), place(keep=["cat"]),
             place("object:dog=cat")]  # fmt: skip
    assert len(set(found)) == len(found)
    assert place() == found[0]
    assert place(method="scapre") is None  # solved in one go


def test_two_processes_do_not_train_the_same_patch(cli: Cli, tiny_folder: Path, tmp_path: Path) -> None:
    """They would write one saved state."""
    command = ["erase", tiny_folder, "-c", "object:dog", "--method", "kscu", "--device", "cpu", "-o", tmp_path / "p"]
    folder = state_folder(efface.plan(efface.load(tiny_folder, "cpu"), ["object:dog"], method="kscu"))
    assert folder is not None
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        said = cli(*command)
    assert said.code == 1
    assert "another process is making the same patch" in said.err
    assert not (tmp_path / "p").exists()


def test_importing_the_command_line_is_cheap() -> None:
    """No heavy library before a command runs."""
    code = "import sys, efface.cli; print(json.dumps(sorted(sys.modules)))".replace("sys,", "sys, json,")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "diffusers", "transformers", "numpy", "scipy"}
