"""What the product computed before it was rebuilt: patches, a report, a comparison and records, as plain values.

Four files are compared with what the code makes now: `frozen.json` (one entry a patch) and, of two small audits whose
pictures are painted so that nothing depends on drawing, `report.json`, `compare.json` and `records.jsonl`.

A patch is frozen three times over. `structure`: hashes of what has to be equal anywhere: kinds, sites, shapes, gates,
request, settings and the rest of the recipe. `edits` and `numbers`: a few values of every edit, and the numbers of the
recipe; they are compared with a tolerance, because sums are rounded otherwise on another processor. `exact`: hashes of
every bit, compared with EFFACE_GOLDEN_EXACT=1 alone, which is for one machine, one set of versions and one thread.

    OMP_NUM_THREADS=1 EFFACE_GOLDEN_EXACT=1 python -m pytest tests/golden -m "slow or not slow"
    OMP_NUM_THREADS=1 python tests/golden/frozen.py --write [NAME ...]

The second writes everything anew, or the named entries alone (names of patches, and `runs`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [p for p in (str(HERE.parent), str(HERE.parent / "flow")) if p not in sys.path]

# Everything of the product and of its tests that is used here; below stand only methods and fields of what these give:
# of a patch `header`, `edits`, `recipe`, `base` and `content_hash`, of an edit `tensors`.
import numpy as np  # noqa: E402
import torch  # noqa: E402

from efface import erase, load, registry  # noqa: E402
from efface.audit import audit  # noqa: E402
from efface.cli import main as command  # noqa: E402
from efface.metrics._run import configured  # noqa: E402
from efface.report.gate import load as load_gate  # noqa: E402
from efface.request import Request  # noqa: E402
from tiny_families import make_pipe  # noqa: E402
from tiny_world import categories, make_world, named, paint, pictures, small, zero_patch  # noqa: E402

Json = Any
PATCHES, REPORT, COMPARE, RECORDS = (HERE / f for f in ("frozen.json", "report.json", "compare.json", "records.jsonl"))
RTOL = 1e-4  # of values of an edit
# Adam divides a gradient by its own size, so the rounding of a small one becomes a part of a step: the norm of what
# was trained stays as close, sum and single values do not.
TRAINED = {"kscu": 1e-2}
NUMBERS_RTOL, NUMBERS_ATOL = 1e-3, 1e-6  # of numbers of a recipe: conditions, shares, residuals near nothing
# of numbers of a run: (rtol, atol); records hold what the judge says, rounded to six digits
RUN = {"report": (1e-6, 1e-6), "compare": (1e-6, 1e-6), "records": (2e-5, 2e-5)}
SAMPLES = 8  # values kept of every edit


# --- patches: what is asked ------------------------------------------------------------------------------------------

# method -> presets; after the stroke what a preset says otherwise for a request of that kind alone
PRESETS: dict[str, tuple[str, ...]] = {
    "uce": ("code", "code/style", "paper", "efface", "world"),
    "scapre": ("code", "code/sensitive", "code-similar", "roll-back", "roll-back/style", "roll-back-similar", "paper",
               "efface", "world"),
    "fia": ("efface", "efface/style", "efface/person", "paper", "paper/object", "paper/style", "code", "code/object",
            "code/style", "world", "world/style"),
    "kscu": ("code", "code/style", "code/person", "code-2025", "code-2025/style", "code-2025/person", "paper",
             "paper/style", "paper/person", "efface", "efface/style", "efface/person", "world", "world/style"),
}  # fmt: skip
# How much a method trains or draws is cut, everything else is the preset's.
BUDGETS: dict[str, dict[str, int]] = {
    "uce": {},
    "scapre": {},
    "fia": {"prompts": 2, "saliency_steps": 2},
    "kscu": {"updates": 2, "updates_several": 2},
}
# kind -> (concepts, kept texts); "" holds several kinds, so that no preset's own kind applies
REQUESTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": (("dog", "noto style", "person:a king=a man"), ("cat", "a red house")),
    "object": (("dog", "pig=a horse"), ("cat", "a red house")),
    "style": (("noto style", "blob style"), ("cat", "fluent style")),
    "person": (("person:a king=a man",), ("a queen",)),
    "sensitive": (("sensitive:dog",), ("cat",)),
}
COMPLETE = ("a dog in a red house", "two dogs", "a man and a dog")  # the prompts of a sensitive concept
MICRO: tuple[tuple[str, ...], tuple[str, ...]] = (("lion", "noto style"), ("cat", "blob style"))
# The slowest, but for two presets or more of every method.
SLOW = frozenset(
    {f"kscu:{p}" for p in PRESETS["kscu"] if p not in ("code", "efface", "world", "world/style")}
    | {f"fia:{p}" for p in ("efface/style", "efface/person", "paper", "paper/object", "paper/style")}
)


def names() -> list[str]:
    """`METHOD:PRESET` and `METHOD:PRESET/KIND` for the tiny pipeline, `METHOD:world@micro` for the bundled model."""
    return [f"{m}:{p}" for m, presets in PRESETS.items() for p in (*presets, "world@micro")]


def known_presets(method: str) -> set[str]:
    """The presets that a method has now."""
    return set(registry.presets_of(registry.find("methods", method)))


@contextlib.contextmanager
def apart(folder: Path) -> Iterator[None]:
    """A cache of its own, one thread, no warnings of what a model hardly draws."""
    before, threads = os.environ.get("EFFACE_CACHE"), torch.get_num_threads()
    os.environ["EFFACE_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        del os.environ["EFFACE_CACHE"]
        if before is not None:
            os.environ["EFFACE_CACHE"] = before


def patch_of(name: str, folder: Path) -> Any:
    """The patch of this name; `folder` is empty and takes the cache."""
    method, _, rest = name.partition(":")
    preset, _, bundled = rest.partition("@")
    preset, _, kind = preset.partition("/")
    more: dict[str, Any] = dict(BUDGETS[method])
    if kind == "sensitive":
        folder.mkdir(parents=True, exist_ok=True)
        more["prompt_file"] = str(folder / "prompts.txt")
        Path(more["prompt_file"]).write_text("\n".join(COMPLETE) + "\n")
    concepts, keep = MICRO if bundled else REQUESTS[kind]
    with apart(folder):
        model = load(bundled, device="cpu") if bundled else make_pipe()
        return erase(model, concepts, keep, method, preset, **more)


# --- patches: what is kept -------------------------------------------------------------------------------------------


def digest(value: Json) -> str:
    """Of plain values, whatever the order of their names."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def structure(patch: Any) -> dict[str, Json]:
    """What has to be equal on every machine, by part; no value here comes from a float that was computed."""
    header, recipe = patch.header(), dict(patch.recipe)
    shapes = [{n: [str(t.dtype), list(t.shape)] for n, t in e.tensors().items()} for e in patch.edits]
    settings = without_folders(recipe.pop("settings"))
    for varies in ("numbers", "efface"):
        recipe.pop(varies, None)
    return {
        "edits": [row | {"tensors": own} for row, own in zip(header["edits"], shapes, strict=True)],
        "strength": header["strength"],
        "request": recipe.pop("request"),
        "settings": settings,
        "recipe": recipe,
        "base": patch.base | {"parts": sorted(patch.base["parts"])},
    }


