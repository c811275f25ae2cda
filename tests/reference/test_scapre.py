"""Both released scripts of ScaPre, from their own embeddings and draws, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface.evidence.gather import Evidence
from efface.methods._informax import Channels
from efface.methods.scapre import LargeScale, RollBack, ScaPre, System
from efface.numerics.geometry import combine, energy_angle_blend, entropy_rollback, row_prox
from efface.numerics.information import code_information, entropy_factor, information_of_counts, normalise
from efface.numerics.rows import Spans
from efface.numerics.spectral import (
    Gate,
    Pairs,
    Shared,
    gate_values,
    pair_rows,
    penalised,
    residual_concepts,
    right_side,
    shared_factor,
    target,
)
from efface.registry import changed
from efface.request import Concept, Request
from efface.work import Work

from .conftest import HERE, Case, absolute, encoded, original_weights, relative


@dataclass(frozen=True)
class Settings:
    """Parameters of a case under the names of the equations."""

    eta: float
    lam: float
    p: float
    sigma: float
    bins: int
    iterations: int
    technique: str
    masks: bool
    spectral: bool
    gate: Gate
    mu: float | None  # None: from the entropies
    blend: bool
    floor: float
    res_scale: float
    single_draw: bool = False

    @classmethod
    def of(cls, p: dict[str, Any]) -> Settings:
        return cls(
            eta=p["erase_scale"],
            lam=p["lamb"],
            p=p["p"],
            sigma=p["noise_sigma"],
            bins=p["entropy_bins"],
            iterations=p.get("bures_iters", 0),
            technique=p["technique"],
            masks=p.get("use_mi_softmask", True),
            spectral=p.get("enable_ased", p.get("svd", False)),
            gate=Gate(p.get("T_sigma", 1.0), p.get("p_sigma", 1.0)),
            mu=None if p.get("bures_mu_from_entropy", True) else 0.1,
            blend=p.get("enable_egbr", False),
            floor=p.get("alpha_min", 1.0),
            res_scale=p.get("res_scale", p["erase_scale"]),
        )


@dataclass(frozen=True)
class Steps:
    """What one matrix goes through."""

    entropy: Tensor
    mask_target: Tensor | None
    mask_alpha: Tensor | None
    We: Tensor
    W: Tensor


def inputs(case: Case, s: Settings) -> tuple[Pairs, Tensor, Shared]:
    context, guide = case.under("in/context_rows/"), case.under("in/guide_rows/")
    concepts = case.tensors["in/concept_vectors"]
    order = sorted(context, key=int)
    pairs = pair_rows([context[k] for k in order], [guide[k] for k in order])
    X = pairs.stacked()
    rows = torch.cat([concepts, X])
    weights = torch.cat([concepts.new_ones(len(concepts)), X.new_full((len(X),), s.eta)])
    gate = s.gate if s.spectral and s.iterations else None
    return pairs, concepts, shared_factor(rows, weights, s.lam, concepts, gate)


def masks(case: Case, name: str, which: str, s: Settings) -> Tensor | None:
    if not s.masks or f"in/{name}/mi_noise_{which}" not in case.tensors:
        return None
    draws = case.tensors[f"in/{name}/mi_noise_{which}"]  # (m, 2, n, d)
    concepts, empty = case.tensors["in/concept_vectors"], case.tensors["in/empty_vector"]
    mi = code_information(original_weights()[name], concepts, empty, draws[:, 0], draws[:, 1], s.sigma)
    return normalise(mi, "zscore", power=s.p)


def large_scale(case: Case, name: str, s: Settings) -> Steps:
    pairs, concepts, shared = inputs(case, s)
    W0 = original_weights()[name]
    e = entropy_factor(W0, concepts, case.tensors[f"in/{name}/entropy_noise"], s.sigma, s.bins)
    h = (1 - e).clamp(0, 1)
    mu = float(h.mean()) if s.mu is None else s.mu
    alpha = masks(case, name, "target" if s.single_draw else "alpha", s)
    mask = masks(case, name, "target", s)
    ones = W0.new_ones(len(W0), len(concepts))
    a = s.eta * (ones if alpha is None else alpha).amax(1)
    V = target(W0, pairs, ones if mask is None else mask, s.eta, technique=s.technique)
    We = shared.solve(right_side(W0, V, s.lam + mu), mu, a)
    p, q = row_prox(We, W0, s.lam + mu, mu, s.iterations)
    W = combine(p, We, q, W0)
    return Steps(e, mask, alpha, We, energy_angle_blend(W, W0, h) if s.blend else W)


def roll_back(case: Case, name: str, s: Settings) -> Steps:
    pairs, concepts, shared = inputs(case, s)
    W0 = original_weights()[name]
    mask = masks(case, name, "target", s)
    assert mask is not None
    V = target(W0, pairs, mask, s.eta, technique=s.technique)
    if s.spectral:
        C_res = residual_concepts(concepts, s.gate)
        V = V - s.res_scale * (W0 @ C_res.T) @ C_res
    We = shared.solve(right_side(W0, V, s.lam))
    e = entropy_factor(W0, concepts, case.tensors[f"in/{name}/entropy_noise"], s.sigma, s.bins)
    return Steps(e, mask, None, We, entropy_rollback(We, W0, e, s.floor))


def edited(case: Case, name: str, s: Settings) -> Steps:
    return (large_scale if s.iterations else roll_back)(case, name, s)


def weight_error(case: Case, s: Settings) -> float:
    return max(relative(edited(case, n, s).W, W) for n, W in case.under("out/weight/").items())


@pytest.mark.cases("scapre/bures", "scapre/plain")
def test_every_step_is_reproduced(case: Case) -> None:
    """1.11-29."""
    s = Settings.of(case.parameters)
    for name, wanted in case.under("out/weight/").items():
        steps, mid = edited(case, name, s), case.under(f"mid/{name}/")
        assert absolute(steps.entropy, mid["entropy_factor"]) <= case.bound("mid/*/entropy_factor")
        for key, mask in (("mask_alpha", steps.mask_alpha), ("mask_target", steps.mask_target)):
            assert (mask is None) == (key not in mid)
            assert mask is None or absolute(mask.T, mid[key]) <= case.bound("mid/*/mask_*")
        assert "We" not in mid or relative(steps.We, mid["We"]) <= case.bound("mid/*/We")
        assert relative(steps.W, wanted) <= case.bound("out/weight/*")


@pytest.mark.cases("scapre/bures", "scapre/plain")
@pytest.mark.parametrize("wrong", ["eta", "lam", "iterations", "p", "sigma", "technique"])
def test_one_wrong_parameter_misses_the_weights(case: Case, wrong: str) -> None:
    """1.11-29."""
    s = Settings.of(case.parameters)
    bad = {
        "eta": replace(s, eta=1.01 * s.eta),
        "lam": replace(s, lam=1.01 * s.lam),
        "iterations": replace(s, iterations=s.iterations + 1),  # turns the roll-back form into the other
        "p": replace(s, p=s.p + 0.01),
        "sigma": replace(s, sigma=2 * s.sigma),
        "technique": replace(s, technique={"tensor": "replace", "replace": "tensor"}[s.technique]),
    }[wrong]
    if wrong == "p" and not s.masks:
        assert weight_error(case, bad) == weight_error(case, s)  # the power acts on masks alone
        return
    assert weight_error(case, bad) > 1e2 * case.bound("out/weight/*")


@pytest.mark.cases("scapre/s1*", "scapre/s4*", "scapre/s7*")
def test_masks_drawn_once_instead_of_twice_miss_the_weights(case: Case) -> None:
    """1.11-29."""
    assert weight_error(case, replace(Settings.of(case.parameters), single_draw=True)) > 1e-6


@pytest.mark.cases("scapre/bures")
def test_projector_of_the_concepts_agrees(case: Case) -> None:
    _, _, shared = inputs(case, Settings.of(case.parameters))
    assert relative(shared.span @ shared.span.T, case.tensors["mid/Pi_C"]) <= case.bound("mid/Pi_C")


# --- the method itself ------------------------------------------------------------------------------------------------


@cache
def _tokens(text: str) -> int:
    """Content tokens of a text."""
    from transformers import CLIPTokenizer

    return len(CLIPTokenizer.from_pretrained(HERE / "tiny-sd" / "tokenizer")(text).input_ids) - 2


def evidence(case: Case) -> tuple[Evidence, Request]:
    """The case's rows at their places in a window of 24; rows that the method must not look at are NaN-free zeros."""
    p, rows = case.parameters, {"": torch.zeros(24, 64, dtype=torch.float64)}
    rows[""][1] = case.tensors["in/empty_vector"]
    for k, (concept, guide) in enumerate(zip(p["concepts"], p["guides"], strict=True)):
        for text, block in ((concept, f"in/context_rows/{k}"), (guide.strip(), f"in/guide_rows/{k}")):
            found = rows.setdefault(text, torch.zeros(24, 64, dtype=torch.float64))
            start = Spans.of(_tokens(text), 24).last
            found[start : start + len(case.tensors[block])] = case.tensors[block]
    assert torch.equal(rows[""][1], case.tensors["in/empty_vector"])
    texts = {t: encoded(t, r, _tokens(t) + 2) for t, r in rows.items()}
    pairs = zip(p["concepts"], p["guides"], strict=True)
    return Evidence(texts), Request(tuple(Concept(c, "object", g) for c, g in pairs))


