"""``visrl-eval tables``: the paper's tables, ours beside them, and the figure over iterations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrl.cli.check import tables_on_file
from visrl.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visrl.core.records import TaskResult

RECORDS = Path("results/records")


def tables(
    paper: Annotated[str | None, typer.Option(help="general | viscot | rec | datagen | zoom")] = None,
    records: Annotated[
        list[Path] | None,
        typer.Argument(help="run folders or record files; default: the paper alone", show_default=False),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="rich | md | csv | latex")] = "rich",
    against: Annotated[str | None, typer.Option(help="the published row to compare with")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="only the rows of the given runs")] = False,
    check: Annotated[bool, typer.Option("--check", help="exit 1 if results/tables does not match the records")] = False,
    write: Annotated[bool, typer.Option("--write", help="generate results/tables from results/records")] = False,
    figure: Annotated[
        str | None, typer.Option("--figure", help="iterations: VisRL over multiple iterations, from a loop's records")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the figure: PNG or SVG")] = Path("iterations.png"),
    results: Annotated[Path, typer.Option(help="for --check and --write: the folder of records/ and tables/")] = Path(
        "results"
    ),
) -> None:
    """Print a table of the paper with our results."""
    if check or write:
        tables_on_file(results, write)
        return
    if paper is None and figure is None:
        raise UsageError(
            "tables needs --paper, --figure, --check or --write", "for example visrl-eval tables --paper rec"
        )
    if mine and not records:
        raise UsageError("--mine: no run is given", f"visrl-eval tables --paper {paper or 'rec'} RUN --mine")
    if figure is not None:
        _draw(figure, _read(records or [RECORDS]), output)
    if paper is not None:
        _print_tables(paper, _read(records) if records else None, format_, against, mine)


def _read(places: Sequence[Path]) -> list[TaskResult]:
    """The results of all places. A run that is not finished is said and left out, unless there is nothing else."""
    from visrl.core.records import Unfinished, read_records
    from visrl.tables.phase_tables import in_order

    found, unfinished = [], list[Unfinished]()
    for place in places:
        try:
            found += read_records(place)
        except Unfinished as error:
            unfinished.append(error)
    if unfinished and not found:
        raise unfinished[0]
    for left_out in unfinished:
        print(f"left out: {left_out.message}", file=sys.stderr)
    return in_order(found)


def _draw(figure: str, found: list[TaskResult], output: Path) -> None:
    from visrl.tables.phase_tables import draw_iterations, longest, runs

    if figure != "iterations":
        raise UsageError(f"unknown figure {figure!r}", nearest(figure, ["iterations"]))
    run_ = longest(found)
    draw_iterations(found, run_, output)
    if len(others := runs(found)) > 1:
        print(f"drawn: {run_}, the one with most iterations of {len(others)} runs", file=sys.stderr)
    print(output)


def _print_tables(paper: str, found: list[TaskResult] | None, format_: str, against: str | None, mine: bool) -> None:
    """The paper's table; below viscot's, the phases of each loop of the small world, whose tasks have no column there."""
    from visrl.tables.paper_tables import print_paper_table, print_table
    from visrl.tables.phase_tables import of_loops, phase_table, runs

    print_paper_table(paper, found, format_, against, mine=mine)
    small = [result for result in of_loops(found or []) if result.small_world]
    for run_ in runs(small) if paper == "viscot" else ():
        print_table(phase_table(small, run_), format_)
