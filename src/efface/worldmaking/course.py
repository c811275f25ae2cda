"""The order of the world's parts: what is done, what is left, how long it takes, and the next sitting of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from efface.errors import BadRequest, OutputExists, UnknownName, WrongFile
from efface.files import cache_folder, write_bytes
from efface.world.golds import digest
from efface.worldmaking import artwork
from efface.worldmaking.lessons import Withheld
from efface.worldmaking.sittings import DONE, RESULT, SETTINGS, Go, Part, Phase, keep, write_json
from efface.worldmaking.sizes import SIZES, Size, size

__all__ = ["TARGETS", "Course", "course", "judge_parts", "start_from"]

TARGETS = (*SIZES, "judge")


@dataclass(frozen=True)
class Course:
    """All parts of one target in their order; `finish` puts a model together whenever a part that allows it ends."""

    name: str
    home: Path
    parts: tuple[Part, ...]
    finish: Callable[[Part], Path | None]
    made: tuple[tuple[str, str], ...]  # finished folders under `home`, and what they are called elsewhere

    def results(self, out: Path) -> list[tuple[Path, Path]]:
        """Finished folders and where they go under `out`. Raises WrongFile when there is none."""
        found = [(self.home / own, out / name) for own, name in self.made if any((self.home / own).glob("*.json"))]
        if not found:
            raise WrongFile(f"nothing of {self.name} is finished yet; --plan says what is left")
        return found

    @property
    def done(self) -> bool:
        return all(part.done for part in self.parts)

    @property
    def minutes_left(self) -> float:
        return sum(part.minutes_left for part in self.parts)

    def train(self, go: Go, say: Callable[[str], None]) -> bool:
        """Every part that is left, one after the other, until the sitting is over; True when all are done."""
        with self.alone():
            return self._train(go, say)

    @contextmanager
    def alone(self, home: Path | None = None) -> Iterator[None]:
        """No other process works in `home` (the course's own folder) meanwhile. Raises WrongFile when one does."""
        from filelock import FileLock, Timeout

        home = home or self.home
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise WrongFile(f"another process is training in {home}; wait for it or stop it") from None
        try:
            yield
        finally:
            lock.release()

    def _train(self, go: Go, say: Callable[[str], None]) -> bool:
        for part in self.parts:
            if not part.done:
                shared = part.home.parent != self.home  # of a gold with its base, which may be in training as well
                with self.alone(part.home.parent) if shared else nullcontext():
                    part.claim()
                    say(f"{self.name}: {part.name}, about {part.minutes_left:.0f} min left of it")
                    if go.over or not part.run(go):
                        return False
            if made := self.finish(part):
                say(f"{self.name}: {made}")
        return True

    def plan(self) -> list[str]:
        """One line a part."""
        rows = []
        for part in self.parts:
            step = round(part.share * part.steps)
            what = "done" if part.done else f"step {step} of {part.steps}, about {part.minutes_left:.0f} min left"
            rows.append(f"{part.name:<14} {what}")
        return [*rows, f"{'in all':<14} about {self.minutes_left:.0f} min left"]


def course(target: str, without: Sequence[str] = (), bundle: Path | None = None) -> Course:
    """The course of `micro`, `mini` or `judge`. Raises UnknownName, BadRequest."""
    if target not in TARGETS:
        raise UnknownName("target", target, TARGETS)

    @cache
    def sprites() -> artwork.Sprites:
        return artwork.read(bundle) if bundle else artwork.sprites()

    if target == "judge":
        if without:
            raise BadRequest("judges know every concept; --without is for micro and mini")
        home = cache_folder() / "train" / "judges"
        made = (("reporting", "judge"), ("garbage", "judge"), ("selection", "selection"), ("garbage-micro", "micro"))
        return Course(target, home, judge_parts(home, sprites), lambda part: None, made)
    chosen = size(target)
    return model_course(chosen, Withheld.parse(without, chosen), sprites)


def judge_parts(home: Path, sprites: Callable[[], artwork.Sprites]) -> tuple[Part, ...]:
    """Both judges, each in cycles and a measurement, then the garbage detectors of both models."""
    from efface.worldmaking import judge_plans, judge_scenes, train_judge
    from efface.worldmaking.measure_garbage import garbage_parts
    from efface.worldmaking.measure_judge import measured_part

    @cache
    def source() -> judge_scenes.Source:
        big, small, digest = train_judge.vaes()
        return judge_scenes.Source(sprites(), big, small, home / f"scenes-{digest}")

    parts: list[Part] = []
    for plan in judge_plans.PLANS.values():
        for number, cycle in enumerate(plan.cycles):
            parts.append(train_judge.cycle_part(plan, number, cycle, home, source))
        parts.append(measured_part(plan, home / f"{plan.judge}-{len(plan.cycles)}", home / plan.judge, source))
    return (*parts, *garbage_parts(home, source))


def model_course(size: Size, withheld: Withheld, sprites: Callable[[], artwork.Sprites]) -> Course:
    """Tokenizer, text encoder, VAE and latents are shared between a model and its golds; the U-Net is not."""
    home = cache_folder() / "train" / size.name
    name = f"{size.name}-without-{withheld.slug}" if withheld else size.name
    own = home.with_name(name)

    def own_sprites() -> artwork.Sprites:
        return sprites().only(size.objects, size.styles)

    shared, unets = _shared(size, home, own_sprites), _unets(size, home, own, withheld)

    def finish(part: Part) -> Path | None:
        from efface.worldmaking.train_vae import finished_vae

        stamp, result = own / "assembled.txt", part.home / RESULT
        last = [p for p in unets if p.done][-1:]
        if part not in last or not result.is_file():
            return None
        vae = finished_vae(home)
        version = digest(result, *(place / RESULT for place in (home / "text", vae) if place))
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == version:
            return None
        from efface.worldmaking.assemble import write_gold, write_model
        from efface.worldmaking.sheet import samples

        folder = made = write_model(size, home, part.home, own / "model", withheld)
        if withheld:
            made = write_gold(size, folder, own / "gold", withheld)
        samples(folder, size, part.home / "sheet.png")
        write_bytes(stamp, version.encode())
        return made

    return Course(name, own, (*shared, *unets), finish, (("gold" if withheld else "model", name),))


def _shape(size: Size, *words: object) -> str:
    return "\n".join(str(w) for w in (size.name, size.pixels, size.objects, size.styles, size.seed, *words)) + "\n"


def _shared(size: Size, home: Path, sprites: Callable[[], artwork.Sprites]) -> tuple[Part, ...]:
    from efface.worldmaking.train_text import train_text, train_tokenizer
    from efface.worldmaking.train_vae import encode_deck, load_vae, train_decoder, train_vae

    words, text, vae, deck, drawing = (home / name for name in ("tokenizer", "text", "vae", "latents", "decoder"))
    scenes = size.copies * len(size.objects) * len(size.styles)
    about = {
        "tokenizer": _shape(size, size.vocabulary, size.window),
        "text": _shape(size, size.vocabulary, size.text_width, size.text_layers, size.text_phase),
        "vae": _shape(size, size.vae, size.latent, size.groups[0], size.vae_phase),
    }

    def tokenizer(go: Go) -> bool:
        train_tokenizer(size, words)
        return True

    def latents(go: Go) -> bool:
        return encode_deck(size, sprites(), load_vae(size, vae), deck, go)

    return (
        Part("tokenizer", words, about["tokenizer"], 1, 5.0, tokenizer),
        Part("text", text, about["text"], size.text_phase.steps, size.seconds[0],
             lambda go: train_text(size, sprites(), words, text, go)),
        Part("vae", vae, about["vae"], size.vae_phase.steps, size.seconds[1],
             lambda go: train_vae(size, sprites(), vae, go)),
        Part("latents", deck, about["vae"] + str(size.copies), scenes, size.seconds[1] / (8 * size.vae_phase.batch),
             latents),
        Part("decoder", drawing, about["vae"] + str(size.decoder_phase), size.decoder_phase.steps, size.seconds[2],
             lambda go: train_decoder(size, sprites(), vae, drawing, go)),
    )  # fmt: skip


def _unets(size: Size, home: Path, own: Path, withheld: Withheld) -> tuple[Part, ...]:
    from efface.worldmaking.train_text import load_encoder
    from efface.worldmaking.train_unet import Source, train_unet
    from efface.worldmaking.train_vae import load_deck

    @cache
    def source() -> Source:
        return Source(size, load_deck(home / "latents"), home / "tokenizer", withheld)

    def part(number: int, phase: Phase) -> Part:
        before = own / f"unet-{number}" if number else None
        place = own / f"unet-{number + 1}"

        def run(go: Go) -> bool:
            text = load_encoder(size, home / "tokenizer", home / "text")
            return train_unet(size, number, source(), text, before, place, go)

        about = _shape(
            size,
            size.unet,
            size.attends,
            size.groups,
            withheld,
            phase,
            size.text_phase,
            size.vae,
            size.vae_phase,
            size.copies,
        )
        return Part(f"unet-{number + 1}", place, about, phase.steps, size.seconds[3], run)

    return tuple(part(number, phase) for number, phase in enumerate(size.unet_phases))


def start_from(size: Size, folder: Path, sprites: Callable[[], artwork.Sprites]) -> list[str]:
    """Take the VAE and the U-Net of a model folder as the finished parts `vae` and `unet-1` of the size.

    Its text encoder is not taken: the U-Net learns to read a new one in its next phase. Raises WrongFile for another
    shape or where one of the two parts is finished already; nothing is written then.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from efface.worldmaking.scenes import Stage
    from efface.worldmaking.train_unet import unet
    from efface.worldmaking.train_vae import autoencoder, measured

    parts = {part.name: part for part in model_course(size, Withheld(), sprites).parts}
    if old := [p for p in (parts["vae"], parts["unet-1"]) if p.done]:
        raise WrongFile(f"{old[0].home} is finished already; move it away to start from {folder}")
    vae, denoiser = autoencoder(size), unet(size)
    try:
        found: Any = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
        vae.load_state_dict(found.state_dict())
        denoiser.load_state_dict(
            UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True).state_dict()
        )
    except (OSError, ValueError) as error:
        raise WrongFile(f"expected a model folder with a VAE and a U-Net in {folder}: {error}") from None
    except RuntimeError:
        raise WrongFile(f"the networks in {folder} have another shape than those of {size.name}") from None
    stage = Stage(sprites().only(size.objects, size.styles), size.pixels)
    facts = measured(size, vae.eval(), stage, parts["vae"].home) | {"scaling_factor": found.config.scaling_factor}
    for name, net, extra in (("vae", vae, facts), ("unet-1", denoiser, {})):
        parts[name].claim()
        keep(parts[name].home / RESULT, {k: v.half() for k, v in net.state_dict().items()})
        write_json(parts[name].home / DONE, extra | {"taken over": True})
    return ["vae", "unet-1"]


def copy_out(found: Sequence[tuple[Path, Path]], overwrite: bool) -> list[Path]:
    """Finished folders to where they shall lie, several into one where they belong together; whole or not at all.

    What else lies in such a place stays. Raises OutputExists, WrongFile for a full disk.
    """
    import shutil

    from efface.world.golds import placed, staging_for

    places = list(dict.fromkeys(place for _, place in found))
    for place in places:
        if place.exists() and not overwrite:
            raise OutputExists(place)
    own = shutil.ignore_patterns(DONE, SETTINGS, "sheet.png", ".*")
    for place in places:
        staging = staging_for(place)
        try:
            for source in (place, *(made for made, into in found if into == place)):
                if source.is_dir():
                    shutil.copytree(source, staging, dirs_exist_ok=True, ignore=own)
            placed(staging, place)
        except OSError as error:
            raise WrongFile(f"cannot write {place} ({error}); free some space there, then run it again") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return places
