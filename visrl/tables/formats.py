"""A table of text -> a terminal, Markdown, CSV or LaTeX. Names of models come from outside: each format escapes them.

Control, format and surrogate characters are removed everywhere: a model called ``\\x1b[2J`` must not clear a screen, nor a
right-to-left mark turn a row around.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from visrl.errors import UsageError, nearest

if TYPE_CHECKING:
    from rich.table import Table as RichTable

UNIT_SHOWN = {"fraction": "%", "percent": "%", "points": "points", "raw": "as given", "looks": "looks"}
"""A record's unit -> the one that people are shown: a share is percent, whatever the record keeps."""
FORMATS = ("rich", "md", "csv", "latex")
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_LABEL = 14  # the narrowest label column worth having
_LABEL_WANTED = 26


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands in a cell: short ``lines``, and a footnote, numbered when rendered. style: rich's, for terminals."""

    lines: tuple[str, ...] = ()
    note: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    cells: tuple[Cell, ...]
    style: str = ""
    opens_section: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """columns: (title, short title for narrow screens). tidy: the same as flat records, for CSV. notes: below the table."""

    title: str
    label: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    tidy: tuple[Mapping[str, Any], ...] = ()


def plain(text: str, limit: int = 80) -> str:
    """``text`` on one line without control, format, surrogate and unassigned characters, cut to ``limit``."""
    text = " ".join(text[: 20 * limit].split())
    text = "".join(c for c in text if not unicodedata.category(c).startswith("C"))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def render(table: Table, format_: str, width: int = 80) -> str:
    """The table in one of FORMATS, ending in a newline. ``width``: of the terminal, for rich. Raises UsageError."""
    if format_ == "rich":
        return _to_text(table, width)
    renderers = {"md": to_markdown, "csv": to_csv, "latex": to_latex}
    if format_ not in renderers:
        raise UsageError(f"--format: unknown {format_!r}", nearest(format_, FORMATS))
    return renderers[format_](table)


def numbered(table: Table) -> tuple[list[list[str]], list[str]]:
    """Per row and cell the number of its footnote ("" without), and the footnotes; equal ones share a number."""
    numbers: dict[str, str] = {}
    marks = [
        [numbers.setdefault(cell.note, str(len(numbers) + 1)) if cell.note else "" for cell in row.cells]
        for row in table.rows
    ]
    return marks, list(numbers)


# --- terminal


