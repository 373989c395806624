"""Several true boxes, or none: predicted boxes matched one to one with the true ones.

f1@0.5 of a sample: pairs are chosen so that their IoUs sum to the most, each box in at most one (Hungarian matching); a pair with
IoU > 0.5, strictly, is a hit. F1 = 2 hits / (predicted + true); 1 where a scene is empty and nothing was predicted, 0 where only
one of the two is.

One-box metrics (scorers/rec.py) take the box that the parser says: under ``lenient`` the first, under ``strict`` and ``vlm_r1``
the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from visrl.core.boxes import Box, iou


def matched(predicted: Sequence[Box], true: Sequence[Box]) -> list[tuple[int, int, float]]:
    """(predicted, true, IoU) of the pairs that overlap, each box in one at most. Boxes are of one frame, else ValueError."""
    from scipy.optimize import linear_sum_assignment

    if not predicted or not true:
        return []
    overlaps = np.array([[iou(box, other) for other in true] for box in predicted])
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column, float(overlaps[row, column])) for row, column in pairs if overlaps[row, column] > 0.0]


def f1_at(predicted: Sequence[Box], true: Sequence[Box], threshold: float = 0.5) -> float:
    """F1 of a sample's boxes, 0..1, with IoU above ``threshold`` as a hit. Raises ValueError for boxes of different frames."""
    if not predicted and not true:
        return 1.0
    hits = sum(overlap > threshold for _, _, overlap in matched(predicted, true))
    return 2.0 * hits / (len(predicted) + len(true))
