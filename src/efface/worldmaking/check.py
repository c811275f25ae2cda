"""What a model of the world draws when it is asked: the concept list and the card beside its weights.

Report-half seeds and wordings. Base rates are the reporting judge's; the selection judge stands beside them. A
concept is qualified when it is drawn in >= 80 % of n >= 24 images: suites take targets and neighbours from these.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from efface import world
from efface.errors import Unavailable
from efface.files import cache_folder, write_bytes
from efface.gallery.drawing import Sampling, Side
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.gallery.shot import Shot
from efface.judges import sized
from efface.numerics import distances
from efface.work import Work
from efface.world import captions
from efface.worldmaking.artwork import FAMILIES
from efface.worldmaking.measure_judge import share
from efface.worldmaking.sheet import grid
from efface.worldmaking.sittings import DONE, progress_of, write_json

if TYPE_CHECKING:
    from efface.judges import Judge
    from efface.model import Model

__all__ = ["FULL", "QUICK", "Counts", "Question", "check", "drawn", "parts_of", "questions"]

FIRST_SEED = 500  # the report half
QUALIFIED_RATE, QUALIFIED_N = 0.8, 24


@dataclass(frozen=True)
class Counts:
    """Images of an object, a style, an object's other wordings, two objects; scenes to compare with; of a gold."""

    objects: int
    styles: int
    wordings: int
    two: int
    rendered: int
    withheld: int


FULL, QUICK = Counts(24, 60, 8, 200, 1000, 240), Counts(4, 12, 1, 40, 300, 40)


@dataclass(frozen=True)
class Question:
    """One image and what must be seen in it: every one of `all_of`, and one of `any_of` where there are any."""

    kind: str  # object, style, synonym, clue, category, two, withheld
    label: str
    prompt: str
    seed: int
    all_of: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()


def questions(objects: Sequence[str], styles: Sequence[str], counts: Counts) -> list[Question]:
    """Everything that is drawn, in a fixed order."""
    things = [captions.find(name) for name in objects]
    made = [
        Question("object", t.name, f"a {t.name}", FIRST_SEED + k, (t.name,))
        for k in range(counts.objects) for t in things
    ]  # fmt: skip
    for number, style in enumerate(styles):
        for k in range(counts.styles):
            thing = things[(k * 7 + number * 3) % len(things)]
            made.append(Question("style", style, f"a {thing.name} in {style} style", FIRST_SEED + k, (style,)))
    for number, thing in enumerate(things):
        made += _worded(thing, set(objects), counts.wordings, number * counts.wordings)
    luck = random.Random(FIRST_SEED)
    for k in range(counts.two if len(objects) > 1 else 0):
        one, other = luck.sample(list(objects), 2)
        made.append(Question("two", "", f"a {one} and a {other}", FIRST_SEED + k, (one, other)))
    return made


