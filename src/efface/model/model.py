"""Model: a base model by its sites. Weights are read when a site is touched, parts load at first use.

`load` takes a bundled name, a diffusers folder, a hub id or the user's own pipeline; all give the same Model.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efface.errors import BadRequest, Unavailable, WrongBase, WrongFile
from efface.model.card import Card, Stream
from efface.model.devices import device_of, dtype_of
from efface.model.sources import WEIGHED, Folder, Pipeline, locate
from efface.registry import find, names

if TYPE_CHECKING:
    from PIL.Image import Image

    from efface.patch import Guard, Patch

__all__ = ["Encoded", "Model", "load"]


@dataclass(frozen=True)
class Encoded:
    """A text as the denoiser sees it: `rows` (length, width) float32, `count` tokens of the text with both ends."""

    text: str
    rows: torch.Tensor
    count: int


@dataclass(eq=False)
class _Applied:
    """A patch in force and what it replaced."""

    patch: Patch
    kept: dict[str, torch.Tensor]


# Copies kept by apply_, by denoiser: they live as long as the user's own pipeline does.
_STACKS: weakref.WeakKeyDictionary[torch.nn.Module, list[_Applied]] = weakref.WeakKeyDictionary()


class Model:
    """A text-to-image model. Build one with `load`."""

    def __init__(self, card: Card, source: Folder | Pipeline, device: str, dtype: torch.dtype) -> None:
        self.card = card
        self.device = torch.device(device)
        self.dtype = dtype
        self._source = source
        self._parts: dict[str, Any] = {}

    # --- parts -----------------------------------------------------------------------------------------------------

    def part(self, name: str) -> Any:
        """`unet`, `text_encoder`, `vae` or `tokenizer`, loaded at first use."""
        if name not in self._parts:
            with torch.inference_mode(False):  # weights made inside inference mode could not be edited in place
                self._parts[name] = self._source.part(name, self.device, self.dtype)
        return self._parts[name]

    @cached_property
    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.part("unet").named_parameters())

    @property
    def _stack(self) -> list[_Applied]:
        return _STACKS.setdefault(self.part("unet"), []) if self._opened else []

    @property
    def _opened(self) -> bool:
        return "unet" in self._parts or isinstance(self._source, Pipeline)

    def pipeline(self) -> Any:
        """A plain diffusers pipeline of the same parts, with the patches in force.

        Raises BadRequest when one of them acts by prompt: a pipeline would leave its guards and gates out.
        """
        if any(p.by_prompt for p in self.patches):
            raise BadRequest(
                "a patch in force acts by prompt, which a diffusers pipeline cannot; draw with model.generate"
            )
        if isinstance(self._source, Pipeline):
            return self._source.pipe
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            **{n: self.part(n) for n in (*WEIGHED, "tokenizer")},
            scheduler=self.scheduler(),
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )  # pyright: ignore[reportCallIssue]

    def scheduler(self, name: str | None = None) -> Any:
        """A fresh scheduler of the card; `name`: of this diffusers class, over the same noise levels."""
        import diffusers

        config = self.card.schedule_dict()
        own = config.pop("_class_name")
        if name:  # what the other class would set differently where the configuration is silent
            config = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1} | config
        return getattr(diffusers, name or own).from_config(config)

    @property
    def folder(self) -> Path:
        """Where the model lies on disk. Raises WrongFile for a pipeline."""
        if isinstance(self._source, Folder):
            return self._source.path
        raise WrongFile("this model is a pipeline in memory; save_pretrained writes it to a folder")

    # --- what the model knows ---------------------------------------------------------------------------------------

    @cached_property
    def concepts(self) -> tuple[dict[str, Any], ...]:
        """The model's own concept list (`concepts.json` beside it), or nothing."""
        return tuple(self._source.json("concepts.json").get("concepts", ()))

    @property
    def captions(self) -> frozenset[str] | None:
        """Wordings that the training captions had (`captions` in `efface.json` beside it); None: it does not say."""
        return None if self.card.captions is None else frozenset(self.card.captions)

    @property
    def kinds(self) -> dict[str, str]:
        return {c["name"]: c["kind"] for c in self.concepts}

    # --- text -------------------------------------------------------------------------------------------------------

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text with both ends, neither cut nor padded."""
        return list(self.part("tokenizer")(text, truncation=False, add_special_tokens=True).input_ids)

    def encode(self, texts: Sequence[str], rows: str = "all") -> list[Encoded]:
        """Texts -> rows of the text encoder's last hidden state, each distinct text once.

        rows: "all" (padded to the window) or "content" (up to the last content token; the encoder is causal, so
        nothing after it can change these rows). Raises BadRequest for a text longer than the window.
        """
        ids = {text: tuple(self._ids(text)) for text in texts}
        stream = self.card.streams[0]
        length = {i: stream.length if rows == "all" else max(1, len(i) - 1) for i in ids.values()}
        found: dict[tuple[int, ...], torch.Tensor] = {}  # spellings with the same tokens share their rows, bit by bit
        for size in sorted(set(length.values())):
            group = [i for i in length if length[i] == size]
            for start in range(0, len(group), 64):
                batch = group[start : start + 64]
                hidden = self._hidden([self._pad(list(i), size) for i in batch])
                found |= dict(zip(batch, hidden, strict=True))
        return [Encoded(text, found[ids[text]], len(ids[text])) for text in texts]

    def _ids(self, text: str) -> list[int]:
        ids, window = self.tokens(text), self.card.streams[0].length
        if len(ids) > window:
            raise BadRequest(
                f"the text {text[:60]!r} has {len(ids) - 2} tokens, the model reads {window - 2}; shorten it"
            )
        return ids

    def _pad(self, ids: list[int], size: int) -> list[int]:
        return (ids + [self.part("tokenizer").pad_token_id] * size)[:size]

    @torch.inference_mode()
    def _hidden(self, ids: list[list[int]]) -> torch.Tensor:
        encoder = self.part("text_encoder")
        return encoder(torch.tensor(ids, device=self.device))[0].float().cpu()  # (n, length, width)

    # --- weights ----------------------------------------------------------------------------------------------------

    def weight(self, site: str) -> torch.Tensor:
        """The weight in force at a site in the model's dtype, read from disk if the denoiser is not open.

        Raises UnknownName, WrongFile.
        """
        key = self.card.site(site).key
        tensor = self._parameters[key].detach() if self._opened else self._source.tensor("unet", key).to(self.dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise WrongFile(f"{self.card.name} holds NaN or infinity at {site}; use an undamaged copy of the model")
        return tensor

    def base_weight(self, site: str) -> torch.Tensor:
        """The weight without the patches in force."""
        key = self.card.site(site).key
        for applied in self._stack:
            if key in applied.kept:
                return applied.kept[key]
        return self.weight(site)

    def fingerprint(self, sites: Iterable[str]) -> dict[str, Any]:
        """{"name", "parts"}: sha256 of name, shape and float16-rounded values of each site and token embedding.

        Equal for fp16 and fp32 copies of one model; a folder's tensors are taken as they are stored, since bfloat16
        would round them otherwise.
        """
        parts = {s: _digest(s, self._stored(s)) for s in sites}
        for stream in self.card.streams:
            parts[f"stream:{stream.name}"] = _digest(stream.name, self._token_embedding(stream))
        return {"name": self.card.name, "family": self.card.family, "parts": dict(sorted(parts.items()))}

    def _stored(self, site: str) -> torch.Tensor:
        if isinstance(self._source, Pipeline):
            return self.base_weight(site)
        return self._source.tensor("unet", self.card.site(site).key)

    def _token_embedding(self, stream: Stream) -> torch.Tensor:
        if isinstance(self._source, Pipeline):
            return self.part("text_encoder").get_input_embeddings().weight.detach()
        return self._source.tensor("text_encoder", ("text_model.embeddings.", "embeddings."), "token_embedding.weight")

    @cached_property
    def identity(self) -> str:
        """Hash of all weights as loaded, without patches: the model's part of every image's key."""
        digest = hashlib.sha256(self.card.hash.encode())
        kept = {f"unet.{k}": v for a in reversed(self._stack) for k, v in a.kept.items()}
        for part in WEIGHED:
            state: dict[str, torch.Tensor] = self.part(part).state_dict()
            for name in sorted(state):
                tensor = kept.get(f"{part}.{name}", state[name]).contiguous().cpu()
                digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def nbytes(self) -> int:
        """Of all weights as loaded."""
        return sum(t.nbytes for part in WEIGHED for t in self.part(part).state_dict().values())

    # --- patches in force -------------------------------------------------------------------------------------------

    def push(self, patch: Patch, trusted: bool = False) -> None:
        """Write a patch over what is in force. Raises WrongBase; then nothing was written.

        trusted: the base was verified already.
        """
        if not trusted:
            self.verify(patch)
        self.part("unet")
        new = {self.card.site(s).key: patch.weight(s, self.weight(s)) for s in patch.sites}
        self._stack.append(_Applied(patch, {k: self._parameters[k].detach().clone() for k in new}))
        with torch.no_grad():
            for key, value in new.items():
                self._parameters[key].copy_(value)

    def pop(self, patch: Patch) -> None:
        """Take the top patch off. Raises WrongBase if it is another one or none was applied in this process."""
        if not self._stack:
            raise WrongBase(
                "no copies of the old weights are kept in this process; "
                f"load {patch.base.get('name', 'the base')!r} again"
            )
        if self._stack[-1].patch.hash != patch.hash:
            raise WrongBase("another patch was applied after this one; undo that one first")
        with torch.no_grad():
            for key, value in self._stack.pop().kept.items():
                self._parameters[key].copy_(value)

    def verify(self, patch: Patch) -> None:
        """Raise WrongBase unless the patch was made for this model."""
        expected = patch.base.get("parts")
        if not expected:
            return
        known = {n for s in self.card.sites for n in ((s.name, f"{s.name}.bias") if s.bias else (s.name,))}
        missing = [s for s in patch.sites if s not in known]
        if missing:
            raise WrongBase(
                f"the patch edits {missing[0]}, which {self.card.name} does not have; it was made for "
                f"{patch.base.get('name')!r}"
            )
        own = self.fingerprint(patch.sites)["parts"]
        differ = [p for p in expected if own.get(p) != expected[p]]
        if differ:
            rounded = isinstance(self._source, Pipeline) and self.dtype == torch.bfloat16
            cure = "load it in float32 or float16, not in bfloat16" if rounded else "load the base that the patch names"
            raise WrongBase(
                f"the patch was made for {patch.base.get('name')!r}; {self.card.name!r} differs from it at "
                f"{len(differ)} of {len(expected)} parts ({differ[0]}); {cure}"
            )

    @property
    def patches(self) -> tuple[Patch, ...]:
        """The patches in force, in the order of application."""
        return tuple(a.patch for a in self._stack)

    @property
    def can_move(self) -> bool:
        """True where another process can open the same model: from a folder, in float32 on CPU."""
        return isinstance(self._source, Folder) and self.device.type == "cpu" and self.dtype == torch.float32

    @property
    def guards(self) -> tuple[tuple[Guard, float], ...]:
        """Guards in force with their strengths, in the order of application; closed gates leave theirs out."""
        from efface.patch import Guard

        return tuple(
            (e, a.patch.strength) for a in self._stack for e in a.patch.edits if isinstance(e, Guard) and not e.gate
        )

    @property
    def gated(self) -> tuple[Patch, ...]:
        """The edits in force that depend on the prompt, each as a patch of its own."""
        return tuple(p for a in self._stack for p in a.patch.gated)

    @property
    def in_force(self) -> str:
        """Content hashes of the patches in force, "" for none."""
        return "+".join(a.patch.content_hash for a in self._stack)

    @contextmanager
    def gates_open(self, strengths: Sequence[float]) -> Iterator[None]:
        """The patches of `gated` at these strengths, on top of what is in force."""
        done: list[Patch] = []
        try:
            for patch, strength in zip(self.gated, strengths, strict=True):
                if strength:
                    done.append(patch.opened(strength))
                    self.push(done[-1], trusted=True)
            yield
        finally:
            for patch in reversed(done):
                self.pop(patch)

    # --- pictures ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] = (0,),
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Image]:
        """Every prompt with every seed, prompt by prompt -> PIL images. The patches in force act."""
        from PIL import Image

        from efface.model.sampler import sample

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        pairs = [(p, s) for p in texts for s in seeds]
        arrays = sample(self, [p for p, _ in pairs], [s for _, s in pairs], steps=steps, guidance=guidance)
        return [Image.fromarray(a) for a in arrays]


def _digest(name: str, tensor: torch.Tensor) -> str:
    half = tensor.detach().to(torch.float16).cpu().contiguous()
    digest = hashlib.sha256(f"{name} {tuple(half.shape)}".encode())
    digest.update(half.numpy().tobytes())
    return digest.hexdigest()


# --- where models come from -----------------------------------------------------------------------------------------


def load(
    target: Any, device: str | None = None, dtype: str | torch.dtype | None = None, offline: bool = False
) -> Model:
    """A bundled name, diffusers folder, hub id, diffusers pipeline or Model -> Model.

    device: default cuda where there is one, else cpu. dtype: default float32 on cpu, float16 elsewhere; a
    pipeline keeps its own. Raises WrongFile, UnknownName, BadRequest (a device that is not here), Unavailable.
    """
    if isinstance(target, Model):
        return target
    if hasattr(target, "unet") and hasattr(target, "text_encoder"):
        family = _family(type(target).__name__)
        source = Pipeline(target)
        card = family.card(source.name, source.configs(), source.json("efface.json"))
        return Model(card, source, str(target.unet.device), target.unet.dtype)
    place = device_of(device)
    path, name = locate(str(target), offline)
    folder = Folder(path)
    family = _family(str(folder.index.get("_class_name")))
    folder.allow(family.parts)
    card = family.card(name, folder.configs(), folder.json("efface.json"))
    return Model(card, folder, place, dtype_of(dtype, place))


def _family(pipeline: str) -> Any:
    for name in names("families"):
        family = find("families", name)
        if pipeline in family.pipelines:
            return family
    raise Unavailable(f"models of class {pipeline!r} are not supported yet; efface list families names those that are")
