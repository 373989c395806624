"""The small world's documents as samples, for tasks, training and self-evolution alike. Their pictures are drawn when opened.

Not a published benchmark: its numbers stand beside no paper's. Instructions are the published benchmarks' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from visrl.core.types import CoTSample, Picture
from visrl.world.questions import Document, box_of, documents, true_box
from visrl.world.textured.scenery import PLAIN, Scenery

if TYPE_CHECKING:
    from PIL.Image import Image

YES_NO = " Please answer yes or no."
LETTER = "\nAnswer with the option's letter from the given choices directly."
_KEPT = ("sort", "things", "turn", "looks")


def sample_of(row: Document, task: str = "world") -> CoTSample:
    """One document as a sample of ``task``."""
    question, meta = row["question"], {key: row[key] for key in _KEPT if key in row}
    meta["picture"] = row["picture"]
    instruction = YES_NO if row["answer"] in ("yes", "no") else ""
    if "options" in row:
        meta["options"] = dict(zip("ABCD", row["options"], strict=True))
        question = "\n".join([question, *(f"{letter}. {text}" for letter, text in meta["options"].items())])
        instruction = LETTER
    return CoTSample(
        id=row["id"],
        task=task,
        kind="qa" if row["answer"] else "rec",
        question=question,
        picture=picture_of(row["picture"]),
        size=(row["size"][0], row["size"][1]),
        box=true_box(row) if "box" in row else None,
        answers=(row["answer"],) if row["answer"] else (),
        instruction=instruction,
        cluster=row["cluster"],
        group=row["group"],
        meta=meta,
        boxes=tuple(map(box_of, row.get("boxes", ()))),
    )


def samples(
    task: str, split: str = "test", limit: int | None = None, name: str = "world", scenery: Scenery = PLAIN
) -> Iterator[CoTSample]:
    """Samples of :func:`visrl.world.questions.documents`' tasks, lazily; ``name`` is the task they say they are of."""
    return (sample_of(row, name) for row in documents(task, split, limit, scenery))


def picture_of(key: str) -> Picture:
    """The picture of a document's key: ``split:index``, after ``textured:`` or ``deep:`` where it is not of the plain world."""
    return Picture(f"world:{key}", lambda: drawn(key))


@lru_cache(maxsize=64)
def drawn(key: str) -> Image:
    """The picture itself. The last few are kept: a picture is asked about more than once in a row."""
    from visrl.world import splits
    from visrl.world.deep import drawing, walls
    from visrl.world.textured import scenery

    if key.startswith(walls.PREFIX):
        return drawing.draw(walls.rewall(key))
    return scenery.draw(splits.redraw(key), scenery.undressed(key)[0])
