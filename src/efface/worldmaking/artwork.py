"""Artwork to sprites: eight open emoji families, on npm as @iconify-json/* (credits: docs/artwork.md)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from efface.errors import Unavailable, UnknownName, WrongFile
from efface.files import cache_folder, write_bytes
from efface.world import objects, styles

SIZE = 96  # pixels of a sprite: 1.5 times a scene, so that placing it never magnifies
INK = "#111"  # what `currentColor` becomes: only the monochrome family uses it


@dataclass(frozen=True)
class Family:
    """One npm package of artwork, pinned: object names and counts depend on the version."""

    style: str
    package: str
    version: str
    licence: str
    author: str
    source: str
    sha256: str  # of icons.json inside the package

    @property
    def tarball(self) -> str:
        return f"iconify-json-{self.package}-{self.version}.tgz"


FAMILIES: tuple[Family, ...] = tuple(
    Family(**fields) for fields in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
)


@dataclass(frozen=True)
class Sprites:
    """Every drawn object in every family; `pixels` is straight (not premultiplied) RGBA.

    `objects[k]` and `styles[k]` index `object_names` and `style_names` for sprite k. Not every family
    draws every object.
    """

    pixels: np.ndarray  # uint8 (n, 96, 96, 4)
    objects: np.ndarray  # int64 (n,)
    styles: np.ndarray  # int64 (n,)
    object_names: tuple[str, ...]
    style_names: tuple[str, ...]

    def only(self, names: Sequence[str], families: Sequence[str] | None = None) -> Sprites:
        """The same bundle with the named objects and styles alone, in that order; `UnknownName` for another."""
        families = self.style_names if families is None else families
        thing = _renumber("object", self.object_names, names)[self.objects]
        style = _renumber("style", self.style_names, families)[self.styles]
        rows = (thing >= 0) & (style >= 0)
        return Sprites(self.pixels[rows], thing[rows], style[rows], tuple(names), tuple(families))


def _renumber(what: str, known: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Old number to new number, -1 for what is left out; `UnknownName`."""
    for name in wanted:
        if name not in known:
            raise UnknownName(what, name, known, "efface list concepts")
    table = np.full(len(known), -1, np.int64)
    table[[known.index(name) for name in wanted]] = np.arange(len(wanted))
    return table


def fetch(family: Family, into: Path | None = None) -> Path:
    """The family's tarball in the cache, downloaded with `npm pack` when it is not there.

    Raises `Unavailable` without an npm client or without a network.
    """
    into = into or cache_folder() / "art"
    target = into / family.tarball
    if target.is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable(
            f"Expected the artwork {family.tarball} in {into} or an npm client to fetch it, found neither; "
            "install Node.js (npm) or copy the file there."
        )
    staging = into / f".fetch-{os.getpid()}"
    staging.mkdir(parents=True, exist_ok=True)
    try:
        spec = f"@iconify-json/{family.package}@{family.version}"
        done = subprocess.run([npm, "pack", spec, "--pack-destination", str(staging)], capture_output=True, text=True)
        if done.returncode != 0 or not (staging / family.tarball).is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Unavailable(
                f"Expected `npm pack {spec}` to download the artwork, it failed ({last}); "
                f"check the network or copy {family.tarball} to {into}."
            )
        os.replace(staging / family.tarball, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def icons(family: Family, tarball: Path) -> dict:
    """The package's `icons.json`, refused (`WrongFile`) unless its checksum is the pinned one."""
    try:
        with tarfile.open(tarball) as archive:
            member = archive.extractfile("package/icons.json")
            data = member.read() if member else b""
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise WrongFile(
            f"Expected {tarball} to be the npm package of {family.package}, it cannot be read ({error}); "
            "delete it and build again."
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != family.sha256:
        raise WrongFile(
            f"Expected icons.json of {family.package} {family.version} with sha256 {family.sha256[:12]}, "
            f"got {found[:12]} from {tarball}; delete it and build again."
        )
    return json.loads(data)


def _plain(name: str) -> str:
    """The spelling that all families share: CLDR short names differ in case and punctuation alone."""
    return re.sub(r"['’:.()!,“”]", "", name.lower()).replace(" ", "-")


def svg(listing: dict, name: str) -> str | None:
    """A stand-alone SVG of one object, or None when the family does not draw it."""
    names = {_plain(key): key for key in [*listing.get("aliases", {}), *listing["icons"]]}
    key = names.get(_plain(name))
    alias: dict = {}
    while key is not None and key not in listing["icons"]:
        alias = listing["aliases"][key] | alias
        key = listing["aliases"][key]["parent"]
    if key is None:
        return None
    icon = listing["icons"][key] | {k: v for k, v in alias.items() if k != "parent"}
    left, top = icon.get("left", listing.get("left", 0)), icon.get("top", listing.get("top", 0))
    width = icon.get("width", listing.get("width", 16))
    height = icon.get("height", listing.get("height", 16))
    body = icon["body"].replace("currentColor", INK)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def render(text: str) -> np.ndarray:
    """Straight RGBA of an SVG, centred on a square without distortion: uint8 (96, 96, 4)."""
    try:
        import resvg_py
        from PIL import Image
    except ImportError as error:
        raise Unavailable(
            "Expected resvg-py to draw artwork, it is not installed; run `pip install efface[world]`."
        ) from error
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=SIZE, height=SIZE))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    picture.thumbnail((SIZE, SIZE))
    square.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return np.asarray(square)


