"""The report as data: what the records of a run say, in words and tables. Drawing and judging stand in `audit.py`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from efface.files import key_of
from efface.gallery.images import Images
from efface.gallery.shot import ROLES, Ask, Item
from efface.metrics._run import composites, measure, neighbourhood
from efface.numerics import intervals, planning
from efface.report import gate as gates
from efface.report.page import percent
from efface.runs.folder import Folder
from efface.runs.spec import Audit
from efface.scores.judging import Watch
from efface.scores.records import shot_of
from efface.scores.tables import absent_table, cell, pairs_of, sweeps, tables
from efface.suites import Plan

__all__ = ["add_gate", "current", "picture_source", "report"]

SHEET = 8  # pairs a sheet, the first of each concept in the suite's own order: chosen before judging
WORST = 5  # pairs that a failed rule shows
RED = 0.10  # a cell with surely more garbage than this is broken, whatever its rate
COLLAPSE = 0.5  # one label in more of the kept images than this
BLUR = 8  # pixels of the shorter side of a blurred picture

LIMITS = [
    "A concept that no longer shows is suppressed in generation; it is not deleted from the model.",
    "Rates hold for these prompts, seeds and sampler settings; other wordings were not drawn.",
    "No attack was run: somebody who looks for the concept with effort may find it.",
    "The judge is a small network; its false alarms and misses are in its card (docs/judges.md).",
]

Json = dict[str, Any]


def report(
    asked: Audit, suite: Any, plan: Plan, folder: Folder, watch: Watch, spec: Mapping[str, Any],
    metrics: Sequence[tuple[str, Any]] = (),
) -> Json:  # fmt: skip
    """Every number of the page: from the records alone, but for `metrics`, which look at the images again."""
    rows = current(folder, watch)
    asked_for = {a.label for i in plan.items for a in i.asks}
    counted = tables(plan.items, rows, frozenset(asked_for if watch.detects else watch.labels))
    counted += [absent_table(role, reason) for role, reason in plan.absent.items()]
    flags = _flags(counted, plan.items, rows, frozenset(getattr(watch.judge, "objects", ())))
    said = _verdict(counted)
    if asked.control:
        said = f"Control, declared with --control: the edited side is no edit. {said}"
    recipe = asked.patch.recipe if asked.patch else {}
    return {
        "format": "efface-report/1",
        "title": f"{', '.join(c.name for c in asked.request.concepts)}: suppressed in {asked.base.card.name}?",
        "verdict": {"line": " ".join([*flags, said]), "state": "fail" if flags else "none"},
        "flags": flags,
        "asked": _asked(asked, recipe),
        "tables": counted,
        "sheets": [] if watch.judge is None else _sheets(plan.items, rows, folder.images),
        "garbage": {side: cell(sum(r["garbage"] for r in rows if r["side"] == side),
                               sum(r["side"] == side and r.get("state", "ok") == "ok" for r in rows))
                    for side in ("base", "edited")},
        "sweeps": sweeps(plan.items, rows),
        "detectable": _detectable(counted),
        "scores": _scores(counted, plan.items, rows),
        "neighbourhood": neighbourhood(asked.base, asked.request, plan.items, rows, folder.images, watch),
        "metrics": [*_similarity(plan.items, rows, watch), *measure(metrics, plan.items, rows, folder.images, watch)],
        "not_measured": [*plan.not_measured, *([f"everything: {watch.why}"] if watch.why else [])],
        "limits": LIMITS,
        "recipe": {k: v for k, v in recipe.items() if k != "request"},
        "judges": _judges(watch),
        "suite": _suite(asked, suite, plan, spec),
        "records": {"rows": len(rows), "rows of other judges or versions": len(folder.records) - len(rows)},
        "hashes": {"base model": asked.base.identity, "patch": asked.patch.hash if asked.patch else "",
                   "edited model": spec["edited"], "run": key_of(**spec)[:16]},
        "environment": folder.environments[0] | ({"went on in": folder.environments[1:]}
                                                 if len(folder.environments) > 1 else {}),
        "cost": {},
        "images": "images/ beside this page" if not suite.private or asked.store_images else "not stored",
    }  # fmt: skip


def current(folder: Folder, watch: Watch) -> list[Json]:
    """The records of planned images by this judge and garbage detector, in key order."""
    planned = folder.planned
    rows = (r for r in folder.records if (r["side"], r["image"]) in planned)
    return [r for r in rows if r["key"] == watch.key(r["side"], r["image"])]


def _asked(asked: Audit, recipe: Mapping[str, Any]) -> Json:
    return {
        "model": asked.base.card.name,
        "concepts": [{"name": c.name, "kind": c.kind, "anchor": c.anchor} for c in asked.request.concepts],
        "keep": list(asked.request.kept_texts),
        "method": recipe.get("method", "unknown"),
        "preset": recipe.get("preset", "unknown"),
        "seed": asked.request.seed,
        "suite": asked.suite,
        "command": asked.command,
        **({"control": True} if asked.control else {}),
    }


def _suite(asked: Audit, suite: Any, plan: Plan, spec: Mapping[str, Any]) -> Json:
    sampling = asked.sampling
    return {
        "name": asked.suite, "version": suite.version, "hash": spec["suite_hash"],
        "prompts": len({i.prompt for i in plan.items}), "images": len(plan.items),
        **({"settings": {k: str(v) for k, v in asked.settings}} if asked.settings else {}),
        **({"private": True} if suite.private else {}),
        "sampler": {"steps": sampling.steps, "guidance": sampling.guidance, "dtype": sampling.dtype,
                    "scheduler": asked.base.card.schedule_dict()["_class_name"]},
    }  # fmt: skip


def _verdict(counted: list[Json]) -> str:
    """One sentence with the pooled numbers; no claim beyond them."""
    said = []
    for table in counted:
        pooled = table["pooled"]
        if pooled and table["role"] in ("target", "style", "sensitive", "neighbour", "other", "other-style"):
            base, edited = pooled["base"], pooled["edited"]
            said.append(f"{table['label'].lower()} {percent(base)} % → {percent(edited)} % (n = {edited['n']})")
    return "Shown, base → edited: " + "; ".join(said) if said else "Nothing could be scored."


def _flags(counted: list[Json], items: Sequence[Item], rows: Sequence[Json], objects: frozenset[str]) -> list[str]:
    """What makes every rate of the page worthless: garbage where targets were, one label for everything."""
    broken = []
    for table in counted:
        cell_ = (table["pooled"] or {}).get("garbage")
        if cell_ and intervals.lower_bound(cell_["hits"], cell_["n"]) > RED:
            broken.append(f"{table['label'].lower()} {percent(cell_)} % ({cell_['hits']}/{cell_['n']})")
    found = [f"Broken: garbage in place of {'; '.join(broken)}."] if broken else []
    kept = {i.shot: a.label for i in items for a in i.asks if a.role in ("neighbour", "other")}
    edited = [r for r in rows if r["side"] == "edited" and shot_of(r) in kept]
    seen = Counter(h for r in edited for h in r["hits"] if h in objects).most_common(1)
    if len(set(kept.values())) > 2 and seen:
        label, k = seen[0]
        base = sum(label in r["hits"] for r in rows if r["side"] == "base" and shot_of(r) in kept)
        if k > COLLAPSE * len(edited) and base <= COLLAPSE * len(edited):
            found.append(f"Collapsed: the judge sees {label!r} in {k} of {len(edited)} images of kept concepts.")
    return found


def _detectable(counted: list[Json]) -> list[Json]:
    """What loss these numbers of pairs could have shown (80 % power, two-sided 5 %, exact McNemar)."""
    found = []
    for table in counted:
        pooled = table["pooled"]
        if pooled and table["direction"] == "same":
            n, both = pooled["base"]["n"], pooled["both"]
            flips = min(pooled["base"]["hits"], pooled["edited"]["hits"]) - both
            loss = planning.detectable_loss(n, max(flips / n, 0.005))
            words = "none" if loss is None else f"{100 * loss:.1f} points"
            found.append({"role": table["label"], "pairs": n, "smallest detectable loss": words})
    return found


def _scores(counted: list[Json], items: Sequence[Item], rows: Sequence[Json]) -> list[Json]:
    """The papers' one-number scores of base and edited model over scored concepts; of several methods: compare."""
    scored = {(t["role"], r["name"]) for t in counted for r in t["rows"] if r["state"] == "ok"}
    pairs = [p for p in pairs_of(items, rows) if (p.role, p.label) in scored and p.state == "ok"]
    cells = composites({"edited": pairs}) if pairs else []
    return [{"score": c["name"], "side": c["side"], "value": c["value"], "note": c["note"]}
            for c in cells if c["state"] == "ok" and c["name"] in ("Overall", "H_o")]  # fmt: skip


