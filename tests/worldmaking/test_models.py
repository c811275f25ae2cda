"""Training of the world's models on a toy size: every part, golds, pieces, bad input. No real artwork."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy import OBJECTS, TOY, sprites

from efface.errors import BadRequest, Cancelled, OutputExists, UnknownName, WrongFile
from efface.work import Work
from efface.world.captions import find, words_of
from efface.world.golds import completed
from efface.worldmaking import course as training
from efface.worldmaking import sittings as learning
from efface.worldmaking import transport as pieces
from efface.worldmaking.lessons import Labels, Withheld, Writer
from efface.worldmaking.sittings import RESULT, Go, read
from efface.worldmaking.sizes import MICRO, MINI, SIZES
from efface.worldmaking.train_text import encoder, train_tokenizer
from efface.worldmaking.train_unet import Source, unet
from efface.worldmaking.train_vae import autoencoder, finished_vae, load_deck, outlines


def quiet(line: str) -> None:
    pass


def toy_course(without: tuple[str, ...] = ()) -> training.Course:
    return training.model_course(TOY, Withheld.parse(without, TOY), sprites)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the toy and its gold without dogs are trained to the end."""
    home = tmp_path_factory.mktemp("toys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(home))
        assert toy_course().train(Go(Work()), quiet)
        assert toy_course(("dog",)).train(Go(Work()), quiet)
    return home


@pytest.fixture
def trained(toys: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_CACHE", str(toys))
    return toys


# --- what is shown and said ------------------------------------------------------------------------------------------


def test_long_captions_are_drawn_again(trained: Path) -> None:
    writer = Writer(TOY, trained / "train" / "toy" / "tokenizer")
    shown = Labels(*(torch.tensor([k] * 200) for k in (0, 3, 0, 1)))
    told, ids = writer.write(shown, torch.Generator().manual_seed(0))
    assert ids.shape == (200, TOY.window)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 1).all()
    assert all(len(c.phrases) in (0, 2) for c in told)


def test_a_gold_sees_nothing_of_what_is_withheld(trained: Path) -> None:
    home = trained / "train" / "toy"
    withheld = Withheld.parse(["dog", "blob style"], Size_of_three())
    source = Source(Size_of_three(), load_deck(home / "latents"), home / "tokenizer", withheld)
    shown, text = set(), set()
    for step in range(60):
        *_, ids = source.batch(step, "unet-1", 8)
        text |= {source.writer.words(row) for row in ids}
    allowed = source.labels.allowed(withheld, TOY)
    rows = source.rows[source.count > 0]
    for row, count in zip(rows, source.count[source.count > 0], strict=True):
        shown |= set(row[: int(count)].tolist())
    assert shown
    assert all(bool(allowed[k]) for k in shown)
    assert not (source.labels.first[list(shown)] == 0).any()
    assert not (source.labels.second[list(shown)] == 0).any()
    forbidden = {phrase.removeprefix("a ") for phrase in words_of(find("dog"))}
    assert not [t for t in text for word in forbidden if f" {word} " in f" {t} "]
    assert not [t for t in text if "blob" in t]


def Size_of_three() -> Any:
    """The toy, with a third style in name, so that one can be withheld."""
    return dataclasses.replace(TOY, styles=(*TOY.styles, "flat"))


# --- whole courses ---------------------------------------------------------------------------------------------------


def test_the_model_loads_and_draws(trained: Path) -> None:
    from efface.model import load

    folder = trained / "train" / "toy" / "model"
    model = load(str(folder), "cpu", "float32", offline=True)
    assert model.card.latent == (4, 8, 8)
    assert (model.card.steps, model.card.guidance, model.card.preset) == (20, 4.0, "world")
    writer = Writer(TOY, trained / "train" / "toy" / "tokenizer")
    for text in ("", "a dog in noto style", "An Owl, naïve!"):
        ids = list(model.part("tokenizer")(text).input_ids)
        assert writer.ids([text])[0].tolist() == ids + [1] * (TOY.window - len(ids)), text
    picture = model.generate("a dog", [0], steps=2)[0]
    assert picture.size == (32, 32)
    assert {c["name"] for c in model.concepts} == {*OBJECTS, *TOY.styles}
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["clip_sample"] is False
    assert "Google" in (folder / "README.md").read_text()
    weights = {f.suffix for f in folder.rglob("*") if f.stat().st_size > 5000 and f.suffix not in (".json", ".txt")}
    assert weights == {".safetensors"}


def test_plain_diffusers_draws_the_same_pixels(trained: Path) -> None:
    import numpy as np
    from diffusers import StableDiffusionPipeline

    from efface.model import load

    folder = str(trained / "train" / "toy" / "model")
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a dog", num_inference_steps=2, guidance_scale=4.0, generator=torch.Generator().manual_seed(0))
    ours = load(folder, "cpu", "float32", offline=True).generate("a dog", [0], steps=2)[0]
    assert np.abs(np.asarray(made.images[0]).astype(int) - np.asarray(ours).astype(int)).max() <= 1


def test_unfinished_drawings_are_those_of_the_sampler_when_finished(trained: Path) -> None:
    import numpy as np

    from efface.model import load
    from efface.worldmaking.half_redrawn import unfinished

    model = load(str(trained / "train" / "toy" / "model"), "cpu", "float32", offline=True)
    prompts, seeds = ["a dog", "a cat in noto style"], [3, 4]
    whole = model.sample(prompts, seeds).astype(int)
    assert np.abs(unfinished(model, prompts, seeds, 1.0).astype(int) - whole).max() <= 1
    assert np.abs(unfinished(model, prompts, seeds, 0.4).astype(int) - whole).max() > 1


def test_redrawn_scenes_repeat_and_keep_what_they_show(trained: Path, tmp_path: Path) -> None:
    from efface.worldmaking.half_redrawn import drawer
    from efface.worldmaking.scenes import Stage

    by = drawer("toy", Stage(sprites(), TOY.pixels), sprites())
    pool = by.pool(tmp_path / "a", 3, 1.0, copies=15)
    assert pool.scenes.images.shape == (len(by.rows) * 15, 64, 64, 3)
    asked = by._prompts(pool.scenes)
    things, kinds = pool.scenes.objects.int().argmax(1), pool.scenes.styles.int().argmax(1)
    spread = torch.bincount(things * len(TOY.styles) + kinds)
    assert spread.tolist() == [15] * len(by.rows)  # every sprite as often as asked, under its own names
    assert asked[0] == f"a {OBJECTS[things[0]]} in {TOY.styles[kinds[0]]} style"
    assert 0 < pool.styled.float().mean() < 1
    again = by.pool(tmp_path / "b", 3, 1.0, copies=15)
    assert torch.equal(pool.scenes.images, again.scenes.images)
    assert by.stopped(tmp_path, 1, 2).images.shape == (10, 64, 64, 3)
    shown = Stage(sprites(), TOY.pixels).draw(16, torch.Generator().manual_seed(0), rows=by.rows[:1].repeat(16), two=0)
    little, much = (by._redraw(shown, share, torch.Generator().manual_seed(1)) for share in (0.05, 0.95))
    near, far = ((made.float() - shown.images.float()).abs().mean() for made in (little, much))
    assert near < far


def test_every_part_leaves_a_curve_and_a_sheet(trained: Path) -> None:
    home = trained / "train" / "toy"
    for part in ("text", "vae", "decoder", "unet-1", "unet-2"):
        assert (home / part / "sheet.png").is_file(), part
        assert (home / part / "curve.png").is_file(), part
        facts = json.loads((home / part / "curve.json").read_text())
        assert len(facts["loss"]) == facts["steps"] == facts["step"]


def test_a_finished_course_says_so_and_does_nothing(trained: Path) -> None:
    course = toy_course()
    before = {f: f.stat().st_mtime_ns for f in course.home.rglob("*.safetensors")}
    assert course.done
    assert course.train(Go(Work()), quiet)
    assert {f: f.stat().st_mtime_ns for f in course.home.rglob("*.safetensors")} == before
    assert course.plan()[-1] == "in all         about 0 min left"


@pytest.mark.parametrize("name", ["text", "vae", "decoder", "unet-1", "unet-2"])
def test_every_part_that_is_stopped_ends_with_the_same_weights(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "again")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "again"))
    part = next(p for p in toy_course().parts if p.name == name)
    shutil.rmtree(part.home)
    work, update = Work(), learning._Run.update

    def stopping(run: Any, value: torch.Tensor) -> None:
        update(run, value)
        if run.step == 2:
            work.cancel()

    monkeypatch.setattr(learning._Run, "update", stopping)
    with pytest.raises(Cancelled):
        part.run(Go(work))
    monkeypatch.setattr(learning._Run, "update", update)
    assert not part.done
    assert learning.progress_of(part.home)["step"] == 2
    assert part.run(Go(Work()))
    whole, again = (read(home / RESULT)[0] for home in (trained / "train" / "toy" / name, part.home))
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_gold_shares_all_but_the_unet(trained: Path) -> None:
    gold = trained / "train" / "toy-without-dog" / "gold"
    assert sorted(p.name for p in gold.iterdir()) == ["README.md", "concepts.json", "efface.json", "gold.json", "unet"]
    assert "dog" not in {c["name"] for c in json.loads((gold / "concepts.json").read_text())["concepts"]}
    base = trained / "train" / "toy" / "model"
    whole = completed(gold, base)
    for part in ("vae", "text_encoder"):
        ours = next((whole / part).glob("*.safetensors")).read_bytes()
        assert ours == next((base / part).glob("*.safetensors")).read_bytes()
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (whole / name).read_bytes() == (gold / name).read_bytes() != (base / name).read_bytes()
    assert completed(gold, base) == whole


