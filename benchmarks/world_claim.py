"""The claim about the bundled model: concepts erased jointly, with one-sided 95 % bounds.

Five objects and one style, or `--ten` objects. Three edits of one request are measured on the same images: a keep list
of tune-half names (no judged object is in it), no keep list, every other object kept. Resumable: run it again and it
goes on. `--only` runs one of the three.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import efface
from efface import world
from efface.audit import Audit, audit
from efface.cli.demo import CONCEPTS
from efface.cli.options import prepare, settings_of
from efface.erasure import plan, saved_state, solve
from efface.files import key_of
from efface.numerics.intervals import paired_loss_upper, upper_bound
from efface.request import Request
from efface.work import Work

FELL = 0.3  # kept objects that lose more are named
TEN = ("dog", "whale", "butterfly", "cactus", "pizza", "church", "locomotive", "umbrella", "guitar", "television")
SIZES = {"targets": 24, "kept": 6}  # of the suite, for ten objects


def keep_lists(erased: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    return {
        "tune": world.demo_keep(),
        "none": (),
        "all": tuple(o.name for o in world.objects() if o.picked and o.name not in erased),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/claim"))
    parser.add_argument("--only", choices=list(keep_lists()))
    parser.add_argument("--method", default="scapre")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="A setting of the method.")
    parser.add_argument("--ten", action="store_true", help="Ten objects and no style.")
    options = parser.parse_args()
    concepts = TEN if options.ten else CONCEPTS
    settings: dict[str, Any] = dict(settings_of(options.set))
    prepare()
    model, work = efface.load("mini", "cpu"), Work(quiet=False)
    label = "-".join([options.method, *["ten"] * options.ten, *([key_of(**settings)[:8]] if settings else [])])
    rows = []
    with work.interruptible():
        for name, keep in keep_lists(concepts).items():
            if options.only in (None, name):
                made = plan(model, Request.build(concepts, keep), method=options.method, **settings)
                started = time.monotonic()
                # in a cache of its own: evidence of an earlier run would make it look faster
                with saved_state(made) as state, tempfile.TemporaryDirectory() as fresh:
                    own = Work(quiet=False, folder=state)
                    with own.interruptible():
                        patch = solve(made, own, Path(fresh))
                spent = time.monotonic() - started
                print(f"{options.method}, keep list {name}: {spent:.0f} s for the patch", flush=True)
                run = options.out / f"{label}-{name}"
                sizes = tuple(SIZES.items()) if options.ten else ()
                asked = Audit(model, made.request, "world-claim", patch, command="make world-claim", settings=sizes)
                report = audit(asked, run, work)
                rows.append(summary(name, report))
                print(lines(rows[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"summary-{label}-{options.only or 'each'}.json").write_text(json.dumps(rows, indent=1))


def summary(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """The figures of one keep list."""
    tables = {t["role"]: t for t in report["tables"]}
    plain = [r for role in ("neighbour", "other") for r in tables[role]["rows"]]
    kept = [*plain, *(tables["in-prompt"]["rows"] if "in-prompt" in tables else ())]
    by_object: dict[str, list[float]] = {}
    for row in kept:
        found = by_object.setdefault(row["name"], [0.0, 0.0, 0.0])
        for i, value in enumerate((row["base"]["hits"], row["edited"]["hits"], row["base"]["n"])):
            found[i] += value
    fell = {k: (b / m, e / m, int(m)) for k, (b, e, m) in by_object.items() if (b - e) / m > FELL}
    return {
        "keep": name,
        "targets": _cell(tables["target"]["pooled"]),
        **{role: _cell(tables[role]["pooled"]) for role in ("style", "unstyled") if role in tables},
        "plain": _lost(plain),
        "kept": _lost(kept),
        "fell": fell,
        "garbage": report["garbage"]["edited"],
    }


def _lost(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Base and edited rate of kept objects, the loss and its one-sided bound."""
    base, edited = (sum(r[side]["hits"] for r in rows) for side in ("base", "edited"))
    n, both = sum(r["base"]["n"] for r in rows), sum(int(r["both"]) for r in rows)
    return {
        "n": n,
        "base": base / n,
        "edited": edited / n,
        "loss": (base - edited) / n,
        "loss_upper": paired_loss_upper(both, base - both, edited - both, n - base - edited + both),
    }


def _cell(pooled: dict[str, Any]) -> dict[str, Any]:
    base, edited = pooled["base"], pooled["edited"]
    return {
        "n": edited["n"],
        "base": base["rate"],
        "edited": edited["rate"],
        "edited_upper": upper_bound(edited["hits"], edited["n"]),
    }


def lines(row: dict[str, Any]) -> str:
    said = [f"keep list: {row['keep']}"]
    for role in ("targets", "style", "unstyled"):
        if role not in row:
            continue
        c = row[role]
        said.append(
            f"  {role:<9} base {c['base']:.1%} edited {c['edited']:.1%}, at most {c['edited_upper']:.1%} (n {c['n']})"
        )
    for role in ("plain", "kept"):
        c = row[role]
        said.append(
            f"  {role:<9} base {c['base']:.1%} edited {c['edited']:.1%}, loss {c['loss']:.1%}, "
            f"at most {c['loss_upper']:.1%} ({c['n']} pairs)"
        )
    fell = ", ".join(f"{k} {b:.0%} -> {e:.0%} (n {n})" for k, (b, e, n) in sorted(row["fell"].items()))
    return "\n".join([*said, f"  fell by more than 30 points: {fell or 'none'}"])


if __name__ == "__main__":
    main()
