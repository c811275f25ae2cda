"""Evidence: running sums equal direct computation, and nothing is drawn twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import efface
from conftest import Cli, all_bits
from efface.errors import BadRequest, Cancelled
from efface.evidence import gather as evidences
from efface.evidence.gather import Evidence, gather
from efface.evidence.needs import Needs, PromptGroup, State, Statistics
from efface.model import Model
from efface.model.card import Site
from efface.model.sampler import BATCH
from efface.work import Work

N = BATCH + 2  # more than one batch
GROUP = PromptGroup("plain", ("a dog", "a cat") * (N // 2), tuple(range(N)))
SMALL = PromptGroup("small", ("a house",), (3,))


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of a site's inputs by channel, conditional and unconditional rows together."""

    def start(self, site: Site) -> State:
        width = site.shape[1]
        return {
            "count": torch.zeros((), dtype=torch.float64),
            **{k: torch.zeros(width, dtype=torch.float64) for k in ("sum", "squares")},
        }

    def add(
        self,
        state: State,
        step: int,
        prompt_ids: Sequence[int],
        roles: Sequence[str],
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        earlier: State | None = None,
    ) -> State:
        flat = inputs.reshape(-1, inputs.shape[-1]).double()  # (rows, d)
        return {
            "count": state["count"] + len(flat),
            "sum": state["sum"] + flat.sum(0).cpu(),
            "squares": state["squares"] + flat.square().sum(0).cpu(),
        }

    def merge(self, a: State, b: State) -> State:
        return {k: a[k] + b[k] for k in a}

    def finish_step(self, step: int, state: State) -> State:
        return state


def needs(model: Model, *steps: int, groups: Sequence[PromptGroup] = (GROUP,), **more: object) -> Needs:
    sites = (model.card.select("cross.k")[0].name, model.card.select("ff.in")[0].name)
    statistics = Statistics(Moments(), sites, tuple(g.name for g in groups), steps)
    return Needs(prompts=tuple(groups), statistics=(statistics,), steps=2, guidance=3.0, **more)  # pyright: ignore


@contextmanager
def counted(model: Model) -> Iterator[list[int]]:
    """Rows of every call of the denoiser."""
    calls: list[int] = []
    handle = model.part("unet").register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    yield calls
    handle.remove()


