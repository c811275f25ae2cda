"""Tokenizer and text encoder: captions near the scenes they are true of, with attributes to be read off them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from efface.files import write_bytes
from efface.work import Work
from efface.world import captions
from efface.world.captions import BACKGROUNDS
from efface.worldmaking.artwork import Sprites
from efface.worldmaking.lessons import COLOURS, Labels, Writer, meanings, pairs, said, true_of
from efface.worldmaking.scenes import Stage
from efface.worldmaking.sittings import DONE, RESULT, Go, learn, read, write_json
from efface.worldmaking.sizes import Size

__all__ = ["encoder", "train_text", "train_tokenizer"]

PIXELS = 32  # the image tower looks at small scenes, whatever the model draws
BLANK = 0.03  # share of scenes without an object
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


# --- tokenizer -------------------------------------------------------------------------------------------------------


def corpus(size: Size) -> Iterator[str]:
    """Every wording of every object, and every template with every style and colour."""
    things = [captions.find(name) for name in size.objects]
    phrases = {
        p for t in things for w in captions.WORDINGS for e in (False, True) for p in captions.wordings(t, w, english=e)
    }
    phrases = sorted(phrases)
    yield from (p for p in phrases for _ in range(20))
    options = [(t, s, c) for kind in captions.KINDS for t in captions.templates(kind) for s in size.styles
               for c in BACKGROUNDS]  # fmt: skip
    yield from sorted({captions.write(t, ["a dog"], style=s, background=c) for t, s, c in options})


def merges_of(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of counted words (Sennrich et al. 2016), at most `count`; among equals the first by name.

    By hand because the trainer of `tokenizers` breaks ties by chance: a tokenizer that is made again must be the same.
    """
    spelt = {word: (*word[:-1], f"{word[-1]}</w>") for word in words}
    found: list[tuple[str, str]] = []
    while len(found) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, signs in spelt.items():
            for pair in pairwise(signs):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        spelt = {word: _merged(signs, best) for word, signs in spelt.items()}
    return found


