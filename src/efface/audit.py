"""Audit: draw a suite with the base and the edited model, judge it, write the report.

A run is a folder: `spec.json` (frozen), `records.jsonl`, `images/`, `report.html`, `report.json`. The same command
goes on where a killed one stopped; another spec in the same folder is refused.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import efface
from efface import report as page
from efface.errors import BadRequest, OutputExists, UnknownName
from efface.measure import Sampling, Side, absent_table, cell, draw, judge_images, tables
from efface.registry import find
from efface.request import Concept, Request
from efface.store import Images, Records, key_of, write_bytes
from efface.suites import ROLES, Item, suite_hash
from efface.work import Work, cache_folder

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Patch

__all__ = ["Audit", "audit", "concepts_for", "images_of", "request_of"]

SHEET = 8  # pairs a sheet, the first of each concept in the suite's own order: chosen before judging


def request_of(patch: Patch) -> Request:
    """The request that stands in a patch's recipe."""
    row = patch.recipe["request"]
    return Request(tuple(_concept(c) for c in row["concepts"]), tuple(row["keep"]), row["seed"], row["preset"])


def _concept(row: dict[str, Any]) -> Concept:
    fields: dict[str, Any] = row | {"synonyms": tuple(row["synonyms"]), "keep": tuple(row["keep"])}
    return Concept(**fields)


@dataclass(frozen=True)
class Audit:
    """Everything that decides an audit. `edited` is the base with `patch`, or another model."""

    base: Model
    request: Request
    suite: str
    patch: Patch | None = None
    edited: Model | None = None
    steps: int | None = None
    guidance: float | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if (self.patch is None) == (self.edited is None):
            raise BadRequest("an audit needs either a patch or an edited model, got both or neither")
        if self.edited is not None and self.edited.identity == self.base.identity:
            raise BadRequest("base and edited model are the same; name the edited one and the one it was made from")

    def spec(self, items: tuple[Item, ...]) -> dict[str, Any]:
        """What is frozen in the run folder."""
        return {
            "format": "efface-run/1",
            "base": self.base.identity,
            "patch": self.patch.hash if self.patch else "",
            "edited": self.edited.identity if self.edited else "",
            "suite": self.suite,
            "suite_hash": suite_hash(items),
            "sampling": Sampling.of(self.base, self.steps, self.guidance).hash,
            "request": self.request.asdict(),
        }


