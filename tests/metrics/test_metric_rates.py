"""Accuracy, UA / IRA / CRA, garbage, in-prompt retention, neighbourhood, detections, composites on rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from efface.errors import BadRequest
from efface.judges import errors_of
from efface.metrics import Specimen
from efface.metrics.accuracy import Accuracy
from efface.metrics.composites import Composites, Summary
from efface.metrics.detections import Detections
from efface.metrics.garbage import GarbageRate
from efface.metrics.in_prompt import InPrompt
from efface.metrics.neighbourhood import Neighbourhood
from efface.metrics.unlearning import Unlearning
from efface.numerics.intervals import corrected_rate
from efface.scores.cells import Cell
from plain_rows import readings

IMAGE = np.zeros((16, 16, 3), np.uint8)


def find(cells: Iterable[Cell], name: str, **labels: str) -> Cell:
    """The one cell of that name."""
    found = [c for c in cells if c.name == name and all(getattr(c, k) == v for k, v in labels.items())]
    assert len(found) == 1, (name, labels, [c.name for c in found])
    return found[0]


def shots(concept: str, base: int, edited: int, n: int = 20, role: str = "target", **more: Any) -> list[dict[str, Any]]:
    """n pairs of one concept, ten wordings; the first `base` (`edited`) of them are hits."""
    return [
        {"side": side, "prompt": f"{concept} {i % 10}", "seed": i, "role": role, "concept": concept, "state": "ok",
         "hit": i < hits, "garbage": False, **more}
        for side, hits in (("base", base), ("edited", edited)) for i in range(n)
    ]  # fmt: skip


# --- accuracy --------------------------------------------------------------------------------------------------------


def test_macro_and_micro_means_agree_only_for_equal_counts() -> None:
    """E-16."""
    even = Accuracy().aggregate(readings([*shots("dog", 20, 10), *shots("cat", 20, 2)]))
    odd = Accuracy().aggregate(readings([*shots("dog", 20, 10), *shots("cat", 40, 4, n=40)]))
    same = [find(even, f"target.{m}", side="edited").value for m in ("macro", "micro")]
    other = [find(odd, f"target.{m}", side="edited").value for m in ("macro", "micro")]
    assert same == pytest.approx([0.3, 0.3])
    assert other == pytest.approx([0.3, 14 / 60])


def test_a_published_column_has_its_published_mean() -> None:
    """FIA, table 1: forgetting accuracies of ten classes."""
    classes = (0.5, 0, 0, 1.7, 1.8, 1.9, 4.8, 0, 2.9, 5.0)
    made = [r for k, c in enumerate(classes) for r in shots(f"c{k}", 1000, round(10 * c), n=1000)]
    assert 100 * (
        find(Accuracy().aggregate(readings(made)), "target.macro", side="edited").value or 0
    ) == pytest.approx(1.86)


def test_a_target_that_the_base_does_not_know_is_no_success() -> None:
    """E-14: its edited hits change no headline, its counts stay to be seen."""
    found = []
    for edited in (0, 20):
        cells = Accuracy().aggregate(readings([*shots("dog", 20, 10), *shots("yeti", 9, edited)]))
        unknown = find(cells, "target", concept="yeti", side="edited")
        assert (unknown.state, unknown.value, unknown.hits) == ("na", None, edited)
        assert "knows it: the base shows it in 9 of 20" in unknown.reason
        loss = find(cells, "target.loss", concept="yeti")
        assert (loss.state, loss.value, loss.reason) == ("na", None, unknown.reason)
        macro = find(cells, "target.macro", side="edited")
        assert "1 of 2 scored" in macro.note
        found.append((macro.value, macro.low, macro.high, find(cells, "target.micro", side="edited").value))
    assert found[0] == found[1]
    assert find(Accuracy().aggregate(readings(shots("dog", 15, 0))), "target", side="edited").note.endswith("15 of 20")
    open_ = find(Accuracy().aggregate(readings(shots("dog", 12, 0))), "target", side="edited")
    assert (open_.state, open_.value) == ("na", None)
    assert "cannot be told" in open_.reason


def test_with_no_scored_target_the_mean_is_na() -> None:
    """E-14."""
    macro = find(Accuracy().aggregate(readings(shots("yeti", 0, 0))), "target.macro", side="edited")
    assert (macro.state, macro.value, macro.reason) == ("na", None, "0 of 1 scored")


def test_kept_concepts_need_no_base_rate() -> None:
    cells = Accuracy().aggregate(readings(shots("yeti", 5, 5, role="other")))
    assert find(cells, "other.macro", side="edited").value == 0.25


def test_equal_sides_lose_nothing() -> None:
    """E-7."""
    loss = find(Accuracy().aggregate(readings(shots("dog", 13, 13, role="other"))), "other.loss")
    assert loss.value == 0
    assert loss.low is not None and loss.high is not None  # noqa: PT018
    assert loss.low < 0 < loss.high


def test_failed_targets_make_their_mean_an_error() -> None:
    """E-15, for the mean over concepts."""
    made = shots("dog", 20, 0)
    made[25] |= {"state": "error", "hit": None, "reason": "sampler raised"}
    cells = Accuracy().aggregate(readings([*made, *shots("cat", 20, 0)]))
    assert find(cells, "target", concept="dog", side="edited").state == "error"
    assert find(cells, "target.macro", side="edited").state == "error"


def test_excess_over_gold_is_a_paired_difference() -> None:
    """What an honest model that never saw the concept draws is the measure, judge errors included."""
    gold = [r | {"side": "gold", "hit": r["seed"] < 2} for r in shots("dog", 20, 0) if r["side"] == "base"]
    cells = Accuracy().aggregate(readings([*shots("dog", 20, 5), *gold]))
    excess = find(cells, "target.excess over gold", concept="dog")
    assert excess.value == pytest.approx(0.15)
    assert excess.low is not None and excess.high is not None and excess.low < 0.15 < excess.high  # noqa: PT018


def test_corrected_rates_stand_beside_the_raw_ones() -> None:
    """E-32, on rows: fewer hits than the judge's own false alarms are consistent with none."""
    made = shots("dog", 240, 5, n=240)
    cells = Accuracy(errors={"dog": (190, 200, 392, 400)}).aggregate(readings(made))
    raw, freed = (find(cells, n, side="edited") for n in ("target", "target.corrected"))
    assert raw.value == pytest.approx(5 / 240)
    assert freed.value == pytest.approx(corrected_rate(5, 240, 190, 200, 392, 400)[1])  # pyright: ignore
    assert freed.low == 0
    assert "sensitivity 190/200" in freed.note
    chance = find(Accuracy(errors={"dog": (5, 10, 5, 10)}).aggregate(readings(made)), "target.corrected", side="edited")
    assert (chance.state, chance.value) == ("na", None)


