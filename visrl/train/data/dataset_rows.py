"""Rows of the ``datasets`` library: a folder of ``save_to_disk``, a folder or file that ``load_dataset`` reads, or a hub id.

``data.dataset.columns`` says which column is what (``question: query``); a column that has our name needs no word. Pictures
stay in their rows (dataset_tables.py); where the column holds texts these are files below ``data.pictures``. Conversations
(``messages`` or ``conversations``) are read as format ``llava`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visrl.core.boxes import Box
from visrl.core.json_files import MALFORMED, reason
from visrl.errors import PictureError, UsageError, nearest
from visrl.tasks.pictures import measured
from visrl.train.config.section import DatasetSection
from visrl.train.data.dataset_tables import (
    DATASET,
    Place,
    label_names,
    picture_columns,
    picture_names,
    stored_bytes,
    table_of,
)
from visrl.train.data.importers import Imported, llava_rows
from visrl.train.data.rows import Chain, ChainRow, Sized

FIELDS = (
    *("id", "image", "question", "instruction", "answer", "answers", "box", "looks", "kind", "protocol", "size"),
    *("messages", "conversations"),
)


def dataset_rows(path: Path, asked: DatasetSection, *, taught: bool) -> tuple[list[ChainRow], Imported]:
    """The rows of a data set, and what was left out. Rows of one without boxes ask for none (``direct``).

    taught: chains to learn, so that in a data set with boxes a row without one is left out; else questions, which need none.

    Raises UsageError for a data set, split or column that is not there, and for a row of another shape, by its number.
    """
    place = Place(str(path), asked.subset, asked.split, asked.revision)
    table = table_of(place)
    columns = _columns(path, table, asked.columns)
    said = {"messages", "conversations"} & set(columns)
    for needed in ("image", *(() if said else ("question", "answer"))):
        if needed not in columns and not (needed == "answer" and "answers" in columns):
            _refuse(path, table, needed)
    tally, rows = Imported(), list[ChainRow]()
    names = label_names(table)
    wanted = [name for name in dict.fromkeys(columns.values()) if name not in picture_columns(table)]
    texts = table.select_columns(wanted)
    absent = (None, "") if table.info.builder_name == "csv" else (None,)  # an empty cell
    for number in range(len(table)):
        held = texts[number] if wanted else {}
        row = {ours: _named(held[theirs], names.get(theirs)) for ours, theirs in columns.items() if theirs in held}
        row = {ours: value for ours, value in row.items() if value not in absent}
        if (
            taught
            and {"box", "looks"} & set(columns)
            and not {"box", "looks"} & set(row)
            and row.get("protocol") != "direct"
        ):
            tally.skip("no box")
        else:
            rows += _rows_of(place, asked, columns["image"], (number, row), tally)
    return rows, tally


def _rows_of(
    place: Place,
    asked: DatasetSection,
    column: str,
    numbered: tuple[int, dict[str, Any]],
    tally: Imported,
) -> list[ChainRow]:
    """The rows that one of theirs is: a conversation may be several. column: of the pictures."""
    number, row = numbered
    where = f"{place.path} ({place.split}): row {number}"
    try:
        pictures = picture_names(place, column, number, row)
        if "messages" in row or "conversations" in row:
            return list(llava_rows(number, {**row, "images": pictures}, tally))
        if len(pictures) != 1:
            tally.skip("no picture" if not pictures else "several pictures")
            return []
        made = _row(place, asked, number, row, pictures[0], tally)
        return [] if made is None else [made]
    except MALFORMED as error:
        fields = isinstance(error, ValidationError)
        hint = "docs/training.md lists the fields" if fields else "is data.dataset.columns right?"
        raise UsageError(f"{where}: {reason(error)}", hint) from error


def _row(
    place: Place, asked: DatasetSection, number: int, row: dict[str, Any], picture: str, tally: Imported
) -> ChainRow | None:
    """A row with its box in pixels; None, counted, where it is to have one and has none. Raises ValueError naming the column
    of a value of another shape.
    """
    named = partial(_column, asked)
    fields: dict[str, Any] = {name: row[name] for name in ("instruction", "kind", "protocol", "size") if name in row}
    asked_for_box = "box" in row or "looks" in row
    size = _size(picture, fields) if asked_for_box and asked.frame == "unit" else None
    fields |= {"size": size} if size is not None else {}
    box = _box(row["box"], asked, size, named("box")) if "box" in row else None
    looks = (
        [_box(one, asked, size, named("looks")) for one in _listed(row["looks"], named("looks"))]
        if "looks" in row
        else None
    )
    if any(one.is_empty for one in (box, *(looks or ())) if one is not None):
        tally.skip("empty box")
        return None
    given = [_text(row["answer"], named("answer"), "map it as answers")] if "answer" in row else []
    answers = _answers(row["answers"], named("answers")) if row.get("answers") is not None else given
    answer = next(iter((*given, *answers)), "")
    if not answer.strip() and row.get("kind") != "rec":
        tally.skip("empty answer")
        return None
    return ChainRow(
        id=_text(row.get("id", number), named("id")),
        picture=picture,
        question=_text(row["question"], named("question")).replace("<image>", "").strip(),
        chain=Chain(
            box=None if box is None else box.xyxy,
            looks=None if looks is None else tuple(one.xyxy for one in looks),
            answer=answer,
        ),
        answers=tuple(answers or given),
        **{**({} if asked_for_box else {"protocol": "direct"}), **fields},
    )


def _column(asked: DatasetSection, field: str) -> str:
    """How an error names a column: theirs, and our field."""
    return f"column {asked.columns.get(field, field)!r} ({field})"


def _named(value: Any, names: Mapping[int, str] | None) -> Any:
    """A value; of a class label what its number is called, None where it has none (-1), and of a list those of its items."""
    if names is None or value is None:
        return value
    return [names.get(one) for one in value] if isinstance(value, list) else names.get(value)


def _answers(value: Any, column: str) -> list[str]:
    """Reference answers: a text is one, a list of texts each of them. Raises ValueError for another shape: of several people's
    answers (VQAv2) or spans (SQuAD), which are right is for the data to say.
    """
    if isinstance(value, list | tuple):
        return [_text(one, f"{column}, item {number}") for number, one in enumerate(value)]
    return [_text(value, column)] if value != "" else []


def _text(value: Any, column: str, otherwise: str = "") -> str:
    """A text as it is, or the digits of a whole number. Raises ValueError naming the column for anything else: 1.50, 1.5 and 3/2
    are one number, True, true and yes one truth, and what was written is not known any more.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    hint = otherwise if otherwise and isinstance(value, list) else "name a column of text"
    raise ValueError(f"{column}: {_shape(value)}, not text: {hint}")


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{value!r:.40} ({type(value).__name__})"