def audit(asked: Audit, out: Path, work: Work | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Draw, judge, count, write `out/report.html` and `out/report.json`; returns the report.

    Raises OutputExists for a folder that holds another run or something else, BadRequest, Unavailable.
    """
    work = work or Work()
    suite = find("suites", asked.suite)()
    request = asked.request.settle(asked.base.kinds)
    asked = dataclasses.replace(asked, request=request)
    items = suite.items(request, asked.base.concepts)
    spec = asked.spec(items)
    _open_run(out, spec, overwrite)
    start = time.monotonic()
    records, images, judges, cost = _measure(asked, items, out, work)
    result = _report(asked, suite, items, records, judges, spec)
    result["cost"] = cost | {"seconds": round(time.monotonic() - start, 1)}
    page.write(result, out, images.png)
    return result


def _open_run(out: Path, spec: dict[str, Any], overwrite: bool) -> None:
    frozen = out / "spec.json"
    same = frozen.exists() and json.loads(frozen.read_text()) == json.loads(json.dumps(spec))
    if out.exists() and not same and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise OutputExists(out)
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    write_bytes(frozen, json.dumps(spec, sort_keys=True, indent=1).encode())


class _TwoPlaces(Images):
    """Images of the run, with the shared cache of base images behind them."""

    def __init__(self, folder: Path, cache: Images) -> None:
        super().__init__(folder)
        self.cache = cache

    def png(self, key: str) -> bytes:
        return super().png(key) if self.has(key) else self.cache.png(key)


def images_of(run: Path) -> Images:
    """The images of a run, base images from the shared cache."""
    return _TwoPlaces(run / "images", Images(cache_folder() / "images"))


def _measure(
    asked: Audit, items: tuple[Item, ...], out: Path, work: Work
) -> tuple[Records, Images, tuple[Any, Any], dict[str, Any]]:
    from efface.judges import garbage as garbage_module

    judge = find("judges", "world")()
    garbage = garbage_module.load(judge)
    sampling = Sampling.of(asked.base, asked.steps, asked.guidance)
    cache, own = Images(cache_folder() / "images"), Images(out / "images")
    records = Records(out / "records.jsonl")
    base = Side("base", asked.base)
    drawn = {"base images drawn": draw(base, items, sampling, cache, work)}
    judge_images(base, items, sampling, cache, judge, garbage, records)
    if asked.patch:
        edited = Side("edited", asked.base, asked.patch.hash)
        with asked.patch.applied(asked.base):
            drawn["edited images drawn"] = draw(edited, items, sampling, own, work)
    else:
        edited = Side("edited", asked.edited or asked.base)
        drawn["edited images drawn"] = draw(edited, items, sampling, own, work)
    judge_images(edited, items, sampling, own, judge, garbage, records)
    size = len(asked.patch.to_bytes()) if asked.patch else 0
    return records, images_of(out), (judge, garbage), drawn | {"bytes of the patch": size}


# --- the report as data ------------------------------------------------------------------------------------------


def _report(
    asked: Audit,
    suite: Any,
    items: tuple[Item, ...],
    records: Records,
    judges: tuple[Any, Any],
    spec: dict[str, Any],
) -> dict[str, Any]:
    judge, garbage = judges
    rows = [r for r in records if r["judge_version"] == judge.version]
    counted = tables(items, rows, frozenset((*judge.objects, *judge.styles)))
    counted += [absent_table(role, reason) for role, reason in suite.absent.items()]
    recipe = asked.patch.recipe if asked.patch else {}
    sampling = Sampling.of(asked.base, asked.steps, asked.guidance)
    return {
        "format": "efface-report/1",
        "title": f"{', '.join(c.name for c in asked.request.concepts)}: suppressed in {asked.base.card.name}?",
        "verdict": {"line": _verdict(counted), "state": "none"},
        "asked": {
            "model": asked.base.card.name,
            "concepts": [{"name": c.name, "kind": c.kind, "anchor": c.anchor} for c in asked.request.concepts],
            "keep": list(asked.request.kept_texts),
            "method": recipe.get("method", "unknown"),
            "preset": recipe.get("preset", "unknown"),
            "seed": asked.request.seed,
            "suite": asked.suite,
            "command": asked.command,
        },
        "tables": counted,
        "sheets": _sheets(items, rows),
        "garbage": {side: cell(sum(r["garbage"] for r in rows if r["side"] == side),
                               sum(r["side"] == side for r in rows)) for side in ("base", "edited")},
        "not_measured": list(suite.not_measured(asked.request, asked.base.concepts)),
        "limits": LIMITS,
        "recipe": {k: v for k, v in recipe.items() if k != "request"},
        "judges": [_judge_row(judge), {"name": "garbage", "version": garbage.version, "role": "garbage detector",
                                       "threshold": "1 % of base images", "note": "statistics only"}],
        "suite": {
            "name": asked.suite, "version": suite.version, "hash": spec["suite_hash"], "prompts":
            len({i.prompt for i in items}), "images": len(items),
            "sampler": {"steps": sampling.steps, "guidance": sampling.guidance, "dtype": sampling.dtype,
                        "scheduler": asked.base.card.schedule_dict()["_class_name"]},
        },
        "hashes": {"base model": asked.base.identity, "patch": asked.patch.hash if asked.patch else "",
                   "edited model": spec["edited"], "run": key_of(**spec)[:16]},
        "environment": {"efface": efface.__version__, "python": platform.python_version(), **_versions()},
        "cost": {},
        "images": "base images: the shared cache; edited images: images/ beside this page",
    }  # fmt: skip


LIMITS = [
    "A concept that no longer shows is suppressed in generation; it is not deleted from the model.",
    "Rates hold for these prompts, seeds and sampler settings; other wordings were not drawn.",
    "No attack was run: somebody who looks for the concept with effort may find it.",
    "The judge is a small network; its false alarms and misses are in its card (docs/judges.md).",
]


def _verdict(counted: list[dict[str, Any]]) -> str:
    """One sentence with the pooled numbers; no claim beyond them."""
    said = []
    for table in counted:
        pooled = table["pooled"]
        if pooled and table["role"] in ("target", "style", "neighbour", "other", "other-style"):
            base, edited = pooled["base"], pooled["edited"]
            said.append(f"{table['label'].lower()} {base['rate']:.1%} → {edited['rate']:.1%} (n = {edited['n']})")
    return "Shown, base → edited: " + "; ".join(said) if said else "Nothing could be scored."


def _sheets(items: tuple[Item, ...], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_image = {(r["side"], r["prompt"], r["seed"]): r for r in rows}
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        first = item.asks[0]
        group = (first.role, first.label if first.role in ("target", "style") else "")
        groups.setdefault(group, []).append(item)
    sheets = []
    for (role, label), members in groups.items():
        pairs = []
        for item in members[:SHEET]:
            base, edited = (by_image[s, item.prompt, item.seed] for s in ("base", "edited"))
            shown = item.asks[0].label
            pairs.append(
                {
                    "prompt": item.prompt,
                    "seed": item.seed,
                    "base": base["image"],
                    "edited": edited["image"],
                    "base_shown": shown in base["hits"],
                    "edited_shown": shown in edited["hits"],
                }
            )
        title = label or ROLES[role][0].lower()
        sheets.append(
            {
                "title": title,
                "role": role,
                "note": "the first of the suite, chosen before judging",
                "pairs": pairs,
            }
        )
    return sheets


def _judge_row(judge: Any) -> dict[str, Any]:
    return {
        "name": judge.name,
        "version": judge.version,
        "role": judge.role,
        "threshold": "per label, specificity 0.99",
        "note": "card: docs/judges.md",
    }


def _versions() -> dict[str, str]:
    return {
        name: str(sys.modules[name].__version__)
        for name in ("torch", "diffusers", "transformers")
        if name in sys.modules
    }


def concepts_for(asked: list[str], patch: Patch | None) -> Request:
    """The request of an audit: what the command names, else what the patch was made for."""
    if asked:
        return Request.build(asked)
    if patch is None:
        raise BadRequest("an edited model does not say what was erased; name it with -c")
    if "request" not in patch.recipe:
        raise UnknownName("part of the patch", "request", patch.recipe)
    return request_of(patch)