def test_cards_of_both_kinds_tell_their_errors() -> None:
    per_label = {"soft": {"tp": [9, 8], "n_pos": [10, 9], "tn": [99, 50], "n_neg": [100, 51]}}
    per_label["redrawn"] = per_label["soft"] | {"tp": [9, 0], "n_pos": [10, 0]}
    card = {"per_label": per_label, "objects": ["dog"], "styles": ["noto"]}
    assert errors_of(card) == {"dog": (9, 10, 99, 100), "noto": (8, 9, 50, 51)}
    assert errors_of(card, "redrawn") == {"dog": (9, 10, 99, 100)}
    side = {"hits": 3, "n": 4}
    labels = {"dog": {"sensitivity": side, "specificity": side}, "cat": {"sensitivity": None, "specificity": side}}
    assert errors_of({"calibration": {"labels": labels}}) == {"dog": (3, 4, 3, 4)}
    assert errors_of({"calibration": None}) == {}


def test_the_score_is_the_judges_word() -> None:
    item = Specimen(IMAGE, concept="dog", probabilities={"dog": 0.7, "cat": 0.2}, hits=frozenset({"dog"}))
    assert (Accuracy().score(item).hit, Accuracy().score(item).value) == (True, 0.7)


# --- UA, IRA, CRA ----------------------------------------------------------------------------------------------------