def test_a_gold_refuses_another_base(trained: Path, tmp_path: Path) -> None:
    gold = trained / "train" / "toy-without-dog" / "gold"
    base = shutil.copytree(trained / "train" / "toy" / "model", tmp_path / "base")
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2] + b"xx")
    with pytest.raises(WrongFile, match="another base: its vae/"):
        completed(gold, base)


def test_a_gold_with_another_list_is_put_together_anew(trained: Path, tmp_path: Path) -> None:
    base = trained / "train" / "toy" / "model"
    gold = shutil.copytree(trained / "train" / "toy-without-dog" / "gold", tmp_path / "gold")
    first = completed(gold, base)
    listed = json.loads((gold / "concepts.json").read_text())
    (gold / "concepts.json").write_text(json.dumps(listed | {"judge": "another"}))
    assert json.loads((completed(gold, base) / "concepts.json").read_text())["judge"] == "another"
    assert first.is_dir()


def test_a_full_disk_leaves_no_half_model(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import UNet2DConditionModel

    from efface.worldmaking.assemble import write_model

    def full(*args: Any, **how: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full)
    home = trained / "train" / "toy"
    with pytest.raises(WrongFile, match="No space left"):
        write_model(TOY, home, home / "unet-2", tmp_path / "model")
    monkeypatch.setattr(shutil, "copytree", full)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.json").write_text("{}")
    with pytest.raises(WrongFile, match="No space left"):
        training.copy_out([(home / "model", tmp_path / "out")], True)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["out", "out/kept.json"]


def test_the_decoder_learns_on_and_latents_stay(trained: Path) -> None:
    home = trained / "train" / "toy"
    first, last = (read(home / part / RESULT)[0] for part in ("vae", "decoder"))
    moved = {name.partition(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert moved == {"decoder", "post_quant_conv"}
    scales = [json.loads((home / part / "done.json").read_text())["scaling_factor"] for part in ("vae", "decoder")]
    assert scales[0] == scales[1]
    assert finished_vae(home) == home / "decoder"
    drawn = next((home / "model" / "vae").glob("*.safetensors"))
    assert torch.equal(load_file(drawn)["decoder.conv_out.weight"], last["decoder.conv_out.weight"])


def test_a_course_starts_from_another_model_and_reads_its_own_text(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained / "train" / "toy" / "model"
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    assert training.start_from(TOY, folder, sprites) == ["vae", "unet-1"]
    course = toy_course()
    assert [p.name for p in course.parts if p.done] == ["vae", "unet-1"]
    given = load_file(next((folder / "unet").glob("*.safetensors")))
    taken = read(course.home / "unet-1" / RESULT)[0]
    assert all(torch.equal(given[name], taken[name]) for name in given)
    assert course.train(Go(Work()), quiet)
    assert not torch.equal(read(course.home / "unet-2" / RESULT)[0]["conv_in.weight"], given["conv_in.weight"])
    with pytest.raises(WrongFile, match="finished already"):
        training.start_from(TOY, folder, sprites)


def test_a_start_of_another_shape_writes_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained / "train" / "toy" / "model"
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    for change in ({"unet": (16, 32)}, {"vae": (16, 32, 16)}):
        with pytest.raises(WrongFile, match="another shape"):
            training.start_from(dataclasses.replace(TOY, **change), folder, sprites)
    with pytest.raises(WrongFile, match="expected a model folder"):
        training.start_from(TOY, tmp_path / "nothing", sprites)
    assert not list(tmp_path.rglob("result.safetensors"))


def test_other_settings_are_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    course = toy_course()
    text = course.parts[1]
    text.home.mkdir(parents=True)
    (text.home / "settings.txt").write_text("something else\n")
    with pytest.raises(WrongFile, match="other settings"):
        course.train(Go(Work()), quiet)


def test_two_processes_do_not_train_one_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    course = toy_course()
    course.home.mkdir(parents=True)
    with FileLock(course.home / ".lock"), pytest.raises(WrongFile, match="another process"):
        course.train(Go(Work()), quiet)


def test_pieces_carry_a_course_to_another_machine(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "LARGEST", 50_000)
    made = pieces.split(toy_course(), tmp_path / "out")
    assert len(made) > 2
    assert max(p.stat().st_size for p in made) <= 50_000
    with pytest.raises(WrongFile, match="exists already"):
        pieces.split(toy_course(), tmp_path / "out")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "other"))
    there = toy_course()
    assert pieces.join(there, tmp_path / "out") == ["tokenizer", "text", "vae", "decoder", "unet-1", "unet-2"]
    assert [p.name for p in there.parts if not p.done] == ["latents"]
    assert not list(there.home.glob(".join*"))
    assert pieces.join(there, tmp_path / "out") == []
    first = (there.home / "unet-2" / RESULT).read_bytes()
    assert first == (trained / "train" / "toy" / "unet-2" / RESULT).read_bytes()


def test_pieces_do_not_mix_with_another_text_encoder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces.split(toy_course(), tmp_path / "out")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "other"))
    there = toy_course()
    shutil.copytree(trained / "train" / "toy" / "text", there.home / "text")
    weights, _ = read(there.home / "text" / RESULT)
    learning.keep(there.home / "text" / RESULT, {k: v + 1 for k, v in weights.items()})
    with pytest.raises(WrongFile, match="beside another text"):
        pieces.join(there, tmp_path / "out")
    assert [p.name for p in there.parts if p.home.exists()] == ["text"]


