"""``visrl-eval export``: a run's samples as a table for other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from visrl.cli.results.show import check_there


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    format_: Annotated[str, typer.Option("--format", help="csv | jsonl | parquet")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="a file; default: stdout")] = None,
) -> None:
    """Export a row per sample as csv, jsonl or parquet.

    Scores, boxes in pixels of the picture, and what the model wrote.
    """
    from visrl.evaluation.export import write

    check_there(folder)
    write(folder, format_, output, sys.stdout)