def canvas(seen: Any, styles: int = 5, objects: int = 4, seeds: int = 5) -> list[dict[str, Any]]:
    """Every style x object x seed; `seen(style, object, seed)` is what both heads say."""
    made = []
    for s in range(styles):
        for o in range(objects):
            for seed in range(seeds):
                style, thing = seen(s, o, seed)
                made.append({"side": "edited", "prompt": f"o{o} in s{s} style", "seed": seed, "state": "ok",
                             "style": f"s{s}", "object": f"o{o}", "style_seen": style,
                             "object_seen": thing})  # fmt: skip
    return made


def named(cells: list[Any]) -> dict[str, float]:
    return {c.name: c.value for c in cells}


def test_a_perfect_unlearning_of_a_style_and_of_an_object() -> None:
    """E-22: UA and what is left of the target sum to one."""
    made = canvas(lambda s, o, k: ("s1" if s == 0 else f"s{s}", f"o{o}"))
    assert named(Unlearning("s0").aggregate(readings(made))) == {"UA": 1, "IRA": 1, "CRA": 1}
    assert named(Unlearning("s1").aggregate(readings(made))) == {"UA": 0, "IRA": 0.75, "CRA": 1}
    half = canvas(lambda s, o, k: ("s1" if s == 0 and o % 2 else f"s{s}", f"o{o}"))
    left = np.mean([r["style_seen"] == "s0" for r in half if r["style"] == "s0"])
    assert named(Unlearning("s0").aggregate(readings(half)))["UA"] + left == pytest.approx(1)
    swapped = canvas(lambda s, o, k: (f"s{s}", "o1" if o == 0 else f"o{o}"))
    assert named(Unlearning("o0", "object").aggregate(readings(swapped))) == {"UA": 1, "IRA": 1, "CRA": 1}


def test_scope_says_whether_prompts_of_the_target_count_across() -> None:
    """E-22."""
    fine = canvas(lambda s, o, k: (f"s{s}", f"o{o}"))
    broken = canvas(lambda s, o, k: (f"s{s}", "o9" if s == 0 else f"o{o}"))
    for scope, wanted in (("exclude-target", 1.0), ("all", 0.8)):
        metric = Unlearning("s0", scope=scope)
        assert named(metric.aggregate(readings(fine)))["CRA"] == 1
        assert named(metric.aggregate(readings(broken)))["CRA"] == pytest.approx(wanted)
    wrong_target = canvas(lambda s, o, k: ("s3" if s == 0 else f"s{s}", f"o{o}"))
    assert named(Unlearning("s0").aggregate(readings(wrong_target)))["IRA"] == 1  # the target's prompts do not enter


def test_noise_unlearns_perfectly_and_retains_nothing() -> None:
    """E-23: labels at random over 51 styles and 20 objects."""
    draw = np.random.default_rng(0)
    made = canvas(lambda s, o, k: (f"s{draw.integers(51)}", f"o{draw.integers(20)}"), 51, 20, 5)
    found = named(Unlearning("s0").aggregate(readings(made)))
    for name, wanted, n in (("UA", 50 / 51, 100), ("IRA", 1 / 51, 5000), ("CRA", 1 / 20, 5000)):
        assert found[name] == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / n))


def test_the_head_says_its_likeliest_label() -> None:
    item = Specimen(IMAGE, concept="noto", heads={"style": ("noto", "flat"), "object": ("dog", "dog")})
    words = {"style": "noto", "object": "dog", "style_seen": "flat", "object_seen": "dog"}
    assert [(s.hit, s.detail) for s in (Unlearning().score(item), Unlearning(kind="object").score(item))] == [
        (False, words), (True, words),
    ]  # fmt: skip
    plain = Unlearning().score(replace(item, heads={"style": ("", "flat"), "object": ("dog", "dog")}))
    assert (plain.state, plain.hit) == ("ok", None)


def test_rows_without_both_heads_are_na_and_no_success() -> None:
    cells = Unlearning("s0").aggregate(readings(shots("dog", 20, 0)))
    assert {(c.name, c.state) for c in cells} == {("UA", "na"), ("IRA", "na"), ("CRA", "na")}
    silent = [r | {"style_seen": ""} for r in canvas(lambda s, o, k: ("", f"o{o}"))]
    ua, ira, cra = Unlearning("s0").aggregate(readings(silent))
    assert (ua.state, ira.state, ua.n_na, ira.n_na) == ("na", "na", 20, 80)
    assert ua.reason == "the judge names no target of these prompts"
    assert (cra.state, cra.value) == ("ok", 1)


