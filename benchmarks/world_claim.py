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
from efface.request import Request
from efface.scores.reach import Counts, Reach
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
        "targets": _cell(tables["target"]),
        **{role: _cell(tables[role]) for role in ("style", "unstyled") if role in tables},
        "plain": _lost(plain),
        "kept": _lost(kept),
        "fell": fell,
        "garbage": report["garbage"]["edited"],
    }


def _lost(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Base and edited rate of kept objects, the loss and its one-sided bound."""
    base, edited = (sum(r[side]["hits"] for r in rows) for side in ("base", "edited"))
    n = sum(r["base"]["n"] for r in rows)
    return {
        "n": n,
        "base": base / n,
        "edited": edited / n,
        "loss": (base - edited) / n,
        **_bounds(
            [Counts(r["base"]["n"], r["base"]["hits"] - r["both"], r["edited"]["hits"] - r["both"]) for r in rows],
            [r["name"] for r in rows],
            "loss",
        ),
    }


def _bounds(found: Sequence[Counts], names: Sequence[str], what: str) -> dict[str, float | None]:
    """ "At most" for these prompts, and for other concepts and wordings: the bounds of the gate."""
    by_name: dict[str, Counts] = {}
    for name, one in zip(names, found, strict=True):
        known = by_name.get(name, Counts(0, 0, None if one.won is None else 0))
        won = None if one.won is None else one.won + (known.won or 0)
        by_name[name] = Counts(known.n + one.n, known.hits + one.hits, won)
    reach = Reach.of(by_name)
    return {f"{what}_upper": reach.these.high, f"{what}_others": reach.others.high if reach.others else None}


def _cell(table: dict[str, Any]) -> dict[str, Any]:
    base, edited = table["pooled"]["base"], table["pooled"]["edited"]
    scored = [r for r in table["rows"] if r["state"] == "ok"]
    return {
        "n": edited["n"],
        "base": base["rate"],
        "edited": edited["rate"],
        **_bounds(
            [Counts(r["edited"]["n"], r["edited"]["hits"]) for r in scored], [r["name"] for r in scored], "edited"
        ),
    }


def _told(bound: float | None) -> str:
    return "cannot be told" if bound is None else f"at most {bound:.1%}"


def lines(row: dict[str, Any]) -> str:
    said = [f"keep list: {row['keep']}"]
    for role in ("targets", "style", "unstyled"):
        if role not in row:
            continue
        c = row[role]
        said.append(
            f"  {role:<9} base {c['base']:.1%} edited {c['edited']:.1%}, at most {c['edited_upper']:.1%}, "
            f"of other concepts {_told(c['edited_others'])} (n {c['n']})"
        )
    for role in ("plain", "kept"):
        c = row[role]
        said.append(
            f"  {role:<9} base {c['base']:.1%} edited {c['edited']:.1%}, loss {c['loss']:.1%}, "
            f"at most {c['loss_upper']:.1%}, of other concepts {_told(c['loss_others'])} ({c['n']} pairs)"
        )
    fell = ", ".join(f"{k} {b:.0%} -> {e:.0%} (n {n})" for k, (b, e, n) in sorted(row["fell"].items()))
    return "\n".join([*said, f"  fell by more than 30 points: {fell or 'none'}"])


if __name__ == "__main__":
    main()