def _similarity(items: Sequence[Item], rows: Sequence[Json], watch: Watch) -> list[Json]:
    """CLIP scores of base and edited images with the paired difference, where the judge compares image and text."""
    if not watch.compares:
        return []
    from efface.metrics.clip import Clip

    asked = {i.shot: i.asks for i in items}
    made = [
        {"side": r["side"], "prompt": r["prompt"], "seed": r["seed"], "guidance": r.get("guidance"),
         "role": a.role, "concept": a.label,
         "state": r.get("state", "ok"), "hit": None, "value": r["values"].get(a.label), "reason": r.get("reason", ""),
         "cut": r.get("cut", False)}
        for r in rows for a in asked.get(shot_of(r), ())
    ]  # fmt: skip
    return [{"metric": "clip", **cell.as_row()} for cell in Clip().aggregate(made)]


def _judges(watch: Watch) -> list[Json]:
    if watch.judge is None:
        return [{"name": watch.name, "version": "none", "role": "unavailable", "threshold": "", "note": watch.why}]
    note = "statistics only" if watch.garbage else "no detector for this judge: only images of one colour are found"
    share = "1 % of base images" if watch.garbage else ""
    return [
        {"name": watch.judge.name, "version": watch.version, "role": watch.judge.card.get("role", "reporting"),
         "threshold": f"regions at {watch.threshold} and above" if watch.detects else _threshold(watch.judge.card),
         "note": "docs/judges.md"},
        {"name": "garbage", "version": watch.garbage_version, "role": "garbage detector", "threshold": share,
         "note": note},
    ]  # fmt: skip


