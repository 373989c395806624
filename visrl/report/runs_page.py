"""All runs below a folder on one page: a table to sort and filter, links to their pages, and their paired differences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from visrl.core.records import write_atomically
from visrl.report.head import ScoreRow, score_row
from visrl.report.page import render
from visrl.report.text import line
from visrl.tables.leaderboard import Versus, differences, protocol_of, read_entries, standings, view_command
from visrl.tables.result_tables import shown


@dataclass(frozen=True, slots=True)
class RunRow:
    """A main result of a run. link: of its page, relative to the index, "" where it has none yet."""

    name: str
    link: str
    model: str
    protocol: str
    date: str
    score: ScoreRow
    sort_value: float | None


@dataclass(frozen=True, slots=True)
class Matrix:
    """Differences of one task: names, and a row per run of (text, whether it is more than two standard errors, its sign)."""

    title: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    left_out: int


def write_runs_page(folder: Path, out: Path) -> None:
    """Write the index of the runs below ``folder``. Raises UsageError where there are none, or a file is damaged."""
    entries = read_entries(folder)
    rows = []
    for standing in standings(entries):
        entry = standing.entry
        page = entry.folder / "report.html"
        link = quote(Path(os.path.relpath(page, out.parent)).as_posix()) if page.is_file() else ""
        request = entry.request
        rows.append(
            RunRow(
                line(entry.name, 120),
                link,
                line(str(request["model"]), 80),
                line(protocol_of(request), 60),
                line(entry.started, 20),
                score_row(standing.result),
                standing.result.value,
            )
        )
    unscored = [line(entry.name, 120) for entry in entries if not entry.results]
    html = render(
        "runs.html.j2",
        ("runs.js",),
        served=False,
        title=line(f"Runs in {folder.resolve().name}"),
        n_runs=len(entries),
        rows=rows,
        unscored=unscored,
        no_page=next((line(view_command(e), 300) for e in entries if not (e.folder / "report.html").is_file()), ""),
        tasks=list(dict.fromkeys(row.score.result.task for row in rows)),
        matrices=[_matrix(versus) for versus in differences(entries)],
    )
    write_atomically(out, html)


def _matrix(versus: Versus) -> Matrix:
    rows = tuple(
        (line(name, 120), tuple(_cell(versus, name, other) for other in versus.names)) for name in versus.names
    )
    title = f"{versus.task} {versus.metric.removeprefix('mme/')}, {versus.unit}"
    return Matrix(line(title), tuple(line(name, 120) for name in versus.names), rows, versus.left_out)


def _cell(versus: Versus, row: str, column: str) -> tuple[str, str]:
    """Text and class of a cell: more than two standard errors from zero is coloured."""
    found = versus.differences.get((row, column))
    if row == column or found is None or found.delta is None:
        return ("" if row == column else "–"), ""
    error = "" if found.se is None else f" ± {shown(found.se, found.unit)}"
    text = shown(found.delta, found.unit, "+") + error
    clear = found.se is not None and abs(found.delta) > 2.0 * found.se
    return text, ("v-right" if found.delta > 0 else "v-wrong") if clear else ""


def is_folder_of_runs(folders: Sequence[Path]) -> bool:
    """Whether one folder was named that is no run and has some directly inside."""
    if len(folders) != 1 or (folders[0] / "run.json").is_file():
        return False
    return any((file.parent / "run.json").is_file() for file in folders[0].glob("*/episodes.jsonl"))
