"""The claim about the bundled model: five objects and one style erased jointly, with one-sided 95 % bounds.

Three edits of one request are measured on the same images: a keep list of tune-half names (no judged object is in
it), no keep list, every other object kept. Resumable: run it again and it goes on. `--only` runs one of the three.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import efface
from efface import world
from efface.audit import Audit, audit
from efface.cli.demo import CONCEPTS
from efface.cli.options import prepare
from efface.numerics.intervals import paired_loss_upper, upper_bound
from efface.request import Request
from efface.run import plan, solve
from efface.work import Work

FELL = 0.3  # kept objects that lose more are named


def keep_lists() -> dict[str, tuple[str, ...]]:
    erased = set(CONCEPTS)
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
    options = parser.parse_args()
    prepare()
    model, work = efface.load("mini", "cpu"), Work(quiet=False)
    rows = []
    with work.interruptible():
        for name, keep in keep_lists().items():
            if options.only in (None, name):
                made = plan(model, Request.build(CONCEPTS, keep), method=options.method)
                patch = solve(made, work)
                run = options.out / f"{options.method}-{name}"
                report = audit(Audit(model, made.request, "world-claim", patch, command="make world-claim"), run, work)
                rows.append(summary(name, report))
                print(lines(rows[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "summary.json").write_text(json.dumps(rows, indent=1))


def summary(name: str, report: dict[str, Any]) -> dict[str, Any]:
    """The figures of one keep list."""
    tables = {t["role"]: t for t in report["tables"]}
    kept = [r for role in ("neighbour", "other", "in-prompt") if role in tables for r in tables[role]["rows"]]
    base = sum(r["base"]["hits"] for r in kept)
    edited = sum(r["edited"]["hits"] for r in kept)
    n = sum(r["base"]["n"] for r in kept)
    both = sum(_both(r) for r in kept)
    by_object: dict[str, list[float]] = {}
    for row in kept:
        found = by_object.setdefault(row["name"], [0.0, 0.0, 0.0])
        for i, value in enumerate((row["base"]["hits"], row["edited"]["hits"], row["base"]["n"])):
            found[i] += value
    fell = {k: (b / m, e / m, int(m)) for k, (b, e, m) in by_object.items() if (b - e) / m > FELL}
    return {
        "keep": name,
        "targets": _cell(tables["target"]["pooled"]),
        "style": _cell(tables["style"]["pooled"]),
        "unstyled": _cell(tables["unstyled"]["pooled"]),
        "kept": {
            "n": n,
            "base": base / n,
            "edited": edited / n,
            "loss": (base - edited) / n,
            "loss_upper": paired_loss_upper(both, base - both, edited - both, n - base - edited + both),
        },
        "fell": fell,
        "garbage": report["garbage"]["edited"],
    }


def _both(row: dict[str, Any]) -> int:
    return int(row["both"])


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
        c = row[role]
        said.append(
            f"  {role:<9} base {c['base']:.1%} edited {c['edited']:.1%}, at most {c['edited_upper']:.1%} (n {c['n']})"
        )
    kept = row["kept"]
    said.append(
        f"  kept      base {kept['base']:.1%} edited {kept['edited']:.1%}, loss {kept['loss']:.1%}, "
        f"at most {kept['loss_upper']:.1%} ({kept['n']} pairs)"
    )
    fell = ", ".join(f"{k} {b:.0%} -> {e:.0%} (n {n})" for k, (b, e, n) in sorted(row["fell"].items()))
    return "\n".join([*said, f"  fell by more than 30 points: {fell or 'none'}"])


if __name__ == "__main__":
    main()
