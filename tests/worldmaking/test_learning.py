"""The loop that every part learns in: killed, stopped and continued runs end with the same weights."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import BadRequest, Cancelled, WrongFile
from efface.work import Work
from efface.worldmaking import sittings as learning
from efface.worldmaking.sittings import EMA_FILE, RESULT, Go, Phase, learn, read


def small(killed_at: int | None = None) -> tuple[torch.nn.Module, Callable[[int], torch.Tensor], Any]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def batch(step: int) -> torch.Tensor:
        if step == killed_at:
            raise KeyboardInterrupt
        return torch.randn(5, 3, generator=torch.Generator().manual_seed(step))

    return net, batch, lambda x: (net(x) - x[:, :1]).square().mean()


PHASE = Phase(12, 5, 1e-2, ema=0.8)


def run(home: Path, killed_at: int | None = None, **how: Any) -> dict[str, torch.Tensor]:
    net, batch, loss = small(killed_at)
    learn(net, PHASE, batch, loss, home, how.pop("go", Go(Work())), label="small", **how)
    return {k: v.clone() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, step: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", killed_at=step, save_seconds=0.0)
    again = run(tmp_path / "killed")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    first, second = read(tmp_path / "whole" / RESULT)[0], read(tmp_path / "killed" / RESULT)[0]
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_stop_without_any_save_starts_again_and_ends_the_same(tmp_path: Path) -> None:
    net, batch, loss = small()

    def failing(step: int) -> torch.Tensor:
        if step == 7:
            raise MemoryError  # nothing is saved on the way out, as after a kill -9
        return batch(step)

    with pytest.raises(MemoryError):
        learn(net, PHASE, failing, loss, tmp_path / "a", Go(Work()), label="small")
    assert not (tmp_path / "a" / "state.safetensors").exists()
    again, whole = run(tmp_path / "a"), run(tmp_path / "b")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_sittings_end_in_time_and_join_up(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    over = Go(Work(), minutes=1)
    over.begun -= 3600
    net, batch, loss = small()
    assert not learn(net, PHASE, batch, loss, tmp_path / "parts", over, label="small")
    assert learning.progress_of(tmp_path / "parts")["step"] < PHASE.steps
    again = run(tmp_path / "parts")
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_weights_of_the_running_mean_are_enough_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "here", killed_at=6, save_seconds=0.0)
    (tmp_path / "there").mkdir()
    shutil.copy(tmp_path / "here" / EMA_FILE, tmp_path / "there")
    net, batch, loss = small()
    assert learn(net, PHASE, batch, loss, tmp_path / "there", Go(Work()), label="small")
    facts = learning.progress_of(tmp_path / "there")
    assert facts["step"] == PHASE.steps
    assert facts["since"] == 6


def test_what_was_begun_on_another_device_goes_on_at_the_same_share(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed_at=6, save_seconds=0.0)
    net, batch, loss = small()
    other = Phase(4, 5, 1e-2, ema=0.8)
    assert learn(net, other, batch, loss, tmp_path, Go(Work()), label="small")
    assert learning.progress_of(tmp_path)["since"] == 2
    assert Phase(100, 32, 1e-3).on("cuda") == Phase(25, 256, 1.5e-3)
    assert Phase(100, 32, 1e-3).on("cpu") == Phase(100, 32, 1e-3)


def test_a_stop_by_the_user_is_saved(tmp_path: Path) -> None:
    work = Work()
    net, batch, loss = small()

    def stopping(step: int) -> torch.Tensor:
        if step == 4:
            work.cancel()
        return batch(step)

    with pytest.raises(Cancelled):
        learn(net, PHASE, stopping, loss, tmp_path, Go(work), label="small")
    assert 0 < learning.progress_of(tmp_path)["step"] < PHASE.steps
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_full_disk_is_one_sentence_and_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed_at=3, save_seconds=0.0)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(self: Work, state: dict[str, torch.Tensor]) -> None:
        (tmp_path / ".state.safetensors.1.tmp").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Work, "save", full)
    with pytest.raises(WrongFile, match="No space left"):
        run(tmp_path, save_seconds=0.0)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_rate_warms_up_falls_and_warms_up_again_without_memory() -> None:
    phase = Phase(1000, 1, 1e-3)
    rates = [phase.rate_at(k) for k in range(1000)]
    assert rates[0] < 1e-4
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5, rel=0.05)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert phase.rate_at(500, since=500) < 0.05 * phase.rate_at(500)
    assert phase.rate_at(600, since=500) == phase.rate_at(600)


def test_minutes_are_bounded() -> None:
    with pytest.raises(BadRequest, match="150"):
        Go(Work(), minutes=151)
