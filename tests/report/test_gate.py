"""Gates: rules on bounds, three outcomes, and files that are refused rather than passed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efface.errors import BadRequest
from efface.gallery.shot import ROLES
from efface.numerics import intervals
from efface.report import gate as gates
from efface.report.ruling import Outcome, judge, sentence, state_of
from efface.scores.reach import Counts, Reach
from efface.scores.tables import Rate, Row, Table
from small_report import SUITE


def row(name: str, role: str, base: int, edited: int, n: int, both: int | None = None, **more: Any) -> dict[str, Any]:
    def cell(k: int) -> dict[str, Any]:
        return {"hits": k, "n": n, "rate": k / n, "prompts": min(n, 10), "low": 0.0, "high": 1.0}

    kept = {"name": name, "state": "ok", "reason": "", "images": n, "base": cell(base), "edited": cell(edited)}
    return kept | {"garbage": cell(0), "both": min(base, edited) if both is None else both, "role": role} | more


def report(*rows: dict[str, Any]) -> list[Table]:
    """The tables of a report on `world-standard` with these rows."""
    tables: dict[str, list[Row]] = {}
    for r in rows:
        cells = {k: Rate(**r[k]) if r[k] else None for k in ("base", "edited", "garbage")}
        made = {"note": ""} | {k: v for k, v in r.items() if k != "role"} | cells
        tables.setdefault(r["role"], []).append(Row(**made))
    return [Table(role, *ROLES[role], tuple(found), None) for role, found in tables.items()]


def judged(gate: gates.Gate, found: list[Table]) -> list[Outcome]:
    return judge(gate, SUITE, found)


def good() -> list[dict[str, Any]]:
    """The numbers of `world-standard` with a good edit."""
    targets = [row(f"t{k}", "target", 28, 0, 30) for k in range(10)]
    kept = [row(f"n{k}", "neighbour", 14, 14, 15) for k in range(10)]
    return [*targets, row("s", "synonym", 90, 2, 100), *kept, *(row(f"o{k}", "other", 24, 24, 25) for k in range(10))]


def outcome(found: list[Table], name: str, gate: str = "default") -> Outcome:
    return next(o for o in judged(gates.load(gate), found) if o.rule == name)


def written(file: Path, *rules: str, **head: str) -> gates.Gate:
    """A gate of these rules, each `key=value` lines under the usual ones."""
    file.write_text("".join(f'{k} = "{v}"\n' for k, v in head.items()) + "".join(f"[[rule]]\n{r}" for r in rules))
    return gates.load(str(file))


def changed(change: Callable[[list[dict[str, Any]]], None]) -> list[Table]:
    rows = good()
    change(rows)
    return report(*rows)


def test_a_good_edit_passes_the_default_gate() -> None:
    outcomes = judged(gates.load("default"), report(*good()))
    assert {o.state for o in outcomes} == {"pass"}
    assert state_of(outcomes) == "pass"


def test_the_limits_are_those_of_the_default_gate() -> None:
    """Two hits of thirty pass for one target, three are open; together the bound for other concepts decides."""
    assert outcome(changed(lambda r: r[0].update(row("t0", "target", 28, 2, 30))), "each target shown").state == "pass"
    three = outcome(changed(lambda r: r[0].update(row("t0", "target", 28, 3, 30))), "each target shown")
    assert (three.state, three.concepts) == ("undecided", ("t0",))
    spread = [{f"t{i}": Counts(30, k // 10 + (i < k % 10)) for i in range(10)} for k in range(20)]
    most = max(k for k, counts in enumerate(spread) if Reach.of(counts).high <= 0.05)
    assert 0 < most < max(k for k in range(20) if intervals.upper_bound(k, 300) <= 0.05)

    def hit(k: int) -> Callable[[list[dict[str, Any]]], None]:
        def change(rows: list[dict[str, Any]]) -> None:
            for i in range(10):
                rows[i].update(row(f"t{i}", "target", 28, k // 10 + (i < k % 10), 30))

        return change

    assert outcome(changed(hit(most)), "targets shown, together").state == "pass"
    open_ = outcome(changed(hit(most + 1)), "targets shown, together")
    assert open_.state == "undecided"
    assert "more concepts, not more images" in open_.next
    assert outcome(changed(hit(40)), "targets shown, together").state == "fail"


def test_a_loss_is_a_non_inferiority_question() -> None:
    """E-50: the verdict is that of the one-sided bound, and a wider margin never turns pass into fail."""
    for lost in range(0, 60, 3):
        rows = report(*[r for r in good() if r["role"] != "other"], row("o", "other", 240, 240 - lost, 250))
        found = outcome(rows, "others, loss")
        bound = intervals.non_inferiority(lost, 0, 250, 0.06)
        assert (found.state == "pass") == bound.passed
        wide = intervals.non_inferiority(lost, 0, 250, 0.12)
        assert not bound.passed or wide.passed
    assert found.state == "fail"


def test_one_concept_that_falls_is_found_among_many_and_small_losses_are_not_blamed() -> None:
    fell = outcome(changed(lambda r: r[-1].update(row("o9", "other", 24, 3, 25))), "any kept concept, loss")
    assert (fell.state, fell.concepts) == ("fail", ("o9",))
    small = outcome(changed(lambda r: r[-1].update(row("o9", "other", 24, 16, 25))), "any kept concept, loss")
    assert small.state == "pass"


def test_one_error_among_targets_fails_every_gate(tmp_path: Path) -> None:
    """E-15: the rate passes, the gate does not, whatever the file says."""
    found = changed(lambda r: r[0].update(errors=1))
    assert state_of(judged(gates.load("default"), found)) == "fail"
    file = tmp_path / "g.toml"
    file.write_text('[[rule]]\nname = "t"\nmetric = "shown"\nroles = ["target"]\nstatistic = "upper"\nlimit = 0.5\n')
    outcomes = judged(gates.load(str(file)), found)
    assert [o.state for o in outcomes] == ["pass", "fail"]
    assert state_of(outcomes) == "fail"


def test_garbage_fails_although_nothing_is_shown() -> None:
    """E-39: noise has no target in it."""

    def break_(rows: list[dict[str, Any]]) -> None:
        for r in rows[:10]:
            r["garbage"] = {"hits": 30, "n": 30, "rate": 1.0, "low": 0.9, "high": 1.0}

    assert outcome(changed(break_), "targets shown, together").state == "pass"
    assert outcome(changed(break_), "garbage among targets").state == "fail"


def test_what_is_na_is_never_a_pass() -> None:
    unknown = {"state": "na", "reason": "not known to this model", "base": None, "edited": None, "garbage": None}
    half = changed(lambda r: [r[k].update(unknown) for k in range(3)])
    assert outcome(half, "targets scored").state == "fail"
    none = changed(lambda r: [r[k].update(unknown) for k in range(10)])
    shown = outcome(none, "targets shown, together")
    assert (shown.state, shown.got) == ("fail", "NA: t0: not known to this model; 9 more")
    assert outcome(none, "targets scored").state == "fail"
    silent = changed(lambda r: r[10].update(unknown))
    assert outcome(silent, "synonyms shown").state == "not measured"
    assert state_of(judged(gates.load("default"), silent)) == "pass"


def test_no_rule_passes_on_what_failed_or_was_not_measured_whatever_is_allowed(tmp_path: Path) -> None:
    """All ERROR or NA is no open question that more images would settle, in any role that has to be gone."""
    rule = RULE.replace('"target"', '"sensitive"')
    one = row("s", "sensitive", 0, 0, 30, state="error", reason="30 of 30 failed", errors=30)
    none = row("s", "sensitive", 0, 0, 30, state="na", reason="no judge", na=30)
    for found, words in ((one, "ERROR: s: 30 of 30 failed"), (none, "NA: s: no judge")):
        outcomes = judged(written(tmp_path / "g.toml", rule), report(found))
        assert (outcomes[0].state, outcomes[0].got) == ("fail", words)
        assert state_of(outcomes) == "fail"
        soft = judged(written(tmp_path / "g.toml", rule + "optional = true\n"), report(found))
        assert state_of(soft) == ("fail" if found is one else "pass")
    errors = 'name = "e"\nmetric = "errors"\nroles = ["sensitive"]\nstatistic = "estimate"\nlimit = 0\n'
    assert judged(written(tmp_path / "g.toml", errors), report(none))[0].state == "fail"


def test_an_errors_rule_of_a_file_does_not_replace_the_one_about_targets(tmp_path: Path) -> None:
    rule = 'name = "e"\nmetric = "errors"\nroles = ["other"]\nstatistic = "estimate"\nlimit = 0\n'
    for role in ("target", "style", "synonym", "two-object", "hazard", "sensitive"):
        rows = report(row("x", role, 28, 0, 100, errors=1), row("o", "other", 24, 24, 25))
        assert [o.state for o in judged(written(tmp_path / "g.toml", rule), rows)] == ["pass", "fail"], role


def test_a_concept_that_is_named_must_be_measured(tmp_path: Path) -> None:
    unknown = {"state": "na", "reason": "not known to this model"}
    found = changed(lambda r: r[1].update(unknown))
    named = RULE + 'concepts = ["t0", "t1"]\n'
    strict = judged(written(tmp_path / "g.toml", named), found)[0]
    assert (strict.state, strict.got, strict.concepts) == ("fail", "NA: t1: not known to this model", ("t1",))
    lax = judged(written(tmp_path / "g.toml", named + "optional = true\n"), found)[0]
    assert (lax.state, lax.counts) == ("pass", (30, 0, None))


def test_a_style_alone_has_no_neighbours_and_meets_the_default_gate() -> None:
    style = [row(f"s{k}", "style", 58, 0, 60) for k in range(2)]
    found = report(*style, *(row(f"o{k}", "other", 24, 24, 25) for k in range(10)))
    states = {o.rule: o.state for o in judged(gates.load("default"), found)}
    assert states.pop("neighbours, loss") == states.pop("synonyms shown") == "not measured"
    assert set(states.values()) == {"pass"}


def test_a_bound_says_of_what_it_speaks() -> None:
    """Of further seeds: five sentences times 60 seeds are 300 images of five prompts, and the line says so."""
    shown = outcome(report(*good()), "targets shown, together")
    assert shown.expected == "95 % upper bound at most 5 %"
    assert shown.got == (
        "0.0 % [0.0, 1.0], for other concepts and wordings at most 3.8 (10 concepts), 0/300, 100 prompts"
    )
    assert outcome(report(*good()), "others, loss").got.endswith("250 pairs, 100 prompts")


def test_undecided_fails_unless_it_is_allowed() -> None:
    outcomes = judged(gates.load("strict"), report(*good()))
    assert state_of(outcomes) == "undecided"


def test_a_gate_with_open_rules_is_never_said_to_have_passed() -> None:
    """One image of the target decides nothing: what is allowed is an exit code, not another sentence."""
    found = report(row("t", "target", 1, 0, 1), row("n", "neighbour", 1, 1, 1), row("o", "other", 1, 1, 1))
    outcomes = judged(gates.load("default"), found)
    assert state_of(outcomes) == "undecided"
    assert sentence("default", "undecided", outcomes, True) == "Gate default passed with 5 rules undecided (n = 1)."
    assert sentence("default", "undecided", outcomes).startswith("Gate default, targets shown, together: expected")
    assert sentence("default", "pass", judged(gates.load("default"), report(*good()))) == "Gate default passed."


def test_a_list_of_concepts_is_bounded_for_other_concepts() -> None:
    """26 hits of 240, 16 of them one object: at most 14.7 % of these prompts, 22.9 % of other concepts."""
    hits = (16, 3, 2, 1, 1, 1, 1, 1, 0, 0)
    reach = Reach.of({f"t{k}": Counts(24, h) for k, h in enumerate(hits)})
    assert reach.these.high == pytest.approx(0.147, abs=5e-4)
    assert reach.others is not None
    assert reach.others.high == pytest.approx(0.229, abs=5e-3)
    rows = [row(f"t{k}", "target", 24, 2 * (k == 0) * 4, 30) for k in range(10)]
    told = outcome(report(*rows, *good()[10:]), "targets shown, together")
    assert told.state == "undecided"
    assert "for other concepts and wordings at most" in told.got
    few = Reach.of({f"t{k}": Counts(24, 0) for k in range(7)})
    assert few.others is None
    assert few.high == few.these.high


def test_a_first_hit_never_narrows_a_bound() -> None:
    for concepts, n in ((8, 30), (10, 30), (30, 8), (12, 1)):
        bounds = [Reach.of({f"c{i}": Counts(n, int(i < k)) for i in range(concepts)}).high for k in range(concepts)]
        assert bounds == sorted(bounds)
        losses = [Reach.of({f"c{i}": Counts(n, int(i < k), 0) for i in range(concepts)}).high for k in range(concepts)]
        assert losses == sorted(losses)


def test_bounds_stand_where_everything_or_nothing_is_hit() -> None:
    """Rounding of an effective number of images never makes hits more than images."""
    for concepts in range(8, 60):
        sizes = [3 + 5 * k % 7 for k in range(concepts)]
        every, lost = ({f"c{k}": Counts(n, n, *won) for k, n in enumerate(sizes)} for won in ((), (0,)))
        for reach in (Reach.of(every), Reach.of(lost)):
            assert reach.others is not None
            assert reach.high == 1
            assert reach.others.low <= reach.these.low < 1


def test_of_too_few_pairs_nothing_can_be_told_and_that_is_no_pass() -> None:
    """Two pairs a concept cannot show that one of them vanished, whatever was seen."""
    rows = [r for r in good() if r["role"] not in ("neighbour", "other")]
    gone = outcome(report(*rows, *(row(f"o{k}", "other", 2, 0, 2) for k in range(60))), "any kept concept, loss")
    assert (gone.state, gone.next) == ("undecided", "one concept needs at least 6")
    assert gone.got == "cannot be told at this n: no concept has more than 2 pairs"
    mixed = [
        *(row(f"n{k}", "neighbour", 20, 20, 20) for k in range(10)),
        *(row(f"o{k}", "other", 5, 5, 5) for k in range(50)),
    ]
    told = outcome(report(*rows, *mixed), "any kept concept, loss")
    assert told.state == "pass"
    assert told.got.endswith("of 50 of 60 concepts it cannot be told at this n")


RULE = 'name = "t"\nmetric = "shown"\nroles = ["target"]\nstatistic = "upper"\nlimit = 0.5\n'
BAD_FILES = {
    "no rule": ("", "no rule"),
    "torn": ("[[rule", "no gate"),
    "names no metric": (RULE.replace('metric = "shown"\n', ""), "names no metric"),
    "unknown metric": (RULE.replace("shown", "shwon"), "shown"),
    "unknown role": (RULE.replace('["target"]', '["targets"]'), "'target'"),
    "unknown statistic": (RULE.replace("upper", "uper"), "'upper'"),
    "unknown entry": (RULE + "limits = 3\n", "'limit'"),
    "per cent": (RULE.replace("0.5", "5"), "0.05"),
    "no roles": (RULE.replace('["target"]', "[]"), "list of texts"),
    "bare estimate": (RULE.replace("upper", "estimate"), "n_min"),
    "bound of a share": (RULE.replace("shown", "scored"), "estimate"),
    "upper bound of none": (RULE.replace("0.5", "0.0"), "no number of images"),
    "optional as text": (RULE + 'optional = "false"\n', "valid boolean"),
    "limit as text": (RULE.replace("0.5", '"0.5"'), "valid number"),
    "margin of none": (RULE.replace("0.5", "0").replace("shown", "loss"), "no number of images"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_gate_that_cannot_be_read_is_a_usage_error(what: str, tmp_path: Path) -> None:
    """E-54: never a pass."""
    text, words = BAD_FILES[what]
    file = tmp_path / "gate.toml"
    file.write_text(text if what in ("no rule", "torn") else "[[rule]]\n" + text)
    with pytest.raises(BadRequest, match=words) as raised:
        gates.load(str(file))
    assert raised.value.exit_code == 2


def test_a_gate_that_does_not_fit_the_report_is_a_usage_error(tmp_path: Path) -> None:
    """E-54: unknown concept, missing role, another suite or version."""
    file = tmp_path / "gate.toml"
    for text, words in (
        ("[[rule]]\n" + RULE + 'concepts = ["t77"]\n', "t77"),
        ("[[rule]]\n" + RULE.replace("target", "hazard"), "hazard"),
        ('suite = "world-full"\n[[rule]]\n' + RULE, "world-full"),
        ('version = "9"\n[[rule]]\n' + RULE, "version"),
    ):
        file.write_text(text)
        with pytest.raises(BadRequest, match=words):
            judged(gates.load(str(file)), report(*good()))
    with pytest.raises(BadRequest, match="default"):
        gates.load("defualt")


def test_an_estimate_needs_its_images(tmp_path: Path) -> None:
    file = tmp_path / "gate.toml"
    file.write_text("[[rule]]\n" + RULE.replace("upper", "estimate").replace("0.5", "0.1") + "n_min = 400\n")
    found = judged(gates.load(str(file)), report(*good()))[0]
    assert (found.state, found.next) == ("undecided", "100 more images decide")


def test_the_smallest_limits_have_their_advice(tmp_path: Path) -> None:
    for metric in ("shown", "loss"):
        rule = RULE.replace("0.5", "0.000001").replace("shown", metric)
        found = judged(written(tmp_path / "gate.toml", rule), report(row("t", "target", 30, 30, 30, 30)))[0]
        assert found.state == ("fail" if metric == "shown" else "undecided")
    none = judged(written(tmp_path / "gate.toml", RULE.replace("0.5", "0.000001")), report(*good()))[0]
    assert "more images without a hit" in none.next
