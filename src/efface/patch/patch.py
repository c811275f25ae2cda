"""Patch: what a method answers. Edits by site, a recipe, the base it belongs to; applies, undoes, saves.

Five kinds of edit. Each knows `delta(site, weight)`, the change at strength 1 of the weight it finds; several edits
of one site act one after the other. Deltas are added in float64 and rounded once to the weight's dtype.
File format: docs/patch-format.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from efface.errors import BadRequest, EffaceError, NothingChanged, WrongBase, WrongFile
from efface.files import write_bytes
from efface.model import Model, load
from efface.model.places import Rule
from efface.patch.edits import Edit, Guard, described, edit_of, fits
from efface.patch.forms import FORMAT, checked
from efface.registry import rule_of
from efface.untrusted.documents import parsed_json

__all__ = ["FORMAT", "Patch", "read_header"]

# Of tensors in a patch; float8 and the like cannot be added.
DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int64,
    torch.int32,
    torch.bool,
)
MOST_STRENGTH = 1000  # times what the method answered
LARGEST_HEADER = 32 * 2**20  # bytes
# What reading a header raises that is none: absent or empty entries, wrong types, numbers without end, deep nesting.
_DAMAGE = (LookupError, TypeError, ValueError, OverflowError, RecursionError, OSError)


@dataclass(frozen=True, eq=False)
class Patch:
    """Edits, recipe and base fingerprint.

    base: {"name": str, "parts": {site or "stream:NAME": sha256}} as `Model.fingerprint` returns it.
    strength multiplies every edit: 0 is the identity, 1 the method's answer.
    """

    edits: tuple[Edit, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    strength: float = 1.0

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site whose weight changes, whatever the prompt or for some prompts, sorted."""
        return tuple(sorted({s for e in self.edits if not isinstance(e, Guard) for s in e.sites}))

    @property
    def by_prompt(self) -> bool:
        """True if some edit acts in the sampler or by prompt, so that weights alone do not hold it."""
        return any(isinstance(e, Guard) or e.gate for e in self.edits)

    def scaled(self, factor: float) -> Patch:
        """The same patch at `factor` times its strength. Raises BadRequest for no finite number."""
        if not math.isfinite(factor) or abs(factor) > MOST_STRENGTH:
            raise BadRequest(f"a strength is a number up to {MOST_STRENGTH}, got {factor}; 1 is the patch as it is")
        return dataclasses.replace(self, strength=self.strength * factor)

    def weight(self, site: str, weight: torch.Tensor) -> torch.Tensor:
        """The edited weight of one site, in the weight's own dtype; gated edits are left out."""
        new = (weight.cpu() if weight.device.type == "mps" else weight).double()  # mps has no float64
        for edit in self.edits:
            if self.strength and not edit.gate and not isinstance(edit, Guard) and site in edit.sites:
                if not fits(edit, tuple(new.shape)):
                    raise WrongBase(
                        f"the {edit.kind} edit at {site} does not fit a weight of shape {tuple(new.shape)}; "
                        "load the base that the patch names"
                    )
                new = new + self.strength * edit.delta(site, new)
        rounded = new.to(weight.dtype)
        if rounded.is_floating_point() and not bool(torch.isfinite(rounded).all()):
            raise WrongFile(
                f"{site} would hold NaN or infinity in {weight.dtype} at strength {self.strength:g}; "
                "take a lower strength, or an undamaged patch"
            )
        return rounded.to(weight.device)

    @property
    def gated(self) -> tuple[Patch, ...]:
        """The edits that depend on the prompt, each as a patch of its own."""
        return tuple(dataclasses.replace(self, edits=(e,)) for e in self.edits if e.gate)

    def strengths(self, model: Model, prompts: Sequence[str]) -> list[float]:
        """The strength of a gated patch for each prompt: that of its one edit's gate."""
        gate = self.edits[0].gate
        return gate.strengths(model, prompts) if gate else [1.0] * len(prompts)

    def rules(self) -> tuple[Rule, ...]:
        """What acts in the sampler whatever the prompt. Raises UnknownName for a rule that no method has."""
        acting = [e for e in self.edits if isinstance(e, Guard) and not e.gate] if self.strength else []
        return tuple(rule_of(e.rule)(e.settings, e.values, self.strength) for e in acting)

    def verify(self, model: Model) -> None:
        """Raise WrongBase unless the patch was made for this model."""
        over, in_force = self.recipe.get("over"), [c.content_hash for c in model.changes]
        if over and over != in_force:
            raise WrongBase(
                f"the patch was made with other patches in force ({', '.join(map(str, over))[:80]}); "
                "apply those first, in this order, and no others"
            )
        expected = self.base.get("parts")
        if not expected:
            return
        card, made_for = model.card, self.base.get("name")
        known = {n for s in card.sites for n in ((s.name, f"{s.name}.bias") if s.bias else (s.name,))}
        missing = [s for s in self.sites if s not in known]
        if missing:
            raise WrongBase(
                f"the patch edits {missing[0]}, which {card.name} does not have; it was made for {made_for!r}"
            )
        own = model.fingerprint(self.sites)["parts"]
        differ = [p for p in expected if own.get(p) != expected[p]]
        if differ:
            rounded = model.in_memory and model.dtype == torch.bfloat16
            cure = "load it in float32 or float16, not in bfloat16" if rounded else "load the base that the patch names"
            raise WrongBase(
                f"the patch was made for {made_for!r}; {card.name!r} differs from it at "
                f"{len(differ)} of {len(expected)} parts ({differ[0]}); {cure}"
            )

    def opened(self, strength: float) -> Patch:
        """The same edits without their gates, at this strength."""
        edits = tuple(dataclasses.replace(e, gate=None) for e in self.edits)
        return dataclasses.replace(self, edits=edits, strength=self.strength * strength)

    def check(self) -> None:
        """Raise NothingChanged for an edit that does nothing, WrongFile for numbers that are not finite."""
        if not self.edits:
            raise NothingChanged("the method returned no edit; name other sites or concepts")
        for edit in self.edits:
            for name, tensor in edit.tensors().items():
                if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                    raise WrongFile(f"{edit.kind} edit at {edit.sites[:1]} holds NaN or infinity in {name!r}")
            if not isinstance(edit, Guard) and not edit.sites:
                raise NothingChanged(f"a {edit.kind} edit names no site")
            if not isinstance(edit, Guard) and any(not bool(t.any()) for t in edit.tensors().values()):
                raise NothingChanged(
                    "the edit is zero everywhere: the anchor means the same as the concept; name another anchor"
                )

    # --- on a model ------------------------------------------------------------------------------------------------

    def apply_(self, target: Any) -> None:
        """Write into a Model or a diffusers pipeline; the old weights are kept in this process for `undo_`.

        Raises WrongBase for another model, BadRequest for a pipeline when some edit acts by prompt.
        """
        if self.by_prompt and not isinstance(target, Model):
            raise BadRequest(
                "this patch acts by prompt, which weights alone cannot hold; "
                "use efface.load(pipe).generate within patch.applied(model)"
            )
        load(target).push(self)

    def undo_(self, target: Any) -> None:
        """Restore the weights that `apply_` kept, bit-equal. Raises WrongBase when it kept none here."""
        load(target).pop(self)

    @contextmanager
    def applied(self, target: Any) -> Iterator[Model]:
        """Applied inside the block, undone after it, also after an exception; blocks may be nested."""
        model = load(target)
        model.push(self)
        try:
            yield model
        finally:
            model.pop(self)

    # --- on disk ---------------------------------------------------------------------------------------------------

    def header(self) -> dict[str, Any]:
        """What stands in the file beside the tensors."""
        return {
            "format": FORMAT,
            "strength": self.strength,
            "edits": [described(e) for e in self.edits],
            "recipe": self.recipe,
            "base": self.base,
        }

    def to_bytes(self) -> bytes:
        return self._packed(self.header())

    def _packed(self, header: Mapping[str, Any]) -> bytes:
        """All tensors under this header."""
        from safetensors.torch import save

        tensors = {f"{i:04d}.{n}": t.contiguous() for i, e in enumerate(self.edits) for n, t in e.tensors().items()}
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
        # One metadata entry: the library writes several in an order that differs from run to run.
        return save(tensors, metadata={"efface": text})

    @property
    def hash(self) -> str:
        """Of the file's bytes."""
        return self._hash

    @property
    def content_hash(self) -> str:
        """Of what acts on a model: tensors, kinds, sites, gates, rules and strength; never recipe or base."""
        return self._content_hash

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()[:16]

    @cached_property
    def _content_hash(self) -> str:
        acting = {k: v for k, v in self.header().items() if k in ("edits", "strength")}
        return hashlib.sha256(self._packed(acting)).hexdigest()[:16]

    def save(self, path: str | Path, overwrite: bool = True) -> Path:
        """Write the file under a temporary name, then rename. Raises OutputExists."""
        return write_bytes(Path(path), self.to_bytes(), overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch. Raises WrongFile for everything that is not one."""
        header = read_header(path)
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            own = _grouped(load_file(path), len(header["edits"]))
            edits = tuple(edit_of(row, tensors) for row, tensors in zip(header["edits"], own, strict=True))
            patch = cls(edits, header["recipe"], header["base"], float(header["strength"]))
            patch.check()
        except (SafetensorError, *_DAMAGE, EffaceError) as error:
            raise WrongFile(f"{path} is a damaged patch: {_short(error)}; ask for the file again") from None
        return patch


def _grouped(tensors: Mapping[str, torch.Tensor], count: int) -> list[dict[str, torch.Tensor]]:
    """The tensors of each edit by their own names. Raises ValueError for one of no edit or of another dtype."""
    own: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or len(number) > 9 or int(number) >= count or number != f"{int(number):04d}":
            raise ValueError(f"a tensor {key[:60]!r} of no edit")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"a tensor of {tensor.dtype}; docs/patch-format.md lists those that are read")
        own[int(number)][name] = tensor
    return own


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a patch, read without torch and without its tensors. Raises WrongFile."""
    file = Path(path)
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise ValueError("a pipe or a device")
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= min(LARGEST_HEADER, file.stat().st_size - 8):
                raise ValueError(f"a header of {size} bytes in a file of {file.stat().st_size}")
            outer = parsed_json(stream.read(size), file, "ask for it again")
        text = outer["__metadata__"]["efface"] if isinstance(outer, dict) else ""
        header = parsed_json(text, file, "ask for it again")
        checked(header)
    except WrongFile as error:
        raise WrongFile(f"{file} is no Efface patch ({_short(error)}); efface erase makes one") from None
    except FileNotFoundError:
        raise WrongFile(f"there is no file {file}; check the path") from None
    except IsADirectoryError:
        raise WrongFile(f"{file} is a folder; expected a patch file (.safetensors)") from None
    except _DAMAGE as error:
        if isinstance(error, OSError):
            raise WrongFile(f"{file} cannot be read: {error.strerror or error}; check its permissions") from None
        raise WrongFile(f"{file} is no Efface patch ({_short(error)}); efface erase makes one") from None
    assert isinstance(header, dict)
    return header


def _short(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"its header lacks {error}"
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