def test_prompts_of_one_head_count_for_that_head_alone_and_images_count_once() -> None:
    """Plain object prompts beside styled ones: UA and IRA of an object from both, CRA from those with a style."""
    styled = canvas(lambda s, o, k: (f"s{s}", "o9" if o == 0 else f"o{o}"), styles=2, objects=3, seeds=2)
    plain = [
        r | {"prompt": f"a {r['object']}", "style": "", "seed": r["seed"] + 50} for r in styled if r["style"] == "s0"
    ]
    asked = [r | {"role": "target" if r["object"] == "o0" else "other", "concept": r["object"]} for r in styled + plain]
    asked += [r | {"role": "other-style", "concept": r["style"]} for r in styled]
    ua, ira, cra = Unlearning(kind="object").aggregate(readings(asked))
    assert [(c.value, c.n) for c in (ua, ira, cra)] == [(1, 6), (1, 12), (1, 8)]


def test_of_several_erased_concepts_none_is_retained() -> None:
    """Erased together: UA is their mean, or of one that is named; neither enters IRA nor CRA."""
    made = canvas(lambda s, o, k: ("s3" if s < 2 and (s or o % 2) else f"s{s}", f"o{o}"))
    made = [r | {"role": "style" if r["style"] in ("s0", "s1") else "other-style"} for r in made]
    together, alone = Unlearning().aggregate(readings(made)), Unlearning("s0").aggregate(readings(made))
    assert named(together) == {"UA": 0.75, "IRA": 1, "CRA": 1}
    assert named(alone) == {"UA": 0.5, "IRA": 1, "CRA": 1}
    assert [c.n for c in together] == [40, 60, 60]


def test_a_style_that_the_base_does_not_draw_is_na_and_no_unlearning() -> None:
    """The base shows s0 in 6 of 20 images, s1 in all; of both UA is that of s1, of s0 alone there is none."""
    fine = canvas(lambda s, o, k: (f"s{s}" if s or k * 4 + o < 6 else "s4", f"o{o}"))
    gone = canvas(lambda s, o, k: ("s4" if s < 2 else f"s{s}", f"o{o}"))
    rows = [*(r | {"side": "base"} for r in fine), *gone]
    ua = find(Unlearning("s0").aggregate(readings(rows)), "UA", side="edited")
    assert (ua.state, ua.value) == ("na", None)
    assert "the base shows it in 6 of 20" in ua.reason
    erased = [r | {"role": "style" if r["style"] in ("s0", "s1") else "other-style"} for r in rows]
    both = find(Unlearning().aggregate(readings(erased)), "UA", side="edited")
    assert (both.value, both.n, both.note) == (1, 20, "mean of 1 of 2 (target)")


# --- garbage ---------------------------------------------------------------------------------------------------------


def test_the_three_outcomes_sum_to_one() -> None:
    """E-40."""
    made = shots("dog", 20, 4)
    for k in (21, 22, 39):  # the first of them is a hit, too: it is garbage all the same
        made[k]["garbage"] = True
    made[30] |= {"state": "na", "hit": None}
    cells = GarbageRate().aggregate(readings(made))
    parts = [find(cells, f"target.{n}", side="edited") for n in ("shown", "replaced", "garbage")]
    assert sum(p.hits or 0 for p in parts) == parts[0].n == 19
    assert [p.hits for p in parts] == [2, 14, 3]
    assert sum(p.value or 0 for p in parts) == pytest.approx(1)


def test_a_score_of_garbage_keeps_what_is_shown() -> None:
    item = Specimen(IMAGE, concept="dog", probabilities={"dog": 0.9}, hits=frozenset({"dog"}), garbage=True)
    found = GarbageRate().score(item)
    assert (found.hit, found.value, found.detail) == (True, 1.0, {"garbage": True})


