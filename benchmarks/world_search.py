"""Settings of one method as a frontier on the tune half of the world: ten objects erased jointly.

Each line of the settings file is one setting as a JSON object, {} for the preset; "keep" may be "none". For each:
8 images of every target, 60 of other objects, judged, and one file in the output folder, so that a search goes on where
it was stopped and `--part 0/2` and `--part 1/2` share it between two processes. Rows of another model, judge, preset,
version of efface or number of steps lie in another folder and are never mixed in. `--table` prints what is there. The
keep list holds names of the report half; report seeds and names are for the figures that are quoted, not for this.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import efface
from efface import world
from efface.cli.options import prepare
from efface.erasure import plan
from efface.errors import EffaceError
from efface.files import key_of, write_bytes
from efface.judges import world as reporting
from efface.request import Request
from efface.work import Work

SEEDS = (0, 40)  # first seed of targets and of others; the tune half ends at 499
IMAGES, OTHERS, AT_ONCE = 8, 60, 16


def names() -> tuple[list[str], list[str], list[str]]:
    """Targets, one of each of ten kinds of thing; other objects of the tune half; the keep list."""
    model = efface.load("mini", "cpu")
    known = {c["name"]: c for c in model.concepts if c["kind"] == "object" and c["qualified"]}
    tune = [n for n, c in known.items() if c["half"] == "tune"]
    targets = tune[:: len(tune) // 10][:10]
    hazards = {o.name for o in world.objects() if o.category == "hazard"}
    keep = [n for n, c in known.items() if c["half"] == "report" and n not in hazards]
    return targets, [n for n in tune if n not in targets], keep


def draw(model: efface.Model, targets: list[str], others: list[str], steps: int) -> np.ndarray:
    """Targets first, then others: uint8 (n, h, w, 3)."""
    asked = [(t, SEEDS[0] + k) for t in targets for k in range(IMAGES)]
    asked += [(others[k % len(others)], SEEDS[1] + k // len(others)) for k in range(OTHERS)]
    parts = [asked[k : k + AT_ONCE] for k in range(0, len(asked), AT_ONCE)]
    return np.concatenate([model.sample([f"a {n}" for n, _ in p], [s for _, s in p], steps=steps) for p in parts])


def shown(judge: Any, images: np.ndarray, targets: list[str], others: list[str]) -> dict[str, Any]:
    """Hits by target of `IMAGES`, and of others."""
    place = {name: k for k, name in enumerate(judge.objects)}
    hits, count = judge.look(images).hits, IMAGES * len(targets)
    each = {t: int(hits[k * IMAGES : (k + 1) * IMAGES, place[t]].sum()) for k, t in enumerate(targets)}
    kept = sum(bool(hits[count + k, place[others[k % len(others)]]]) for k in range(OTHERS))
    return {"targets": sum(each.values()), "others": kept, "each": each}


def table(rows: list[dict[str, Any]]) -> str:
    fine, refused = [r for r in rows if "each" in r], [r for r in rows if "each" not in r]
    if not fine:
        return "nothing was drawn yet with this model, judge, version and number of steps"
    count = IMAGES * len(fine[0]["each"])
    lines = [f"| setting | targets ({count}) | others ({OTHERS}) | worst targets of {IMAGES} |", "|---|---|---|---|"]
    for row in sorted(fine, key=lambda r: (r["key"] != "base", -r["others"], r["targets"])):
        worst = sorted(row["each"].items(), key=lambda i: -i[1])[:3]
        said = ", ".join(f"{n} {k}" for n, k in worst if k)
        lines.append(f"| {row['key']} | {row['targets'] / count:.1%} | {row['others'] / OTHERS:.1%} | {said} |")
    return "\n".join([*lines, *(f"| {r['key']} | refused: {r['refused']} | | |" for r in refused)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    parser.add_argument("--settings", type=Path, help="default: benchmarks/settings/METHOD.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    prepare()
    model, judge = efface.load("mini", "cpu"), reporting.load()
    targets, others, keep = names()
    preset = asdict(plan(model, Request.build(targets), method=options.method).method)
    about = {"model": model.identity, "judge": judge.version, "efface": efface.__version__, "preset": preset}
    folder: Path = options.out / options.method / key_of(steps=options.steps, **about)[:12]
    if options.table:
        print(table([json.loads(f.read_text()) for f in sorted(folder.glob("*.json"))]))
        return
    file = options.settings or Path(__file__).parent / "settings" / f"{options.method}.jsonl"
    asked = ["base", *(line for line in file.read_text().splitlines() if line.strip())]
    part, parts = map(int, options.part.split("/"))
    for number, line in enumerate(asked):
        out = folder / f"{key_of(setting=line)[:12]}.json"
        if number % parts != part or out.is_file():
            continue
        row = {"key": line} | measured(model, judge, line, (targets, others, keep), options, out.with_suffix(""))
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(out, json.dumps(row).encode())
        print(json.dumps(row), flush=True)


def measured(
    model: efface.Model, judge: Any, line: str, who: tuple[list[str], ...], options: Any, state: Path
) -> dict[str, Any]:
    """One setting; why it was refused, where the method refuses it. `state`: of a training, until it is done."""
    targets, others, keep = who
    if line == "base":
        return shown(judge, draw(model, targets, others, options.steps), targets, others)
    settings = json.loads(line)
    listed = [] if settings.pop("keep", "report") == "none" else keep
    try:
        patch = efface.erase(model, targets, keep=listed, method=options.method, work=Work(folder=state), **settings)
    except EffaceError as error:
        return {"refused": str(error)}
    with patch.applied(model):
        row = shown(judge, draw(model, targets, others, options.steps), targets, others)
    shutil.rmtree(state, ignore_errors=True)
    return row


if __name__ == "__main__":
    main()
