"""Where to look, and what is cut out there.

A *focus* picks the box (the model's own, or a control), a *crop* turns box and picture into the second picture.
gold >= predicted >= random in accuracy, or something is broken.

Crops (docs/method.md a4), all returning integer pixels x1, y1, x2, y2 with x1 < x2, y1 < y2 inside the picture:
``viscot_square112``  the square of VisCoT's evaluation, never smaller than 224 px (half 112, also for 336-px models)
``tight``             the box itself, clipped; what VisRL's SFT data was cut with
``compat_visrl``      the official RL and stage-2 code's crop: square-frame numbers times W and H, without un-padding. Wrong for
                      every picture that is not square; kept to measure what that costs

Departures: 1. random and centre boxes are drawn over the picture, not over its padded square, half of which may be padding.
2. a crop that would be empty becomes one pixel wide or high; the official code raises there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Literal

from visrl.core.boxes import PIXEL, SQUARE, UNIT, Box, Size

Focus = Literal["predicted", "gold", "random", "centre", "full"]
FOCUSES: tuple[Focus, ...] = ("predicted", "gold", "random", "centre", "full")
Region = tuple[int, int, int, int]
_FAR = 2.0**40  # pixels: further out than any picture reaches, and near enough that sums of whole numbers stay exact


def random_box(size: Size, rng: random.Random) -> Box:
    """VisCoT's random control: centre uniform in the picture, half sides uniform up to half of it, clipped. Pixels."""
    cx, cy, half_w, half_h = rng.random(), rng.random(), 0.5 * rng.random(), 0.5 * rng.random()
    return Box(cx - half_w, cy - half_h, cx + half_w, cy + half_h, UNIT).to_pixel(size).clipped(size)


def control_box(focus: Focus, gold: Box | None, size: Size, rng: random.Random) -> Box:
    """The box of a control condition, in pixels. Raises ValueError where the sample has no true box or focus is predicted."""
    if focus == "gold":
        if gold is None:
            raise ValueError("this sample has no true box to look at")
        return gold
    if focus == "random":
        return random_box(size, rng)
    if focus == "centre":
        return Box(0.25, 0.25, 0.75, 0.75, UNIT).to_pixel(size)
    if focus == "full":
        return whole(size)
    raise ValueError("the predicted box comes from the model")


def whole(size: Size) -> Box:
    return Box(0.0, 0.0, float(size[0]), float(size[1]), PIXEL)


def viscot_square112(box: Box, size: Size) -> Region:
    """VisCoT's evaluation crop (model_cot_loader.py, cropwithbbox) of a pixel box.

    Half side = max of the box's half sides and 112; the centre is shifted so that the square lies inside the picture,
    then what still sticks out is cut.
    """
    x1, y1, x2, y2 = (min(max(0.0, value), _FAR) for value in box.xyxy)
    half = max((x2 - x1) // 2, (y2 - y1) // 2, 112.0)

    def side(low: float, high: float, length: int) -> tuple[int, int]:
        centre = (low + high) // 2
        centre += max(0.0, half - centre)
        centre -= max(0.0, centre + half - length)
        return int(max(0.0, centre - half)), int(min(float(length), centre + half))

    (left, right), (top, bottom) = side(x1, x2, size[0]), side(y1, y2, size[1])
    return _at_least_a_pixel((left, top, right, bottom), size)


def tight(box: Box, size: Size) -> Region:
    """The box clipped to the picture, rounded outwards to whole pixels."""
    x1, y1, x2, y2 = box.clipped(size).xyxy
    return _at_least_a_pixel((math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)), size)


def compat_visrl(box: Box, size: Size) -> Region:
    """The official crop in the wrong frame (docs/method.md g1): int(b * W), int(b * H) on padded-square numbers."""
    x1, y1, x2, y2 = (min(max(value, -_FAR), _FAR) for value in box.xyxy)
    near = Box(x1, y1, x2, y2)
    u1, v1, u2, v2 = near.to(SQUARE, size).xyxy
    region = Box(int(u1 * size[0]), int(v1 * size[1]), int(u2 * size[0]), int(v2 * size[1])).clipped(size)
    return _at_least_a_pixel((int(region.x1), int(region.y1), int(region.x2), int(region.y2)), size)


def _at_least_a_pixel(region: Region, size: Size) -> Region:
    x1, y1, x2, y2 = region
    x1, y1 = min(x1, size[0] - 1), min(y1, size[1] - 1)
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


CropName = Literal["viscot_square112", "tight", "compat_visrl"]
TRAINED_CROP: CropName = "tight"
"""What chains are trained and pairs sampled with where nobody says otherwise."""
CROPS: dict[str, Callable[[Box, Size], Region]] = {
    "viscot_square112": viscot_square112,
    "tight": tight,
    "compat_visrl": compat_visrl,
}
