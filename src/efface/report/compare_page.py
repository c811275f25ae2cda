"""The comparison as a page, a table for pasting, CSV and JSON. Nothing here computes a number, but places on a plot."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from efface.errors import OutputExists
from efface.files import write_bytes
from efface.report.page import cell_text, pages, percent, points
from efface.untrusted import cell

__all__ = ["markdown", "page", "write"]

Json = dict[str, Any]
FILES = ("compare.html", "compare.json", "compare.csv", "compare.md")
HEAD: tuple[str, ...] = (
    "table", "run", "method", "preset", "patch", "column", "state", "estimate", "low", "high", "hits", "n", "prompts",
    "place", "difference", "difference_low", "difference_high", "p", "p_holm", "detectable",
)  # fmt: skip


def write(found: Json, out: Path, overwrite: bool = False) -> Path:
    """Four files in `out`, each whole or not at all. Raises OutputExists for a folder with anything else in it."""
    if out.exists() and not overwrite and (not out.is_dir() or {f.name for f in out.iterdir()} - set(FILES)):
        raise OutputExists(out)
    texts = (
        page(found),
        json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        table(found),
        markdown(found),
    )
    for name, text in zip(FILES, texts, strict=True):
        write_bytes(out / name, text.encode())
    return out / FILES[0]


def table(found: Json) -> str:
    """One line a run and column; what was not measured has state NA and no number."""
    out = io.StringIO()
    rows = csv.DictWriter(out, HEAD, restval="", lineterminator="\n")
    rows.writeheader()
    for number, block in enumerate(found["tables"], 1):
        for run in block["runs"]:
            first = {"table": number} | {k: run[k] for k in ("run", "method", "preset", "patch")}
            for key in block["columns"]:
                row = first | {"column": key} | _flat(run["cells"].get(key))
                rows.writerow({k: cell(v) for k, v in row.items()})
    return out.getvalue()


def _flat(entry: Json | None) -> Json:
    if entry is None:
        return {"state": "NA"}
    cell, difference = entry["cell"], entry.get("difference") or {}
    row: Json = {"state": "ok", "estimate": cell.get("rate", cell.get("estimate")), "place": entry["place"]}
    row |= {k: cell[k] for k in ("low", "high", "hits", "n", "prompts") if k in cell}
    if difference:
        row |= {"difference": difference["estimate"], "difference_low": difference["low"]}
        row |= {"difference_high": difference["high"]} | {k: difference[k] for k in ("p", "p_holm", "detectable")}
    return {k: "" if v is None else v for k, v in row.items()}


def markdown(found: Json) -> str:
    """Tables that read in a terminal and paste into an issue."""
    lines: list[str] = []
    for number, block in enumerate(found["tables"], 1):
        lines += [f"## {number}. {_text(', '.join(block['concepts'])[:200])}", "", caption(block), ""]
        heads = ["run", "method", *block["columns"].values(), "worst target", "worst kept", "seconds", "bytes"]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for run in block["runs"]:
            cells = [_cell(run["cells"].get(key)) for key in block["columns"]]
            ends = [worst(run["worst target"], ""), worst(run["worst kept"], " points")]
            cost = [
                str(run["cost"][k] if run["cost"][k] is not None else "") for k in ("seconds", "bytes of the patch")
            ]
            lines.append(
                _row([run["run"], run["method"] + (" (control)" if run["control"] else ""), *cells, *ends, *cost])
            )
        lines += ["", *(f"{run['run']}: {flag}" for run in block["runs"] for flag in run["flags"])]
        lines += [f"NA: {role} ({why})" for role, why in block["absent"].items()]
    return "\n".join([*lines, *found["apart"], ""])


def caption(block: Json) -> str:
    """What every number of a table rests on."""
    suite = block["suite"]
    shared = (
        f", {block['images']} images that all runs share" if block["common"] else f", {block['images']} images a side"
    )
    return (
        f"Model {block['base']}; suite {suite['name']} {suite['version']} ({suite['hash']}){shared}; judge "
        f"{block['judge']['name']} {block['judge']['version']}, garbage detector {block['garbage detector']}. "
        "Rates in per cent, losses and differences in points, "
        f"with 95 % intervals; differences are paired, to {block['baseline']}; p is exact McNemar after Holm over the "
        "runs of a column; the bracketed number, raised on the page, is the place, shared where no difference is sure."
    )


def _cell(entry: Json | None) -> str:
    if entry is None:
        return "NA"
    said = f"{cell_text(entry['cell'])} ({entry['place']})"
    difference = entry.get("difference")
    return said if not difference else f"{said}; {cell_text(difference)} {probability(difference['p_holm'])}"


def probability(p: float) -> str:
    """Two significant digits."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def worst(entry: Json | None, unit: str) -> str:
    return "NA" if entry is None else f"{entry['name']} {points(entry['value'])}{unit} (n = {entry['n']})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_text(c) for c in cells)} |"