def _to_text(table: Table, width: int) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, highlight=False, no_color=True)
    show(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def show(table: Table, console: Any) -> None:
    """Print the table on a rich console, in bands of columns if it is too narrow for all of them."""
    from rich.text import Text

    marks, footnotes = numbered(table)
    if table.title:
        console.print(Text(table.title, style="bold"))
    for band in _bands(table, console.width) if table.rows or not table.notes else ():
        console.print(_rich_table(table, marks, band, console.width))
    for number, note in enumerate(footnotes, 1):
        console.print(Text(_wrapped(f"{str(number).translate(_SUPERSCRIPTS)} {note}", console.width)), soft_wrap=True)
    for note in table.notes:
        console.print(Text(_wrapped(note, console.width), style="dim"), soft_wrap=True)


def _wrapped(text: str, width: int) -> str:
    """A note on lines without blanks at their ends."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _column_width(table: Table, column: int) -> int:
    """The widest line of a column, its footnote mark included."""
    texts = [line for row in table.rows for line in row.cells[column].lines]
    marked = any(row.cells[column].note for row in table.rows)
    return max([len(word) for word in table.columns[column][1].split()] + [len(t) + marked for t in texts])


def _bands(table: Table, width: int) -> list[range]:
    """Columns in as few and as equal bands as leave room for the labels."""
    widths = [_column_width(table, i) + 1 for i in range(len(table.columns))]
    labels = min(_LABEL_WANTED, max([_LABEL] + [len(row.label) for row in table.rows]))
    for n_bands in range(1, len(widths) + 1):
        size = -(-len(widths) // n_bands)
        bands = [range(start, min(start + size, len(widths))) for start in range(0, len(widths), size)]
        room = _LABEL if n_bands == 1 and len(widths) <= 8 else labels
        if all(sum(widths[i] for i in band) + room + 1 <= width for band in bands):
            return bands
    return [range(i, i + 1) for i in range(len(widths))]


def _rich_table(table: Table, marks: Sequence[Sequence[str]], band: range, width: int) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    out = RichTable(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold underline")
    fixed = sum(_column_width(table, i) + 1 for i in band)
    room = max(_LABEL, width - fixed - 1)
    out.add_column(table.label, overflow="fold", max_width=room)
    for i in band:
        out.add_column(table.columns[i][1], justify="right", overflow="fold", width=_column_width(table, i))
    for row, row_marks in zip(table.rows, marks, strict=True):
        if not any(row.cells[i].lines for i in band):
            continue  # nothing in this band of columns
        if row.opens_section:
            out.add_row()
        cells = [
            Text("\n".join(row.cells[i].lines) + row_marks[i].translate(_SUPERSCRIPTS), style=row.cells[i].style)
            for i in band
        ]
        out.add_row(Text(folded(row.label, room)), *cells, style=row.style)
    return out


def folded(label: str, width: int) -> str:
    """A label on lines of at most ``width``, broken at spaces; a longer word behind ``_``, ``-``, ``/`` or ``+``."""
    lines, line = list[str](), ""
    for word in label.split():
        parts = [word] if len(word) <= width else re.findall(r"[^_+/-]*[_+/-]|[^_+/-]+", word)
        for place, part in enumerate(parts):
            gap = " " if line and place == 0 else ""
            if line and len(line) + len(gap) + len(part) > width:
                lines.append(line)
                line, gap = "", ""
            line += gap + part
    return "\n".join([*lines, line])


# --- files


def to_markdown(table: Table) -> str:
    """A GitHub table, footnotes and notes below as a list."""
    marks, footnotes = numbered(table)
    lines = [f"**{_md(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join([_md(table.label), *(_md(title) for title, _ in table.columns)]) + " |")
    lines.append("| --- |" + " ---: |" * len(table.columns))
    for row, row_marks in zip(table.rows, marks, strict=True):
        cells = [
            _md(" ".join(cell.lines)) + mark.translate(_SUPERSCRIPTS)
            for cell, mark in zip(row.cells, row_marks, strict=True)
        ]
        lines.append("| " + " | ".join([_md(row.label), *cells]) + " |")
    below = [f"{str(i).translate(_SUPERSCRIPTS)} {_md(note)}" for i, note in enumerate(footnotes, 1)]
    below += [_md(note) for note in table.notes]
    return "\n".join([*lines, "", *(f"- {note}" for note in below)]).rstrip() + "\n"


def _md(text: str) -> str:
    for character in "\\`*_[]|#~":
        text = text.replace(character, f"\\{character}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_csv(table: Table) -> str:
    """The tidy records: a line per cell. Text a spreadsheet would run as a formula gets a leading apostrophe."""
    out = io.StringIO()
    if table.tidy:
        writer = csv.DictWriter(out, fieldnames=list(table.tidy[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: no_formula(value) for key, value in record.items()} for record in table.tidy)
    return out.getvalue()


def no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "—": "---",
    "[": "{[}",  # after \\\\ a bracket would be read as an optional argument
    "]": "{]}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _tex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """A booktabs tabular with its footnotes below; needs \\usepackage{booktabs} and UTF-8 input."""
    marks, footnotes = numbered(table)
    head = " & ".join([_tex(table.label), *(_tex(title) for title, _ in table.columns)])
    lines = [f"% {' '.join(table.title.split())}", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [rf"{head} \\", r"\midrule"]
    for row, row_marks in zip(table.rows, marks, strict=True):
        if row.opens_section:
            lines.append(r"\midrule")
        cells = [
            _tex(" ".join(cell.lines)) + (rf"\textsuperscript{{{mark}}}" if mark else "")
            for cell, mark in zip(row.cells, row_marks, strict=True)
        ]
        lines.append(" & ".join([_tex(row.label), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines += [rf"\textsuperscript{{{i}}} {_tex(note)}\\" for i, note in enumerate(footnotes, 1)]
    lines += [rf"{_tex(note)}\\" for note in table.notes]
    return "\n".join(lines) + "\n"


def cleaned(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows whose labels and notes went through :func:`plain`."""
    return tuple(
        replace(
            row,
            label=plain(row.label, 120),
            cells=tuple(replace(cell, note=plain(cell.note, 300)) for cell in row.cells),
        )
        for row in rows
    )