def _threshold(card: Mapping[str, Any]) -> str:
    said = card.get("thresholds")
    return said if isinstance(said, str) else "per label, in its card"


# --- pictures --------------------------------------------------------------------------------------------------------


def _sheets(items: Sequence[Item], rows: Sequence[Json], images: Images) -> list[Json]:
    by_image = {(r["side"], shot_of(r)): r for r in rows}
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        first = item.asks[0]
        group = (first.role, first.label if first.role in ("target", "style") else "")
        groups.setdefault(group, []).append(item)
    sheets = []
    for (role, label), members in groups.items():
        pairs = [_shown(item, item.asks[0], by_image, images) for item in members[:SHEET]]
        note = "the first of the suite, chosen before judging"
        sheets.append({"title": label or ROLES[role][0].lower(), "role": role, "note": note, "pairs": pairs})
    worst = _worst(items, by_image, {"target", "style", "sensitive"}, "shown", SHEET)
    if worst:
        pairs = [_shown(i, a, by_image, images) for i, a in worst]
        note = "chosen by the judge: the edited images in which it is surest to see the target"
        sheets.append({"title": "worst of all targets", "role": "target", "note": note, "pairs": pairs})
    return sheets


def _shown(item: Item, ask: Ask, by_image: Mapping[Any, Json], images: Images) -> Json:
    base, edited = (by_image[s, item.shot] for s in ("base", "edited"))
    found: Json = {"prompt": item.prompt, "seed": item.seed}
    for name, row in (("base", base), ("edited", edited)):
        found[name] = row["image"] if images.has(row["image"]) else None
        found[f"{name}_shown"] = ask.label in row["hits"] if row.get("state", "ok") == "ok" else None
    return found


