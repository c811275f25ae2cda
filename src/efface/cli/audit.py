"""`efface audit`: how gone is it, and what did it cost?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.cli import options as o

if TYPE_CHECKING:
    from efface.audit import Audit
    from efface.metrics._run import MetricCell
    from efface.report.report import GateResult, Report

NAME = "audit"
PatchFile = Annotated[Path | None, typer.Option("--patch", help="Judge MODEL with this patch.")]
Base = Annotated[str | None, typer.Option("--base", help="MODEL is an edited model; this is its base.")]
SuiteName = Annotated[str, typer.Option("--suite", help="efface list suites names them.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the suite; repeat.")
]
JudgeName = Annotated[
    list[str] | None,
    typer.Option(
        "--judge",
        metavar="[styles=|objects=]NAME[:WHERE]",
        help="Instead of the suite's own judge; repeat for one of styles and one of objects, and for one of features.",
    ),
]
Real = Annotated[
    Path | None, typer.Option("--real", help="A folder of real pictures: also FID, KID and CMMD of the edit to them.")
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", metavar="NAME[:KEY=VALUE,...]", help="Also this metric, from the images; repeat."),
]
GateName = Annotated[
    str | None, typer.Option("--gate", metavar="default|strict|FILE", help="Rules to meet; exit 3 if they are not.")
]
Undecided = Annotated[
    bool, typer.Option("--allow-undecided", help="A rule that too few images leave open does not fail the gate.")
]
Control = Annotated[bool, typer.Option("--control", help="The edited side is no edit on purpose; the report says so.")]
Store = Annotated[bool, typer.Option("--store-images", help="Keep the images of a suite with unsafe content.")]


def command(
    model: o.ModelName,
    out: o.Out,
    patch: PatchFile = None,
    base: Base = None,
    concept: o.Concepts = None,
    suite: SuiteName = "world-smoke",
    set_: Settings = None,
    judge: JudgeName = None,
    real: Real = None,
    metric: Metrics = None,
    gate: GateName = None,
    allow_undecided: Undecided = False,
    control: Control = False,
    store_images: Store = False,
    steps: Annotated[int | None, typer.Option(min=1)] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    engine: o.EngineName = None,
    address: o.Address = None,
    json: o.Json = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    threads: o.Threads = None,
    offline: o.Offline = False,
    overwrite: o.Overwrite = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw a suite with base and edited model, judge both, write RUN/report.html and RUN/report.json."""
    from efface.errors import BadRequest

    if (patch is None) == (base is None):
        raise BadRequest("name either MODEL --patch PATCH or EDITED --base BASE, one of the two")
    where = o.engine_named(engine, address)
    opened = o.opened(model, device, dtype, threads, offline)
    from efface.audit import Audit, audit, concepts_for
    from efface.judges.panel import AND
    from efface.metrics._run import configured
    from efface.model import load
    from efface.patch import Patch
    from efface.report import gate as gates

    rules, metrics = gates.load(gate) if gate else None, configured(metric or [])
    loaded = Patch.load(patch) if patch else None
    original = load(base, device, dtype, offline) if base else opened
    edited, settings = None if loaded else opened, tuple(o.settings_of(set_).items())
    asked = Audit(original, concepts_for(concept or [], loaded), suite, loaded, edited, steps, guidance,
                  o.command_line(), AND.join(judge or []), settings, control, store_images)  # fmt: skip
    if dry_run:
        _tell_plan(asked, json)
        return
    work = o.working(0, quiet)
    with work.interruptible():
        result = audit(asked, out, work, overwrite, rules, allow_undecided, metrics, where, real)
    _tell(result, out, json)


def _tell(result: Report, out: Path, json: bool) -> None:
    """The result in the terminal; a gate that is not met ends the command with code 3."""
    from efface.report.page import table_text

    content = result.content()
    shown = ("tables", "metrics", "verdict", "flags", "cost", *(["gate"] if result.gate else []))
    told = {"report": str(out / "report.html")} | {k: content[k] for k in shown}
    lines = [table_text(result), *_metric_lines(result.metrics), *_gate_lines(result.gate)]
    o.emit(told, json, [*lines, f"report: {out / 'report.html'}"])
    gate = result.gate
    if gate and (gate.state == "fail" or (gate.state == "undecided" and not gate.undecided_allowed)):
        _fail(gate)


def _tell_plan(asked: Audit, json: bool) -> None:
    """What would be drawn, and what so many images can show."""
    from efface.gallery.shot import ROLES
    from efface.judges.panel import seated
    from efface.numerics.planning import images_to_show_at_most

    suite, _, plan = asked.outline()
    panel = seated(*asked.seat())
    count = len(plan.items)
    roles = {r: sum(a.role == r for i in plan.items for a in i.asks) for r in ROLES}
    roles = {r: n for r, n in roles.items() if n}
    height, width = asked.base.card.size
    judge = asked.judge or suite.judge
    lines = [f"{count} images a side, {2 * count} in all if none is cached; {height} x {width}, judge {judge}"]
    lines += [f"    NA everything that is judged: {panel.why}"] if panel.why else []
    lines += [f"{n:6} {ROLES[r].title.lower()}" for r, n in roles.items()]
    lines += [f"    NA {ROLES[r].title.lower()}: {why}" for r, why in plan.absent.items()]
    targets = roles.get("target", 0) + roles.get("style", 0)
    shows = next((x for x in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if targets >= images_to_show_at_most(x)), None)
    if shows and targets:
        lines.append(f"{targets} images of targets can show 'at most {shows:.0%}' if none of them is a hit")
    o.emit(
        {"images_a_side": count, "roles": roles, "absent": dict(plan.absent), "judge": panel.why or panel.name},
        json,
        lines,
    )


def _metric_lines(cells: Sequence[MetricCell]) -> list[str]:
    lines = []
    for cell in cells:
        what = " ".join(w for w in (cell.metric, cell.name, cell.concept, cell.side) if w)
        if cell.state != "ok":
            lines.append(f"{what}: {cell.state.upper()}: {cell.reason}")
            continue
        ends = "" if cell.low is None else f" [{cell.low:.4g}, {cell.high:.4g}]"
        lines.append(f"{what}: {cell.value:.4g}{ends} (n = {cell.n})")
    return [*lines, ""] if lines else []


def _gate_lines(gate: GateResult | None) -> list[str]:
    if gate is None:
        return []
    lines = [
        f"gate {gate.name}: {gate.state}  (95 % bounds, for other seeds of the same prompts unless others are named)"
    ]
    for rule in gate.rules:
        said = f"  {rule.state:<12} {rule.rule}: expected {rule.expected}, got {rule.got}"
        lines.append(said + (f" ({rule.next})" if rule.next else ""))
    return [*lines, ""]


def _fail(gate: GateResult) -> None:
    from efface.errors import GateFailed

    bad = [r for r in gate.rules if r.state == "fail"] or [r for r in gate.rules if r.state == "undecided"]
    first = bad[0]
    more = f"; {len(bad) - 1} more" if len(bad) > 1 else ""
    hint = f"; {first.next}" if first.next else ""
    raise GateFailed(
        f"gate {gate.name} {'failed' if first.state == 'fail' else 'is undecided'}: {first.rule}: "
        f"expected {first.expected}, got {first.got.rstrip('.')}{hint}{more}"
    )