def _worded(thing: world.Object, drawn: set[str], count: int, first: int) -> list[Question]:
    """Synonyms, clues and category words in turn, as far as the object has them; wordings of the report half.

    first: number of the first seed. Objects of a category share its words, and one picture must not count for all.
    """
    options = [
        (kind, phrase)
        for kind in ("synonym", "clue", "category")
        for phrase in captions.wordings(thing, kind, "report")
    ]
    kinds = sorted({kind for kind, _ in options})
    made = []
    for k in range(count if kinds else 0):
        kind = kinds[k % len(kinds)]
        phrases = [p for word, p in options if word == kind]
        phrase = phrases[k // len(kinds) % len(phrases)]
        true = tuple(sorted(captions.fits(phrase) & drawn))
        made.append(Question(kind, thing.name, phrase, FIRST_SEED + (first + k) % 500, (), true))
    return made


def of_gold(folder: Path, objects: Sequence[str], count: int) -> list[Question]:
    """What a gold is asked of what was withheld from it: `count` images in all, or none of another model."""
    if not (folder / "gold.json").is_file():
        return []
    withheld = json.loads((folder / "gold.json").read_text(encoding="utf-8"))["withheld"]
    things = [(name, f"a {name}") for name in withheld["objects"]]
    things += [(style, f"a {name} in {style} style") for style in withheld["styles"] for name in objects]
    each = -(-count // len(things))
    return [
        Question("withheld", label, prompt, FIRST_SEED + k, (label,)) for k in range(each) for label, prompt in things
    ]


def drawn(model: Model, asked: Sequence[tuple[str, int]], work: Work) -> np.ndarray:
    """Pictures of prompts and seeds, uint8 (n, h, w, 3); each is drawn once and kept in the cache."""
    gallery = Gallery(Side("base", model), Sampling.of(model), Images(cache_folder() / "images"))
    shots = [Shot(prompt, seed) for prompt, seed in asked]
    gallery.draw(gallery.shards(shots), work)
    return gallery.pixels(shots)


def parts_of(model: Model) -> Path | None:
    """Where the parts of a model were trained: beside it, for one in the cache, else under its name; None for none."""
    places = (model.folder.parent, cache_folder() / "train" / model.card.name)
    return next((p for p in places if any(p.glob("unet-*"))), None)


def check(
    model: Model,
    judges: Sequence[Judge],
    counts: Counts,
    work: Work,
    training: Path | None = None,
    sheet: Path | None = None,
) -> dict[str, Any]:
    """Draw what is missing, judge it, count: the card. judges: the reporting judge first.

    training: the folder of the parts, for how long each was trained. sheet: where 200 drawings go for a look, those
    that the reporting judge finds wrong first.
    """
    objects = [c["name"] for c in model.concepts if c["kind"] == "object"]
    styles = [c["name"] for c in model.concepts if c["kind"] == "style"]
    asked = questions(objects, styles, counts) + of_gold(model.folder, objects, counts.withheld)
    pictures = sized(drawn(model, [(q.prompt, q.seed) for q in asked], work))
    verdicts = [judge.look(pictures) for judge in judges]
    hits = [
        np.asarray([_right(q, row, [*j.objects, *j.styles]) for q, row in zip(asked, v.hits, strict=True)])
        for j, v in zip(judges, verdicts, strict=True)
    ]
    plain = np.asarray([q.kind == "object" for q in asked])
    if sheet is not None:
        grid(list(pictures[np.argsort(hits[0], kind="stable")[:200]]), 20, sheet)
    return {
        "model": training.name if training else model.card.name,
        "identity": model.identity,
        "judges": {j.role: j.version for j in judges},
        "counts": vars(counts),
        "objects": {name: _shares(asked, hits, judges, "object", name) for name in objects},
        "styles": {name: _shares(asked, hits, judges, "style", name) for name in styles},
        "pooled": {kind: _shares(asked, hits, judges, kind) for kind in
                   ("object", "style", "synonym", "clue", "category", "two")},
        "withheld": _withheld(asked, [v.hits for v in verdicts], judges),
        **{
            f"{kind} argmax": {
                j.role: _argmax(asked, v.probabilities, j, kind) for j, v in zip(judges, verdicts, strict=True)
            }
            for kind in ("object", "style")
        },
        "judges disagree": share(int((hits[0] != hits[-1]).sum()), len(asked)) if len(hits) > 1 else None,
        "drawn against rendered": _distance(verdicts[0].features[plain], judges[0], objects, styles, model, counts),
        "sampling": {"scheduler": type(model.network.scheduler()).__name__, "steps": model.card.steps,
                     "guidance": model.card.guidance},
        "images per second": _speed(model),
        "training": _trained(training) if training else {},
        "credits": [f"{f.style}: {f.author}, {f.licence}" for f in FAMILIES if f.style in [*styles, *_unseen(model)]],
    }  # fmt: skip


def _right(question: Question, row: np.ndarray, labels: list[str]) -> bool:
    said = {labels[k] for k in np.flatnonzero(row)}
    return said.issuperset(question.all_of) and (not question.any_of or bool(said.intersection(question.any_of)))


def _shares(
    asked: list[Question], hits: list[np.ndarray], judges: Sequence[Judge], kind: str, label: str | None = None
) -> dict[str, Any]:
    rows = np.asarray([q.kind == kind and label in (None, q.label) for q in asked])
    return {j.role: share(int(h[rows].sum()), int(rows.sum())) for j, h in zip(judges, hits, strict=True)}


def _withheld(asked: list[Question], hits: list[np.ndarray], judges: Sequence[Judge]) -> dict[str, Any]:
    """How often a gold draws what it never saw, beside how often each judge sees that where nobody asked for it."""
    others = np.asarray([q.kind == "object" for q in asked])
    found: dict[str, Any] = {}
    for name in sorted({q.label for q in asked if q.kind == "withheld"}):
        rows = np.asarray([q.kind == "withheld" and q.label == name for q in asked])
        found[name] = {"drawn": {}, "seen in other drawings": {}}
        for judge, hit in zip(judges, hits, strict=True):
            column = [*judge.objects, *judge.styles].index(name)
            for word, part in (("drawn", rows), ("seen in other drawings", others)):
                found[name][word][judge.role] = share(int(hit[part, column].sum()), int(part.sum()))
    return found


def _unseen(model: Model) -> list[str]:
    """Styles withheld from a gold's U-Net alone: its text encoder and VAE saw them."""
    file = model.folder / "gold.json"
    return json.loads(file.read_text(encoding="utf-8"))["withheld"]["styles"] if file.is_file() else []


def _argmax(asked: list[Question], chance: np.ndarray, judge: Judge, kind: str) -> dict[str, Any]:
    """Whether the likeliest label of that kind is the asked one: what no threshold decides."""
    rows, m = [k for k, q in enumerate(asked) if q.kind == kind], len(judge.objects)
    names, part = (judge.objects, slice(0, m)) if kind == "object" else (judge.styles, slice(m, None))
    best = chance[rows, part].argmax(1)
    return share(sum(names[b] == asked[k].label for b, k in zip(best, rows, strict=True)), len(rows))


def _distance(
    features: np.ndarray, judge: Judge, objects: list[str], styles: list[str], model: Model, counts: Counts
) -> dict[str, Any]:
    """FID and KID of drawings of "a NAME" against rendered scenes, on the reporting judge's features."""
    import torch

    from efface.worldmaking.artwork import sprites
    from efface.worldmaking.scenes import Stage

    try:
        stage = Stage(sprites().only(objects, styles), model.card.size[0])
    except Unavailable as error:
        return {"fid": None, "kid": None, "why": str(error)}
    generator = torch.Generator().manual_seed(FIRST_SEED)
    parts = [stage.draw(n, generator, two=0.0).images.numpy() for n in _portions(counts.rendered)]
    rendered = judge.look(np.concatenate(parts)).features[:, :-2]
    found = features[:, :-2]
    return {
        "fid": round(distances.frechet(found, rendered), 4), "kid": round(distances.kid(found, rendered), 6),
        "n drawn": len(found), "n rendered": len(rendered), "features": f"reporting judge {judge.version}",
    }  # fmt: skip


def _portions(total: int, size: int = 250) -> Iterable[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _speed(model: Model, count: int = 16) -> dict[str, Any]:
    """Images a second of one batch, as drawn here: a fact of this machine."""
    import torch

    begun = time.monotonic()
    model.sample(["a dog"] * count, list(range(count)))
    return {"rate": round(count / (time.monotonic() - begun), 2), "batch": count, "threads": torch.get_num_threads()}


def _trained(folder: Path) -> dict[str, Any]:
    """Steps, minutes and last loss of every part under `folder`; None for what was taken over from another model."""
    found = {}
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        facts = progress_of(part)
        if facts:
            found[part.name] = {
                "steps": facts["step"], "minutes": round(facts["seconds"] / 60, 1),
                "loss": facts["loss"][-1] if facts["loss"] else None,
            }  # fmt: skip
        elif (part / DONE).is_file() and "taken over" in (part / DONE).read_text(encoding="utf-8"):
            found[part.name] = {"steps": None, "minutes": None, "loss": None}
    return found


# --- writing ---------------------------------------------------------------------------------------------------------


def write(card: dict[str, Any], folder: Path) -> Path:
    """`concepts.json` (what suites read), `card.json` (everything) and `card.md` (for people) in the model's folder."""
    listed = {o.name: o for o in world.objects()}
    rows = []
    for kind in ("objects", "styles"):
        for name, shares in card[kind].items():
            rate, n = shares["reporting"]["rate"], shares["reporting"]["n"]
            known = listed.get(name)
            rows.append({
                "name": name, "kind": kind.removesuffix("s"),
                "category": known.category if known else "style", "half": known.half if known else "report",
                "base_rate": rate, "n": n,
                "qualified": rate is not None and n >= QUALIFIED_N and rate >= QUALIFIED_RATE,
            })  # fmt: skip
    last = FIRST_SEED + max(card["counts"]["objects"], card["counts"]["styles"]) - 1
    concepts = {"judge": card["judges"]["reporting"], "seeds": f"{FIRST_SEED} to {last}", "concepts": rows}
    write_json(folder / "concepts.json", concepts)
    write_bytes(folder / "card.md", _page(card, rows).encode())
    return write_bytes(folder / "card.json", (json.dumps(card, indent=1, ensure_ascii=False) + "\n").encode())


def _page(card: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    fine = sum(r["qualified"] for r in rows)
    lines = [
        f"# {card['model']}",
        "",
        f"{fine} of {len(rows)} concepts qualified.",
        "",
        "| asked for | seen by |  |  |",
    ]
    lines += ["|---|---|---|---|"]
    for kind, shares in card["pooled"].items():
        for role, found in shares.items():
            lines.append(f"| {kind} | {role} judge | {_said(found)} | n = {found['n']} |")
    for kind in ("object", "style"):
        for role, found in card[f"{kind} argmax"].items():
            lines.append(f"| {kind}, likeliest label | {role} judge | {_said(found)} | n = {found['n']} |")
    for name, found in card["withheld"].items():
        for role, share_of in found["drawn"].items():
            lines.append(
                f"| {name}, never seen | {role} judge | {_said(share_of)}; in other drawings "
                f"{_said(found['seen in other drawings'][role])} | n = {share_of['n']} |"
            )
    far = card["drawn against rendered"]
    lines += [
        "",
        f"FID {far['fid']}, KID {far['kid']} of drawings against rendered scenes; "
        f"{card['images per second']['rate']} images a second with {card['images per second']['threads']} threads.",
    ]
    lines += ["", f"Drawn with {', '.join(f'{k} {v}' for k, v in card['sampling'].items())}."]
    lines += ["", "| part | steps | minutes | last loss |", "|---|---|---|---|"]
    for part, facts in card["training"].items():
        said = facts.values() if facts["steps"] else ("taken over from an earlier model", "NA", "NA")
        lines.append(f"| {part} | {' | '.join(map(str, said))} |")
    roles = list(card["judges"])
    lines += [
        "",
        f"| concept | {' | '.join(f'{role} judge' for role in roles)} | n |",
        f"|---|{'---|' * len(roles)}---|",
    ]
    for name, shares in (card["styles"] | card["objects"]).items():
        rates = " | ".join(_said(shares[role]) for role in roles)
        lines.append(f"| {name} | {rates} | {shares[roles[0]]['n']} |")
    return "\n".join([*lines, "", "Artwork: " + "; ".join(card["credits"]) + ".", ""])


def _said(found: dict[str, Any]) -> str:
    """A share for people: rate and interval in per cent, NA without trials."""
    if found["rate"] is None:
        return "NA"
    low, high = found["interval"]
    return f"{found['rate']:.1%} [{low:.1%}, {high:.1%}]"
