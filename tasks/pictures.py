"""Pictures by name: found under a data folder's ``images/``, opened strictly and only when somebody looks.

lmms-eval turns Pillow's LOAD_TRUNCATED_IMAGES on for the whole process, which scores half a picture as if it were whole. Here
it is off while a picture is decoded: a truncated file is a PictureError, and its sample is unscored.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from visrl.core.boxes import Size
from visrl.core.types import Picture
from visrl.errors import PictureError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES_VARIABLE = "VISRL_IMAGES"
LINKS_VARIABLE = "VISRL_FOLLOW_LINKS"
"""1: links below a folder of pictures may lead out of it."""
_decoding = threading.Lock()
_seen_on = threading.Event()


@dataclass(frozen=True, slots=True)
class Library:
    """The folder of pictures, and the places in it where a name is looked up. ``root`` None: there is no folder.

    places: patterns of ``{name}``, ``{parent}`` and ``{file}``, the name's folder and last part.
    """

    root: Path | None
    places: tuple[str, ...] = ("{name}",)

    @staticmethod
    def of(data: Path | None, places: tuple[str, ...]) -> Library:
        """``DIR/images``; without a data folder, the folder that VISRL_IMAGES names."""
        return _library(data, places, os.environ.get(IMAGES_VARIABLE))

    def require(self) -> None:
        """Raises UsageError if there is no folder of pictures at all."""
        if self.root is None:
            raise UsageError(
                "these documents do not contain their pictures",
                f"name the folder of pictures: {IMAGES_VARIABLE}=DIR, or --data DIR",
            )
        if not self.root.is_dir():
            raise UsageError(
                f"no pictures: {self.root} is not a folder", "docs/data.md describes where to put pictures"
            )

    @staticmethod
    def check(name: str, where: str) -> None:
        """Raises UsageError for a name that would leave the folder of pictures: absolute, with ``..``, or of another system."""
        parts = name.split("/")
        if (
            name in ("", ".")
            or name.startswith("/")
            or ".." in parts
            or "\\" in name
            or ":" in parts[0]
            or "\0" in name
        ):
            raise UsageError(f"{where}: {name!r:.120} is not the name of a picture", "names are relative, without ..")

    def picture(self, name: str) -> Picture:
        """The picture of this name; opening it raises PictureError where it is missing or damaged."""
        return Picture(name, lambda: self._open(name))

    def packed(self, name: str, data: Callable[[], bytes]) -> Picture:
        """The picture whose encoded bytes stand in the documents themselves."""
        return Picture(name, lambda: decoded(data(), name))

    def tried(self, name: str) -> list[str]:
        """Where a picture of this name may lie, below the folder, in the order in which it is looked for."""
        parent, _, file = name.rpartition("/")
        return list(dict.fromkeys(place.format(name=name, parent=parent, file=file) for place in self.places))

    def find(self, name: str) -> Path | None:
        """The file of a picture; None where there is none. Raises UsageError where a link below the folder leads out of it."""
        if self.root is None:
            return None
        for place in self.tried(name):
            if _is_file(self.root / place):
                if _leads_out(self.root, place):
                    raise UsageError(
                        f"picture {name!r:.120} is a symbolic link that points outside {self.root}",
                        f"set {LINKS_VARIABLE}=1 if you trust the data, or make {self.root.name} itself the link",
                    )
                return self.root / place
        return None

    def _open(self, name: str) -> Image:
        if self.root is None:
            raise PictureError(f"no folder of pictures to look up {name}")
        try:
            path = self.find(name)
            if path is None:
                raise PictureError(f"no picture {name} in {self.root.name}/ (looked for {', '.join(self.tried(name))})")
            return decoded(path.read_bytes(), name)
        except UsageError as error:
            raise PictureError(error.message) from error
        except OSError as error:
            raise PictureError(f"{name} cannot be read: {error.strerror or error}") from error


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is longer than the file system takes is no file's."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def _leads_out(root: Path, place: str) -> bool:
    """Whether a part of the path below ``root`` is a link, and its end lies elsewhere. ``root`` itself may be any link."""
    if os.environ.get(LINKS_VARIABLE) == "1":
        return False
    parts = place.split("/")
    if not any((root / "/".join(parts[:n])).is_symlink() for n in range(1, len(parts) + 1)):
        return False
    return not (root / place).resolve().is_relative_to(root.resolve())


@dataclass(frozen=True, slots=True)
class Missing:
    """Pictures by name that have no file, of ``n`` in all, and where the first was looked for below ``folder``."""

    names: Sequence[str]
    n: int
    folder: str
    tried: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    def __str__(self) -> str:
        """``10,814 of 10,834 pictures missing under data/images (first: a.jpg; looked for a.jpg, train2014/a.jpg)``."""
        looked = ", ".join(self.tried)
        first = f"first: {self.names[0]}" + (f"; looked for {looked}" if looked not in ("", self.names[0]) else "")
        return f"{len(self.names):,} of {self.n:,} pictures missing under {self.folder} ({first})"


@lru_cache(maxsize=64)  # asked for every row of a benchmark
def _library(data: Path | None, places: tuple[str, ...], named: str | None) -> Library:
    return Library(data / "images" if data is not None else Path(named) if named else None, places)


@contextmanager
def _strictly() -> Iterator[None]:
    from PIL import ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        _seen_on.set()
    if not _seen_on.is_set():  # strict already, and not because another thread has made it so for a moment
        yield
        return
    with _decoding:  # the switch belongs to the process
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is decoded; a camera's MPO is a JPEG. Not EPS, which runs Ghostscript, nor what no benchmark uses."""
MAX_PIXELS = 100_000_000
"""Width times height of the largest picture that is decoded: 300 MB as RGB."""


