"""MMBench predictions in tables: the official xlsx or tsv, a row per rotation, with ``index`` and ``prediction``."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from visrl.core.json_files import MALFORMED, UNREADABLE, reason
from visrl.errors import UsageError

Row = dict[str, Any]
log = logging.getLogger(__name__)
CELL = 32_767
"""Characters that a cell of an xlsx holds: a longer text was cut there by the spreadsheet."""
_UNPACKED = 1 << 30
_TOO_MANY = "\0"  # no column's name
LETTERS = ("A", "B", "C", "D", "E")
NOTHING = frozenset({"#n/a", "#n/a n/a", "#na", "-1.#ind", "-1.#qnan", "-nan", "1.#ind", "1.#qnan", "<na>"})
NOTHING |= {"n/a", "na", "null", "nan", "none"}
"""Texts, in small letters, that pandas.read_csv makes empty cells of: an option's text may be one."""


def table_rows(data: bytes, path: Path) -> Iterator[Row]:
    """The rows of a tsv or xlsx by column name. Raises UsageError for a damaged file, or one that unpacks to over 1 GB."""
    return _xlsx_rows(data, path) if path.suffix == ".xlsx" else _tsv_rows(data, path)


def _holds_a_row(cell: str, columns: int) -> bool:
    """Whether a line inside a cell is a row of the table: an index, and as many cells. A hint may hold a smaller table."""
    lines = (line.split("\t") for line in cell.split("\n")[1:])
    return any(len(cells) == columns and cells[0].strip().isdecimal() for cells in lines)


def _tsv_rows(data: bytes, path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**26)  # pictures stand in the table as base64
    try:
        text = data.decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", restkey=_TOO_MANY)
        for row in rows:
            if any(row.pop(_TOO_MANY, ())):  # empty ones after the last column lose nothing
                columns = len(rows.fieldnames or ())
                raise UsageError(
                    f"{path}:{rows.line_num}: more cells than the header's {columns}",
                    "a tab inside a cell needs quotation marks: write the table with a CSV library",
                )
            if any(_holds_a_row(cell, len(row)) for cell in row.values() if isinstance(cell, str)):
                raise UsageError(
                    f"{path}: row {row.get('index')}: an unclosed quotation mark swallows the following rows",
                    "double the marks inside a cell, or write the table with a CSV library",
                )
            yield row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a TSV of UTF-8 text: {error}", "is the download complete?") from error


def _xlsx_rows(data: bytes, path: Path) -> Iterator[Row]:
    from zipfile import BadZipFile, ZipFile

    import openpyxl
    from openpyxl.utils.escape import unescape
    from openpyxl.utils.exceptions import InvalidFileException

    # XML that cannot be parsed is a SyntaxError of either parser that openpyxl uses; what it does not expect may raise the rest
    damaged = (
        BadZipFile,
        InvalidFileException,
        SyntaxError,
        NotImplementedError,
        RuntimeError,
        *UNREADABLE,
        *MALFORMED,
    )
    try:
        with ZipFile(io.BytesIO(data)) as packed:
            if sum(member.file_size for member in packed.infolist()) > _UNPACKED:
                raise UsageError(f"{path} unpacks to more than 1 GB", "is this a table of predictions?")
        sheet = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # the size that a file states may be too small
        rows = sheet.iter_rows(values_only=True)
        header = [str(name) for name in next(rows, ())]
        for values in rows:
            if any(value is not None for value in values):
                # a carriage return is written as _x000D_
                cells = [unescape(value) if isinstance(value, str) else value for value in values[: len(header)]]
                yield dict(zip_longest(header, cells))  # rows end at their last cell: what is missing there is empty
    except damaged as error:
        raise UsageError(f"{path}: not an xlsx workbook: {reason(error)}", "is the download complete?") from error


def options_of(row: Row) -> dict[str, str]:
    """Letter -> text of the options a row holds."""
    return {letter: str(row[letter]).strip() for letter in LETTERS if not is_empty(row.get(letter))}


def is_empty(value: Any) -> bool:
    """Whether a cell is empty. The texts "None" and "nan" are texts like others, and 0 is a number."""
    return value is None or value != value or not str(value).strip()


def with_lost_options(row: Row) -> tuple[Row, int]:
    """A row of a table that pandas has been through, and how many options it lost: empty cells before another option, or the
    right one behind the last. They are given the text "None", the commonest that pandas reads as an empty cell.
    """
    filled = [letter for letter in LETTERS if not is_empty(row.get(letter))]
    right, end = str(row.get("answer")).strip(), LETTERS.index(filled[-1]) + 1 if filled else 0
    known = LETTERS[: end + (LETTERS[end : end + 1] == (right,))]
    lost = [letter for letter in known if letter not in filled]
    return {**row, **dict.fromkeys(lost, "None")}, len(lost)


def say_what_was_cut(rows: list[Row], path: Path) -> None:
    """A warning where predictions fill a whole cell: what followed is lost, perhaps with the answer."""
    if cut := sum(len(str(row.get("prediction") or "")) == CELL for row in rows):
        log.warning("%s: %d predictions of exactly %s characters were cut by a spreadsheet", path, cut, f"{CELL:,}")