def _text(value: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in value).replace("|", "¦")


# --- the page --------------------------------------------------------------------------------------------------------


def page(found: Json) -> str:
    """One HTML text: no script, no network."""
    environment = pages()
    environment.filters.update(probability=probability, shade=shade, costs=costs)
    blocks = [block | {"plot": plot(block), "caption": caption(block)} for block in found["tables"]]
    return environment.get_template("compare.html.j2").render(found=found, blocks=blocks, worst=worst, percent=percent)


def costs(cost: Json) -> list[str]:
    """Time, images and size of a run in short lines; what is unknown is left out."""
    seconds, base, edited, size = (
        cost[k] for k in ("seconds", "base images drawn", "edited images drawn", "bytes of the patch")
    )
    lines = [] if seconds is None else [f"{seconds:.0f} s"]
    lines += [] if None in (base, edited) else [f"{base} + {edited} drawn"]
    return lines + ([] if size is None else [f"{size / 1e6:.2f} MB"])


def shade(value: float) -> int:
    """0 to 10: how dark a cell of the heat map is."""
    return round(10 * min(max(value, 0.0), 1.0))


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 330, 52, 24, 40


def plot(block: Json) -> Json:
    """Places of the runs: loss of kept concepts to the right, targets replaced upwards; the front of the undominated.

    Replaced is 1 - shown - garbage: a concept that vanished into garbage is no success.
    """
    marks: list[Json] = []
    for number, run in enumerate(block["runs"], 1):
        up, right = (run["cells"].get("replaced") or {}).get("cell"), run["kept"]
        if up and right:
            broken = run["cells"]["garbage"]["cell"]["rate"]
            marks.append({"number": number, "run": run["run"], "broken": broken, "x": right, "y": up})
    if not marks:
        return {}
    low = min(0.0, *(m["x"]["low"] for m in marks))
    high = max(0.1, *(m["x"]["high"] for m in marks))

    def at_x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 16) * (value - low) / (high - low)

    def at_y(value: float) -> float:
        return TOP + (HEIGHT - BOTTOM - TOP) * (1 - value)

    points_ = [
        {"number": m["number"], "run": m["run"], "broken": m["broken"], "x": at_x(m["x"]["estimate"]),
         "y": at_y(m["y"]["rate"]), "x1": at_x(m["x"]["low"]), "x2": at_x(m["x"]["high"]), "y1": at_y(m["y"]["low"]),
         "y2": at_y(m["y"]["high"]), "front": _undominated(m, marks)}
        for m in marks
    ]  # fmt: skip
    front = sorted((p for p in points_ if p["front"]), key=lambda p: (p["x"], p["y"]))
    ticks = [t / 100 for t in range(-100, 101, 10 if high - low > 0.35 else 5) if low <= t / 100 <= high]
    return {
        "width": WIDTH, "height": HEIGHT, "bottom": HEIGHT - BOTTOM, "left": LEFT, "points": points_,
        "front": " ".join(f"{p['x']:.1f},{p['y']:.1f}" for p in front),
        "xs": [(at_x(t), f"{100 * t:.0f}") for t in ticks], "ys": [(at_y(t / 4), f"{25 * t}") for t in range(5)],
    }  # fmt: skip


def _undominated(mark: Json, marks: list[Json]) -> bool:
    """No other run is at least as good in both and better in one."""
    x, y = mark["x"]["estimate"], mark["y"]["rate"]
    others = ((m["x"]["estimate"], m["y"]["rate"]) for m in marks)
    return not any(a <= x and b >= y and (a < x or b > y) for a, b in others)
