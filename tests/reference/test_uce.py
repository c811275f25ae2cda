"""Both released scripts of UCE: their weights from their own embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from efface.numerics.ridge import Ridge, ridge_operator, tensor_delta
from efface.numerics.rows import Spans, tail_pairs

from .conftest import Case, original_weights, relative


def embeddings(case: Case) -> dict[str, Tensor]:
    return dict(zip(case.facts["inputs"]["texts"], case.tensors["in/embeddings"], strict=True))


def constraints_of_2025(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """rows, guides (n, d) and weights (n,): one row a text."""
    p, by_text = case.parameters, embeddings(case)
    erased, kept = p["edit_concepts"], p["preserve_concepts"]
    rows = torch.stack([by_text[t] for t in [*erased, *kept]])
    guides = torch.stack([by_text[t] for t in [*p["guide_concepts"], *kept]])
    weights = torch.tensor([p["erase_scale"]] * len(erased) + [p["preserve_scale"]] * len(kept))
    return rows, guides, weights


def constraints_of_2023(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows, guides (n, d), weights (n,) and concept numbers (n,), -1 for kept rows."""
    p, by_text = case.parameters, embeddings(case)
    blocks = []
    for k, pair in enumerate(case.facts["inputs"]["constraint_rows"]):
        starts = pair["concept_rows"][0], pair["guide_rows"][0]
        texts = [by_text[pair[which]] for which in ("concept", "guide")]
        # the stored numbers are those of the last content rows: as many tokens stand before the end
        spans = [Spans.of(at, len(text)) for at, text in zip(starts, texts, strict=True)]
        X, G = tail_pairs(texts[0], spans[0], texts[1], spans[1])
        assert len(X) == pair["concept_rows"][1] - starts[0]
        blocks.append((X, G, p["erase_scale"], k))
    blocks += [(X, X, p["preserve_scale"], -1) for X in (by_text[t] for t in p["retain_texts"])]
    rows, guides = torch.cat([b[0] for b in blocks]), torch.cat([b[1] for b in blocks])
    weights = torch.cat([torch.full((len(b[0]),), b[2], dtype=torch.float64) for b in blocks])
    group = torch.cat([torch.full((len(b[0]),), b[3]) for b in blocks])
    return rows, guides, weights, group


def edited_2023(case: Case, technique: str, lam: float) -> dict[str, Tensor]:
    rows, guides, weights, group = constraints_of_2023(case)
    ridge = ridge_operator(rows, guides, weights, lam, erased=group >= 0)
    chosen = case.parameters.get("layers_to_edit_names")

    def after(name: str) -> Tensor:
        W = original_weights()[name]
        if chosen is not None and name.removesuffix(".weight") not in chosen:
            return W
        return W + (tensor_delta(W, ridge, rows, guides, group) if technique == "tensor" else ridge.delta(W))

    return {name: after(name) for name in case.under("out/weight/")}


def worst(edited: dict[str, Tensor], case: Case) -> float:
    return max(relative(edited[n], W) for n, W in case.under("out/weight/").items())


def edited(ridge: Ridge, case: Case) -> dict[str, Tensor]:
    return {n: original_weights()[n] + ridge.delta(original_weights()[n]) for n in case.under("out/weight/")}


@pytest.mark.cases("uce/*")
def test_one_operator_gives_the_weights_of_the_2025_script(case: Case) -> None:
    """3.P-1."""
    error = worst(edited(ridge_operator(*constraints_of_2025(case), case.parameters["lamb"]), case), case)
    assert error <= case.bound("out/weight")


@pytest.mark.cases("uce/*")
@pytest.mark.parametrize("wrong", ["lam", "guide", "weight"])
def test_one_wrong_parameter_misses_the_2025_weights(case: Case, wrong: str) -> None:
    rows, guides, weights = constraints_of_2025(case)
    lam = case.parameters["lamb"] * (1.01 if wrong == "lam" else 1)
    if wrong == "guide":
        guides = guides.clone()
        guides[0] = rows[0] * 0.9
    if wrong == "weight":
        weights = weights.clone()
        weights[0] *= 1.01
    error = worst(edited(ridge_operator(rows, guides, weights, lam), case), case)
    assert error > 1e3 * case.bound("out/weight")


@pytest.mark.cases("uce-2023/*")
def test_tail_slices_and_technique_give_the_weights_of_the_2023_script(case: Case) -> None:
    """3.P-1."""
    p = case.parameters
    error = worst(edited_2023(case, p["technique"], p["lamb"]), case)
    assert error <= case.bound("out/weight")


@pytest.mark.cases("uce-2023/*")
@pytest.mark.parametrize("wrong", ["lam", "technique"])
def test_one_wrong_parameter_misses_the_2023_weights(case: Case, wrong: str) -> None:
    p = case.parameters
    other = {"tensor": "replace", "replace": "tensor"}[p["technique"]]
    technique, lam = (other, p["lamb"]) if wrong == "technique" else (p["technique"], 1.01 * p["lamb"])
    error = worst(edited_2023(case, technique, lam), case)
    assert error > 1e2 * case.bound("out/weight")
