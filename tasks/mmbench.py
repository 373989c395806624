"""MMBench-EN dev: multiple choice, each question once per rotation of its options (index mod 1,000,000 is the question).

The official TSV: index, question, hint, A, B, C, D (E), answer, category, l2-category, split, image (base64). A rotated row
may hold the index of the row that has the picture instead of the picture. Pictures are read again from the file when they
are asked for, so that memory stays flat. The prompt is LLaVA's with --single-pred-prompt (model_vqa_mmbench.py).
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from visrl.core.json_files import UNREADABLE
from visrl.core.types import CoTSample
from visrl.errors import PictureError, UsageError
from visrl.evals.mmbench_tables import is_empty, table_rows, with_lost_options
from visrl.tasks.common import Document, Row, opened

log = logging.getLogger(__name__)
INSTRUCTION = "\nAnswer with the option's letter from the given choices directly."
LETTERS = ("A", "B", "C", "D", "E")
ROTATIONS = 1_000_000
_LARGEST_FIELD = 1 << 26  # a picture in base64
_REFERENCE = 64  # an image field shorter than this names another row


def documents(file: Path) -> Iterator[Document]:
    """Rows of the TSV without the pictures' text; ``picture_id`` tells rows that share a picture."""
    if file.suffix == ".xlsx":
        yield from _of_workbook(file)
        return
    csv.field_size_limit(_LARGEST_FIELD)
    places: dict[str, tuple[int, int]] = {}
    ids: dict[str, str] = {}
    header: list[str] = []
    for line, start, end, fields in _records(file):
        where = f"{file}:{line}"
        if not header:
            header = _checked_header(fields, where)
            continue
        if len(fields) != len(header):
            raise UsageError(
                f"{where}: {len(fields)} fields, the header has {len(header)}", "fields are separated by tabs"
            )
        row = dict(zip(header, fields, strict=True))
        image, index = row.pop("image", ""), row["index"]
        if len(image) >= _REFERENCE:
            places[index] = start, end
            ids[index] = hashlib.sha256(image.encode()).hexdigest()[:16]
        owner = index if index in places else image
        picture = _reader(file, header, *places[owner]) if owner in places else None
        yield Document(where, {**row, "picture_id": ids.get(owner)}, picture)


def _of_workbook(file: Path) -> Iterator[Document]:
    """Rows of an xlsx of predictions that holds questions, options and answers: no pictures."""
    n_lost = 0
    for line, row in enumerate(table_rows(file.read_bytes(), file), 2):
        _checked_header(list(row), f"{file}:{line}")
        whole, lost = with_lost_options(row)
        n_lost += lost
        yield Document(f"{file}:{line}", whole)
    if n_lost:
        log.warning('%s: %d empty cells of options are taken for "None", which pandas reads as empty', file, n_lost)


def _records(file: Path) -> Iterator[tuple[int, int, int, list[str]]]:
    """(line, first byte, last byte + 1, fields) of each record; a quoted field may run over several lines."""
    with opened(file) as handle:
        offset, number = 0, 0

        def text() -> Iterator[str]:
            nonlocal offset, number
            for raw in handle:
                offset, number = offset + len(raw), number + 1
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")

        start, line = 0, 1
        try:
            for fields in csv.reader(text(), delimiter="\t"):
                if fields:
                    yield line, start, offset, fields
                start, line = offset, number + 1
        except (csv.Error, UnicodeDecodeError, *UNREADABLE) as error:
            raise UsageError(
                f"{file}:{number}: not a TSV of UTF-8 text: {error}", "is the download complete?"
            ) from error


def _checked_header(fields: list[str], where: str) -> list[str]:
    missing = {"index", "question", "answer", "A", "B"} - set(fields)
    if missing:
        raise UsageError(f"{where}: no column {', '.join(sorted(missing))}", "MMBench's official TSV has a header line")
    return fields


def _reader(file: Path, header: list[str], start: int, end: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with opened(file) as handle:
            fields = _record_at(handle, start, end)
        try:
            return base64.b64decode(fields[header.index("image")], validate=True)
        except binascii.Error as error:
            raise PictureError(f"the picture is not base64: {error}") from error

    return read


def _record_at(handle: BinaryIO, start: int, end: int) -> list[str]:
    handle.seek(start)
    return next(csv.reader([handle.read(end - start).decode("utf-8-sig")], delimiter="\t"))


def sample(row: Row, task: str) -> CoTSample:
    """The sample of one rotation. Raises KeyError, TypeError or ValueError for a malformed row."""
    index = int(row["index"])
    options = {letter: str(row[letter]) for letter in LETTERS if not is_empty(row.get(letter))}
    answer = str(row["answer"]).strip()
    if answer not in options:
        raise ValueError(f"the true answer {answer!r:.40} is not among the options {', '.join(options)}")
    asked = str(row["question"])
    question = asked if is_absent(row.get("hint")) else f"{row['hint']}\n{asked}"
    base = str(index % ROTATIONS)
    return CoTSample(
        id=str(index),
        task=task,
        kind="qa",
        question="\n".join([question, *(f"{letter}. {option}" for letter, option in options.items())]),
        answers=(answer,),
        instruction=INSTRUCTION,
        cluster=str(row.get("picture_id") or base),
        group=base,
        meta={
            "index": index,
            "options": options,
            "raw_question": asked,
            "category": str(row.get("category", "")),
            "rotations": row.get("rotations", 0),  # 0: not known
        },
    )


def is_absent(value: Any) -> bool:
    """Whether a hint is missing: an empty cell, or what pandas makes of one. No hint says "None"."""
    return is_empty(value) or str(value).strip().lower() in ("nan", "none")


def from_hub(row: Row) -> Iterator[Row]:
    """A row of lmms-lab/MMBench (config en): the TSV's columns, with ``L2-category`` capitalised, and "nan" for an empty cell.

    An option can only be missing where all after it are: "nan" before another option is a text.
    """
    cells = dict(row)
    for letter in reversed(LETTERS):
        value = cells.get(letter)
        if not is_empty(value) and str(value).strip() != "nan":
            break
        cells[letter] = ""
    yield {**cells, "l2-category": row.get("L2-category")}


def with_rotations(documents: Iterator[Document]) -> Iterator[Document]:
    """Rows with ``rotations``: how many rows the split holds of a question. Not all hold one per option: the release of July 2023
    has 53 questions of four options and three rotations, where one option stays in its place.
    """
    kept = list(documents)
    held = Counter(int(document.row["index"]) % ROTATIONS for document in kept if _is_number(document.row["index"]))
    for document in kept:
        index = document.row["index"]
        rotations = held[int(index) % ROTATIONS] if _is_number(index) else 0
        yield Document(document.where, {**document.row, "rotations": rotations}, document.picture)


def _is_number(index: Any) -> bool:
    text = str(index).strip()
    return text.isdecimal() and len(text) < 19
