"""Do training boxes lie in their pictures? Some published rows do not; where most do not, it is another frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from visrl.core.boxes import Box, Size
from visrl.errors import UsageError

OUTSIDE = "box outside the picture"


class Placed(Protocol):
    """A training row: its id, and (width, height) of its picture where that is known."""

    @property
    def id(self) -> str: ...

    @property
    def size(self) -> Size | None: ...


Row = TypeVar("Row", bound=Placed)


def is_outside(box: Box, size: Size) -> bool:
    """Whether less than half of a pixel box lies in its picture. An empty box is not outside, but empty."""
    return box.clipped(size).area < box.area / 2


def is_fraction(box: Box, size: Size) -> bool:
    """Whether a box is smaller than a pixel in a corner, as fractions of a picture are."""
    return max(map(abs, box.xyxy)) <= 1.0 < min(size)


def in_their_pictures(
    rows: Iterable[Row], boxes_of: Callable[[Row], Iterable[Box]], source: object, left_out: dict[str, int]
) -> list[Row]:
    """The rows whose boxes lie in their pictures; the others are counted in ``left_out``. Rows of unknown size stay.

    Raises UsageError naming the first row where most boxes are in another frame than pixels of the original picture.
    """
    kept: list[Row] = []
    outside: list[str] = []
    fractions: list[str] = []
    n = 0
    for row in rows:
        boxes = [] if row.size is None else list(boxes_of(row))
        n += bool(boxes)
        if row.size is not None and any(is_fraction(box, row.size) for box in boxes):
            fractions.append(row.id)
        if row.size is not None and any(is_outside(box, row.size) for box in boxes):
            outside.append(row.id)
        else:
            kept.append(row)
    if 2 * len(fractions) > n:
        raise _another_frame(source, fractions, n, "are smaller than a pixel: fractions of the picture?")
    if 2 * len(outside) > n:
        raise _another_frame(source, outside, n, "lie outside their pictures: of resized ones, or x, y, width, height?")
    if outside:
        left_out[OUTSIDE] = len(outside)
    return kept


def _another_frame(source: object, which: list[str], n: int, what: str) -> UsageError:
    return UsageError(
        f"{source}: the boxes of {len(which)} of {n} rows {what} (first: {which[0]})",
        "boxes are x1, y1, x2, y2 in pixels of the original picture",
    )
