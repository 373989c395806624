"""Boxes that know their frame of reference, and the one IoU everything is scored with.

A frame is what the four numbers are measured in: which area they span (the picture, or the padded square around it)
and how many units that area's sides have. All conversions are one formula, ``pixel = unit * side / extent - pad``:

=============  =========  ===================  =====================================================================
frame          area       extent               who uses it
=============  =========  ===================  =====================================================================
``PIXEL``      picture    its size in pixels   benchmarks; all scoring
``UNIT``       picture    (1, 1)               lmms-eval's REC, the ``compat_visrl`` crop
``SQUARE``     square     (1, 1)               LLaVA, VisCoT: (x + pad) / max(W, H)   (docs/method.md, a1)
``grid(n)``    picture    (n, n)               Qwen3-VL and InternVL (1000), PaliGemma (1024)
``resized``    picture    the resized size     Qwen2.5-VL: pixels of the picture as the model saw it
=============  =========  ===================  =====================================================================

Coordinates are always x1, y1, x2, y2; sizes are (width, height).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Size = tuple[int, int]
LONGEST_SIDE = 10**6
"""Pixels: no picture is larger, and a whole number of 400 digits fits no float."""


def is_size(width: Any, height: Any) -> bool:
    """Whether these are whole numbers of pixels that a picture can have."""
    whole = type(width) is int and type(height) is int  # a bool is none
    return whole and 1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE


@dataclass(frozen=True, slots=True)
class Frame:
    """A system of coordinates. ``extent`` is the number of units along x and y; None means pixels of the picture."""

    name: str
    area: Literal["picture", "square"] = "picture"
    extent: tuple[float, float] | None = None

    def origin(self, size: Size) -> tuple[float, float]:
        """Where this frame's zero lies, in pixels of the picture: (0, 0), or minus the pad of the square.

        The pad is ``|W - H| // 2``, an integer, because that is where expand2square really pastes the picture.
        """
        if self.area == "picture":
            return 0.0, 0.0
        side = max(size)
        return -float((side - size[0]) // 2), -float((side - size[1]) // 2)

    def unit(self, size: Size) -> tuple[float, float]:
        """Pixels per unit along x and y for a picture of ``size``."""
        if self.extent is None:
            return 1.0, 1.0
        spanned = size if self.area == "picture" else (max(size), max(size))
        return spanned[0] / self.extent[0], spanned[1] / self.extent[1]


PIXEL = Frame("pixel")
UNIT = Frame("unit", "picture", (1.0, 1.0))
SQUARE = Frame("square", "square", (1.0, 1.0))


def grid(n: int, area: Literal["picture", "square"] = "picture") -> Frame:
    """The frame of coordinates that run from 0 to ``n`` over the picture, or over its padded square."""
    return Frame(f"grid{n}" if area == "picture" else f"square-grid{n}", area, (float(n), float(n)))


def resized(size: Size) -> Frame:
    """The frame of pixels of a picture that was resized (not padded) to ``size`` = (width, height)."""
    return Frame(f"resized{size[0]}x{size[1]}", "picture", (float(size[0]), float(size[1])))


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle x1, y1, x2, y2 in ``frame``. Finite by construction; may be empty or reach outside the picture."""

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame = PIXEL

    def __post_init__(self) -> None:
        finite = math.isfinite
        if not (finite(self.x1) and finite(self.y1) and finite(self.x2) and finite(self.y2)):
            raise ValueError(f"a box needs four finite numbers, not {self.xyxy}")

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        return self.x1, self.y1, self.x2, self.y2

    @property
    def area(self) -> float:
        """Area in squared units of the frame; 0 for an empty or reversed box."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    @property
    def is_empty(self) -> bool:
        return self.x2 <= self.x1 or self.y2 <= self.y1

    @property
    def centre(self) -> tuple[float, float]:
        return (self.x1 + self.x2) / 2, (self.y1 + self.y2) / 2

    def to(self, frame: Frame, size: Size) -> Box:
        """The same rectangle in another frame, for a picture of ``size`` = (width, height) in pixels.

        Raises ValueError where a coordinate overflows there.
        """
        box = self.converted(frame, size)
        if box is None:
            raise ValueError(f"{self.xyxy} of {self.frame.name} has no finite coordinates in {frame.name}")
        return box

    def converted(self, frame: Frame, size: Size) -> Box | None:
        """As :meth:`to`, but None where a coordinate overflows: nothing that a model writes may raise."""
        if frame == self.frame:
            return self
        (ax, ay), (ux, uy) = self.frame.origin(size), self.frame.unit(size)
        (bx, by), (vx, vy) = frame.origin(size), frame.unit(size)
        numbers = (
            (self.x1 * ux + ax - bx) / vx,
            (self.y1 * uy + ay - by) / vy,
            (self.x2 * ux + ax - bx) / vx,
            (self.y2 * uy + ay - by) / vy,
        )
        return Box(*numbers, frame) if all(map(math.isfinite, numbers)) else None

    def to_pixel(self, size: Size) -> Box:
        """In pixels of the original picture, the frame all scoring happens in."""
        return self.to(PIXEL, size)

    def clipped(self, size: Size) -> Box:
        """A pixel box cut at the edges of a picture of ``size``; may come out empty."""
        if self.frame != PIXEL:
            raise ValueError(f"clip pixel boxes, not {self.frame.name}")
        width, height = size
        return Box(
            min(max(self.x1, 0.0), width),
            min(max(self.y1, 0.0), height),
            min(max(self.x2, 0.0), width),
            min(max(self.y2, 0.0), height),
        )

    def contains(self, x: float, y: float) -> bool:
        return self.x1 <= x <= self.x2 and self.y1 <= y <= self.y2


def hull(boxes: Sequence[Box]) -> Box:
    """The smallest box around several of one frame: VisCoT's rule for questions with more than one box."""
    frames = {box.frame for box in boxes}
    if len(frames) != 1:
        raise ValueError(f"hull needs boxes of one frame, got {sorted(f.name for f in frames)}")
    return Box(
        min(b.x1 for b in boxes),
        min(b.y1 for b in boxes),
        max(b.x2 for b in boxes),
        max(b.y2 for b in boxes),
        boxes[0].frame,
    )


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0..1. Empty and reversed boxes have area 0, and two of them have IoU 0.

    Raises ValueError for boxes of different frames: convert both to pixels first.
    """
    if a.frame != b.frame:
        raise ValueError(f"iou of a {a.frame.name} box and a {b.frame.name} box: convert both to pixels first")
    width = min(a.x2, b.x2) - max(a.x1, b.x1)
    height = min(a.y2, b.y2) - max(a.y1, b.y1)
    if width <= 0.0 or height <= 0.0:
        return 0.0
    inter = width * height
    union = a.area + b.area - inter
    if _SMALLEST < union < _LARGEST:
        return inter / union
    return _iou_of_extremes(a, b)


_SMALLEST, _LARGEST = 1e-290, 1e300
"""Between these an area has all its digits, and a sum of two does not overflow."""


def _iou_of_extremes(a: Box, b: Box) -> float:
    """The IoU of boxes whose areas over- or underflow: each axis is divided by a power of two first, which is exact."""
    ax, bx = _scaled((a.x1, a.x2), (b.x1, b.x2))
    ay, by = _scaled((a.y1, a.y2), (b.y1, b.y2))
    inter = max(0.0, min(ax[1], bx[1]) - max(ax[0], bx[0])) * max(0.0, min(ay[1], by[1]) - max(ay[0], by[0]))
    areas = [max(0.0, x[1] - x[0]) * max(0.0, y[1] - y[0]) for x, y in ((ax, ay), (bx, by))]
    union = sum(areas) - inter
    return min(inter / union, 1.0) if union > 0.0 else 0.0


def _scaled(a: tuple[float, float], b: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both sides of an axis divided by the power of two that brings the largest magnitude below one."""
    exponent = -math.frexp(max(map(abs, (*a, *b))))[1]
    low, high, other_low, other_high = (math.ldexp(value, exponent) for value in (*a, *b))
    return (low, high), (other_low, other_high)