def _listed(value: Any, column: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{column}: {_shape(value)}, not a list of boxes")
    return list(value)


def _box(numbers: Any, asked: DatasetSection, size: tuple[int, int] | None, column: str) -> Box:
    """In pixels. Raises ValueError naming the column for anything but a list of four numbers."""
    four = isinstance(numbers, list | tuple) and len(numbers) == 4
    if not four or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        raise ValueError(f"{column}: {_shape(numbers)}, not a list of four numbers")
    a, b, c, d = map(float, numbers)
    if asked.boxes == "xywh":
        c, d = a + c, b + d
    width, height = size or (1, 1)
    return Box(a * width, b * height, c * width, d * height)


def _size(picture: str, fields: Mapping[str, Any]) -> tuple[int, int]:
    given = Sized.model_validate({"size": fields.get("size")}).size
    if given is not None:
        return given
    if not picture.startswith(DATASET):
        raise ValueError("a box in fractions of a picture that is a file needs its size: map data.dataset.columns.size")
    try:
        return measured(stored_bytes(picture), picture)
    except PictureError as error:
        raise ValueError(str(error)) from error


def _columns(path: Path, table: Any, asked: Mapping[str, str]) -> dict[str, str]:
    """Our field -> its column. Raises UsageError naming a field or a column that is unknown, and the nearest one."""
    for ours, theirs in asked.items():
        if ours not in FIELDS:
            raise UsageError(f"data.dataset.columns: unknown field {ours!r}", nearest(ours, FIELDS))
        if theirs not in table.column_names:
            raise UsageError(f"{path} has no column {theirs!r}", nearest(theirs, table.column_names))
    same = {name: name for name in FIELDS if name in table.column_names}
    if "images" in table.column_names and "image" not in same:
        same["image"] = "images"
    return {**same, **asked}


def _refuse(path: Path, table: Any, field: str) -> None:
    raise UsageError(
        f"{path} has no column {field!r}: it has {', '.join(table.column_names)}",
        f"name it: --set data.dataset.columns.{field}=COLUMN",
    )
