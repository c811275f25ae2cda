"""A gate sees what rates alone do not: noise, one colour and blur fail it, an edit that draws other things passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import efface
from conftest import Cli
from efface.audit import audit
from efface.errors import BadRequest, EffaceError
from efface.files import cache_folder
from efface.gallery.gallery import Gallery
from efface.gallery.images import Images
from efface.gallery.shot import Item
from efface.judges import world
from efface.metrics._run import configured
from efface.report import gate as gates
from efface.request import Request
from tiny_world import Paint, categories, make_world, named, paint, pictures, small, zero_patch

METRICS = ("pairs", "pairs:measure=psnr", "distribution", "garbage")
BROKEN = "garbage among targets"
SETTINGS = (("all_targets", 60), ("synonyms", 0), ("neighbours", 24), ("others", 72))


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> efface.Model:
    folder = make_world(tiny_folder, tmp_path_factory.mktemp("world") / "pictured", names=categories())
    return efface.load(folder, "cpu")


def targets() -> list[str]:
    return list(pictures())[:2]


def other_things(item: Item) -> np.ndarray:
    """A known good edit: in place of a target another object, everything else as before."""
    return pictures()[list(pictures())[-1]] if item.asks[0].label in targets() else named(item)


def noise(item: Item) -> np.ndarray:
    return np.random.default_rng(item.seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def one_colour(item: Item) -> np.ndarray:
    return np.full((64, 64, 3), 120, np.uint8)


def blurred(item: Item) -> np.ndarray:
    return np.asarray(Image.fromarray(named(item)).filter(ImageFilter.GaussianBlur(6)))


@pytest.mark.parametrize(
    ("edited", "state", "rule"),
    [(other_things, "pass", ""), (noise, "fail", BROKEN),
     pytest.param(one_colour, "fail", BROKEN, marks=pytest.mark.slow),
     pytest.param(blurred, "fail", BROKEN, marks=pytest.mark.slow), (named, "fail", "targets shown, together")],
)  # fmt: skip
def test_the_default_gate_knows_an_edit_from_a_broken_model(
    edited: Paint, state: str, rule: str, model: efface.Model, tmp_path: Path
) -> None:
    """E-39: noise has no target in it and is no success; the report says so above everything else."""
    asked = small(model, suite="world-standard", request=Request.build(targets()), settings=SETTINGS)
    result = audit(paint(asked, edited), tmp_path / "run", gate=gates.load("default"))
    assert result["cost"]["base images drawn"] == result["cost"]["edited images drawn"] == 0
    rules = {r["rule"]: r for r in result["gate"]["rules"]}
    assert result["gate"]["state"] == result["verdict"]["state"] == state, rules
    if rule:
        assert rules[rule]["state"] == "fail"
        assert len(rules[rule]["pairs"]) == 5
    broken = rule == BROKEN
    assert bool(result["flags"]) == broken
    assert result["verdict"]["line"].startswith("Broken: garbage in place of" if broken else "Gate default")
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("Broken: garbage in place of targets" in page) == broken
    target = next(t for t in result["tables"] if t["role"] == "target")["pooled"]
    shares = [target[k]["hits"] for k in ("edited", "replaced", "garbage")]
    if broken:
        assert target["replaced"]["rate"] <= 0.05
    else:
        assert sum(shares) == target["edited"]["n"]


LAX = '[[rule]]\nname = "shown"\nmetric = "shown"\nroles = ["target"]\nstatistic = "upper"\nlimit = 0.5\n'


def test_a_broken_model_fails_a_gate_whose_rules_it_meets(model: efface.Model, cli: Cli, tmp_path: Path) -> None:
    """Noise shows no target: the gate's only rule passes, the command still ends with 3 and says why."""
    patch, request = zero_patch(model), Request.build(targets())
    paint(small(model, patch, suite="world-standard", request=request, settings=SETTINGS), noise)
    words = [w for k, v in SETTINGS for w in ("--set", f"{k}={v}")] + [w for t in targets() for w in ("-c", t)]
    (tmp_path / "lax.toml").write_text(LAX)
    said = cli("audit", model.folder, "--patch", patch.save(tmp_path / "p.safetensors"), "--suite", "world-standard",
               *words, "--gate", tmp_path / "lax.toml", "--quiet", "-o", tmp_path / "run")  # fmt: skip
    assert said.code == 3, said.err
    assert "gate lax failed: pictures: expected neither Broken nor Collapsed, got Broken: garbage" in said.err
    result = json.loads((tmp_path / "run" / "report.json").read_text())
    assert result["gate"]["state"] == result["verdict"]["state"] == "fail"
    assert [r["state"] for r in result["gate"]["rules"] if r["rule"] == "shown"] == ["pass"]
    assert result["verdict"]["line"].startswith("Broken: ")
    assert "Gate lax failed. Shown, base" in result["verdict"]["line"]


