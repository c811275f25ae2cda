"""CLIP scores and their dialects, distances between sets, distances in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.metrics import Specimen
from efface.metrics.clip import Clip, mean_of_batches
from efface.metrics.distribution import Distribution
from efface.metrics.pairs import Pairs
from efface.numerics import distances
from efface.numerics.distances import clip_scores
from efface.scores.cells import Cell
from plain_rows import readings


def find(cells: Iterable[Cell], name: str, **labels: str) -> Cell:
    """The one cell of that name."""
    found = [c for c in cells if c.name == name and all(getattr(c, k) == v for k, v in labels.items())]
    assert len(found) == 1, (name, labels, [c.name for c in found])
    return found[0]


class Tower:
    """A tower that places an image by its mean colour and a text by the colour it names."""

    name, version, card = "tower", "0", {}

    def images(self, images: np.ndarray) -> np.ndarray:
        return images.astype(np.float64).mean((1, 2))

    def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        colours = ("red", "green", "blue")
        found = np.asarray([[float(c in t) for c in colours] for t in texts])
        return found, np.asarray([len(t) > 60 for t in texts])


def picture(red: float, green: float, blue: float) -> np.ndarray:
    return np.broadcast_to(np.asarray([red, green, blue], np.uint8), (12, 12, 3)).copy()


# --- CLIP ------------------------------------------------------------------------------------------------------------


def test_a_score_is_a_hundred_times_the_cosine_and_is_not_clipped() -> None:
    """E-24."""
    draw = np.random.default_rng(0)
    images, texts = draw.normal(size=(5, 8)), draw.normal(size=(4, 8))
    found = clip_scores(images, texts)
    assert clip_scores(3.7 * images, texts / 9) == pytest.approx(found, abs=1e-12)
    assert np.diag(clip_scores(images, images)) == pytest.approx(np.full(5, 100.0))
    assert clip_scores(images[:1], -images[:1]) == pytest.approx(-100)
    assert (found < 0).any()


def test_the_text_is_the_prompt_or_the_concept_alone() -> None:
    item = Specimen(picture(200, 100, 0), prompt="a red green thing", concept="red")
    assert Clip(Tower()).score(item).value == pytest.approx(100 * 300 / np.sqrt(200**2 + 100**2) / np.sqrt(2))
    assert Clip(Tower(), text="concept").score(item).value == pytest.approx(100 * 200 / np.sqrt(200**2 + 100**2))
    assert Clip(Tower()).score(Specimen(picture(9, 9, 9), prompt="red " * 30)).detail == {"cut": True}
    assert Clip().score(item).state == "na"
    assert "hf download" in Clip(model="somebody/some-clip").score(item).reason


def test_two_readings_of_accuracy_differ_in_the_middle() -> None:
    """E-24: probabilities 0.6 and 0.4 are 0.6 by one reading and 1 by the other; equal logits give 1 / c."""
    metric = Clip(Tower(), text="concept", labels=("red", "green", "blue"))
    even = metric.score(Specimen(picture(90, 90, 90), concept="green"))
    assert (even.detail or {})["probability"] == pytest.approx(1 / 3)
    unsure = metric.score(Specimen(picture(100, 99, 0), concept="red"))
    assert unsure.hit is True
    assert (unsure.detail or {})["probability"] < 0.9
    rows = [{"side": "base", "prompt": str(k), "seed": k, "state": "ok", "value": 1.0, "probability": 0.6, "hit": True}
            for k in range(5)]  # fmt: skip
    cells = metric.aggregate(readings(rows))
    assert find(cells, "clip_acc_prob").value == pytest.approx(0.6)
    assert find(cells, "clip_acc_top1").value == 1


def scored(role: str, concept: str, base: Sequence[float], edited: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"side": side, "prompt": f"{concept} {k // 2}", "seed": k, "role": role, "concept": concept, "state": "ok",
         "value": float(v)} for side, values in (("base", base), ("edited", edited)) for k, v in enumerate(values)
    ]  # fmt: skip


def test_the_papers_names_are_means_over_concepts_and_differences() -> None:
    """E-24: CLIP_x = CLIP_coco - CLIP_art, exactly."""
    rows = [*scored("target", "red", [30, 32], [20, 22]), *scored("target", "green", [30] * 4, [25, 27, 25, 27]),
            *scored("other", "blue", [31, 33], [30, 31]), *scored("quality", "", [32, 32], [31, 30])]  # fmt: skip
    cells = Clip(Tower()).aggregate(readings(rows))
    assert find(cells, "CLIP_art").value == pytest.approx((21 + 26) / 2)
    assert find(cells, "CLIP_e").value == find(cells, "CLIP_art").value
    assert find(cells, "CLIP_s").value == pytest.approx(30.5)
    assert find(cells, "CLIP_coco").value == pytest.approx(30.5)
    assert find(cells, "CLIP_x").value == pytest.approx(30.5 - 23.5)
    assert find(cells, "CLIP.quality.difference").value == pytest.approx(-1.5)
    named = {c.name for c in Clip(Tower(), text="concept").aggregate(readings(rows))}
    assert "CLIP_a" in named
    assert not named & {"CLIP_art", "CLIP_x"}


def test_a_published_row_of_clip_a() -> None:
    """FIA, table 5: five painters."""
    row = (28.13, 26.37, 27.16, 27.44, 28.15)
    made = [r for k, v in enumerate(row) for r in scored("target", f"p{k}", [42.0] * 3, [v] * 3)]
    cells = Clip(Tower(), text="concept").aggregate(readings(made))
    assert find(cells, "CLIP_a").value == pytest.approx(27.45, abs=0.005)
    assert find(cells, "FSR").value == 1


def test_ties_are_failures() -> None:
    """E-21: lower on 2 of 5, higher on 2, equal on 1; both ways and the ties sum to one."""
    base, edited = [30, 30, 30, 30, 30], [20, 25, 30, 35, 36]
    there = find(Clip(Tower()).aggregate(readings(scored("target", "red", base, edited))), "FSR")
    back = find(Clip(Tower()).aggregate(readings(scored("target", "red", edited, base))), "FSR")
    assert (there.value, back.value) == (0.4, 0.4)
    assert (there.value or 0) + (back.value or 0) + 1 / 5 == pytest.approx(1)
    assert "1 ties count as failures" in there.note


def test_an_edit_that_does_nothing_never_succeeds() -> None:
    """E-7."""
    fsr = find(Clip(Tower()).aggregate(readings(scored("target", "red", range(9), range(9)))), "FSR")
    assert fsr.value == 0
    assert "p = 1" in fsr.note


def test_a_short_last_batch_weighs_too_much_in_a_mean_of_means() -> None:
    """E-25."""
    values = np.arange(10.0)
    assert mean_of_batches(values, 5) == pytest.approx(values.mean())
    assert mean_of_batches(values, 4) == pytest.approx((1.5 + 5.5 + 8.5) / 3)
    rows = scored("quality", "", values, values)
    cells = Clip(Tower(), mean="batches", batch=4).aggregate(readings(rows))
    odd = find(cells, "CLIP.quality", side="edited")
    assert odd.value != pytest.approx(values.mean())
    assert (odd.low, odd.high) == (None, None)
    assert find(Clip(Tower()).aggregate(readings(rows)), "CLIP.quality", side="edited").value == pytest.approx(
        values.mean()
    )


# --- sets ------------------------------------------------------------------------------------------------------------


def featured(shift: float, n: int = 90, floor: bool = False) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    sides = {"base": 0.0, "edited": shift, **({"floor": 0.0} if floor else {})}
    return [{"side": side, "prompt": f"p{k % 30}", "seed": k, "state": "ok", "features": draw.normal(move, 1, 5)}
            for side, move in sides.items() for k in range(n)]  # fmt: skip


def test_set_distances_are_those_of_the_features_and_stand_beside_their_floor() -> None:
    rows = featured(1.0, floor=True)
    x, y = (np.stack([r["features"] for r in rows if r["side"] == s]) for s in ("edited", "base"))
    cells = Distribution().aggregate(readings(rows))
    for name, measure in (("FD-judge.base", distances.frechet), ("KID-judge.base", distances.kid),
                          ("CMMD-judge.base", distances.cmmd)):  # fmt: skip
        edited, floor = (find(cells, name, side=s) for s in ("edited", "floor"))
        assert edited.value == pytest.approx(measure(x, y), rel=1e-9)
        assert edited.low is not None and edited.high is not None and floor.value is not None  # noqa: PT018
        assert edited.low < (edited.value or 0) < edited.high
        assert floor.value < edited.low
        assert edited.clusters == 30


def test_several_questions_of_an_image_are_one_image_of_a_set() -> None:
    rows = featured(0.5)
    asked = [r | {"role": role, "concept": role} for r in rows for role in ("target", "beside")]
    assert Distribution().aggregate(readings(asked)) == Distribution().aggregate(readings(rows))


def test_only_inception_makes_an_fid_and_few_images_are_named() -> None:
    names = {c.name for c in Distribution(of="inception").aggregate(readings(featured(1.0)))}
    assert {"FID.base", "FID-infinity.base"} <= names
    few = Distribution().aggregate(readings(featured(1.0, n=4)))
    assert "n < dimension" in find(few, "FD-judge.base").note
    assert find(few, "FD-judge-infinity.base").state == "na"
    assert {c.state for c in Distribution().aggregate(readings(featured(1.0, n=1)))} == {"na"}
    assert not any(c.name.startswith("FID") for c in few)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_identical_images_have_no_signal_to_noise_ratio_but_are_fine() -> None:
    """E-30."""
    item = Specimen(picture(9, 99, 199), base=picture(9, 99, 199))
    found = Pairs("psnr").score(item)
    assert (found.state, found.value, found.detail) == ("ok", None, {"identical": True})
    assert Pairs("ssim").score(item).value == pytest.approx(1)
    rows = [{"side": "edited", "prompt": str(k), "seed": k, "role": "other", "state": "ok", "value": v}
            for k, v in enumerate((None, 20.0, 30.0))]  # fmt: skip
    cell = find(Pairs("psnr").aggregate(readings(rows)), "psnr.other")
    assert cell.value == 25.0
    assert cell.note.endswith("1 identical pairs left out")
    alone = find(Pairs("psnr").aggregate(readings(rows[:1])), "psnr.other")
    assert (alone.state, alone.reason) == ("na", "all 1 pairs are identical")


def test_each_measure_needs_its_own_part_of_the_base() -> None:
    image, other = picture(10, 20, 30), picture(30, 20, 10)
    assert Pairs("psnr").score(Specimen(image, base=other)).value == pytest.approx(
        -10 * np.log10(2 * (20 / 255) ** 2 / 3), abs=1e-9
    )
    assert Pairs("ssim").score(Specimen(image)).state == "na"
    assert Pairs("ssim").score(Specimen(image, base=np.zeros((5, 5, 3), np.uint8))).state == "error"
    z = np.random.default_rng(0).normal(size=(4, 8, 8))
    assert Pairs("latents").score(Specimen(image, latent=1.1 * z, base_latent=z)).value == pytest.approx(0.1)
    assert Pairs("latents").score(Specimen(image)).state == "na"
    assert Pairs("latents").score(Specimen(image, latent=z * np.nan, base_latent=z)).state == "error"
    assert Pairs("features").score(Specimen(image, features=2 * z, base_features=z)).value == pytest.approx(0)


def test_without_weights_lpips_is_na_and_says_how_to_get_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    found = Pairs("lpips").score(Specimen(picture(1, 2, 3), base=picture(3, 2, 1)))
    assert (found.state, found.value) == ("na", None)
    assert "alexnet.safetensors" in found.reason


def test_lpips_of_what_was_erased_and_of_what_was_kept_stand_under_their_names() -> None:
    """And no cell is the one less the other."""
    rows = [{"side": "edited", "role": role, "seed": k, "value": value} for role, values in (
        ("style", (0.5, 0.7)), ("target", (0.3,)), ("other-style", (0.1,)), ("other", (0.2,)), ("neighbour", (0.6,)),
        ("in-prompt", (0.9,))) for k, value in enumerate(values)]  # fmt: skip
    cells = Pairs("lpips").aggregate(readings(rows))
    assert find(cells, "LPIPS_e").value == pytest.approx(0.5)
    assert find(cells, "LPIPS_u").value == pytest.approx(0.3)
    assert find(cells, "lpips.style").value == pytest.approx(0.6)
    assert {c.name for c in cells} == {"LPIPS_e", "LPIPS_u", *(f"lpips.{r['role']}" for r in rows)}
    assert not any(c.name.startswith("LPIPS") for c in Pairs("ssim").aggregate(readings(rows)))


def test_clip_s_counts_kept_styles() -> None:
    rows = [{"role": r, "side": "edited", "concept": r, "value": v} for r, v in (("style", 20), ("other-style", 30))]
    assert find(Clip().aggregate(readings(rows)), "CLIP_s").value == 30


def test_the_weights_of_lpips_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.judges import lpips

    read = []

    class Same:
        def distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.zeros(len(x))

    def load(folder: Path) -> Same:
        read.append(folder)
        return Same()

    monkeypatch.setattr(lpips, "load", load)
    item = Specimen(picture(1, 2, 3), base=picture(3, 2, 1))
    assert [Pairs("lpips").score(item).value for _ in range(3)] == [0, 0, 0]
    assert len(read) == 1


def test_a_metric_takes_any_lpips_judge() -> None:
    class Far:
        name, version, card = "far", "0", {}

        def distances(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return np.abs(x.astype(float) - y).mean((1, 2, 3))

    found = Pairs("lpips", lpips=Far()).score(Specimen(picture(1, 2, 3), base=picture(4, 2, 3)))
    assert found.value == 1
