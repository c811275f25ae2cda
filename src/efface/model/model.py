"""Model: a network and the changes in force. Weights are read when a site is touched, parts load at first use.

`load` takes a bundled name, a diffusers folder, a hub id or the user's own pipeline; all give the same Model.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from efface.errors import BadRequest, WrongBase, WrongFile
from efface.model import sampler
from efface.model.card import Card
from efface.model.network import Network
from efface.model.places import Call, Rule
from efface.model.reach import copies, values
from efface.model.sampler import Tap
from efface.model.sources import Folder, Pipeline
from efface.model.text import Encoded
from efface.work import Work

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Change", "Model"]


class Change(Protocol):
    """Something in force over a model's own weights."""

    @property
    def strength(self) -> float:
        """What multiplies all of it; 0 is the identity."""
        ...

    @property
    def hash(self) -> str:
        """Of all of it."""
        ...

    @property
    def content_hash(self) -> str:
        """Of what acts."""
        ...

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site whose weight changes, whatever the prompt or for some prompts, sorted."""
        ...

    @property
    def by_prompt(self) -> bool:
        """True if some part acts in the sampler or by prompt, so that weights alone do not hold it."""
        ...

    @property
    def gated(self) -> Sequence[Change]:
        """The parts that depend on the prompt, each as a change of its own."""
        ...

    def weight(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        """The changed weight of one site, in the weight's own dtype; gated parts are left out."""
        ...

    def rules(self) -> Sequence[Rule]:
        """What acts in the sampler whatever the prompt."""
        ...

    def strengths(self, model: Model, prompts: Sequence[str]) -> list[float]:
        """The strength of a gated part for each prompt."""
        ...

    def opened(self, strength: float) -> Change:
        """A gated part without its gate, at this strength."""
        ...

    def save(self, path: str | Path) -> Path:
        """Write it as a file that another process can load."""
        ...

    def verify(self, model: Model) -> None:
        """Raise WrongBase unless it was made for this model."""
        ...


@dataclass(eq=False)
class _Applied:
    """A change in force and what it replaced."""

    change: Change
    kept: dict[str, torch.Tensor]


# Copies kept by apply_, by denoiser: they live as long as the user's own pipeline does.
_STACKS: weakref.WeakKeyDictionary[torch.nn.Module, list[_Applied]] = weakref.WeakKeyDictionary()