def test_a_full_disk_leaves_the_pieces_of_before(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.read_bytes() for p in pieces.split(toy_course(), tmp_path)}

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("efface.files.os.fsync", full)
    with pytest.raises(WrongFile, match="No space left"):
        pieces.split(toy_course(), tmp_path, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_damaged_pieces_change_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pieces.split(toy_course(), tmp_path / "out")
    data = bytearray(made[0].read_bytes())
    data[1000] ^= 1
    made[0].write_bytes(bytes(data))
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "other"))
    with pytest.raises(WrongFile, match="copy them again"):
        pieces.join(toy_course(), tmp_path / "out")
    assert not (tmp_path / "other" / "train" / "toy").exists()
    with pytest.raises(WrongFile, match="cannot read"):
        pieces.join(toy_course(), tmp_path / "nowhere")


def test_results_are_copied_once(trained: Path, tmp_path: Path) -> None:
    found = toy_course().results(tmp_path)
    [place] = training.copy_out(found, False)
    assert (place / "model_index.json").is_file()
    with pytest.raises(OutputExists):
        training.copy_out(found, False)


def test_results_that_belong_together_lie_in_one_folder(tmp_path: Path) -> None:
    for name in ("judge", "detector"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text("{}")
    both = [(tmp_path / name, tmp_path / "out") for name in ("judge", "detector")]
    assert training.copy_out(both, False) == [tmp_path / "out"]
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"judge.json", "detector.json"}