def _worst(
    items: Sequence[Item], by_image: Mapping[Any, Json], roles: set[str], what: str, n: int, only: Sequence[str] = ()
) -> list[tuple[Item, Ask]]:
    """The n pairs that speak loudest against the edit: shown targets, lost kept concepts, or garbage."""
    found = []
    for item in items:
        base, edited = (by_image[s, item.shot] for s in ("base", "edited"))
        if any(row.get("state", "ok") != "ok" for row in (base, edited)):
            continue  # an image that failed shows nothing and lost nothing
        for ask in item.asks:
            if ask.role not in roles or (only and ask.label not in only):
                continue
            value = edited["values"].get(ask.label, 0.0)
            hit = ask.label in edited["hits"]
            if what == "loss":
                hit, value = ask.label in base["hits"] and not hit, -value
            elif what == "garbage":
                hit, value = edited["garbage"], 0.0
            if hit:
                found.append((-value, item.prompt, item.seed, item, ask))
    return [(item, ask) for *_, item, ask in sorted(found, key=lambda f: f[:3])[:n]]


def picture_source(images: Images, private: bool) -> Callable[[str], bytes]:
    """Bytes of an image for the page; blurred beyond recognition where the suite is private."""

    def blurred(key: str) -> bytes:
        from PIL import Image

        with Image.open(io.BytesIO(images.png(key))) as picture:
            small = picture.convert("RGB").resize((BLUR, BLUR), Image.Resampling.BOX)
            buffer = io.BytesIO()
            small.resize(picture.size, Image.Resampling.BICUBIC).save(buffer, "PNG")
        return buffer.getvalue()

    return blurred if private else images.png


# --- the gate --------------------------------------------------------------------------------------------------------


def add_gate(
    result: Json, gate: gates.Gate, allow_undecided: bool, items: Sequence[Item], rows: Sequence[Json], images: Images
) -> None:
    """Enter what a gate says into the report: rules, the worst pairs of failed ones, the verdict's state.

    A report with flags fails any gate: rates of a broken model say nothing.
    """
    flags = [gates.Outcome("pictures", "fail", "neither Broken nor Collapsed", flag) for flag in result["flags"]]
    outcomes = gates.judge(gate, result)
    by_image = {(r["side"], shot_of(r)): r for r in rows}
    listed = [_listed(flag) for flag in flags]
    for rule, outcome in zip([*gate.rules, gates.ERRORS], outcomes, strict=True):
        row = _listed(outcome)
        if outcome.state in ("fail", "undecided") and rule.metric in ("shown", "loss", "garbage"):
            worst = _worst(items, by_image, set(rule.roles), rule.metric, WORST, outcome.concepts)
            row["pairs"] = [_shown(i, a, by_image, images) for i, a in worst]
        listed.append(row)
    state = gates.state_of([*flags, *outcomes], allow_undecided)
    result["gate"] = {"name": gate.name, "state": state, "undecided allowed": allow_undecided, "rules": listed}
    bad = [o for o in outcomes if o.state == "fail"] or [o for o in outcomes if o.state == "undecided"]
    line = f"Gate {gate.name} {'passed' if state == 'pass' else 'failed'}."
    if state != "pass" and bad:
        line = f"Gate {gate.name}, {bad[0].rule}: expected {bad[0].expected}, got {bad[0].got}."
    head = " ".join(result["flags"])
    said = result["verdict"]["line"].removeprefix(head).strip()
    result["verdict"] |= {"state": state, "line": " ".join(t for t in (head, line, said) if t)}


def _listed(outcome: gates.Outcome) -> Json:
    row = asdict(replace(outcome, counted={})) | {"pairs": []}
    del row["counted"]
    return row
