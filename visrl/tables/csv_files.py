"""CSV files of declared lines: a pydantic model is a line, its fields are the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from visrl.core.json_files import read_text, reason
from visrl.core.records import write_atomically
from visrl.errors import UsageError

Line = TypeVar("Line", bound=BaseModel)
_TOO_MANY = "\0"  # no column's name


def read_lines(path: Path, line: type[Line]) -> list[Line]:
    """The lines of a file; none where there is no file. Raises UsageError naming the line."""
    if not path.is_file():
        return []
    hint = f"columns: {', '.join(line.model_fields)}"
    rows = csv.DictReader(io.StringIO(read_text(path, hint)), restkey=_TOO_MANY)
    found = []
    try:
        for row in rows:
            if _TOO_MANY in row:
                raise UsageError(f"{path}:{rows.line_num}: more fields than the header has columns", hint)
            found.append(line.model_validate(row))
        return found
    except ValidationError as error:
        raise UsageError(f"{path}:{rows.line_num}: {reason(error)}", hint) from error
    except csv.Error as error:  # a field longer than the module reads, in the line after the last it has read
        raise UsageError(f"{path}:{rows.line_num + 1}: {error}", hint) from error


def write_lines(path: Path, line: type[Line], lines: Iterable[Line]) -> None:
    """All of them, below a header."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, tuple(line.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(one.model_dump() for one in lines)
    write_atomically(path, text.getvalue())
