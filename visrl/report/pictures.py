"""Pictures for a page: shrunk to display size, within a budget, each once however many samples ask about it.

Without a server a page carries at most ``BUDGET`` bytes of pictures. Which samples get theirs is decided by kind of outcome, in
turn, evenly over the run: a page of 10,834 samples shows as many failures as successes. The rest is behind ``--serve``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import IO, TYPE_CHECKING

from visrl.core.boxes import Size
from visrl.core.types import Picture
from visrl.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

BUDGET = 14_000_000
"""Bytes of pictures in one page, as base64: with 1,000 samples' texts it stays below 20 MB."""
MOST = 1000
SIDES = ((100, 896), (300, 576), (MOST, 384))
"""(pictures, their longest side in pixels): few pictures are shown large."""
SERVED_SIDE = 1600


def side_for(n: int) -> int:
    """The longest side of each of ``n`` pictures in one page."""
    return next((side for most, side in SIDES if n <= most), SIDES[-1][1])


def encoded(image: Image, side: int) -> bytes:
    """WebP bytes of the picture, its longest side at most ``side``; small drawings without loss."""
    small = image.copy()
    small.thumbnail((side, side))
    out = io.BytesIO()
    lossless = max(image.size) <= 160
    small.save(out, "WEBP", quality=100 if lossless else 62, method=2, lossless=lossless)
    return out.getvalue()


@dataclass(slots=True)
class Album:
    """The distinct pictures of a page by number, and which of them are in it.

    refs: picture name -> number. errors: number -> why a picture cannot be shown. sizes: number -> width and
    height of the original, once it was opened.
    """

    refs: dict[str, int] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    sizes: dict[int, Size] = field(default_factory=dict)

    def number(self, picture: Picture | None) -> int | None:
        """The picture's number, given on first sight; None for no picture. Opens nothing."""
        if picture is None:
            return None
        if picture.ref not in self.refs:
            self.refs[picture.ref] = len(self.pictures)
            self.pictures.append(picture)
        return self.refs[picture.ref]

    def open(self, number: int, side: int) -> bytes | None:
        """WebP bytes of picture ``number``; None, with the reason in ``errors``, where it cannot be opened."""
        try:
            image = self.pictures[number].open()
        except PictureError as error:
            self.errors[number] = str(error)
            return None
        self.sizes[number] = image.size
        return encoded(image, side)

    def write(self, chosen: Iterable[int], out: IO[bytes], side: int) -> list[int]:
        """Data blocks ``<script id="p7">`` with data URIs, one picture in memory at a time; the numbers that fitted."""
        written: list[int] = []
        spent = 0
        for number in chosen:
            data = self.open(number, side)
            if data is None:
                continue
            block = b'<script type="text/plain" id="p%d">data:image/webp;base64,%b</script>\n'
            block %= (number, base64.b64encode(data))
            if spent + len(block) > BUDGET:
                break
            spent += out.write(block)
            written.append(number)
        return written


def choose(kinds: Mapping[str, Sequence[int]], most: int = MOST) -> list[int]:
    """At most ``most`` distinct picture numbers, taken from each kind of outcome in turn, evenly over its samples."""
    spread = [_spread(numbers, most) for numbers in kinds.values()]
    turns = (number for turn in zip_longest(*spread) for number in turn if number is not None)
    return list(dict.fromkeys(turns))[:most]


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """``numbers`` without repetition, at most ``most`` of them, at equal distances."""
    distinct = list(dict.fromkeys(numbers))
    step = max(1.0, len(distinct) / most)
    return [distinct[int(i * step)] for i in range(min(most, len(distinct)))]