def test_noise_is_no_efficacy() -> None:
    """E-39, on rows: nothing shown, everything garbage, the cell is red."""
    made = shots("dog", 20, 0, n=30)
    for r in made[30:]:
        r["garbage"] = True
    cells = GarbageRate().aggregate(readings(made))
    assert find(cells, "target.shown", side="edited").value == 0
    assert find(cells, "target.replaced", side="edited").value == 0
    assert "red" in find(cells, "target.garbage", side="edited").note
    assert "red" not in find(cells, "target.garbage", side="base").note


def test_one_label_for_everything_raises_the_alarm() -> None:
    made = [r | {"seen": "sofa" if r["side"] == "edited" else r["concept"]}
            for r in (*shots("dog", 20, 0), *shots("cat", 20, 0))]  # fmt: skip
    cells = GarbageRate().aggregate(readings(made))
    assert "one label takes 40 of 40: sofa" in find(cells, "target.garbage", side="edited").note
    assert find(cells, "target.garbage", side="base").note == ""
    instead = [c for c in cells if c.name == "target.seen instead" and c.side == "edited"]
    assert [(c.concept, c.value, c.n) for c in instead] == [("sofa", 1.0, 40)]


# --- in-prompt retention ---------------------------------------------------------------------------------------------


def both(base: list[int], edited: list[int], target: list[int]) -> list[dict[str, Any]]:
    """Pairs in which the rest is there (base, edited) and the target still is (edited)."""
    made = []
    for i, (b, e, t) in enumerate(zip(base, edited, target, strict=True)):
        place = {"prompt": f"a dog and a cat {i % 10}", "seed": i, "role": "in-prompt", "concept": "cat", "state": "ok"}
        made += [{"side": "base", "hit": bool(b), "target_hit": True, **place},
                 {"side": "edited", "hit": bool(e), "target_hit": bool(t), **place}]  # fmt: skip
    return made


def test_retention_asks_only_where_the_target_left() -> None:
    """E-31: of 20 images 16 show the rest at the base; the target leaves 10, in 6 of which the rest stays."""
    base, target = [1] * 16 + [0] * 4, [0] * 10 + [1] * 10
    edited = [1] * 6 + [0] * 4 + [1] * 10
    cells = InPrompt().aggregate(readings(both(base, edited, target)))
    assert find(cells, "rest.base").value == 0.8
    assert find(cells, "rest.target absent").value == 0.6
    kept = find(cells, "retention")
    assert kept.value == pytest.approx(0.6 / 0.8)
    assert kept.low is not None and kept.high is not None and kept.low < 0.75 < kept.high  # noqa: PT018


def test_the_target_is_looked_up_on_the_same_image() -> None:
    """Rows of a suite ask of the target beside; without such a row nobody knows whether it left."""
    made = both([1] * 4, [1] * 4, [0] * 4)
    bare = [{k: v for k, v in r.items() if k != "target_hit"} for r in made]
    asked = [r | {"role": "two-object", "concept": "dog", "hit": r["side"] == "base" or r["seed"] < 1} for r in bare]
    cells = InPrompt().aggregate(readings([*bare, *asked]))
    assert find(cells, "rest.target absent").n == 3
    assert find(cells, "retention").value == 1
    assert {c.state for c in InPrompt().aggregate(readings(bare))} == {"na"}


def test_a_judge_of_one_label_cannot_say() -> None:
    """E-31."""
    made = both([1] * 4, [1] * 4, [0] * 4)
    assert {c.state for c in InPrompt(multi_label=False).aggregate(readings(made))} == {"na"}
    item = Specimen(IMAGE, concept="cat", probabilities={"cat": 1.0}, hits=frozenset({"cat"}))
    assert InPrompt(multi_label=False).score(item).state == "na"
    assert InPrompt().score(item).hit is True


def test_retention_is_na_where_the_target_never_left_or_the_base_never_showed_the_rest() -> None:
    assert (
        find(InPrompt().aggregate(readings(both([1] * 4, [1] * 4, [1] * 4))), "retention").reason
        == "the target never left"
    )
    assert "never shows" in find(InPrompt().aggregate(readings(both([0] * 4, [1] * 4, [0] * 4))), "retention").reason


# --- neighbourhood ---------------------------------------------------------------------------------------------------

SPACE = {"dog": np.asarray([1.0, 0, 0]), "wolf": np.asarray([0.9, 0.1, 0]), "cat": np.asarray([0.6, 0.6, 0]),
         "sofa": np.asarray([0, 0, 1.0]), "fox": np.asarray([0.95, 0.2, 0])}  # fmt: skip