def method(s: Settings, case: Case) -> ScaPre:
    own: dict[str, Any] = {
        "erase_scale": s.eta, "lam": s.lam, "power": s.p, "sigma": s.sigma, "bins": s.bins, "technique": s.technique,
        "mask": "code" if s.masks else "off", "spectral": s.spectral, "temperature": s.gate.temperature,
        "exponent": s.gate.power, "blend": s.blend, "samples": case.parameters["entropy_samples"],
    }  # fmt: skip
    if s.iterations:
        own |= {"iterations": s.iterations} | ({} if s.mu is None else {"mu": s.mu})
        return changed(LargeScale(), own)
    return changed(RollBack(), own | {"floor": s.floor, "residual_scale": s.res_scale})


def fed(case: Case, name: str) -> Any:
    """In place of the method's draws."""

    def draws(_: Channels, site: str, purpose: str, side: str, *size: int) -> Tensor:
        found = case.tensors[f"in/{name}/" + {"entropy": "entropy_noise", "target": "mi_noise_target"}.get(
            purpose, "mi_noise_alpha")]  # fmt: skip
        found = found if purpose == "entropy" else found[:, ["positive", "negative"].index(side)]
        assert found.shape[1:] == size
        return found.double()

    return draws


@pytest.mark.cases("scapre/bures", "scapre/plain")
def test_the_method_makes_the_weights_of_the_released_code_from_their_draws(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.11-29."""
    s, (found, request) = Settings.of(case.parameters), evidence(case)
    (door,) = efface.load(HERE / "tiny-sd", "cpu").card.doors
    context, other = (
        System(method(own, case), found, request, door, Work()) for own in (s, replace(s, eta=1.01 * s.eta))
    )
    for name, wanted in case.under("out/weight/").items():
        monkeypatch.setattr(Channels, "draws", fed(case, name))
        edited = context.site(original_weights()[name], name)
        assert relative(edited.weight, wanted) <= case.bound("out/weight/*")
        assert edited.numbers["residual"] <= 1e-9
        assert relative(other.site(original_weights()[name], name).weight, wanted) > 1e2 * case.bound("out/weight/*")


def _calls(case: Case, prefix: str) -> list[tuple[str, dict[str, Any]]]:
    return [(c["output"], c) for c in case.parameters["calls"] if c["output"].startswith(prefix)]


@pytest.mark.cases("scapre/functions")
def test_row_prox_agrees_also_for_reversed_and_zero_rows(case: Case) -> None:
    a, w0 = case.tensors["in/We"], case.tensors["in/W0"]
    for out, c in _calls(case, "prox/"):
        wanted = case.tensors[f"out/{out}"]
        p, q = row_prox(a, w0, c["lambda_prox"], c["mu"], c["iterations"])
        assert absolute(combine(p, a, q, w0), wanted) <= case.bound("out/*")
        if c["mu"]:
            p, q = row_prox(a, w0, c["lambda_prox"], c["mu"], c["iterations"] + 1)
            assert absolute(combine(p, a, q, w0), wanted) > 1e-6


@pytest.mark.cases("scapre/functions")
def test_blend_of_energy_and_angle_agrees(case: Case) -> None:
    found = energy_angle_blend(case.tensors["in/We"], case.tensors["in/W0"], case.tensors["in/H"])
    assert absolute(found, case.tensors["out/blend"]) <= case.bound("out/*")
    found = energy_angle_blend(case.tensors["in/We"], case.tensors["in/W0"], case.tensors["in/H"] ** 2)
    assert absolute(found, case.tensors["out/blend"]) > 1e-3


@pytest.mark.cases("scapre/functions")
def test_spectral_terms_agree_with_the_lower_median(case: Case) -> None:
    C, W0 = case.tensors["in/C"].T, case.tensors["in/W0"]
    for out, c in _calls(case, "R/"):
        gate = Gate(c["T_sigma"], c["p_sigma"])
        wanted = case.tensors[f"out/{out}"]
        for own, agrees in ((gate, True), (replace(gate, power=gate.power + 0.01), False)):
            U, penalty = penalised(C, own)
            error = absolute((U * (c["strength"] * penalty)) @ U.T, wanted)
            assert error <= case.bound("out/*") if agrees else error > 1e-6
    for out, c in _calls(case, "C_res/"):
        C_res = residual_concepts(C, Gate(c["T_sigma"], c["p_sigma"]))
        number = out.split(",")[0].removeprefix("C_res/")
        assert absolute(C_res.T, case.tensors[f"out/C_res/{number}"]) <= case.bound("out/*")
        assert absolute(W0 @ C_res.T, case.tensors[f"out/V_res/{number}"]) <= case.bound("out/*")


def test_gate_is_centred_on_the_lower_of_the_two_middle_values() -> None:
    s = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    g = gate_values(s, Gate())
    assert float(g[2]) == 0.5
    assert float(g[1]) > 0.7


def _upper_median_information(W0: Tensor, c: Tensor, e: Tensor, draws: Tensor, sigma: float) -> Tensor:
    A = torch.stack([c + sigma * draws[0].double(), e + sigma * draws[1].double()]) @ W0.T  # (2, n, o)
    fires = A.movedim(-1, 0) > A.flatten(0, 1).sort(0).values[A.shape[1]][:, None, None]  # (o, 2, n)
    n = fires.sum(-1)
    return information_of_counts(n[:, 0], n[:, 1], A.shape[1], A.shape[1])[:, None]


@pytest.mark.cases("scapre/functions")
def test_masks_and_entropies_agree_in_every_state(case: Case) -> None:
    """1.11-8."""
    W0, C, empty, noise = (case.tensors[f"in/{n}"] for n in ("W0", "C", "empty", "mi_noise"))
    for out, c in _calls(case, "mask/"):
        k, number = c["concept_column"], int(out.removeprefix("mask/"))
        draws = noise[number]  # (2, n, d)
        mi = code_information(W0, C.T[k : k + 1], empty, draws[:1], draws[1:], c["noise_sigma"])
        mask = normalise(mi, "zscore", power=c["power"], temperature=c["temperature"])[:, 0]
        assert absolute(mask, case.tensors[f"out/{out}"]) <= case.bound("out/*")
        assert absolute(mask**1.01, case.tensors[f"out/{out}"]) > 1e-6
        upper = normalise(_upper_median_information(W0, C.T[k], empty, draws, c["noise_sigma"]), "zscore")
        assert absolute(mask, upper[:, 0] ** c["power"]) > 1e-4
    (_, c), draws = _calls(case, "entropy_factor")[0], case.tensors["in/entropy_noise"]
    wanted, sigma = case.tensors["out/entropy_factor"], c["noise_sigma"]
    assert absolute(entropy_factor(W0, C.T, draws, sigma, c["bins"]), wanted) <= case.bound("out/*")
    assert absolute(entropy_factor(W0, C.T, draws, sigma, c["bins"] + 1), wanted) > 1e-3
