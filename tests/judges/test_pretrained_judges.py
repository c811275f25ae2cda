"""Judges from transformers on small random stand-ins: loading, refusing, labels, calibration. No network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from efface.errors import BadRequest, Unavailable, WrongFile
from efface.judges import _pretrained, fingerprint, probes
from efface.judges import clip as clip_judge
from efface.judges import transformers_classifier as classifiers
from efface.metrics import Specimen
from efface.metrics.clip import Clip as ClipMetric
from efface.numerics.distances import clip_scores
from small_judges import NAMES, TOKENIZER, images, save_clip, save_resnet, seeded


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_resnet(tmp_path_factory.mktemp("judges") / "resnet")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("judges") / "clip")


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


# --- classifiers -----------------------------------------------------------------------------------------------------


def test_a_folder_is_judged_alike_alone_and_in_a_batch(resnet: Path) -> None:
    """E-34."""
    judge = classifiers.load(resnet)
    some = images(5)
    together = judge.look(some)
    alone = [judge.look(some[k : k + 1]) for k in range(5)]
    assert np.concatenate([v.probabilities for v in alone]) == pytest.approx(together.probabilities, abs=1e-5)
    assert together.probabilities.sum(1) == pytest.approx(np.ones(5), abs=1e-4)
    assert together.hits.sum(1).tolist() == [1] * 5
    assert together.features.shape == (5, 16)
    assert judge.look(some[:0]).hits.shape == (0, 1000)
    assert judge.card["preprocessing"]["backend"] == "pil"
    assert (judge.role, judge.card["multi_label"], judge.card["calibration"]) == ("reporting", False, None)


@pytest.mark.parametrize("bad", [np.zeros((2, 40, 40)), np.zeros((2, 40, 40, 3)), np.zeros((2, 40, 40, 4), np.uint8)])
def test_other_than_pictures_are_refused(resnet: Path, bad: np.ndarray) -> None:
    with pytest.raises(BadRequest, match="uint8"):
        classifiers.load(resnet).look(bad)


def test_labels_are_class_indices_and_a_label_without_one_is_refused_at_load(resnet: Path) -> None:
    """E-35."""
    judge = classifiers.load(resnet, "imagenette")
    assert judge.objects == tuple(classifiers.IMAGENETTE)
    assert {k: at for k, (at,) in classifiers.IMAGENETTE.items()} == {
        "tench": 0, "English springer": 217, "cassette player": 482, "chain saw": 491, "church": 497,
        "French horn": 566, "garbage truck": 569, "gas pump": 571, "golf ball": 574, "parachute": 701,
    }  # fmt: skip
    named = classifiers.load(resnet, ["Tinca tinca", "LION"])
    assert named.card["classes"] == {"Tinca tinca": [0], "LION": [4]}
    for wrong in (["chainsaw"], {"tench": (1000,)}, {"tench": ()}, "imagenet"):
        with pytest.raises(BadRequest, match=r"is no class|labels 'all'"):
            classifiers.load(resnet, wrong)


@pytest.mark.parametrize(("label", "seen"), [("cassette player", "cassette"), ("lion", "sea lion")])
def test_substrings_count_other_classes_and_indices_do_not(resnet: Path, label: str, seen: str) -> None:
    """E-35."""
    at = [n.split(",")[0] for n in NAMES].index(seen)
    counts = [classifiers.load(resnet, [label], match=match).member[0, at] for match in ("index", "substring")]
    assert counts == [False, True]
    versions = {classifiers.load(resnet, [label], match=match).version for match in ("index", "substring")}
    assert len(versions) == 2  # rows of the two never mix


def test_other_weights_are_refused_and_one_bit_makes_another_version(resnet: Path, tmp_path: Path) -> None:
    """E-9: weights, labels and preprocessing are in the version."""
    wanted = fingerprint([resnet / "model.safetensors"])
    judge = classifiers.load(resnet, weights_sha256=wanted)
    other = copied(resnet, tmp_path)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    with pytest.raises(WrongFile, match="sha256"):
        classifiers.load(other, weights_sha256=wanted)
    assert classifiers.load(other).version != judge.version
    assert classifiers.load(resnet, ["lion"]).version != judge.version
    facts = json.loads((other / "preprocessor_config.json").read_text())
    shutil.copy(resnet / "model.safetensors", other)
    (other / "preprocessor_config.json").write_text(json.dumps({**facts, "resample": 3}))
    assert classifiers.load(other).version != judge.version
    assert classifiers.load(resnet, role="selection").version == judge.version


def test_what_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    for name in ("somebody/some-classifier", tmp_path / "nowhere" / "deep"):
        with pytest.raises(Unavailable, match=r"hf download|save_pretrained"):
            classifiers.load(name, offline=True)


def test_pickled_damaged_and_unfinished_folders_are_refused(resnet: Path, tmp_path: Path) -> None:
    folder = copied(resnet, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WrongFile, match="cannot be loaded"):
        classifiers.load(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(WrongFile, match="safetensors"):
        classifiers.load(folder)
    tensors = load_file(resnet / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "classifier" not in k}, weights, {"format": "pt"})
    with pytest.raises(WrongFile, match=r"classifier.* is missing"):
        classifiers.load(folder)
    shutil.copy(resnet / "model.safetensors", weights)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(WrongFile, match="preprocessor_config"):
        classifiers.load(folder)


class Swapped:
    """A processor with red and blue exchanged."""

    def __init__(self, made: Any) -> None:
        self._made, self.image_mean, self.image_std, self.to_dict = made, made.image_mean, made.image_std, made.to_dict

    def __call__(self, **how: Any) -> dict[str, Any]:
        return {"pixel_values": np.stack(self._made(**how)["pixel_values"])[:, ::-1]}


class Nearest(Swapped):
    """A processor that says bilinear and takes the nearest pixel, as some backends do without averaging."""

    def __call__(self, **how: Any) -> dict[str, Any]:
        how["images"] = [image.resize((36, 36), Image.Resampling.NEAREST) for image in how["images"]]
        return {"pixel_values": np.stack(self._made(**how)["pixel_values"])}


def test_traps_of_preprocessing_are_found_at_load(resnet: Path) -> None:
    """E-34: swapped colours, another resize filter, training mode, reduced precision, mixed images."""
    judge = classifiers.load(resnet)
    net, made = judge.net, judge.processor

    def answers(x: np.ndarray) -> np.ndarray:
        return judge.raw(x)[0]

    stored = _pretrained.self_test(net, made, answers, judge.card)
    assert stored == pytest.approx(np.asarray(judge.card["self_test"]), abs=1e-4)
    with pytest.raises(WrongFile, match="channels were swapped"):
        _pretrained.self_test(net, Swapped(made), answers, {})
    with pytest.raises(WrongFile, match="resize filter"):
        _pretrained.self_test(net, Nearest(made), answers, {})
    with pytest.raises(WrongFile, match="mixes images"):
        _pretrained.self_test(net, made, lambda x: answers(x) - answers(x).mean(0), {})
    with pytest.raises(WrongFile, match="stored in the judge's card"):
        _pretrained.self_test(net, made, answers, {"self_test": (stored + 1).tolist()})
    with pytest.raises(WrongFile, match="evaluation mode"):
        _pretrained.self_test(net.train(), made, answers, {})
    net.eval()


def test_a_measured_card_is_written_read_and_guarded(resnet: Path, tmp_path: Path) -> None:
    """E-33, for a judge: temperature and errors by label are on the card; the likeliest class stays."""
    labels = {"a": tuple(range(300)), "b": tuple(range(300, 700)), "c": tuple(range(700, 1000))}
    judge, some = classifiers.load(resnet, labels), images(60, seed=1)
    hits = judge.look(some).hits
    assert len(set(hits.argmax(1))) > 1  # else the counts below say little
    truth = np.random.default_rng(0).choice(list("abc"), 60)
    measured = classifiers.calibrate(judge, some, truth.tolist(), "coarse pictures")
    facts = measured.card["calibration"]
    assert (facts["n"], facts["source"], set(facts["labels"])) == (60, "coarse pictures", {"a", "b", "c"})
    for k, label in enumerate("abc"):
        shown, found = truth == label, facts["labels"][label]
        assert (found["sensitivity"]["hits"], found["sensitivity"]["n"]) == ((hits[:, k] & shown).sum(), shown.sum())
        assert (found["specificity"]["hits"], found["specificity"]["n"]) == (
            (~hits[:, k] & ~shown).sum(),
            (~shown).sum(),
        )
        low, high = found["sensitivity"]["interval"]
        assert low <= found["sensitivity"]["rate"] <= high
    assert measured.version != judge.version
    assert (measured.look(some).hits == judge.look(some).hits).all()
    file = classifiers.save_card(measured, tmp_path / "card.json")
    again = classifiers.load(resnet, card=file)
    assert (again.version, again.objects) == (measured.version, measured.objects)
    assert again.look(some).probabilities == pytest.approx(measured.look(some).probabilities, abs=1e-6)
    with pytest.raises(BadRequest, match="labels"):
        classifiers.calibrate(judge, some, ["z"] * 60, "x")
    card = json.loads(file.read_text())
    for change, said in (({"weights_sha256": "0" * 64}, "sha256"), ({"self_test": [[9.0] * 1000] * 4}, "stored"),
                         ({"preprocessing": {}}, "preprocessing")):  # fmt: skip
        file.write_text(json.dumps({**card, **change}))
        with pytest.raises(WrongFile, match=said):
            classifiers.load(resnet, card=file)
    file.write_text("[]")
    with pytest.raises(WrongFile, match="card"):
        classifiers.load(resnet, card=file)


# --- CLIP and SigLIP -------------------------------------------------------------------------------------------------


def test_images_and_texts_share_a_space_and_long_texts_are_named(clip_folder: Path) -> None:
    """E-24: 100 cos is what the network itself calls logits, at its own scale."""
    judge = clip_judge.load(clip_folder)
    some, texts = images(3), ["a dog", "a cat on a red sofa and much else " * 3]
    vectors, (against, cut) = judge.images(some), judge.texts(texts)
    assert vectors.shape == (3, 10)
    assert against.shape == (2, 10)
    assert cut.tolist() == [False, True]
    net, scale = judge.net, float(judge.net.logit_scale.exp())
    coded = judge._tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.inference_mode():
        own = net(pixel_values=_pretrained.prepare(judge.processor, some), **coded).logits_per_image.numpy()
    assert clip_scores(vectors, against) / 100 == pytest.approx(own / scale, abs=1e-5)
    assert ClipMetric(judge).score(Specimen(some[0], "a dog")).value == pytest.approx(100 * own[0, 0] / scale, abs=1e-3)


def test_older_releases_answer_with_the_vectors_themselves() -> None:
    class Answer:
        pooler_output = torch.ones(2, 3)

    assert clip_judge._vectors(Answer()) is Answer.pooler_output
    assert clip_judge._vectors(Answer.pooler_output) is Answer.pooler_output


def test_a_closed_set_always_names_one_label(clip_folder: Path) -> None:
    judge = clip_judge.load(clip_folder, ["dog", "cat", "sofa"])
    verdict = judge.look(images(4))
    assert verdict.hits.sum(1).tolist() == [1] * 4
    assert verdict.probabilities.sum(1) == pytest.approx(np.ones(4), abs=1e-5)
    with pytest.raises(BadRequest, match="without labels"):
        clip_judge.load(clip_folder).look(images(1))
    assert judge.version != clip_judge.load(clip_folder, ["dog", "cat"]).version
    with pytest.raises(BadRequest, match="nothing"):
        judge.texts([])


def test_a_padded_text_tower_is_padded_to_its_full_length(clip_folder: Path, tmp_path: Path) -> None:
    """SigLIP: a text alone and beside a longer one have the same vector."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    folder = tmp_path / "siglip"
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = len(json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"])
    text = {**small, "vocab_size": vocabulary, "max_position_embeddings": 12, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8})
    seeded(lambda: SiglipModel(config)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
    judge = clip_judge.load(folder)
    alone, _ = judge.texts(["a dog"])
    beside, _ = judge.texts(["a dog", "a cat on a red sofa"])
    assert beside[0] == pytest.approx(alone[0], abs=1e-5)
    assert judge.images(images(2)).shape == (2, 16)


def test_a_classifier_is_no_tower_and_a_tower_needs_its_weights(
    resnet: Path, clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WrongFile, match="text tower"):
        clip_judge.load(resnet)
    with pytest.raises(WrongFile, match="sha256"):
        clip_judge.load(clip_folder, weights_sha256="0" * 64)
    with pytest.raises(Unavailable, match="hf download"):
        clip_judge.load("somebody/some-clip", offline=True)
    bare = copied(clip_folder, tmp_path)
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(WrongFile, match="tokenizer"):
        clip_judge.load(bare)


def test_the_probes_are_three_colours_and_a_picture() -> None:
    assert probes().shape == (4, 96, 96, 3)
    assert [int(p[48, 48].argmax()) for p in probes()[:3]] == [0, 1, 2]
