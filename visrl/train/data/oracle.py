"""Preference pairs of the small world from its true boxes: chosen = where the answer is, rejected = another thing of the
same picture.

For analysis only: the method itself never sees a true box (docs/method.md d). Pictures are those of ``train`` that
the warm-up did not use.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from visrl.core.boxes import Box
from visrl.train.data.candidates import Candidate, Preference
from visrl.world.questions import Document, documents
from visrl.world.rng import Dice
from visrl.world.samples import sample_of
from visrl.world.splits import SFT_PICTURES, redraw


def world_pairs(limit: int | None = None) -> Iterator[Preference]:
    """One pair per question of ``rec``, in order, up to ``limit``; the rejected thing is drawn by dice that hang on the
    row's id.
    """
    rows = (row for row in documents("rec", "train") if _index(row) >= SFT_PICTURES)
    return islice((pair for row in rows if (pair := _pair(row)) is not None), limit)


def _index(row: Document) -> int:
    return int(str(row["picture"]).rpartition(":")[2])


def _pair(row: Document) -> Preference | None:
    truth = tuple(map(float, row["box"]))
    others = [thing.box for thing in redraw(row["picture"]).things if tuple(map(float, thing.box)) != truth]
    if not others:
        return None
    other = Dice("oracle", row["id"]).one(others)
    sample = sample_of(row, "train")
    chosen, rejected = (Candidate(Box(float(x1), float(y1), float(x2), float(y2))) for x1, y1, x2, y2 in (truth, other))
    return Preference(sample, "visrl_train", chosen, rejected)
