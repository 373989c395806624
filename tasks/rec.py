"""Referring expressions: RefCOCO and RefCOCO+ (UNC splits), RefCOCOg (UMD split), one row per sentence (docs/method.md c).

A row: img_path, expression, bbox (x1, y1, x2, y2 in pixels), width, height, image_id, sent_id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from visrl.core.boxes import Box
from visrl.core.types import CoTSample
from visrl.tasks.common import Row, text, whole_number


def sample(row: Row, task: str) -> CoTSample:
    """The sample of one sentence. Raises KeyError, TypeError or ValueError for a malformed row."""
    picture = text(row, "img_path")
    expression = text(row, "expression")
    return CoTSample(
        id=f"{whole_number(row, 'image_id')}_{whole_number(row, 'sent_id')}",
        task=task,
        kind="rec",
        question=expression,
        size=size(row),
        box=box(row["bbox"]),
        cluster=picture,
        meta={"picture": picture},
    )


def size(row: Row) -> tuple[int, int]:
    """(width, height) of a row, both at least 1."""
    width, height = whole_number(row, "width"), whole_number(row, "height")
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels")
    return width, height


def box(numbers: Any) -> Box:
    """x1, y1, x2, y2 in pixels. Raises TypeError or ValueError for anything but four finite numbers."""
    if not isinstance(numbers, list) or len(numbers) != 4:
        raise ValueError(f"bbox {numbers!r:.80} is not four numbers")
    if not {*map(type, numbers)} <= {int, float}:  # a bool is neither
        raise TypeError(f"bbox {numbers!r:.80} is not four numbers")
    x1, y1, x2, y2 = map(float, numbers)
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