def test_an_image_that_failed_stands_in_no_row_of_the_worst(
    model: efface.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no picture, and it is not lost: the report is written, with the others that are."""
    asked = paint(small(model, suite="world-standard", request=Request.build(targets()), settings=SETTINGS), noise)
    plan = asked.planned()
    item = next(i for i in plan.items if i.asks[0].role == "other")
    Gallery(plan.sides[1], plan.sampling, Images(cache_folder() / "images")).drop([item.shot])

    def failing(*args: object, **more: object) -> np.ndarray:
        raise EffaceError("the model drew NaN")

    monkeypatch.setattr(efface.Model, "sample", failing)
    result = audit(asked, tmp_path / "run", gate=gates.load("default"))
    rules = {r["rule"]: r for r in result["gate"]["rules"]}
    name = item.asks[0].label
    assert rules["others, loss"]["state"] == "fail"
    assert rules["others, loss"]["got"].startswith(f"ERROR: {name}: 1 of ")
    assert rules["errors"]["state"] == "fail"
    shown = [(p["prompt"], p["seed"]) for r in rules.values() for p in r["pairs"]]
    assert shown
    assert (item.prompt, item.seed) not in shown
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("text", [LAX.replace("target", "hazard"), LAX + 'concepts = ["unicorn"]\n',
                                  'suite = "world-full"\n' + LAX])  # fmt: skip
def test_a_gate_that_does_not_fit_is_refused_before_anything_is_drawn(
    text: str, model: efface.Model, tmp_path: Path
) -> None:
    (tmp_path / "g.toml").write_text(text)
    with pytest.raises(BadRequest, match="gate g"):
        audit(small(model), tmp_path / "run", gate=gates.load(str(tmp_path / "g.toml")))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_metrics_look_at_the_images_of_the_run_and_scores_follow_from_its_counts(
    model: efface.Model, tmp_path: Path
) -> None:
    asked = small(model, suite="world-standard", request=Request.build(targets()), settings=SETTINGS)
    result = audit(paint(asked, other_things), tmp_path / "run", metrics=configured(METRICS))
    cells = {(c["metric"], c["name"], c["side"]): c for c in result["metrics"]}
    others = sum(a.role == "other" for i in asked.planned().items for a in i.asks)
    same = cells["pairs", "ssim.other", "edited"]
    assert (same["value"], same["n"], same["n_na"]) == (1.0, others, 0)
    assert cells["pairs", "ssim.target", "edited"]["value"] < 0.9
    psnr = cells["pairs:measure=psnr", "psnr.other", "edited"]
    assert (psnr["state"], psnr["n"]) == ("na", others)
    assert "identical" in psnr["reason"]
    assert cells["distribution", "KID-world.base", "edited"]["n"] > 0
    assert cells["garbage", "target.garbage", "edited"]["hits"] == 0
    scores = {(s["score"], s["side"]): s["value"] for s in result["scores"]}
    assert scores["Overall", "edited"] == 1.0
    assert scores["Overall", "base"] == 0.0
    for wrong in ("ssmi", "pairs:measure", "pairs:mesure=psnr"):
        with pytest.raises(BadRequest):
            configured([wrong])


# --- UA, IRA, CRA ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def styled(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictured world with the styles that the judge finds in its pictures."""
    folder = make_world(tiny_folder, tmp_path_factory.mktemp("world") / "styled", names=categories())
    rows = json.loads((folder / "concepts.json").read_text())["concepts"]
    seen = sorted({said(picture)["style"] for picture in pictures().values()})
    rows += [{**rows[0], "name": s, "kind": "style", "category": ""} for s in seen]
    (folder / "concepts.json").write_text(json.dumps({"concepts": rows}))
    return folder


def said(picture: np.ndarray) -> dict[str, str]:
    """What each head of the bundled judge finds likeliest."""
    judge = world.load()
    chances = judge.look(picture[None]).probabilities[0]
    m = len(judge.objects)
    return {"object": judge.objects[int(chances[:m].argmax())], "style": judge.styles[int(chances[m:].argmax())]}


def by_hand(drawn: list[tuple[Item, np.ndarray]], kind: str, target: str) -> dict[str, float]:
    """The three of UnlearnCanvas from (item, picture) pairs, counted one by one."""
    other = "object" if kind == "style" else "style"
    shares: dict[tuple[str, str], list[bool]] = {}
    for item, picture in drawn:
        seen = said(picture)
        asked = {"object": "", "style": ""}
        for ask in item.asks:
            if ask.role != "unstyled":
                asked["style" if ask.role in ("style", "other-style") else "object"] = ask.label
        if asked[kind]:
            what = "UA" if asked[kind] == target else "IRA"
            shares.setdefault((what, asked[kind]), []).append((seen[kind] == asked[kind]) == (what == "IRA"))
        if asked[other] and asked[kind] != target:
            shares.setdefault(("CRA", asked[other]), []).append(seen[other] == asked[other])
    means = {key: float(np.mean(hits)) for key, hits in shares.items()}
    return {what: float(np.mean([v for (w, _), v in means.items() if w == what])) for what in {w for w, _ in means}}


@pytest.mark.parametrize("kind", ["style", "object"])
def test_the_audit_command_shows_ua_ira_and_cra_as_counted_by_hand(
    kind: str, styled: Path, cli: Cli, tmp_path: Path
) -> None:
    """E-22: the argmax of both heads comes from the judge, what a prompt names from the suite."""
    target = targets()[0] if kind == "object" else said(pictures()[targets()[0]])["style"]
    asked = efface.load(styled, "cpu")
    settings = (("targets", 6), ("styles", 12), ("neighbours", 8), ("others", 16), ("other_styles", 12))
    patch, words = zero_patch(asked), [w for k, v in settings for w in ("--set", f"{k}={v}")]

    def base(item: Item) -> np.ndarray:
        if item.asks[0].role == "style":  # the base knows what is erased, else there were nothing to unlearn
            return pictures()[targets()[0]]
        return pictures()[item.asks[-1 if len(item.asks) > 1 and item.asks[1].role != "unstyled" else 0].label]

    def spoilt(item: Item) -> np.ndarray:
        """In place of what was erased another picture; some kept ones too."""
        hit = item.asks[0].role in ("target", "style") or item.seed % 5 == 0
        return pictures()[list(pictures())[-1]] if hit else base(item)

    request = Request.build([f"{kind}:{target}"])
    given = paint(small(asked, patch, request=request, settings=settings), spoilt, base)
    items = given.planned().items
    out = cli("audit", styled, "--patch", patch.save(tmp_path / "p.safetensors"), "-c", f"{kind}:{target}", *words,
              "--metric", f"unlearning:kind={kind}", "--quiet", "-o", tmp_path / "run")  # fmt: skip
    assert out.code == 0, out.err
    cells = {(c["name"], c["side"]): c for c in json.loads((tmp_path / "run" / "report.json").read_text())["metrics"]}
    for side, picture in (("base", base), ("edited", spoilt)):
        wanted = by_hand([(i, picture(i)) for i in items], kind, target)
        assert wanted.keys() == {"UA", "IRA", "CRA"}
        for name, value in wanted.items():
            cell = cells[name, side]
            assert (cell["state"], cell["value"]) == ("ok", pytest.approx(value)), (name, side)
            assert f"unlearning:kind={kind} {name} {side}: {cell['value']:.4g}" in out.out
    assert cells["UA", "edited"]["value"] > cells["UA", "base"]["value"]
    if kind == "object":  # the styles of these pictures are what they are
        assert cells["IRA", "edited"]["value"] < cells["IRA", "base"]["value"] == 1


def test_without_styled_prompts_the_three_are_na_with_the_reason(model: efface.Model, tmp_path: Path) -> None:
    asked = small(model, request=Request.build(targets()[:1]))
    names = ("unlearning", "unlearning:kind=object")
    result = audit(paint(asked, other_things), tmp_path / "run", metrics=configured(names))
    cells = {(c["metric"], c["name"]): c for c in result["metrics"] if c["side"] == "edited"}
    for name, reason in {"UA": "no prompt names an erased style", "IRA": "no prompt names a kept style"}.items():
        assert (cells["unlearning", name]["state"], cells["unlearning", name]["reason"]) == ("na", reason)
    assert cells["unlearning:kind=object", "UA"]["value"] == 1
    crossed = cells["unlearning:kind=object", "CRA"]
    assert (crossed["state"], crossed["value"]) == ("na", None)
    assert crossed["reason"] == "no prompt without a target names a style"
