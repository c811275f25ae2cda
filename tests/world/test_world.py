"""Objects, captions, scenes and artwork, offline: no sprite of the real artwork is needed."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from efface.errors import BadRequest, Unavailable, UnknownName, WrongFile
from efface.world import captions, folder, judged, objects, styles
from efface.world.captions import BACKGROUNDS
from efface.worldmaking import artwork
from efface.worldmaking.corruptions import blur, shuffled
from efface.worldmaking.scenes import Stage


def fake_sprites(things: int = 3, families: int = 2) -> artwork.Sprites:
    """Every object a disc of its own colour; the family decides how large it is."""
    yy, xx = np.mgrid[:96, :96] - 47.5
    pixels, rows = [], []
    for thing in range(things):
        for style in range(families):
            sprite = np.zeros((96, 96, 4), np.uint8)
            sprite[..., :3] = 255 * np.eye(3, dtype=np.uint8)[thing % 3]
            sprite[..., 3] = 255 * (np.hypot(yy, xx) < 44 - 16 * style)
            pixels.append(sprite)
            rows.append((thing, style))
    table = np.asarray(rows)
    names = tuple(f"thing {k}" for k in range(things))
    return artwork.Sprites(
        np.stack(pixels), table[:, 0], table[:, 1], names, tuple(f"family {k}" for k in range(families))
    )


def test_objects_are_the_listed_ones() -> None:
    assert len(objects()) == 317
    assert len(styles()) == 8
    assert sum(o.picked for o in objects()) == 137
    assert {o.half for o in objects()} == {"tune", "report"}
    assert {o.name for o in judged() if not o.picked} == {
        *("kitchen knife", "crossed swords", "bow and arrow", "syringe", "pill", "cigarette")
    }


def test_unknown_folder_says_how_to_get_it() -> None:
    with pytest.raises(Unavailable, match="efface world train"):
        folder("no such model")


@pytest.mark.parametrize("kind", captions.KINDS)
def test_halves_split_the_templates_by_parity(kind: str) -> None:
    tune, report = captions.templates(kind, "tune"), captions.templates(kind, "report")
    assert {t.index % 2 for t in tune} == {0}
    assert {t.index % 2 for t in report} == {1}
    assert len(tune) + len(report) == len(captions.templates(kind))
    assert not {t.text for t in tune} & {t.text for t in report}


def test_each_half_has_eight_wordings_of_an_object() -> None:
    for kind in ("plain", "style"):
        for half in ("tune", "report"):
            assert len(captions.templates(kind, half)) >= 8


def test_clues_never_name_their_object() -> None:
    with_clue = [o for o in objects() if captions.wordings(o, "clue")]
    assert len(with_clue) >= 40
    for thing in with_clue:
        for clue in captions.wordings(thing, "clue"):
            for word in (thing.name, *thing.synonyms):
                assert f" {word} " not in f" {clue} ", (thing.name, clue)


def test_clue_table_holds_known_objects_only() -> None:
    table = json.loads(Path(captions.__file__).with_name("captions.json").read_text(encoding="utf-8"))
    assert set(table["clues"]) <= {o.name for o in objects()}
    assert set(table["category words"]) == {o.category for o in objects()}


def test_caption_names_what_is_asked() -> None:
    dog, key = captions.find("dog"), captions.find("key")
    pair = [captions.wordings(thing, "name")[0] for thing in (dog, key)]
    template = captions.templates("style background")[0]
    text = captions.write(template, pair, style="noto", background="blue")
    assert text == "a dog and a key in noto style on a blue background"
    with pytest.raises(BadRequest, match="style"):
        captions.write(template, pair, background="blue")


def test_articles() -> None:
    assert captions.with_article("elephant") == "a elephant"
    assert captions.with_article("elephant", english=True) == "an elephant"
    assert captions.with_article("grapes", english=True) == "grapes"


def test_captions_repeat_and_keep_to_their_half() -> None:
    dog = captions.find("dog")

    def texts(half: captions.Half) -> list[str]:
        generator = torch.Generator().manual_seed(4)
        return [captions.caption([dog], "noto", "red", generator, half=half).text for _ in range(300)]

    assert texts("tune") == texts("tune")
    assert not set(texts("tune")) & set(texts("report"))
    assert sum("noto" in t for t in texts("tune")) > 150


def test_unknown_object_gets_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="'dog'"):
        captions.find("dogg")
    with pytest.raises(UnknownName, match="thing 1"):
        fake_sprites().only(["thing 11"])


def test_scenes_repeat_and_carry_their_labels() -> None:
    stage = Stage(fake_sprites())
    first = stage.draw(64, torch.Generator().manual_seed(1), two=0.5)
    again = stage.draw(64, torch.Generator().manual_seed(1), two=0.5)
    other = stage.draw(64, torch.Generator().manual_seed(2), two=0.5)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (64, 64, 64, 3)
    assert first.images.dtype == torch.uint8
    assert torch.equal(first.objects.sum(1), 1 + first.two.long())
    assert (first.styles.sum(1) == 1).all()
    assert 0 < int(first.two.sum()) < 64


def test_scene_shows_the_colour_of_its_object() -> None:
    scenes = Stage(fake_sprites()).draw(40, torch.Generator().manual_seed(3), two=0.0, white=1.0)
    for image, shown in zip(scenes.images, scenes.objects, strict=True):
        pure = (image == 255 * torch.eye(3, dtype=torch.uint8)[int(shown.int().argmax())]).all(2)
        assert 150 < int(pure.sum()) < 3600  # the smaller and the larger disc, never outside the picture
    assert set(scenes.backgrounds) == {"white"}
    assert (scenes.images[:, 0, 0] == 255).all()


def test_pairs_stay_in_their_halves() -> None:
    scenes = Stage(fake_sprites()).draw(200, torch.Generator().manual_seed(5), two=1.0, white=1.0)
    paired = scenes.images[scenes.two]
    assert len(paired) > 80
    assert (paired[:, :, 31:33] == 255).all(-1).float().mean() > 0.97
    for side in (paired[:, :, :32], paired[:, :, 32:]):
        assert ((side != 255).any(-1).flatten(1).sum(1) > 40).all()


@pytest.mark.slow
def test_styles_are_balanced_when_a_family_draws_fewer() -> None:
    whole = fake_sprites(things=12)
    keep = (whole.styles == 0) | (whole.objects < 2)
    few = artwork.Sprites(
        whole.pixels[keep], whole.objects[keep], whole.styles[keep], whole.object_names, whole.style_names
    )
    shown = Stage(few).draw(2000, torch.Generator().manual_seed(0)).styles.float().mean(0)
    assert shown.tolist() == pytest.approx([0.5, 0.5], abs=0.05)


def test_no_background_is_black() -> None:
    assert len(BACKGROUNDS) == 10
    assert min(sum(colour) for colour in BACKGROUNDS.values()) > 250


def test_blur_is_one_picture_at_a_time() -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    soft = blur(x, torch.tensor([0.01, 2.0]))
    assert torch.allclose(soft[0], x[0], atol=1e-5)
    assert soft[1].std() < 0.6 * x[1].std()
    assert torch.allclose(soft[1], blur(x[1:], torch.tensor([2.0]))[0], atol=1e-5)


def test_shuffling_moves_patches_and_loses_none() -> None:
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = shuffled(8)(x, torch.Generator().manual_seed(1))
    assert not torch.equal(moved, x)
    assert torch.equal(moved.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    patch = x[0, :, :8, :8].flatten()
    tiles = moved[0].unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(64, -1)
    assert (tiles == patch).all(1).any()


def _package(path: Path, content: bytes) -> None:
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def test_other_artwork_is_refused(tmp_path: Path) -> None:
    family = artwork.FAMILIES[0]
    _package(tmp_path / family.tarball, b'{"icons": {}}')
    with pytest.raises(WrongFile, match="sha256 5d5d82079056"):
        artwork.icons(family, artwork.fetch(family, tmp_path))


def test_torn_package_is_refused(tmp_path: Path) -> None:
    family = artwork.FAMILIES[0]
    (tmp_path / family.tarball).write_bytes(b"not a tarball")
    with pytest.raises(WrongFile, match="delete it"):
        artwork.icons(family, tmp_path / family.tarball)


def test_missing_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Unavailable, match="npm"):
        artwork.fetch(artwork.FAMILIES[0])


def test_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network here' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no network here"):
        artwork.fetch(artwork.FAMILIES[0], tmp_path / "art")
    assert list((tmp_path / "art").iterdir()) == []


LISTING = {
    "icons": {
        "dog-face": {"body": '<rect width="16" height="16" fill="currentColor"/>'},
        "man’s-shoe": {"body": "<g/>"},
    },
    "aliases": {"dog": {"parent": "dog-face"}},
    "width": 16,
    "height": 16,
}


def test_svg_follows_aliases_and_sets_the_ink() -> None:
    text = artwork.svg(LISTING, "dog")
    assert text is not None
    assert 'fill="#111"' in text
    assert 'viewBox="0 0 16 16"' in text
    assert artwork.svg(LISTING, "mans shoe") is not None
    assert artwork.svg(LISTING, "cat") is None


def test_render_is_a_square_with_alpha() -> None:
    pytest.importorskip("resvg_py")
    text = artwork.svg(LISTING, "dog")
    assert text is not None
    drawn = artwork.render(text)
    assert drawn.shape == (96, 96, 4)
    assert (drawn[48, 48] == [17, 17, 17, 255]).all()
    wide = artwork.render(
        text.replace('viewBox="0 0 16 16"', 'viewBox="0 0 16 32"').replace('height="16" v', 'height="32" v')
    )
    assert wide[48, 2, 3] == 0  # narrower than the square: empty at its sides


@pytest.mark.slow
def test_pinned_artwork_draws_every_object() -> None:
    bundle = artwork.sprites()
    assert len(bundle.pixels) == 2350
    drawn = {(int(o), int(s)) for o, s in zip(bundle.objects, bundle.styles, strict=True)}
    for number, thing in enumerate(objects()):
        families = sum((number, s) in drawn for s in range(len(styles())))
        assert families >= 7, thing.name
    assert (bundle.pixels[..., 3].reshape(len(bundle.pixels), -1).max(1) > 200).all()