def iou_arrays(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Row-wise IoU of ``a`` [N, 4] and ``b`` [N, 4], xyxy in one frame the caller vouches for; returns [N].

    The arithmetic of :func:`iou`, vectorised; rows with NaN (nothing parsed) score 0.
    """
    import numpy as np

    def area(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        return np.maximum(x[:, 2] - x[:, 0], 0) * np.maximum(x[:, 3] - x[:, 1], 0)

    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        wide = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
        high = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
        meets = (wide > 0) & (high > 0)
        inter = np.where(meets, wide * high, 0.0)
        union = area(a) + area(b) - inter
        sound = meets & (union > _SMALLEST) & (union < _LARGEST)
    scores = np.divide(inter, union, out=np.zeros(len(inter)), where=sound)
    for row in np.flatnonzero(meets & ~sound):
        scores[row] = _iou_of_extremes(Box(*a[row].tolist()), Box(*b[row].tolist()))
    return np.asarray(scores, dtype=np.float64)


def smart_resized(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """(width, height) that Qwen's processors resize a picture of ``size`` to: sides multiples of ``factor``, area within limits.

    Raises ValueError for a picture longer than 200 times its width, as they do.
    """
    width, height = size
    if max(size) / min(size) > 200:
        raise ValueError(f"a picture of {width} x {height} pixels is more than 200 times as long as wide")
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in size)  # type: ignore[return-value]
    if wide * high < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        return tuple(math.ceil(side * grow / factor) * factor for side in size)  # type: ignore[return-value]
    return wide, high
