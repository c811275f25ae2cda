"""CLIP or SigLIP as a judge, by folder or hub id: images and texts in one space.

Radford et al. 2021, arXiv 2103.00020 (CLIP); Zhai et al. 2023, arXiv 2303.15343 (SigLIP). Papers use ViT-B/32 (MACE,
FIA, ScaPre) and ViT-L/14 (SPEED, HUB); their values do not compare, so the model's name is part of every number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import torch
from scipy.special import softmax

from efface.errors import BadRequest, WrongFile
from efface.judges import Card, Verdict, _pretrained, pictures, version_of
from efface.judges.panel import PLAIN, Brief, LabelPanel, Panel, TextPanel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Clip", "load", "panel"]


class ClipCard(_pretrained.PretrainedCard):
    """Of two towers, and of the closed set where there is one."""

    objects: list[str]
    template: str
    text_length: int


class Towers(Protocol):
    """Two networks into one space; newer transformers answer with an object, older ones with the tensor itself."""

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor | Pooled: ...

    def get_text_features(self, **coded: torch.Tensor) -> torch.Tensor | Pooled: ...


class Pooled(Protocol):
    """An answer of newer transformers."""

    pooler_output: torch.Tensor


class Clip:
    """One two-tower network; see `efface.judges.TextImage`. With labels also `efface.judges.Judge`, of a closed set."""

    styles: tuple[str, ...] = ()

    def __init__(
        self, net: torch.nn.Module, processor: _pretrained.Processor, tokenizer: PreTrainedTokenizerBase, card: ClipCard
    ) -> None:
        self.card, self.name, self.role = cast("Card", card), card["name"], card["role"]
        self.objects, self._card = tuple(card["objects"]), card
        self.version = version_of(self.card, "weights_sha256", "objects", "template", "text_length", "preprocessing")
        self.net, self.processor, self._tokenizer = net, processor, tokenizer
        self._towers = cast("Towers", net)

    def images(self, images: np.ndarray) -> np.ndarray:
        """Vectors (n, f) of uint8 (n, h, w, 3), not scaled to length 1. At least one image."""
        images = pictures(images)
        if not len(images):
            raise BadRequest("Expected at least one picture, got none; there is nothing to place.")

        def look(part: np.ndarray) -> tuple[torch.Tensor, ...]:
            return (_vectors(self._towers.get_image_features(_pretrained.prepare(self.processor, part))),)

        return _pretrained.batched(look, images)[0]

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (m, f), and which texts are longer than the tower reads and lost their end, bool (m,)."""
        if not texts:
            raise BadRequest("Expected at least one text, got none; there is nothing to place.")
        length, texts = self._card["text_length"], list(texts)
        # SigLIP was trained on texts padded to its full length; CLIP does not see its padding
        padding = "max_length" if "Siglip" in self._card["architecture"] else True
        coded = self._tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        whole = self._tokenizer(texts, padding=False, truncation=False)["input_ids"]
        words = ("input_ids",) if padding == "max_length" else ("input_ids", "attention_mask")
        found = _vectors(self._towers.get_text_features(**{w: coded[w] for w in words}))
        return found.float().numpy(), np.asarray([len(ids) > length for ids in whole])

    def look(self, images: np.ndarray) -> Verdict:
        """The likeliest of the labels is the hit; something always is: the set is closed, noise lands somewhere."""
        if not self.objects:
            raise BadRequest(f"judge {self.name} was loaded without labels; name them to have images classified")
        vectors = self.images(images)
        against, _ = self.texts([self._card["template"].format(label) for label in self.objects])
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors, against)]
        chance = softmax(100 * unit[0] @ unit[1].T, axis=1)
        hits = chance == chance.max(1, keepdims=True)
        return Verdict(chance.astype(np.float32), hits, vectors)


def load(
    name: str | Path = "openai/clip-vit-base-patch32",
    labels: Sequence[str] = (),
    *,
    template: str = "a photo of the {}",
    role: Literal["selection", "reporting"] = "reporting",
    card: Path | None = None,
    weights_sha256: str | None = None,
    offline: bool = False,
) -> Clip:
    """A judge from a folder or hub id. labels: a closed set to classify into. weights_sha256, card: refuse others.

    Raises Unavailable when the model is not here and cannot be fetched, WrongFile for damaged or other weights.
    """
    from transformers import AutoModel, AutoTokenizer

    folder, known = _pretrained.locate(name, offline), _pretrained.read_card(card)
    net, weights = _pretrained.module(AutoModel, folder, weights_sha256 or known.get("weights_sha256"))
    if not (hasattr(net, "get_image_features") and hasattr(net, "get_text_features")):
        raise WrongFile(f"Expected a model with an image and a text tower in {folder}, got {type(net).__name__}.")
    processor = _pretrained.processor(folder)
    # without these files the library makes up an empty vocabulary, and every text is alike
    if not any((folder / f).is_file() for f in ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")):
        raise WrongFile(f"Expected a tokenizer (tokenizer.json) in {folder}, found none; fetch it anew.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise WrongFile(
            f"Expected a tokenizer in {folder} ({str(error).splitlines()[0][:120]}); fetch it anew."
        ) from None
    length = int(_pretrained.config_of(net).text_config.max_position_embeddings)
    facts: ClipCard = {
        "name": Path(name).name, "role": role, "architecture": type(net).__name__, "weights_sha256": weights,
        "licence": "see the model's page", "objects": list(labels), "template": template, "multi_label": False,
        "thresholds": "likeliest label", "text_length": length,
        "preprocessing": _pretrained.preprocessing(processor), "calibration": known.get("calibration"),
        "self_test": [],
    }  # fmt: skip
    judge = Clip(net, processor, tokenizer, facts)
    answers = _pretrained.self_test(net, processor, judge.images, known)
    facts["self_test"] = np.round(answers, 5).tolist()
    return judge


def panel(where: Path | str = "", brief: Brief = PLAIN) -> Panel:
    """Of a closed set where the suite names one, else a panel that compares pictures with their sentences."""
    opened = partial(load, where) if where else load
    if not brief.labels:
        return TextPanel.of(opened())
    opened = partial(opened, template=brief.template) if brief.template else opened
    return LabelPanel.of(opened(labels=tuple(brief.labels)), brief)


def _vectors(found: torch.Tensor | Pooled) -> torch.Tensor:
    return found if isinstance(found, torch.Tensor) else found.pooler_output


PLUGIN = panel
