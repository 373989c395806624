"""The paper's tables, cell by cell, each with its status and where it was read: evals/paper/*.yaml.

status: ``ok`` as printed; ``suspect`` printed, but damaged or doubtful (the note says how); ``missing`` not printed or lost.
The source is a poster whose tables lost structure; what was inferred, and why, is in each table's notes (docs/method.md b5).
There is no average anywhere: none of the source's computes. Training code must not import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from visrl.errors import UsageError, nearest

NAMES = ("general", "viscot", "rec", "datagen")
OTHERS = ("zoom",)
"""Tables of what other projects print, with the file each number is from."""
Status = Literal["ok", "suspect", "missing"]
_STATUSES = ("ok", "suspect", "missing")


@dataclass(frozen=True, slots=True)
class Cell:
    """A published number in the table's unit, or None. provenance: where in the source, in words."""

    value: float | None
    status: Status
    provenance: str
    note: str = ""
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column: the task (or group) and metric whose records it holds, and its unit. short: for narrow screens."""

    name: str
    task: str
    metric: str
    title: str
    unit: str
    short: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A published method. protocols: names of those its numbers may have been made with; empty where the source is silent."""

    name: str
    cells: Mapping[str, Cell]
    protocols: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One published table. digits: decimals as printed. against: the row that results are compared with by default."""

    name: str
    title: str
    unit: str
    digits: int
    against: str
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def row(self, name: str) -> Row:
        """The row of this name. Raises UsageError with the nearest name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UsageError(f"table {self.name} has no row {name!r}", nearest(name, [row.name for row in self.rows]))


@cache
def load(name: str) -> PaperTable:
    """The published table ``name``, of NAMES or OTHERS. Raises UsageError for another name, ValueError for a damaged file."""
    if name not in (*NAMES, *OTHERS):
        raise UsageError(f"no published table {name!r}", f"one of {', '.join((*NAMES, *OTHERS))}")
    raw = yaml.safe_load(files("visrl.evals").joinpath("paper", f"{name}.yaml").read_text(encoding="utf-8"))
    columns = tuple(
        Column(
            key,
            c["task"],
            c["metric"],
            c["title"],
            c.get("unit", raw["unit"]),
            c.get("short", c["title"]),
            c.get("note", ""),
        )
        for key, c in raw["columns"].items()
    )
    rows = tuple(_row(row, columns, raw["provenance"]) for row in raw["rows"])
    table = PaperTable(
        name, raw["title"], raw["unit"], raw["digits"], raw["against"], tuple(raw["notes"]), columns, rows
    )
    table.row(table.against)
    return table


def _row(raw: Mapping[str, Any], columns: tuple[Column, ...], provenance: Mapping[str, str]) -> Row:
    unknown = set(raw["cells"]) - {column.name for column in columns}
    if unknown:
        raise ValueError(f"row {raw['name']!r} has cells of no column: {sorted(unknown)}")
    cells = {column.name: _cell(raw["cells"].get(column.name), provenance) for column in columns}
    return Row(raw["name"], cells, tuple(raw.get("protocols", ())), dict(raw.get("details", {})), raw.get("note", ""))


def _cell(raw: float | Mapping[str, Any] | None, provenance: Mapping[str, str]) -> Cell:
    if raw is None:
        return Cell(None, "missing", provenance["lost"])
    if not isinstance(raw, dict):
        return Cell(float(raw), "ok", provenance["printed"])  # type: ignore[arg-type]  # a number in the file
    value, status = raw["value"], raw["status"]
    if status not in _STATUSES or (value is None) != (status == "missing"):
        raise ValueError(f"a cell of value {value} cannot be {status!r}")
    note, bold = raw.get("note", ""), raw.get("bold", False)
    return Cell(None if value is None else float(value), status, provenance[raw["from"]], note, bold)