def _key() -> str:
    words = [f"{f.package} {f.version} {f.sha256}" for f in FAMILIES] + [o.name for o in objects()] + [f"{SIZE} {INK}"]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def sprites(progress: Callable[[str], None] = lambda line: None) -> Sprites:
    """All sprites of the world, from the cache or drawn anew (about ten seconds) from the pinned packages.

    Raises `Unavailable` (no npm client, no resvg-py), `WrongFile` (a package is not the pinned one).
    """
    names = tuple(o.name for o in objects())
    path = cache_folder() / "art" / f"sprites-{_key()}.npz"
    if not path.is_file():
        pixels, rows = [], []
        for number, style in enumerate(styles()):
            family = next(f for f in FAMILIES if f.style == style)
            listing = icons(family, fetch(family))
            found = [(k, text) for k, name in enumerate(names) if (text := svg(listing, name))]
            pixels += [render(text) for _, text in found]
            rows += [(k, number) for k, _ in found]
            progress(f"{style}: {len(found)} of {len(names)} objects")
        table = np.asarray(rows, np.int64)
        write(path, Sprites(np.stack(pixels), table[:, 0], table[:, 1], names, styles()))
    return read(path)


def read(path: Path) -> Sprites:
    """Sprites from a bundle file. Raises `WrongFile` when it is missing, torn or not of this artwork."""
    try:
        with np.load(path, allow_pickle=False) as bundle:
            arrays = {key: bundle[key] for key in ("pixels", "objects", "styles")}
            said = str(bundle["digest"]) if "digest" in bundle else None
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise WrongFile(
            f"Expected a sprite bundle in {path}, it cannot be read ({error}); delete it and build again."
        ) from error
    if said is not None and said != _digest(arrays):
        raise WrongFile(
            f"Expected the sprites in {path} with checksum {said[:24]}, got {_digest(arrays)[:24]}; "
            "delete it and build again."
        )
    return Sprites(arrays["pixels"], arrays["objects"], arrays["styles"], tuple(o.name for o in objects()), styles())


def write(path: Path, sprites: Sprites) -> Path:
    """The sprites in one file that needs neither npm nor a network: `efface world train --bundle` reads it.

    Temporary name, then rename: a killed build or a full disk (`WrongFile`) leaves nothing behind.
    """
    arrays = {"pixels": sprites.pixels, "objects": sprites.objects, "styles": sprites.styles}
    stream, digest = io.BytesIO(), np.asarray(_digest(arrays))
    np.savez_compressed(stream, pixels=sprites.pixels, objects=sprites.objects, styles=sprites.styles, digest=digest)
    return write_bytes(path, stream.getvalue())


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Version of the artwork and checksum of what was drawn from it."""
    digest = hashlib.sha256()
    for key in ("pixels", "objects", "styles"):
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return f"{_key()} {digest.hexdigest()}"
