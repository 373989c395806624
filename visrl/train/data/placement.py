"""Do training boxes lie in their pictures? Some published rows do not; where most do not, it is another frame.

One step behind all loaders (load.py, questions.py), whatever the format: sizes that rows do not give are read from the headers
of their pictures. Also how what was left out is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from visrl.core.boxes import SQUARE, Box, Size
from visrl.errors import PictureError, UsageError
from visrl.tasks.pictures import Missing
from visrl.train.data.rows import ChainRow, PairRow, QuestionRow, size_in

LEAST = 20  # rows by which a frame is judged, where the data have as many
OUTSIDE = "box outside the picture"
CORNER = "box smaller than a pixel"
PIXELS = "boxes are x1, y1, x2, y2 in pixels of the original picture"

IN_COLUMNS = f"{PIXELS}; data.dataset says others: frame: unit, boxes: xywh"
ON_SQUARE = "chosen_step and rejected_step are x1, y1, x2, y2 in fractions of the padded square"


class Placed(Protocol):
    """A training row: its id, its picture, and (width, height) of that where the row gives it."""

    @property
    def id(self) -> str: ...

    @property
    def picture(self) -> str: ...

    @property
    def size(self) -> Size | None: ...


Row = TypeVar("Row", bound=Placed)


def is_outside(box: Box, size: Size) -> bool:
    """Whether less than half of a pixel box lies in its picture. An empty box is not outside, but empty."""
    return box.clipped(size).area < box.area / 2


def is_fraction(box: Box, size: Size) -> bool:
    """Whether a box is smaller than a pixel in a corner, as fractions of a picture are."""
    return max(map(abs, box.xyxy)) <= 1.0 < min(size)


@lru_cache(maxsize=2**20)
def _measured(folder: Path, name: str) -> Size | None:
    """Kept for the process: recipes are checked before they are run, and a picture has many questions."""
    try:
        return size_in(folder, name)
    except PictureError:
        return None


def as_is(size: Size) -> Size:
    """The picture itself."""
    return size


@dataclass(slots=True)
class Placement(Generic[Row]):
    """Hands on the rows whose boxes lie in their pictures, and counts the others in ``left_out``.

    source: how errors name the data. boxes_of: a row's boxes in pixels, given the size of its picture. area: the area they are to
    lie in, given the same: the picture itself, unless their frame has another. folder: that pictures are named relative to.
    sampled: boxes are a model's, and one smaller than a pixel is what it said: such rows count for the frame, but stay.

    A picture's header is read once, and only for a row that has boxes and no ``size``. Where it cannot be read, the row stays:
    the picture is named when it is opened.
    """

    source: object
    boxes_of: Callable[[Row, Size], Iterable[Box]]
    folder: Path
    left_out: dict[str, int]
    area: Callable[[Size], Size] = as_is
    hint: str = PIXELS
    sampled: bool = False
    n: int = 0
    outside: list[str] = field(default_factory=list)
    fractions: list[str] = field(default_factory=list)

    def kept(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows, one at a time, but those with a box elsewhere."""
        for row in rows:
            if self._is_placed(row):
                yield row

    def check(self, rest: Iterable[Row]) -> None:
        """When the rows have been looked at. Raises UsageError naming the first row where most boxes are in another frame.

        rest: the rows behind a limit. The first few may be odd ones: of these, up to LEAST in all are looked at.
        """
        used = dict(self.left_out)
        for row in rest:
            if self.n >= LEAST:
                break
            self._is_placed(row)
        self.left_out.clear()
        self.left_out.update(used)
        if 2 * len(self.fractions) > self.n:
            raise self._another_frame(self.fractions, "are smaller than a pixel: fractions of the picture?")
        if 2 * len(self.outside) > self.n:
            what = "lie outside their pictures: of resized ones, or x, y, width, height?"
            raise self._another_frame(self.outside, what)

    def size_of(self, row: Row) -> Size | None:
        """(width, height) of a row's picture; None where neither the row nor a header says it."""
        return row.size if row.size is not None else _measured(self.folder.absolute(), row.picture)

    def _is_placed(self, row: Row) -> bool:
        if not list(self.boxes_of(row, (1, 1))) or (size := self.size_of(row)) is None:
            return True
        self.n += 1
        boxes, area = list(self.boxes_of(row, size)), self.area(size)
        if any(is_fraction(box, area) for box in boxes):
            self.fractions.append(row.id)
            if not self.sampled:
                self._leave_out(CORNER)
                return False
        if any(is_outside(box, area) for box in boxes):
            self.outside.append(row.id)
            self._leave_out(OUTSIDE)
            return False
        return True

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def _another_frame(self, which: list[str], what: str) -> UsageError:
        return UsageError(
            f"{self.source}: the boxes of {len(which)} of {self.n} rows {what} (first: {which[0]})", self.hint
        )


def boxes_of_chain(row: ChainRow, size: Size) -> list[Box]:
    """The boxes of a chain in pixels; none under ``direct``."""
    return [Box(*box) for box in (row.chain.box, *(row.chain.looks or ())) if box is not None]


def boxes_of_pair(row: PairRow, size: Size) -> list[Box]:
    """The boxes of both chains in pixels."""
    chains = (row.chosen, row.rejected)
    return [Box(*box) for chain in chains for box in (chain.box, *(chain.looks or ())) if box is not None]


def boxes_of_question(row: QuestionRow, size: Size) -> list[Box]:
    """The true boxes in pixels, where they are known."""
    return [Box(*box) for box in (row.box, *row.boxes) if box is not None]


def boxes_on_square(row: PairRow, size: Size) -> list[Box]:
    """The boxes of both chains in pixels of the padded square: what was written there may lie beside the picture."""
    x, y = SQUARE.origin(size)
    return [Box(box.x1 - x, box.y1 - y, box.x2 - x, box.y2 - y) for box in boxes_of_pair(row, size)]


def square(size: Size) -> Size:
    """(side, side) of the square that a picture of ``size`` is padded to."""
    return max(size), max(size)


def reasons(left_out: Mapping[str, int], rows: int, missing: Missing) -> str:
    """What was left out and why, for stderr; empty where nothing was. rows: without their picture."""
    said = [f"{count:,} {reason}" for reason, count in sorted(left_out.items())]
    return "; ".join([*said, *([f"{rows:,} without their picture: {missing}"] if missing else [])])
