"""The comparison as a page, a table for pasting, CSV and JSON. Nothing here computes a number, but places on a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from efface.errors import OutputExists, WrongFile
from efface.files import sweep_dead, write_bytes
from efface.report.comparison import Block, Comparison, Entry, RunCost, RunRow, Worst
from efface.report.page import pages
from efface.report.pareto import plot
from efface.report.words import cell_text, percent, points
from efface.scores.cells import Cell
from efface.scores.tables import Loss
from efface.untrusted import cell

__all__ = ["HEAD", "markdown", "page", "table", "write"]

FILES = ("compare.html", "compare.json", "compare.csv", "compare.md")
HEAD: tuple[str, ...] = (
    "table", "run", "method", "preset", "patch", "column", "state", "estimate", "low", "high", "hits", "n", "prompts",
    "place", "difference", "difference_low", "difference_high", "p", "p_holm", "detectable",
)  # fmt: skip
Csv = dict[str, str | int | float | None]
"""One line of the CSV."""


def write(found: Comparison, out: Path, overwrite: bool = False) -> Path:
    """Four files in `out`, each whole or not at all. Raises OutputExists for a folder with anything else in it."""
    if out.is_dir():
        for name in FILES:
            sweep_dead(out / name)
    if out.exists() and (not out.is_dir() or {f.name for f in out.iterdir()} - set(FILES)):
        if not overwrite:
            raise OutputExists(out)
        raise WrongFile(f"{out} holds more than a comparison, so --overwrite leaves it; name another output")
    texts = (
        page(found),
        json.dumps(found.content(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        table(found.tables),
        markdown(found),
    )
    for name, text in zip(FILES, texts, strict=True):
        write_bytes(out / name, text.encode())
    return out / FILES[0]


def table(blocks: Sequence[Block]) -> str:
    """One line a run and column; what was not measured has state NA and no number."""
    out = io.StringIO()
    rows = csv.DictWriter(out, HEAD, restval="", lineterminator="\n")
    rows.writeheader()
    for number, block in enumerate(blocks, 1):
        for run in block.runs:
            first: Csv = {"table": number, "run": run.run, "method": run.method, "preset": run.preset}
            for key in block.columns:
                row = first | {"patch": run.patch, "column": key} | _flat(run.cells.get(key))
                rows.writerow({k: "" if v is None else cell(v) for k, v in row.items()})
    return out.getvalue()


def _flat(entry: Entry | None) -> Csv:
    if entry is None:
        return {"state": "NA"}
    row: Csv = {"state": "ok", "low": entry.cell.low, "high": entry.cell.high, "n": entry.cell.n, "place": entry.place}
    found = entry.cell
    if isinstance(found, Loss):
        row |= {"estimate": found.estimate}
    elif isinstance(found, Cell):
        row |= {"estimate": found.value, "hits": found.hits, "prompts": found.clusters}
    else:
        row |= {"estimate": found.rate, "hits": found.hits, "prompts": found.prompts}
    if d := entry.difference:
        row |= {"difference": d.estimate, "difference_low": d.low, "difference_high": d.high}
        row |= {"p": d.p, "p_holm": d.p_holm, "detectable": d.detectable}
    return row


def markdown(found: Comparison) -> str:
    """Tables that read in a terminal and paste into an issue."""
    lines: list[str] = []
    for number, block in enumerate(found.tables, 1):
        lines += [f"## {number}. {_text(', '.join(block.concepts)[:200])}", "", caption(block), ""]
        heads = ["run", "method", *block.columns.values(), "worst target", "worst kept", "seconds", "bytes"]
        lines += [_row(heads), _row(["---"] * len(heads))]
        lines += [_run_line(run, block) for run in block.runs]
        lines += ["", *(f"{run.run}: {flag}" for run in block.runs for flag in run.flags)]
        lines += [f"NA: {role} ({why})" for role, why in block.absent.items()]
    return "\n".join([*lines, *found.apart, ""])


def _run_line(run: RunRow, block: Block) -> str:
    cells = [_cell(run.cells.get(key)) for key in block.columns]
    ends = [worst(run.worst_target, ""), worst(run.worst_kept, " points")]
    cost = ["" if v is None else str(v) for v in (run.cost.seconds, run.cost.bytes_of_the_patch)]
    return _row([run.run, run.method + (" (control)" if run.control else ""), *cells, *ends, *cost])


def caption(block: Block) -> str:
    """What every number of a table rests on."""
    suite = block.suite
    shared = f", {block.images} images that all runs share" if block.common else f", {block.images} images a side"
    return (
        f"Model {block.base}; suite {suite.name} {suite.version} ({suite.hash}){shared}; judge "
        f"{block.judge.name} {block.judge.version}, garbage detector {block.garbage_detector}. "
        "Rates in per cent, losses and differences in points, "
        f"with 95 % intervals; differences are paired, to {block.baseline}; p is exact McNemar after Holm over the "
        "runs of a column; the bracketed number, raised on the page, is the place, shared where no difference is sure."
    )


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "NA"
    said = cell_text(entry.cell) + ("" if entry.place is None else f" ({entry.place})")
    d = entry.difference
    return said if d is None else f"{said}; {cell_text(d)} {probability(d.p_holm or 0.0)}"


def probability(p: float) -> str:
    """Two significant digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def worst(entry: Worst | None, unit: str) -> str:
    """A concept with its number."""
    return "NA" if entry is None else f"{entry.name} {points(entry.value)}{unit} (n = {entry.n})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_text(c) for c in cells)} |"


def _text(value: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in value).replace("|", "¦")


# --- the page --------------------------------------------------------------------------------------------------------


def page(found: Comparison) -> str:
    """One HTML text: no script, no network."""
    environment = pages()
    environment.filters.update(probability=probability, shade=shade, costs=costs, number=number)
    blocks = [(block, plot(block), caption(block)) for block in found.tables]
    return environment.get_template("compare.html.j2").render(found=found, blocks=blocks, worst=worst)


def number(entry: Entry) -> str:
    """The number of a cell, without its interval."""
    found = entry.cell
    if isinstance(found, Cell):
        return "NA" if found.value is None else f"{found.value:.4g}".replace("-", "−")
    return points(found.estimate, True) if isinstance(found, Loss) else percent(found)


def costs(cost: RunCost) -> list[str]:
    """Time, images and size of a run in short lines; what is unknown is left out."""
    base, edited, size = cost.base_images_drawn, cost.edited_images_drawn, cost.bytes_of_the_patch
    lines = [] if cost.seconds is None else [f"{cost.seconds:.0f} s"]
    lines += [] if base is None or edited is None else [f"{base} + {edited} drawn"]
    return lines + ([] if size is None else [f"{size / 1e6:.2f} MB"])


def shade(value: float) -> int:
    """0 to 10: how dark a cell of the heat map is."""
    return round(10 * min(max(value, 0.0), 1.0))
