"""Referring expressions: RefCOCO and RefCOCO+ (UNC splits), RefCOCOg (UMD split), one row per sentence (docs/method.md c).

A row: img_path, expression, bbox (x1, y1, x2, y2 in pixels), width, height, image_id, sent_id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from visrl.core.boxes import Box, is_size
from visrl.core.types import CoTSample
from visrl.tasks.common import Row, text, whole_number


def sample(row: Row, task: str) -> CoTSample:
    """The sample of one sentence. Raises KeyError, TypeError or ValueError for a malformed row."""
    picture = text(row, "img_path")
    expression = text(row, "expression")
    extent, true_box = size(row), box(row["bbox"])
    _refuse_another_convention(true_box, extent)
    return CoTSample(
        id=f"{whole_number(row, 'image_id')}_{whole_number(row, 'sent_id')}",
        task=task,
        kind="rec",
        question=expression,
        size=extent,
        box=true_box,
        cluster=picture,
        meta={"picture": picture},
    )


_NUMBERS = frozenset({int, float})  # a bool is neither
_OVERHANG = 1.0  # pixels that an annotation may reach over an edge; none of the 57,457 published ones does


def _refuse_another_convention(found: Box, extent: tuple[int, int]) -> None:
    """Raises ValueError for a box that cannot be x1, y1, x2, y2 in pixels of its picture."""
    if 0 <= found.x1 < found.x2 <= extent[0] and 0 <= found.y1 < found.y2 <= extent[1] and found.x2 > 1.0:
        return
    if max(map(abs, found.xyxy)) <= 1.0 < min(extent):
        raise ValueError(f"bbox {list(found.xyxy)} is smaller than a pixel: fractions of the picture?")
    if found.is_empty:
        raise ValueError(f"bbox {list(found.xyxy)} has x2 <= x1 or y2 <= y1: x, y, width, height?")
    if found.x1 < 0 or found.y1 < 0 or found.x2 > extent[0] + _OVERHANG or found.y2 > extent[1] + _OVERHANG:
        raise ValueError(f"bbox {list(found.xyxy)} reaches outside its picture of {extent[0]} x {extent[1]} pixels")


def size(row: Row) -> tuple[int, int]:
    """(width, height) of a row, both at least 1."""
    width, height = whole_number(row, "width"), whole_number(row, "height")
    if not is_size(width, height):
        raise ValueError(f"a picture of {str(width)[:12]} x {str(height)[:12]} pixels")
    return width, height


def box(numbers: Any) -> Box:
    """x1, y1, x2, y2 in pixels. Raises TypeError or ValueError for anything but four finite numbers."""
    if not isinstance(numbers, list) or len(numbers) != 4:
        raise ValueError(f"bbox {numbers!r:.80} is not four numbers")
    if not {*map(type, numbers)} <= _NUMBERS:
        raise TypeError(f"bbox {numbers!r:.80} is not four numbers")
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except OverflowError as error:  # a whole number of over 300 digits
        raise ValueError("bbox holds a number that is too large") from error
    return Box(x1, y1, x2, y2)


def from_hub(row: Row) -> Iterator[Row]:
    """A row of jxu124/refcoco*, one per object, as rows of ours, one per sentence.

    The box is the annotation's own ``bbox`` (x, y, width, height), read from ``raw_anns``.
    """
    x, y, wide, high = json.loads(row["raw_anns"])["bbox"]
    picture = json.loads(row["raw_image_info"])
    for sentence in row["sentences"]:
        yield {
            "img_path": row["image_path"].rsplit("/", 1)[-1],
            "expression": sentence["sent"],
            "bbox": [x, y, x + wide, y + high],
            "width": picture["width"],
            "height": picture["height"],
            "image_id": row["image_id"],
            "sent_id": sentence["sent_id"],
        }
