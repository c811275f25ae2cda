"""What measuring costs beside sampling: one edited `mini` on a suite; prints ratios of times of the same run.

Everything beside sampling is start of the workers, storing, judging, counting and the report. Then the same command
again, with everything cached, and the counting of many records.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import efface
from efface import world
from efface.audit import Audit, audit
from efface.cli.options import prepare
from efface.erasure import plan, solve
from efface.gallery.shot import Ask, Item, Shot
from efface.report.report import Cost
from efface.request import Request
from efface.scores.records import Record
from efface.scores.scores import SIDES, Scores
from efface.scores.tables import tables
from efface.work import Work

CONCEPTS = ("rabbit", "hamburger", "guitar", "rocket", "penguin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", default="world-standard")
    parser.add_argument("--out", type=Path, help="Keep the run here; default: a folder that is deleted.")
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    prepare()
    model, work = efface.load("mini", "cpu"), Work(quiet=False)
    with work.interruptible(), tempfile.TemporaryDirectory() as place:
        made = plan(model, Request.build(CONCEPTS, world.demo_keep()))
        asked = Audit(model, made.request, options.suite, solve(made, work))
        for name in ("first", "everything cached"):
            cost = audit(asked, options.out or Path(place) / "run", work).cost
            print(f"{name}: {summary(cost)}", flush=True)
    print(f"counting {options.records} records: {counting(options.records):.1f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of this process: {peak:.0f} MiB")


def summary(cost: Cost) -> str:
    drawn, sampling = cost.base_images_drawn + cost.edited_images_drawn, cost.seconds_drawing
    parts = f"drawing {sampling}, judging {cost.seconds_judging}, counting {cost.seconds_counting}"
    ratio = f"beside sampling / sampling {cost.seconds_beside_drawing / sampling:.3f}; " if sampling else ""
    return f"{drawn} images drawn; {ratio}seconds: {parts}, in all {cost.seconds}"


def counting(n: int) -> float:
    """Seconds to count n records: 50 concepts, 200 prompts each, both sides."""
    items = [
        Item(Shot(f"prompt {k % 10_000}", k // 10_000), (Ask("other" if k % 50 else "target", f"c{k % 50}"),))
        for k in range(n // 2)
    ]
    rows = [
        Record(side=side, shot=i.shot, hits=(i.asks[0].label,) if k % 7 else ())
        for side in SIDES
        for k, i in enumerate(items)
    ]
    start = time.perf_counter()
    tables(Scores.of(items, rows), frozenset(f"c{k}" for k in range(50)))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