def _merged(signs: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    made: list[str] = []
    for sign in signs:
        if made and (made[-1], sign) == pair:
            made[-1] += sign
        else:
            made.append(sign)
    return tuple(made)


def train_tokenizer(size: Size, home: Path) -> None:
    """A byte-pair tokenizer in CLIP's form in `home`: tokenizer.json, and vocab.json and merges.txt beside it.

    Every byte has a sign of its own, inside a word and at its end: no text is unknown.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    norm = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]  # pyright: ignore
    )
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]  # pyright: ignore
    )
    words = Counter(w for text in corpus(size) for w, _ in split.pre_tokenize_str(norm.normalize_str(text)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    signs = [START, END, *alphabet, *(f"{sign}</w>" for sign in alphabet)]
    merges = merges_of(words, size.vocabulary - len(signs))
    vocabulary = {sign: k for k, sign in enumerate([*signs, *(a + b for a, b in merges)])}
    model = models.BPE(vocabulary, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>")
    made: Any = Tokenizer(model)
    made.normalizer, made.pre_tokenizer, made.decoder = norm, split, decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing((END, 1), (START, 0), trim_offsets=False, add_prefix_space=False)
    made.add_special_tokens([START, END])
    write_bytes(home / "vocab.json", json.dumps(vocabulary, ensure_ascii=False).encode())
    lines = "\n".join(" ".join(pair) for pair in merges)
    write_bytes(home / "merges.txt", f"#version: 0.2\n{lines}\n".encode())
    write_json(home / "tokenizer_config.json", {
        "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END,
        "model_max_length": size.window, "tokenizer_class": "CLIPTokenizer",
    })  # fmt: skip
    write_bytes(home / "tokenizer.json", made.to_str().encode())
    write_json(home / DONE, {"vocabulary": len(vocabulary)})


# --- text encoder ----------------------------------------------------------------------------------------------------


def encoder(size: Size, vocabulary: int) -> Any:
    """A CLIPTextModel of the size, with fresh weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=size.text_width,
            intermediate_size=8 * size.text_width // 3,
            num_hidden_layers=size.text_layers,
            num_attention_heads=4,
            max_position_embeddings=size.window,
            projection_dim=size.text_width,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


class Matcher(nn.Module):
    """Text encoder and a small image tower into one space; one set of heads reads attributes off both."""

    def __init__(self, size: Size, vocabulary: int, width: int = 128) -> None:
        super().__init__()
        self.text = encoder(size, vocabulary)
        self.project = nn.Linear(size.text_width, width)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 96)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.SiLU(),
                       nn.Conv2d(outputs, outputs, 3, 1, 1), nn.GroupNorm(8, outputs), nn.SiLU()]  # fmt: skip
        self.tower = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * (PIXELS // 8) ** 2, width))
        self.objects = nn.Linear(width, len(size.objects))
        self.styles = nn.Linear(width, len(size.styles) + 1)
        self.colours = nn.Linear(width, len(COLOURS) + 1)
        self.heat = nn.Parameter(torch.tensor(2.3))
        nn.init.constant_(self.objects.bias, -3.0)

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The row of the first end token: it has seen the whole text and no padding. (n, width)"""
        rows = self.text(input_ids=ids).last_hidden_state
        return self.project(rows[torch.arange(len(ids), device=ids.device), (ids == 1).int().argmax(1)])

    def attributes(self, x: torch.Tensor, things: torch.Tensor, style: torch.Tensor, colour: torch.Tensor) -> Any:
        named = F.binary_cross_entropy_with_logits(self.objects(x).float(), things, reduction="none").sum(1).mean()
        return (
            0.3 * named + F.cross_entropy(self.styles(x).float(), style) + 0.5 * F.cross_entropy(
                self.colours(x).float(), colour
            )
        )  # fmt: skip


class Lesson:
    """Batches: fresh small scenes, one object in two styles next to each other, and one caption a scene."""

    def __init__(self, size: Size, sprites: Sprites, tokenizer: Path, batch: int) -> None:
        self.size, self.count = size, batch
        self.stage, self.writer = Stage(sprites, PIXELS), Writer(size, tokenizer)
        self.row = torch.full((len(size.objects), len(size.styles)), -1)
        self.row[self.stage.objects, self.stage.styles] = torch.arange(len(self.stage.objects))
        self.work = Work(size.seed)

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Images (n, 3, 32, 32), ids, truth (n, n) and the targets of the heads for texts and for scenes."""
        generator = self.work.rng(f"text {step}")
        blank = max(1, int(BLANK * self.count))
        things, styles = pairs(self.count - blank, self.row >= 0, generator)
        scenes = self.stage.draw(len(things), generator, rows=self.row[things, styles], two=0.15)
        empty = self.stage.empty(blank, generator)
        parts = [Labels.of(scenes), Labels.of(empty)]
        labels = Labels(*(torch.cat([getattr(p, k) for p in parts]) for k in vars(parts[0])))
        told, ids = self.writer.write(labels, generator)
        images = torch.cat([scenes.images, empty.images]).permute(0, 3, 1, 2).float() / 127.5 - 1
        shown = torch.cat([scenes.objects, empty.objects]).float()
        worded = meanings(told, self.size).any(1).float()
        bare = torch.where(labels.style < 0, len(self.size.styles), labels.style)
        return images, ids, true_of(told, labels, self.size), worded, *said(told, self.size), shown, bare, (
            labels.background
        )  # fmt: skip


def loss(net: Matcher, device: str, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """InfoNCE where every scene a caption is true of counts as its own, plus what can be read off both sides."""
    images, ids, truth, worded, style, colour, shown, bare, ground = (t.to(device) for t in batch)
    text, picture = net.read(ids), net.tower(images)
    near = net.heat.exp().clamp(max=100) * F.normalize(text.float(), dim=1) @ F.normalize(picture.float(), dim=1).T
    hold = truth.float()
    both = -(near.log_softmax(1) * hold).sum(1) / hold.sum(1).clamp(min=1)
    back = -(near.log_softmax(0) * hold).sum(0) / hold.sum(0).clamp(min=1)
    heads = net.attributes(text, worded, style, colour) + net.attributes(picture, shown, bare, ground)
    return both.mean() + back.mean() + heads


def train_text(size: Size, sprites: Sprites, tokenizer: Path, home: Path, go: Go) -> bool:
    """The text encoder in `home/result.safetensors`; resumable, False when the sitting ends before the part."""
    vocabulary = json.loads((tokenizer / DONE).read_text(encoding="utf-8"))["vocabulary"]
    torch.manual_seed(size.seed)
    net = Matcher(size, vocabulary)
    lesson = Lesson(size, sprites, tokenizer, size.text_phase.batch)
    finished = learn(
        net, size.text_phase, lesson.batch, lambda b: loss(net, go.device, b), home, go, label=f"{size.name} text"
    )
    if finished:
        write_json(home / DONE, matched(net, lesson, go.device, home))
    return finished


@torch.inference_mode()
def matched(net: Matcher, lesson: Lesson, device: str, home: Path) -> dict[str, Any]:
    """Rates on scenes of other seeds, and a sheet: captions with the scenes that lie nearest to them."""
    images, ids, truth, worded, style, _, _, bare, _ = lesson.batch(-1)
    text, picture = net.read(ids.to(device)).cpu(), net.tower(images.to(device)).cpu()
    near = F.normalize(text, dim=1) @ F.normalize(picture, dim=1).T
    best = near.topk(4, 1).indices
    _sheet(images, best, lesson, ids, home / "sheet.png")
    single, heads = worded.sum(1) == 1, net.to("cpu")
    nearest = truth[torch.arange(len(ids)), best[:, 0]]
    rates = {
        "nearest scene is true of the caption": nearest,
        "object read off a caption": heads.objects(text)[single].argmax(1) == worded[single].argmax(1),
        "style read off a caption": heads.styles(text).argmax(1) == style,
        "style read off a scene": heads.styles(picture).argmax(1) == bare,
    }
    return {name: round(float(right.float().mean()), 4) for name, right in rates.items()} | {"n": len(ids)}


def _sheet(images: torch.Tensor, best: torch.Tensor, lesson: Lesson, ids: torch.Tensor, path: Path) -> None:
    import io

    from PIL import Image, ImageDraw

    shown = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    sheet = Image.new("RGB", (4 * 66 + 420, 16 * 66), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(min(16, len(ids))):
        for column, scene in enumerate(best[row].tolist()):
            sheet.paste(Image.fromarray(shown[scene]).resize((64, 64)), (column * 66, row * 66))
        words = lesson.writer.words(ids[row])
        pen.text((4 * 66 + 8, row * 66 + 26), words, fill="black")
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    write_bytes(path, stream.getvalue())


def load_encoder(size: Size, tokenizer: Path, home: Path) -> Any:
    """The trained text encoder, float32 and frozen."""
    vocabulary = json.loads((tokenizer / DONE).read_text(encoding="utf-8"))["vocabulary"]
    net = encoder(size, vocabulary)
    weights, _ = read(home / RESULT)
    net.load_state_dict({k[5:]: v.float() for k, v in weights.items() if k.startswith("text.")})
    return net.eval().requires_grad_(False)