def kept() -> list[dict[str, Any]]:
    return [*shots("wolf", 20, 2, role="neighbour"), *shots("cat", 20, 16, role="neighbour"),
            *shots("sofa", 20, 20, role="other")]  # fmt: skip


def test_harm_is_antisymmetric_and_follows_the_distance() -> None:
    """E-31."""
    metric = Neighbourhood(("dog",), SPACE)
    there = metric.aggregate(readings(kept()))
    back = metric.aggregate(readings([r | {"side": {"base": "edited", "edited": "base"}[r["side"]]} for r in kept()]))
    for concept, harm in (("wolf", 0.9), ("cat", 0.2), ("sofa", 0.0)):
        assert find(there, "harm", concept=concept).value == pytest.approx(harm)
        assert find(back, "harm", concept=concept).value == pytest.approx(-harm)
    assert (find(there, "slope").value or 0) > 0.5
    assert find(there, "harm.mean", side="neighbour").value == pytest.approx(0.55)
    worst = find(there, "harm.worst")
    assert worst.concept == "wolf"
    plain = find(there, "harm", concept="wolf")
    assert (worst.low or 0) < 0.9 < (worst.high or 0)
    assert "Holm p" in plain.note
    assert "too few changes" in find(there, "harm", concept="cat").note


def test_the_nearest_are_found_in_each_space_and_proposed_for_the_keep_list() -> None:
    images = {**SPACE, "sofa": np.asarray([0.99, 0.01, 0])}
    metric = Neighbourhood(("dog",), SPACE, images, k=2)
    near = metric.nearest()
    assert [n for n, _ in near["text"]["dog"]] == ["wolf", "fox"]
    assert [n for n, _ in near["image"]["dog"]] == ["sofa", "wolf"]
    said = dict(metric.proposals(metric.aggregate(readings(kept()))))
    assert list(said) == ["wolf", "cat", "fox"]
    assert said["wolf"].startswith("lost 90.0 points [")
    assert "not tested" in said["fox"]
    with pytest.raises(BadRequest, match="'yeti'"):
        Neighbourhood(("yeti",), SPACE).nearest()


def test_kept_styles_are_tested_like_kept_objects() -> None:
    space = {"noto": np.asarray([1.0, 0]), "flat": np.asarray([0.9, 0.1]), "line": np.asarray([0.7, 0.4])}
    metric = Neighbourhood(("noto",), space)
    cells = metric.aggregate(
        readings([*shots("flat", 20, 20, role="other-style"), *shots("line", 20, 2, role="other-style")])
    )
    assert find(cells, "harm", concept="line").value == pytest.approx(0.9)
    assert [name for name, _ in metric.proposals(cells)] == ["line"]  # flat is near, was tested and held
    assert find(cells, "harm.mean", side="other-style").value == pytest.approx(0.45)


def test_without_vectors_or_kept_rows_it_is_na() -> None:
    assert find(Neighbourhood(("dog",)).aggregate(readings(kept())), "slope").state == "na"
    assert Neighbourhood().aggregate(readings(shots("dog", 20, 0)))[0].state == "na"


# --- detections ------------------------------------------------------------------------------------------------------


def found_boxes(counts: dict[str, list[list[tuple[str, float]]]]) -> list[dict[str, Any]]:
    return [{"side": side, "prompt": f"p{i}", "seed": i, "state": "ok", "boxes": boxes}
            for side, images in counts.items() for i, boxes in enumerate(images)]  # fmt: skip


BOXES = [[("A", 0.9), ("A", 0.6)], [("B", 0.6)], [], [("A", 0.3)]]


def test_counts_and_rates_at_every_threshold() -> None:
    cells = Detections().aggregate(readings(found_boxes({"edited": BOXES})))
    totals = {c.concept: c.value for c in cells if c.name == "detections"}
    assert totals == {">= 0.2": 4, ">= 0.3": 4, ">= 0.4": 3, ">= 0.5": 3, ">= 0.6": 3, ">= 0.7": 1, ">= 0.8": 1}
    assert find(cells, "images with detections", concept=">= 0.6").value == 0.5
    strict = Detections(strict=True).aggregate(readings(found_boxes({"edited": BOXES})))
    assert find(strict, "detections", concept="> 0.6").value == 1
    only = Detections(labels=("B",)).aggregate(readings(found_boxes({"edited": BOXES})))
    assert find(only, "detections", concept=">= 0.6").value == 1