def test_moments_equal_what_hooks_see(tiny: Model, cache: Path) -> None:
    before, wants = all_bits(tiny), needs(tiny, 0, 1)
    evidence = gather(tiny, wants, Work())
    assert all_bits(tiny) == before
    for site in wants.statistics[0].sites:
        seen: list[torch.Tensor] = []
        handle = (
            tiny.part("unet")
            .get_submodule(site)
            .register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0].double().flatten(0, -2)))
        )
        tiny.sample(GROUP.prompts, GROUP.seeds, steps=2, guidance=3.0)
        handle.remove()
        assert len(seen) == 4  # two batches, two steps
        for step in (0, 1):
            rows = torch.cat([seen[step], seen[2 + step]])
            state = evidence.state(wants.statistics[0], "plain", site, step)
            assert int(state["count"]) == len(rows)
            torch.testing.assert_close(state["sum"], rows.sum(0), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(state["squares"], rows.square().sum(0), rtol=1e-9, atol=1e-9)
    assert len(list(cache.rglob("*.safetensors"))) == 4
    assert not list(cache.rglob("*.partial"))


def test_what_is_in_the_cache_is_not_drawn_again_and_only_the_missing_is(tiny: Model) -> None:
    gather(tiny, needs(tiny, 0), Work())
    with counted(tiny) as calls:
        gather(tiny, needs(tiny, 0), Work())
        assert calls == []
        gather(tiny, needs(tiny, 0, 1), Work())
        assert sum(calls) == 2 * 2 * N  # two steps, two rows an image


@pytest.mark.parametrize("change", ["prompts", "seeds", "steps", "guidance", "patch", "reducer", "efface", "torch"])
def test_whatever_can_change_the_sums_is_in_their_key(
    change: str, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    wants = needs(tiny, 0, groups=(SMALL,))
    gather(tiny, wants, Work())
    group = {"prompts": replace(SMALL, prompts=("a cat",)), "seeds": replace(SMALL, seeds=(4,))}.get(change, SMALL)
    reducer = Counting() if change == "reducer" else Moments()
    other = replace(
        wants,
        prompts=(group,),
        statistics=(replace(wants.statistics[0], reducer=reducer),),
        steps=3 if change == "steps" else 2,
        guidance=5.0 if change == "guidance" else 3.0,
    )
    patch = efface.erase(tiny, "dog")
    if change in ("efface", "torch"):
        place = "efface.evidence.gather.VERSION" if change == "efface" else "torch.__version__"
        monkeypatch.setattr(place, "another")
    with counted(tiny) as calls:
        if change == "patch":
            with patch.applied(tiny):
                gather(tiny, other, Work())
        else:
            gather(tiny, other, Work())
    assert calls


def test_the_device_and_the_group_that_is_read_are_in_the_key(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(evidences, "key_of", lambda **parts: asked.update(parts) or "key")
    gather(tiny, needs(tiny, 0, groups=(SMALL,)), Work())
    assert asked["device"] == "cpu"
    statistics = needs(tiny, 0).statistics[0]
    assert replace(statistics, reads="small").name != statistics.name


def test_two_that_want_the_same_statistics_draw_them_once(tiny_folder: Path, cache: Path) -> None:
    """The second waits for the first and finds them made; alone it would write into the same partial sums."""
    one, two = (efface.load(tiny_folder, "cpu") for _ in range(2))
    begun = threading.Event()
    one.part("unet").register_forward_hook(lambda *_: begun.set())
    with counted(one) as first, counted(two) as second, ThreadPoolExecutor(2) as pool:
        early = pool.submit(gather, one, needs(one, 0, 1), Work())
        assert begun.wait(60)
        late = pool.submit(gather, two, needs(two, 0, 1), Work())
        assert late.result().files == early.result().files
        assert sum(first) == 2 * 2 * N
        assert second == []
    alone = gather(one, needs(one, 0, 1), Work(), cache / "alone")
    for key, file in alone.files.items():
        assert file.read_bytes() == early.result().files[key].read_bytes()


def test_a_torn_file_is_made_again(tiny: Model) -> None:
    wants = needs(tiny, 0)
    files = gather(tiny, wants, Work()).files
    first, second = files.values()
    before = first.read_bytes()
    first.write_bytes(before[: len(before) // 2])
    kept = second.stat().st_mtime_ns
    found = gather(tiny, wants, Work())
    assert first.read_bytes() == before
    assert second.stat().st_mtime_ns == kept
    assert all(found.state(wants.statistics[0], *key[1:]) for key in files)


def test_gc_deletes_partial_sums_that_no_process_holds_and_old_statistics_when_asked(tiny: Model, cli: Cli) -> None:
    place = next(iter(gather(tiny, needs(tiny, 0), Work()).files.values())).parent
    partial = place / "0000-site.partial"
    partial.write_bytes(b"of a process that was killed")
    whole = sorted(place.glob("*.safetensors"))
    with FileLock(place / ".lock"):
        assert cli("gc", "--days", "0", "--json").json()["files"] == []
    assert cli("gc", "--dry-run", "--json").json()["files"] == [str(partial)]
    assert partial.exists()
    assert cli("gc", "--json").json()["files"] == [str(partial)]
    assert not partial.exists()
    assert cli("gc", "--days", "1", "--json").json()["files"] == []
    assert cli("gc", "--days", "0", "--json").json()["files"] == [str(f) for f in whole]


@dataclass(frozen=True)
class Counting:
    """A throw-away reducer: rows of the prompts' own, and what the earlier group counted."""

    def start(self, site: Site) -> State:
        return {"cond": torch.zeros(()), "earlier": torch.zeros(()), "ids": torch.zeros(64)}

    def add(
        self,
        state: State,
        step: int,
        prompt_ids: Sequence[int],
        roles: Sequence[str],
        inputs: torch.Tensor,
        outputs: torch.Tensor,
        earlier: State | None = None,
    ) -> State:
        ids = state["ids"].clone()
        for i, role in zip(prompt_ids, roles, strict=True):
            ids[i] += role == "cond"
        assert len(roles) == len(inputs) == len(outputs)
        seen = torch.tensor(0.0) if earlier is None else earlier["cond"]
        return {"cond": state["cond"] + roles.count("cond"), "earlier": seen, "ids": ids}

    def merge(self, a: State, b: State) -> State:
        return {"cond": a["cond"] + b["cond"], "earlier": b["earlier"], "ids": a["ids"] + b["ids"]}

    def finish_step(self, step: int, state: State) -> State:
        return state | {"step": torch.tensor(step)}


def _reading(model: Model, order: tuple[str, str]) -> tuple[Needs, Statistics]:
    site = model.card.select("cross.v")[0].name
    first, second = (Statistics(Counting(), (site,), (name,), (1,)) for name in order)
    second = replace(second, reads="small")
    return Needs(prompts=(GROUP, SMALL), statistics=(first, second), steps=2), second


def test_a_group_reads_the_finished_state_of_an_earlier_one(tiny: Model) -> None:
    wants, second = _reading(tiny, ("small", "plain"))
    evidence = gather(tiny, wants, Work())
    state = evidence.state(second, "plain", second.sites[0], 1)
    assert {k: int(state[k]) for k in ("cond", "earlier", "step")} == {"cond": N, "earlier": 1, "step": 1}
    assert state["ids"].tolist() == [1.0] * N + [0.0] * (64 - N)  # every prompt once, by its place in the group


def test_a_group_cannot_read_a_later_one(tiny: Model) -> None:
    wants, second = _reading(tiny, ("plain", "plain"))
    with pytest.raises(BadRequest, match="'small'"):
        gather(tiny, replace(wants, statistics=(second,)), Work())


def test_cancelled_in_the_middle_it_leaves_nothing_half_written_and_goes_on(tiny: Model, cache: Path) -> None:
    work = Work()
    with counted(tiny) as calls:
        handle = tiny.part("unet").register_forward_hook(lambda *_: work.cancel() if len(calls) == 3 else None)
        with pytest.raises(Cancelled):
            gather(tiny, needs(tiny, 0, 1), work)
        handle.remove()
    assert [f.name for f in cache.rglob("*") if f.is_file()] == [".lock"]  # stays, so that all hold the same one
    resumed = gather(tiny, needs(tiny, 0, 1), Work())
    other = gather(tiny, needs(tiny, 0, 1), Work(), cache / "other")
    for key, file in resumed.files.items():
        assert file.read_bytes() == other.files[key].read_bytes()


def test_texts_are_encoded_as_the_pipeline_encodes_them(tiny: Model) -> None:
    texts = ("", "a dog", "a cat in noto style", "a dog")
    evidence = gather(tiny, Needs(texts=texts), Work())
    pipe = tiny.pipeline()
    wanted = pipe.encode_prompt(list(texts), "cpu", 1, False)[0]
    for text, rows in zip(texts, wanted, strict=True):
        torch.testing.assert_close(evidence.text(text).main.rows, rows, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadRequest, match="'a fox'"):
        evidence.text("a fox")


def test_content_rows_are_the_first_rows_of_the_whole_window(tiny: Model) -> None:
    """1.P-1, 2.P-9. The encoder is causal: nothing behind the last content token can change it."""
    for short, whole in zip(
        tiny.encode(["a dog", "a red house"], whole=False), tiny.encode(["a dog", "a red house"]), strict=True
    ):
        assert len(short.main.rows) == short.main.spans.last + 1
        torch.testing.assert_close(short.main.rows, whole.main.rows[: len(short.main.rows)], rtol=1e-5, atol=1e-6)


def test_a_group_needs_one_seed_a_prompt_and_a_known_name() -> None:
    with pytest.raises(BadRequest, match="2 and 1"):
        PromptGroup("g", ("a", "b"), (1,))
    with pytest.raises(BadRequest, match="'other'"):
        Needs(prompts=(SMALL,)).group("other")
    assert isinstance(Evidence().texts, dict)