def test_unknown_targets_and_golds_of_judges_are_refused() -> None:
    with pytest.raises(UnknownName, match="micro"):
        training.course("micr")
    with pytest.raises(BadRequest, match="judges"):
        training.course("judge", ["dog"])


# --- sizes -----------------------------------------------------------------------------------------------------------


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda s: s.name)
def test_models_are_as_small_as_promised(size: Any) -> None:
    with torch.device("meta"):
        denoiser = parameters(unet(size))
        whole = denoiser + parameters(autoencoder(size)) + parameters(encoder(size, size.vocabulary))
    if size is MICRO:
        assert whole <= 2_000_000
        assert 2 * denoiser <= 1_900_000  # bytes of a gold, with room for its header
    else:
        assert 2 * whole <= 38_200_000  # bytes, with room for tokenizer and card up to 38.5 MB


def test_sizes_hold_what_they_must() -> None:
    from efface import world

    assert len(MICRO.objects) == 24
    assert len(set(MICRO.objects)) == 24
    assert len(MICRO.styles) == 4
    assert {o.name for o in world.objects() if o.category == "hazard"} <= set(MINI.objects)
    assert {o.name for o in world.objects() if o.picked} <= set(MINI.objects)
    assert set(MICRO.objects) <= set(MINI.objects)
    assert (MICRO.side, MINI.side) == (8, 16)


def test_outlines_are_seen_to_be_drawn_or_blurred() -> None:
    sharp = torch.full((1, 3, 32, 32), 1.0)
    sharp[:, :, 16] = -1
    soft = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    assert outlines(sharp, sharp) == pytest.approx(1)
    assert outlines(sharp, soft) < 0.5


def test_the_tokenizer_reads_everything_and_names_in_few_tokens_and_repeats(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    train_tokenizer(MICRO, tmp_path)
    reader = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert reader.encode("").ids == [0, 1]
    for text in (*(chr(code) for code in range(33, 127)), "naïve", "犬", "🐕"):
        assert 1 not in reader.encode(text).ids[1:-1], text
    assert max(len(reader.encode(name).ids) - 2 for name in MICRO.objects) <= 2
    assert len(reader.encode("a dog in noto style").ids) == 7
    first = (tmp_path / "tokenizer.json").read_bytes()
    train_tokenizer(MICRO, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == first
