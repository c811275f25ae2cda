"""What an audit is asked: two models, a request, a suite, and how it is drawn; what that freezes and plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efface.errors import BadRequest
from efface.gallery.drawing import Sampling, Side, fingerprint
from efface.gallery.shot import Item, Shot
from efface.registry import configure
from efface.request import Concept, Request
from efface.suites import Known, Plan, suite_hash

if TYPE_CHECKING:
    from efface.model import Model
    from efface.patch import Patch

__all__ = ["Audit", "request_of"]


def request_of(patch: Patch) -> Request:
    """The request that stands in a patch's recipe."""
    row = patch.recipe["request"]
    return Request(tuple(_concept(c) for c in row["concepts"]), tuple(row["keep"]), row["seed"], row["preset"])


def _concept(row: dict[str, Any]) -> Concept:
    fields: dict[str, Any] = row | {"synonyms": tuple(row["synonyms"]), "keep": tuple(row["keep"])}
    return Concept(**fields)


@dataclass(frozen=True)
class Audit:
    """Everything that decides an audit. `edited` is the base with `patch`, or another model.

    judge: NAME or NAME:WHERE instead of the suite's own. settings: of the suite. control: the edited side is declared
    to be no edit. store_images: keep the images of a private suite.
    """

    base: Model
    request: Request
    suite: str
    patch: Patch | None = None
    edited: Model | None = None
    steps: int | None = None
    guidance: float | None = None
    command: str = ""
    judge: str = ""
    settings: tuple[tuple[str, Any], ...] = ()
    control: bool = False
    store_images: bool = False

    def __post_init__(self) -> None:
        if (self.patch is None) == (self.edited is None):
            raise BadRequest("an audit needs either a patch or an edited model, got both or neither")
        if self.edited is not None and self.edited.identity == self.base.identity and not self.control:
            raise BadRequest(
                "base and edited model are the same; name the edited one and the one it was made from, "
                "or declare a control with --control"
            )

    def settled(self) -> Audit:
        """With the kind of every concept decided."""
        return dataclasses.replace(self, request=self.request.settle(self.base.kinds))

    def planned(self) -> tuple[Any, Plan]:
        """The suite and what it draws, prompts cut to what the model reads. Raises BadRequest, UnknownName."""
        suite = configure(self.suite, dict(self.settings), "suites")
        plan = suite.plan(self.request, Known(self.base.concepts, self.base.captions))
        if not plan.items:
            raise BadRequest(f"suite {self.suite} draws nothing for this request; name concepts that it knows")
        items = tuple(dataclasses.replace(i, shot=_fitted(self.base, i.shot)) for i in plan.items)
        cut = len({i.prompt for i in plan.items} - {i.prompt for i in items})
        said = (f"the ends of {cut} prompts, longer than the model reads: they were cut at a word",) if cut else ()
        pairs = {(i.prompt, j.prompt) for i, j in zip(plan.items, items, strict=True) if i.prompt != j.prompt}
        inside = sum(whole[len(part)] != " " for whole, part in pairs)
        said += (f"{inside} of them inside a run of characters without a space that alone is longer",) if inside else ()
        return suite, dataclasses.replace(plan, items=items, not_measured=(*plan.not_measured, *said))

    @property
    def sampling(self) -> Sampling:
        return Sampling.of(self.base, self.steps, self.guidance)

    def spec(self, items: tuple[Item, ...]) -> dict[str, Any]:
        """What is frozen in the run folder."""
        extra = {
            "control": self.control, "judge": self.judge, "settings": [[k, str(v)] for k, v in self.settings],
            "store_images": self.store_images,
        }  # fmt: skip
        return {
            "format": "efface-run/1",
            "base": self.base.identity,
            "patch": self.patch.hash if self.patch else "",
            "edited": self.edited.identity if self.edited else "",
            "suite": self.suite,
            "suite_hash": suite_hash(items),
            "sampling": self.sampling.hash,
            "request": self.request.asdict(),
            **{k: v for k, v in extra.items() if v},
        }

    def sides(self) -> tuple[Side, Side]:
        """Base and edited. An edited side that draws what the base draws is refused unless declared a control."""
        base = Side("base", self.base)
        if self.edited is not None:
            return base, Side("edited", self.edited)
        assert self.patch is not None
        with self.patch.applied(self.base):
            same = fingerprint(self.base) == self.base.identity
        if same and not self.control:
            raise BadRequest(
                "the patch leaves the model as it is (weights, guards and gates are the base's); "
                "raise its strength, or declare a control with --control"
            )
        return base, Side("edited", self.base, "" if same else self.patch.content_hash)


def _fitted(model: Model, shot: Shot) -> Shot:
    prompt = _cut(model, shot.prompt)
    return shot if prompt == shot.prompt else dataclasses.replace(shot, prompt=prompt)


def _cut(model: Model, prompt: str) -> str:
    """The longest run of whole words that the model reads, then of characters where the next word alone is longer.

    So a prompt without spaces loses its end, as in the tokenizer, and never becomes the empty prompt.
    """
    window, words = model.card.streams[0].length, prompt.split(" ")

    def fits(text: str) -> bool:
        return len(text.encode()) + 2 <= window or len(model.tokens(text)) <= window  # a token holds a byte or more

    def most(count: int, start: Callable[[int], str]) -> int:
        """Of `count` pieces as many as fit, given that all of them do not."""
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(start(middle)) else (low, middle)
        return low

    if fits(prompt):
        return prompt
    n = most(len(words), lambda k: " ".join(words[:k]))
    if fits(words[n]):
        return " ".join(words[:n])
    head = " ".join([*words[:n], ""])
    return (head + words[n][: most(len(words[n]), lambda k: head + words[n][:k])]).rstrip(" ")