def test_several_questions_of_an_image_count_its_boxes_once() -> None:
    rows = found_boxes({"edited": BOXES})
    asked = [r | {"role": "sensitive", "concept": c} for r in rows for c in ("a", "b")]
    asked[0] |= {"state": "na"}  # the judge has no value for one of the questions; the boxes are there all the same
    assert Detections().aggregate(readings(asked)) == Detections().aggregate(readings(rows))


def test_a_total_has_an_interval_over_prompts_or_says_why_not() -> None:
    few = find(Detections().aggregate(readings(found_boxes({"edited": BOXES}))), "detections", concept=">= 0.6")
    assert (few.low, few.high) == (None, None)
    assert "4 prompts" in few.note
    many = find(Detections().aggregate(readings(found_boxes({"edited": 10 * BOXES}))), "detections", concept=">= 0.6")
    assert many.low is not None and many.high is not None and many.low < 30 < many.high  # noqa: PT018


def test_images_that_no_detector_saw_are_na_and_bad_thresholds_are_refused() -> None:
    cells = Detections().aggregate(readings([{"side": "edited", "prompt": "p", "state": "ok"}]))
    assert {c.state for c in cells} == {"na"}
    with pytest.raises(BadRequest, match="thresholds"):
        Detections(threshold=60)
    found = Detections().score(Specimen(IMAGE, boxes=(("A", 0.7), ("A", 0.1))))
    assert (found.value, found.detail) == (1, {"boxes": [["A", 0.7], ["A", 0.1]]})


# --- composites ------------------------------------------------------------------------------------------------------


def test_a_table_of_methods_has_every_composite_and_names_its_pool() -> None:
    """E-19, E-20: on a table of three."""
    made = [Summary("base", 0.899, 0.9, 0.9, clip_coco=31.43), Summary("uce", 0.085, 0.719, 0.1, 22.0, 28.0, 29.45),
            Summary("mace", 0.0906, 0.9539, 0.1003, clip_coco=31.02)]  # fmt: skip
    cells = Composites().table(made)
    assert 100 * (find(cells, "H_o", side="mace").value or 0) == pytest.approx(92.04, abs=0.02)
    assert find(cells, "H_a", side="uce").value == pytest.approx(6.0)
    assert find(cells, "H_a", side="mace").state == "na"
    assert "base, uce, mace" in find(cells, "UQ", side="uce").note
    assert [c.side for c in cells if c.name == "mean rank"] == ["uce", "mace"]
    assert find(cells, "mean rank", side="mace").value == pytest.approx(4 / 3)
    alone = Composites().table(made[:1])
    assert find(alone, "UQ", side="base").state == "na"


def test_composites_of_rows_are_those_of_their_rates() -> None:
    """E-18: H_o is the mean over classes."""
    made = []
    for method, left in (("base", 20), ("good", 0), ("weak", 10)):
        for side_rows in (shots("dog", 0, left), shots("bus", 0, left // 2), shots("dog", 0, left, role="synonym"),
                          shots("bus", 0, left, role="synonym"), shots("cat", 0, 18, role="other")):  # fmt: skip
            made += [r | {"method": method} for r in side_rows if r["side"] == "edited"]
    cells = Composites().aggregate(readings(made))
    p, f = 0.9, (0.5 + 0.25) / 2
    assert find(cells, "Overall", side="weak").value == pytest.approx(2 * p * (1 - f) / (p + 1 - f))
    parts = [3 / (1 / (1 - e) + 1 / p + 1 / (1 - 0.5)) for e in (0.5, 0.25)]
    assert find(cells, "H_o", side="weak").value == pytest.approx(np.mean(parts))
    assert find(cells, "H_o", side="weak").note == "mean over 2 classes"
    assert find(cells, "UQ", side="weak").state == "na"  # no CLIP scores in these rows