def decoded(data: bytes, name: str) -> Image:
    """An RGB image of encoded bytes, in the file's own orientation: annotations are in its raw pixels.

    Raises PictureError for anything that is not one of FORMATS, cannot be decoded completely, or has over MAX_PIXELS.
    """
    from PIL import Image as PillowImage

    try:
        with _strictly(), PillowImage.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{name}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            return as_rgb(image)
    except PictureError:
        raise
    except Exception as error:
        reason = "not a picture in a known format" if type(error).__name__ == "UnidentifiedImageError" else error
        raise PictureError(f"{name}: {reason or type(error).__name__}") from error


def measured(source: bytes | Path, name: str) -> Size:
    """(width, height) that :func:`decoded` gives a picture, from its header alone: no pixel is decoded, and of a file only the
    beginning is read. source: encoded bytes, or the file. Raises PictureError for anything that is not one of FORMATS.
    """
    from PIL import Image as PillowImage

    try:
        with PillowImage.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            return image.size
    except Exception as error:
        raise PictureError(f"{name}: {error or type(error).__name__}") from error


def as_rgb(image: Image) -> Image:
    """``convert("RGB")``, which cuts greys of more than 8 bits off at 255: those are scaled to 0..255 first.

    Of 16-bit greys the high byte counts, as where they are saved with 8 bits. 32-bit whole numbers and fractions say nothing of
    their scale: the smallest of 0..1 (fractions), 0..255 and 0..65,535 that holds them, else from their least to their greatest.
    """
    if image.mode.startswith("I;16"):
        return _scaled(image, 0.0, 65_535.0)
    if image.mode not in ("I", "F"):
        return image.convert("RGB")
    low, high = _extrema(image)
    tops = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
    top = next((top for top in tops if low >= 0.0 and high <= top), None)
    return _scaled(image, 0.0, top) if top is not None else _scaled(image, low, high)


def _extrema(image: Image) -> tuple[float, float]:
    """The least and the greatest finite value of one band; 0 and 0 where there is none."""
    import numpy as np

    greys = np.asarray(image).astype(np.float64)
    finite = greys[np.isfinite(greys)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _scaled(image: Image, low: float, high: float) -> Image:
    """Greys from ``low`` to ``high`` as 0..255, in three equal bands."""
    import numpy as np
    from PIL import Image as PillowImage

    greys = np.nan_to_num(np.asarray(image).astype(np.float64)) - low
    bits16 = (low, high) == (0.0, 65_535.0)
    eight = np.floor(greys / 256.0) if bits16 else np.rint(greys * (255.0 / ((high - low) or 1.0)))
    return PillowImage.fromarray(np.clip(eight, 0, 255).astype(np.uint8)).convert("RGB")
