"""``visrl-eval leaderboard``: the main results of many runs as one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a folder of run folders")] = Path("runs"),
    format_: Annotated[str, typer.Option("--format", help="rich | md | csv | latex")] = "rich",
    task: Annotated[str | None, typer.Option(help="only this task or group")] = None,
) -> None:
    """Print the main results of all runs in a folder.

    The best come first, task by task.
    """
    from visrl.errors import UsageError, nearest
    from visrl.tables.formats import render
    from visrl.tables.leaderboard import leaderboard as table_of
    from visrl.tables.leaderboard import of_task, on_a_screen, read_entries
    from visrl.tables.paper_tables import print_table

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "give the folder that contains your runs; default runs/")
    entries = read_entries(folder)
    if task is not None:
        known = list(dict.fromkeys(result.task for entry in entries for result in entry.results))
        if task not in known:
            raise UsageError(f"no run below {folder} has a result of {task!r}", nearest(task, known))
        entries = of_task(entries, task)
    if format_ == "rich":
        print_table(on_a_screen(entries), "rich")
    else:
        sys.stdout.write(render(table_of(entries), format_))