def without_folders(settings: Json) -> Json:
    """Settings, at any depth, with the name of a file in place of its path."""
    if not isinstance(settings, dict):
        return settings
    return {k: Path(v).name if k == "prompt_file" else without_folders(v) for k, v in settings.items()}


def acting(row: Mapping[str, Json], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an edit, factors as their product: another basis of the same factors is the same edit."""
    if row["kind"] == "operator":
        return {"left right^T": tensors["left"].double() @ tensors["right"].double().T}
    if row["kind"] == "low-rank":
        return {"up down": tensors["up"].double() @ tensors["down"].double()}
    return dict(tensors)


def summary(tensor: torch.Tensor) -> list[float]:
    """Norm, sum and `SAMPLES` values at even distances."""
    flat = tensor.detach().double().reshape(-1)
    places = np.linspace(0, len(flat) - 1, SAMPLES).round().astype(int)
    values = [float(flat.norm()), float(flat.sum()), *flat[torch.from_numpy(places)].tolist()]
    return [float(f"{v:.7g}") for v in values]


def marks(row: Mapping[str, Json], packed: torch.Tensor) -> list[int]:
    """Of a mask: how many bits are set, and the places of `SAMPLES` of them at even distances."""
    found = np.flatnonzero(np.unpackbits(packed.numpy(), count=math.prod(row["shape"])))
    places = np.linspace(0, len(found) - 1, SAMPLES).round().astype(int) if len(found) else []
    return [len(found), *(int(found[p]) for p in places)]


def frozen(patch: Any) -> dict[str, Json]:
    """What `frozen.json` holds of a patch."""
    edits = []
    for row, edit in zip(patch.header()["edits"], patch.edits, strict=True):
        if row["kind"] == "mask":
            edits.append({"bits": marks(row, edit.tensors()["bits"])})
        else:
            edits.append({n: summary(t) for n, t in acting(row, edit.tensors()).items()})
    numbers = patch.recipe["numbers"]
    return {
        "structure": {part: digest(value) for part, value in structure(patch).items()},
        "exact": {"content": patch.content_hash, "numbers": digest(numbers), "base": digest(patch.base)},
        "numbers": numbers,
        "edits": edits,
    }


def patch_differences(was: Json, patch: Any, exact: bool = False) -> list[str]:
    """What differs from the frozen values, in words; exact: every bit counts."""
    now, parts = frozen(patch), structure(patch)
    found = []
    for part, value in was["exact"].items() if exact else ():
        if now["exact"][part] != value:
            found.append(f"exact {part}: {value} is {now['exact'][part]} now")
    for part, value in was["structure"].items():
        if now["structure"][part] != value:
            found.append(f"structure {part}: it is now {json.dumps(parts[part])[:2000]}")
    masks = any("bits" in e for e in was["edits"])
    number = close(NUMBERS_RTOL, NUMBERS_ATOL, NUMBERS_RTOL if masks else 0.0)
    found += differences(was["numbers"], now["numbers"], number, "numbers")
    if len(was["edits"]) != len(now["edits"]):
        return [*found, f"{len(was['edits'])} edits are {len(now['edits'])} now"]
    for k, (then, new) in enumerate(zip(was["edits"], now["edits"], strict=True)):
        where = f"edit {k} at {', '.join(parts['edits'][k]['sites'][:1])}"
        if set(then) != set(new):
            found.append(f"{where}: tensors {sorted(then)} are {sorted(new)} now")
            continue
        for name, values in then.items():
            row, tensors = parts["edits"][k], patch.edits[k].tensors()
            if name == "bits":
                same = same_mask(values, tensors["bits"], row)
            else:
                single = TRAINED.get(patch.recipe["method"], RTOL)
                same = same_values(values, new[name], acting(row, tensors)[name].numel(), single)
            if not same:
                found.append(f"{where}, {name}: {values} is {new[name]} now")
    return found


def same_values(was: list[float], now: list[float], size: int, single: float) -> bool:
    """The norm within `RTOL`; sum and single values within `single` of themselves or of what is usual in the tensor."""
    norm = was[0]
    usual = [norm, *[norm / math.sqrt(max(size, 1))] * SAMPLES]
    rest = zip(was[1:], now[1:], usual, strict=True)
    return abs(norm - now[0]) <= RTOL * norm and all(abs(a - b) <= single * (abs(a) + u) for a, b, u in rest)


def same_mask(was: list[int], packed: torch.Tensor, row: Mapping[str, Json]) -> bool:
    """The count within 0.1 %, or one bit of a small mask; of the places kept all but one are still set."""
    bits = np.unpackbits(packed.numpy(), count=math.prod(row["shape"]))
    count, *places = was
    if any(p >= len(bits) for p in places):
        return False
    return abs(int(bits.sum()) - count) <= max(1, count / 1000) and sum(not bits[p] for p in places) <= 1


# --- runs: two audits, their comparison ------------------------------------------------------------------------------

SETTINGS = (("targets", 8), ("all_targets", 16), ("synonyms", 0), ("neighbours", 12), ("others", 20))
METRICS = ("accuracy", "garbage", "pairs:measure=psnr")


def clean(item: Any) -> np.ndarray:
    """In place of a target another object, everything else as it was."""
    return pictures()[list(pictures())[-1]] if item.asks[0].role == "target" else named(item)


def rough(item: Any) -> np.ndarray:
    """About half of the targets stay, about half of the neighbours go, some of the others are noise."""
    odd = hashlib.sha256(f"{item.prompt} {item.seed}".encode()).digest()[0]
    if item.asks[0].role in ("target", "neighbour") and odd % 2:
        return pictures()[list(pictures())[-1]]
    if item.asks[0].role == "other" and odd < 64:
        return np.random.default_rng(item.seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return named(item)


def runs(home: Path) -> dict[str, Json]:
    """`report`, `records` (both of the run "rough") and `compare` (of "clean" and "rough"), as they are frozen."""
    with apart(home):
        make_pipe().save_pretrained(home / "tiny")
        model = load(make_world(home / "tiny", home / "world", names=categories()), "cpu")
        request = Request.build(list(pictures())[:2])
        sides: tuple[tuple[str, Callable[[Any], np.ndarray], float], ...] = (
            ("clean", clean, -1.0),
            ("rough", rough, -0.5),
        )
        for name, picture, factor in sides:
            patch = zero_patch(model, factor, name)
            asked = small(model, patch, suite="world-standard", request=request, settings=SETTINGS)
            audit(paint(asked, picture), home / name, gate=load_gate("default"), metrics=configured(METRICS))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            command(["compare", str(home / "clean"), str(home / "rough"), "-o", str(home / "compare")])
    rows = [json.loads(line) for line in (home / "rough" / "records.jsonl").read_text().splitlines()]
    called = {row["image"]: "{side}: {prompt} #{seed}".format(**row) for row in rows if "image" in row}
    assert len(set(called.values())) == len(called)
    records = [normalised(row, called) for row in rows]  # the head of the file among them
    return {
        "report": normalised(json.loads((home / "rough" / "report.json").read_text()), called),
        "records": sorted(records, key=lambda r: (r.get("side", ""), r.get("prompt"), r.get("seed"))),
        "compare": normalised(json.loads((home / "compare" / "compare.json").read_text()), called),
    }


VARIES = "varies"
# What differs from run to run, between machines or between versions of others' code, by the name it stands under.
VARYING = frozenset(
    {"environment", "hashes", "key", "sum", "judge_version", "version", "garbage detector", "patch", "efface"}
)


def normalised(value: Json, called: Mapping[str, str], name: str = "") -> Json:
    """A report, a comparison or a record without what varies: seconds, versions, paths, hashes of weights.

    called: what to write in place of the key of an image, which is a hash of weights and versions. A suite's own
    version is kept, and so are its hash and those of painted pixels.
    """
    if name.startswith("seconds") or (name in VARYING and value):
        return VARIES
    if isinstance(value, dict):
        suite = "hash" in value and "prompts" in value  # the entry of a suite
        return {k: v if suite and k == "version" else normalised(v, called, k) for k, v in value.items()}
    if isinstance(value, list):
        return [normalised(v, called) for v in value]
    return called.get(value, value) if isinstance(value, str) else value


# --- comparing plain values ------------------------------------------------------------------------------------------

Same = Callable[[Json, Json], bool]


def close(rtol: float, atol: float, whole: float = 0.0) -> Same:
    """Floats are the same within rtol or atol, whole numbers within a share of themselves or by one when `whole`."""

    def same(was: Json, now: Json) -> bool:
        if isinstance(was, bool) or isinstance(now, bool):
            return was is now
        if isinstance(was, int) and isinstance(now, int):
            return was == now or (whole > 0 and abs(was - now) <= max(1, whole * abs(was)))
        if isinstance(was, int | float) and isinstance(now, int | float):
            return abs(was - now) <= max(atol, rtol * max(abs(was), abs(now)))
        return was == now

    return same


def differences(was: Json, now: Json, same: Same, where: str = "") -> list[str]:
    """Every place at which two trees of plain values differ, in words; the order of lists counts, of names not."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = [f"{where}.{k}: gone, was {was[k]!r}"[:300] for k in was if k not in now]
        found += [f"{where}.{k}: new, {now[k]!r}"[:300] for k in now if k not in was]
        return found + [d for k in was if k in now for d in differences(was[k], now[k], same, f"{where}.{k}")]
    if isinstance(was, list) and isinstance(now, list):
        if len(was) != len(now):
            return [f"{where}: {len(was)} entries are {len(now)} now"]
        pairs = enumerate(zip(was, now, strict=True))
        return [d for k, (a, b) in pairs for d in differences(a, b, same, f"{where}[{k}]")]
    return [] if type(was) is type(now) and same(was, now) else [f"{where}: {was!r} is {now!r} now"[:300]]


def run_differences(what: str, now: Json, exact: bool = False) -> list[str]:
    """Where a frozen report, comparison or list of records differs from what came out now."""
    return differences(kept()[what], now, close(0, 0) if exact else close(*RUN[what]), what)


# --- the files -------------------------------------------------------------------------------------------------------


@cache
def kept() -> dict[str, Json]:
    """What stands in the files: `patches` by name, `report`, `compare`, `records`."""
    return {
        "patches": json.loads(PATCHES.read_text()) if PATCHES.exists() else {},
        "report": json.loads(REPORT.read_text()) if REPORT.exists() else {},
        "compare": json.loads(COMPARE.read_text()) if COMPARE.exists() else {},
        "records": [json.loads(r) for r in RECORDS.read_text().splitlines()] if RECORDS.exists() else [],
    }


def entry(value: dict[str, Json]) -> str:
    """One patch as JSON: a line for every part of it and one for every edit."""
    lines = [f'  "{part}": {json.dumps(value[part])}' for part in value if part != "edits"]
    edits = ",\n".join(f"   {json.dumps(row)}" for row in value["edits"])
    return ",\n".join([*lines, f'  "edits": [\n{edits}\n  ]'])


def write(wanted: list[str]) -> None:
    """Write the files anew, or of `wanted` alone."""
    patches = kept()["patches"]
    with tempfile.TemporaryDirectory() as folder:
        for k, name in enumerate(names()):
            if not wanted or name in wanted:
                patches[name] = frozen(patch_of(name, Path(folder) / str(k)))
        body = ",\n".join(f'"{name}": {{\n{entry(patches[name])}\n }}' for name in names() if name in patches)
        PATCHES.write_text(f"{{\n{body}\n}}\n")
        if not wanted or "runs" in wanted:
            found = runs(Path(folder))
            for file, what in ((REPORT, "report"), (COMPARE, "compare")):
                file.write_text(json.dumps(found[what], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            RECORDS.write_text(
                "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found["records"]), encoding="utf-8"
            )


if __name__ == "__main__":
    given = sys.argv[1:]
    if given[:1] != ["--write"] or set(given[1:]) - {*names(), "runs"}:
        sys.exit(f"usage: python {Path(__file__).name} --write [NAME ...]; names: {', '.join([*names(), 'runs'])}")
    write(given[1:])
