"""Preference pairs of the small world from its true boxes: win = where the answer is, lose = another thing of the
same picture.

For analysis only: the method itself never sees a true box (docs/method.md d). Pictures are those of ``train`` that
the warm-up did not use.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from visrl.train.data.rows import Chain, Preference
from visrl.world.questions import Document, documents
from visrl.world.rng import Dice
from visrl.world.samples import sample_of
from visrl.world.splits import SFT_PICTURES, redraw


def world_pairs(limit: int | None = None) -> Iterator[Preference]:
    """One pair per question of ``rec``, in order, up to ``limit``; the losing thing is drawn by dice that hang on the
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
    lose = Dice("oracle", row["id"]).one(others)
    sample = sample_of(row, "train")
    win, wrong = (tuple(map(float, box)) for box in (truth, lose))
    return Preference(sample, "visrl_train", Chain(box=win), Chain(box=wrong))  # type: ignore[arg-type]  # four numbers each