class Model:
    """A text-to-image model. Build one with `load`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.card: Card = network.card
        self.device, self.dtype = network.device, network.dtype

    @property
    def _stack(self) -> list[_Applied]:
        return _STACKS.setdefault(self.network.denoiser, []) if self.network.opened else []

    @property
    def _source(self) -> Folder | Pipeline:
        return self.network.source

    def part(self, name: str) -> Any:
        """A part of the family by name, loaded at first use."""
        return self.network.part(name)

    def pipeline(self) -> Any:
        """A plain diffusers pipeline of the same parts, with the changes in force.

        Raises BadRequest when one of them acts by prompt: a pipeline would leave its guards and gates out.
        """
        if any(c.by_prompt for c in self.changes):
            raise BadRequest(
                "a patch in force acts by prompt, which a diffusers pipeline cannot; draw with model.generate"
            )
        if isinstance(self._source, Pipeline):
            return self._source.pipe
        family, index = self.network.family, self._source.configs()["index"]
        parts = {p.name: self.part(p.name) for p in family.parts} | {"scheduler": self.network.scheduler()}
        return family.pipeline(parts, index)

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

    def encode(self, texts: Sequence[str], whole: bool = True) -> list[Encoded]:
        """Texts by stream, each distinct text once. whole: every row, else causal streams end with the last content
        row. Raises BadRequest for a text longer than the model reads."""
        return self.network.encode(texts, whole)

    def sizes(self, text: str) -> tuple[int, int]:
        """Tokens of the text's own, and how many of them the model reads."""
        return self.network.family.sizes(self.network, text)

    def reads(self, text: str) -> bool:
        """Whether the model reads a text to its end."""
        size, most = self.sizes(text)
        return size <= most

    # --- weights ----------------------------------------------------------------------------------------------------

    def weight(self, site: str) -> torch.Tensor:
        """The weight in force at a site in the model's dtype, read from disk if the denoiser is not open.

        Raises UnknownName, WrongFile.
        """
        key, net = self.card.site(site).key, self.network
        tensor = values(net.denoiser, key).detach() if net.opened else net.stored(site).to(self.dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise WrongFile(f"{self.card.name} holds NaN or infinity at {site}; use an undamaged copy of the model")
        return tensor

    def base_weight(self, site: str) -> torch.Tensor:
        """The weight without the changes in force."""
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
        in_memory = isinstance(self._source, Pipeline)
        parts = {s: _digest(s, self.base_weight(s) if in_memory else self.network.stored(s)) for s in sites}
        for stream in (s.name for s in self.card.streams):
            parts[f"stream:{stream}"] = _digest(stream, self.network.embeddings(stream))
        return {"name": self.card.name, "family": self.card.family, "parts": dict(sorted(parts.items()))}

    @cached_property
    def identity(self) -> str:
        """Hash of all weights as loaded, without changes: the model's part of every image's key."""
        digest, denoiser = hashlib.sha256(self.card.hash.encode()), self.network.family.parts[0].name
        kept = {f"{denoiser}.{k}": v for a in reversed(self._stack) for k, v in a.kept.items()}
        for part in self.network.weighed:
            state: dict[str, torch.Tensor] = self.part(part).state_dict()
            for name in sorted(state):
                tensor = kept.get(f"{part}.{name}", state[name]).contiguous().cpu()
                digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def nbytes(self) -> int:
        """Of all weights as loaded."""
        return sum(t.nbytes for part in self.network.weighed for t in self.part(part).state_dict().values())

    # --- changes in force -------------------------------------------------------------------------------------------

    def push(self, change: Change, trusted: bool = False) -> None:
        """Write a change over what is in force. Raises WrongBase, BadRequest; then nothing was written.

        trusted: the base was verified already.
        """
        if not trusted:
            change.verify(self)
            if change.content_hash in (c.content_hash for c in self.changes):
                raise BadRequest("this patch is in force already; undo it first, or scale it for another strength")
        denoiser = self.network.denoiser  # open from here on: what is in force belongs to it
        new = {self.card.site(s).key: change.weight(s, self.weight(s)) for s in change.sites}
        kept = {key: values(denoiser, key).detach().clone() for key in new}
        for key, old in kept.items():
            if not all(copy.equal(old) for copy in copies(denoiser, key)):
                raise BadRequest(f"a fused layer holds other numbers than {key}; call unfuse_qkv_projections first")
        self._stack.append(_Applied(change, kept))
        self._write(new)

    def pop(self, change: Change) -> None:
        """Take the top change off. Raises WrongBase if it is another one or none was applied in this process."""
        if not self._stack:
            raise WrongBase(
                "no copies of the old weights are kept in this process; load the base that the patch names again"
            )
        if self._stack[-1].change.hash != change.hash:
            raise WrongBase("another patch was applied after this one; undo that one first")
        self._write(self._stack.pop().kept)

    def _write(self, new: Mapping[str, torch.Tensor]) -> None:
        """Into the weights by key, and into the fused layers that multiply in their place."""
        with torch.no_grad():
            for key, value in new.items():
                for held in (values(self.network.denoiser, key), *copies(self.network.denoiser, key)):
                    held.copy_(value)

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes in force, in the order of application."""
        return tuple(a.change for a in self._stack)

    @property
    def can_move(self) -> bool:
        """True where another process can open the same model: from a folder, in float32 on CPU."""
        return isinstance(self._source, Folder) and self.device.type == "cpu" and self.dtype == torch.float32

    @property
    def in_memory(self) -> bool:
        """True for a pipeline of the user's own."""
        return isinstance(self._source, Pipeline)

    @property
    def in_force(self) -> str:
        """Content hashes of the changes in force, "" for none."""
        return "+".join(c.content_hash for c in self.changes)

    @contextmanager
    def _opened(self, strengths: Sequence[tuple[Change, float]]) -> Iterator[None]:
        """Gated changes at these strengths, on top of what is in force."""
        done: list[Change] = []
        try:
            for change, strength in strengths:
                if strength:
                    done.append(change.opened(strength))
                    self.push(done[-1], trusted=True)
            yield
        finally:
            for change in reversed(done):
                self.pop(change)

    # --- pictures ---------------------------------------------------------------------------------------------------

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        batch: int | None = None,
        taps: Mapping[str, Tap] | None = None,
        work: Work | None = None,
    ) -> np.ndarray:
        """One image for each prompt and seed -> (n, height, width, 3) uint8. The changes in force act.

        steps, guidance: default of the card; guidance <= 1 is off. taps: by site, called at every step. Raises
        BadRequest for lists of unequal length and for prompts longer than the model reads.
        """
        height, width = self.card.size
        images = np.zeros((len(prompts), height, width, 3), np.uint8)
        for chosen, walked in self._walks(prompts, seeds, steps, guidance, batch, taps or {}, work or Work()):
            *_, last = walked
            images[chosen] = sampler.pixels(self.network, last.latents)
        return images

    def observe(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        taps: Mapping[str, Tap],
        calls: int,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        work: Work | None = None,
    ) -> None:
        """Let taps look at the first `calls` steps of each image; nothing is decoded. Raises BadRequest."""
        for _, walked in self._walks(prompts, seeds, steps, guidance, None, taps, work or Work()):
            for made in walked:
                if made.step.index + 1 >= calls:
                    walked.close()

    def _walks(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None,
        guidance: float | None,
        batch: int | None,
        taps: Mapping[str, Tap],
        work: Work,
    ) -> Iterator[tuple[list[int], Any]]:
        """Batches of images with the same gates open: their places, and the steps of the sampler."""
        if len(prompts) != len(seeds):
            raise BadRequest(f"one seed a prompt is needed, got {len(prompts)} prompts and {len(seeds)} seeds")
        steps = self.card.steps if steps is None else steps
        guidance = self.card.guidance if guidance is None else guidance
        if steps < 1:
            raise BadRequest(f"steps must be at least 1, got {steps}")
        batch = batch or sampler.BATCH
        gated = [g for c in self.changes for g in c.gated]
        strengths = [g.strengths(self, prompts) for g in gated]
        groups: dict[tuple[float, ...], list[int]] = {}
        for image in range(len(prompts)):
            groups.setdefault(tuple(s[image] for s in strengths), []).append(image)
        for opened, group in groups.items():
            with self._opened(list(zip(gated, opened, strict=True))):
                rules = [r for c in self.changes for r in c.rules()]
                for chosen in (group[k : k + batch] for k in range(0, len(group), batch)):
                    work.check()
                    call = Call(self.network, tuple(prompts[i] for i in chosen), steps, guidance)
                    yield chosen, sampler.walk(call, [seeds[i] for i in chosen], rules, taps, work)

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] = (0,),
        steps: int | None = None,
        guidance: float | None = None,
    ) -> list[Image]:
        """Every prompt with every seed, prompt by prompt -> PIL images. The changes in force act."""
        from PIL import Image

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        pairs = [(p, s) for p in texts for s in seeds]
        arrays = self.sample([p for p, _ in pairs], [s for _, s in pairs], steps=steps, guidance=guidance)
        return [Image.fromarray(a) for a in arrays]


def _digest(name: str, tensor: torch.Tensor) -> str:
    half = tensor.detach().to(torch.float16).cpu().contiguous()
    digest = hashlib.sha256(f"{name} {tuple(half.shape)}".encode())
    digest.update(half.numpy().tobytes())
    return digest.hexdigest()
