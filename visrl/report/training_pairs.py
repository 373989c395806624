"""Preference pairs as cards of a training page: the picture with both boxes, both answers, what critics scored."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from visrl.errors import PictureError, UsageError
from visrl.report.pictures import encoded
from visrl.report.text import clip, line

PAIRS_SHOWN = 60
AT_FIRST = 6
"""Pairs that are open to see; the rest is behind a click."""


@dataclass(frozen=True, slots=True)
class PairCard:
    """A preference pair. chosen, rejected: x, y, width, height in pixels, or None; picture: a data URI or "".

    chosen_said, rejected_said: the box as the model wrote it.
    """

    question: str
    size: tuple[int, int] | None
    picture: str
    chosen: tuple[float, float, float, float] | None
    rejected: tuple[float, float, float, float] | None
    chosen_answer: str
    rejected_answer: str
    chosen_scores: str
    rejected_scores: str
    chosen_said: str
    rejected_said: str


def cards(path: Path, settings: Any) -> Iterable[PairCard]:
    """The first pairs of a file. settings: of the phase, for the folder of its pictures. Raises UsageError for a damaged file."""
    from visrl.train.data.rows import PairRow, read_rows

    folder = data_folder(settings, path.parent)
    return [_card(row, folder) for row in islice(read_rows(path, PairRow), PAIRS_SHOWN)]


def data_folder(settings: Any, otherwise: Path) -> Path:
    """The folder of a phase's pictures, by its settings."""
    data = settings.get("data") if isinstance(settings, Mapping) else None
    named = data.get("pictures") if isinstance(data, Mapping) else None
    return Path(named) if isinstance(named, str) and named else otherwise


def _card(row: Any, folder: Path) -> PairCard:
    picture, size = picture_data(row.picture, folder)
    return PairCard(
        clip(row.question, 400),
        row.size or size,
        picture,
        rectangle(_box(row.chosen)),
        rectangle(_box(row.rejected)),
        clip(row.chosen.answer, 300),
        clip(row.rejected.answer, 300),
        _scores(row.chosen.scores),
        _scores(row.rejected.scores),
        clip(_said(row.chosen), 300),
        clip(_said(row.rejected), 300),
    )


def _box(chain: Any) -> tuple[float, float, float, float] | None:
    """A chain's box; of several looks the last one."""
    return chain.box or next((box for box in reversed(chain.looks or ()) if box is not None), None)


def _said(chain: Any) -> str:
    """The box as a model wrote it; of several looks every turn."""
    return chain.box_text or "\n".join(text for text in chain.look_texts or () if text is not None)


def picture_data(name: str, folder: Path) -> tuple[str, tuple[int, int] | None]:
    """A data URI and the original's size; "" and None where there is no such picture below ``folder``."""
    from visrl.train.data.rows import picture_in

    try:
        image = picture_in(folder, name).open()
    except (PictureError, UsageError):
        return "", None
    data = base64.b64encode(encoded(image, 384)).decode()
    return f"data:image/webp;base64,{data}", image.size


def rectangle(box: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    """x, y, width and height of x1, y1, x2, y2."""
    return None if box is None else (box[0], box[1], box[2] - box[0], box[3] - box[1])


def _scores(scores: Mapping[str, float]) -> str:
    return " · ".join(f"{line(name, 30)} {value:.2g}" for name, value in scores.items())
