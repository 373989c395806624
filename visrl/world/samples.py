"""The small world's documents -> samples. Not a published benchmark: its numbers stand beside no paper's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from visrl.boxes import Box
from visrl.types import CoTSample, Picture

YES_NO = " Please answer yes or no."
LETTER = " Answer with the option's letter from the given choices directly."


def sample_of(row: dict[str, Any]) -> CoTSample:
    """A document of :mod:`visrl.world.documents` as a sample; its picture is drawn when it is opened."""
    task = row["id"].split(":")[1]
    question = row["question"]
    if "options" in row:
        question = " ".join([question, *(f"{letter}. {text}" for letter, text in zip("ABCD", row["options"], strict=True))])
    yes_no = row["answer"] in ("yes", "no")
    return CoTSample(
        id=row["id"],
        task=f"world_{task}",
        kind="rec" if task == "rec" else "qa",
        question=question,
        picture=_picture(row["picture"]),
        size=(row["size"][0], row["size"][1]),
        box=Box(*map(float, row["box"])) if "box" in row else None,
        answers=(row["answer"],) if row["answer"] else (),
        instruction=LETTER if "options" in row else YES_NO if yes_no else "",
        cluster=row["cluster"],
        group=row["group"],
        meta={key: row[key] for key in ("sort", "things", "options", "base", "turn") if key in row},
    )


def _picture(key: str) -> Picture:
    return Picture(f"world:{key}", lambda: _drawn(key))


@lru_cache(maxsize=32)
def _drawn(key: str) -> Any:
    from visrl.world.drawing import draw
    from visrl.world.splits import redraw

    return draw(redraw(key))


def samples(task: str, split: str = "test", limit: int | None = None) -> Iterator[CoTSample]:
    """Samples of ``rec``, ``pope``, ``mme``, ``mmbench`` or a domain, lazily."""
    from visrl.world.documents import documents

    return (sample_of(row) for row in documents(task, split, limit))
