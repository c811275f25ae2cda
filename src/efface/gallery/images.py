"""Pictures on disk, by the key of all that decides their pixels."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from efface.errors import WrongFile
from efface.files import write_bytes
from efface.untrusted.documents import bytes_of

MOST_PIXELS = 2**26  # of one picture: a few kilobytes may unfold into gigabytes
_KEY = re.compile(r"[0-9a-f]{32}")


_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def pixel_hash(image: np.ndarray) -> str:
    """Of the decoded values: the PNG's compression and metadata do not matter. image: (h, w, 3) uint8."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:32]


class Images:
    """Images by draw key, as PNG; `has` trusts only files that were renamed into place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where an image lies. Raises WrongFile for what is no key: records come from strangers too."""
        if not _KEY.fullmatch(key):
            raise WrongFile(f"{key[:60]!r} is no name of an image; the records or the plan that name it are damaged")
        return self.folder / key[:2] / f"{key}.png"

    def has(self, key: str) -> bool:
        return self.path(key).exists()

    def keys(self) -> Iterator[str]:
        """Every image that is there."""
        return (f.stem for f in self.folder.glob("??/*.png") if not f.name.startswith("."))

    def put(self, key: str, image: np.ndarray) -> None:
        """image: (h, w, 3) uint8. An image that is there already stays: records may speak of it."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        self.put_png(key, buffer.getvalue())

    def put_png(self, key: str, data: bytes) -> None:
        """A PNG file's bytes. An image that is there already stays."""
        if not self.has(key):
            write_bytes(self.path(key), data, sync=False)

    def adopt(self, other: Images, keys: Iterable[str]) -> None:
        """Hold the images of `other` too: a second name of the same file where the disk can, else a copy."""
        for key in keys:
            source, target = other.path(key), self.path(key)
            if target.exists() or not source.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target)
            except FileExistsError:
                continue
            except OSError:
                write_bytes(target, source.read_bytes(), sync=False)

    def drop(self, key: str) -> None:
        with suppress(OSError):
            self.path(key).unlink(missing_ok=True)

    def png(self, key: str) -> bytes:
        """The file's bytes. Raises WrongFile."""
        path = self.path(key)
        try:
            return bytes_of(path)
        except WrongFile:
            raise WrongFile(f"the image {key} is gone; run the same command again to redraw it") from None

    def get(self, key: str) -> np.ndarray:
        """(h, w, 3) uint8. A torn file is deleted and raises WrongFile."""
        try:
            return _decoded(self.png(key))
        except ValueError:
            self.drop(key)
            raise WrongFile(f"the image {key} was damaged and is deleted; run the same command again") from None

    def whole(self, key: str, pixels: str | None = None) -> bool:
        """True unless the file is damaged or, where `pixels` is known, holds other pixels. An absent one is whole."""
        if not self.has(key):
            return True
        try:
            found = _decoded(self.png(key))
        except ValueError:
            return False
        return pixels is None or pixel_hash(found) == pixels


def _decoded(data: bytes) -> np.ndarray:
    """(h, w, 3) uint8. Raises ValueError for what is no picture, and for one that is too large to be drawn here."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders of damaged files raise whatever they come upon
        raise ValueError(f"no picture: {error}") from None


def read_images(folder: Path) -> dict[str, np.ndarray]:
    """Every picture of a user's folder by its path inside -> (h, w, 3) uint8. Nothing is changed.

    Raises WrongFile for a missing or empty folder, and for broken pictures, all of which it names (ten at most).
    """
    if not folder.is_dir():
        raise WrongFile(f"there is no image folder {folder}; check the path")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _PICTURES and f.is_file())
    if not files:
        raise WrongFile(f"{folder} holds no image ({', '.join(_PICTURES)}); name the folder with the pictures")
    found, broken = {}, []
    for file in files:
        try:
            found[file.relative_to(folder).as_posix()] = _decoded(bytes_of(file))
        except (ValueError, WrongFile):
            broken.append(file.relative_to(folder).as_posix())
    if broken:
        raise WrongFile(
            f"{len(broken)} of {len(files)} pictures in {folder} cannot be read: {', '.join(broken[:10])}; "
            "fetch them again or take them out"
        )
    return found
