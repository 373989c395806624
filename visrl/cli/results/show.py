"""``visrl-eval show``, ``score`` and ``view``: what came out of a run, as a summary, a table, JSON or a page."""

from __future__ import annotations

import difflib
import shlex
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrl.cli.including import IncludeOption, include_files
from visrl.errors import EXIT_INCOMPLETE, FEW, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visrl.core.records import TaskResult
    from visrl.evals.compare import Difference
    from visrl.evaluation.evaluate import Engine, Options, Outcome
    from visrl.policies.protocol import Policy
    from visrl.tables.result_tables import Compared

JsonOption = Annotated[bool, typer.Option("--json", help="print TaskResults as JSON on stdout")]

ANSWER_METRICS = ("answer", "accuracy", "f1", "perception", "cognition", "circular")
"""What two protocols are compared by: what both of them say."""
FIGURE = "looks.svg"
"""The curve of ``--max-looks A..B``, in the folder of its runs."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``visrl-eval``."""
    for command in (score, show, view):
        app.command()(command)


def check_there(*folders: Path, several: bool = False) -> None:
    """Raises UsageError for what is no folder of a run, naming the runs that are near. several: a folder of runs will do."""
    for folder in folders:
        if not folder.exists():
            raise UsageError(f"{folder}: no such folder", _runs_near(folder))
        inside = [file.parent for file in sorted(folder.glob("*/episodes.jsonl"))]
        if inside and not several and not (folder / "run.json").exists():
            raise UsageError(f"{folder} is not a run folder, but contains some", f"give one of them: {_named(inside)}")


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders[:FEW])) + (f" and {len(folders) - FEW} more" if len(folders) > FEW else "")


def _runs_near(folder: Path) -> str:
    """The runs beside a folder that does not exist, or below runs/: those with such a name, else all."""
    places = [
        file.parent for place in dict.fromkeys((folder.parent, Path("runs"))) for file in place.glob("*/run.json")
    ]
    names = {str(place): place.name for place in sorted(places)}
    close = difflib.get_close_matches(folder.name, names.values(), n=3, cutoff=0.5)
    if close:
        return f"did you mean {_named([Path(place) for place in names if names[place] in close])}?"
    return f"runs: {_named([Path(place) for place in names])}" if names else "visrl-eval --model tiny --tasks world"


def score(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    judge: Annotated[str | None, typer.Option(help="a judge other than the run's own")] = None,
    include: IncludeOption = None,
    json_: JsonOption = False,
) -> None:
    """Score a run again, without generating."""
    from visrl.evaluation.rescore import score as score_folder
    from visrl.evaluation.rescore import unjudged

    check_there(folder)
    include_files(include)
    results = score_folder(folder, judge)
    print_results(results, json_)
    if lost := unjudged(results):
        print(
            f"error: incomplete: {lost} answers are unscored: the judge could not be reached\n\n"
            "hint: the same command asks again",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INCOMPLETE)


def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or the folder of a training run")],
    all_: Annotated[bool, typer.Option("--all", help="every task and metric, not only the summary")] = False,
    json_: JsonOption = False,
) -> None:
    """Print a run's settings and results."""
    from visrl.core.records import read_records
    from visrl.report.training import is_training, phase_lines
    from visrl.runs.meta import read_evaluation

    check_there(folder)
    if is_training(folder):
        print("\n".join(phase_lines(folder)))
        return
    request = read_evaluation(folder)["request"]
    print(textwrap.fill(_settings(request), shutil.get_terminal_size().columns), file=sys.stderr)
    results, compared = read_records(folder), None if json_ else beside(folder)
    if all_ and not json_:
        _print_all(results, compared)
    else:
        print_results(results, json_, compared)
        if not json_:
            print(file=sys.stderr)
            print_places(folder, compared)


def _settings(request: Mapping[str, Any]) -> str:
    from visrl.tables.result_tables import is_direct

    without = ("focus", "crop") if is_direct(request["protocol"]) else ()
    facts = ("model", "protocol", "focus", "crop", "limit", "seed")
    return " · ".join(f"{fact} {request[fact]}" for fact in facts if request[fact] is not None and fact not in without)


def beside(folder: Path) -> Compared | None:
    """What looking changed, where a run has another protocol's run of the same questions inside (``--beside``)."""
    from visrl.runs.meta import read_meta

    for inner in sorted(file.parent for file in folder.glob("*/run.json")):
        if (inner / "scores.jsonl").is_file() and (folder / "scores.jsonl").is_file():
            first, second = read_meta(folder)["request"], read_meta(inner)["request"]
            if second["protocol"].split("/")[0] == inner.name and first["model"] == second["model"]:
                return compare_protocols(folder, inner.name, first["protocol"])
    return None


def compare_protocols(folder: Path, second: str, protocol: str) -> Compared:
    """The run of ``protocol`` in ``folder``, against that of ``second`` inside it, by the metrics that both have."""
    from visrl.core.records import read_records
    from visrl.evals.benchmarks import UPSTREAM
    from visrl.evals.compare import compare
    from visrl.evals.sample_scores import of_run
    from visrl.tables.result_tables import Compared

    found = compare(of_run(folder / second), of_run(folder))
    changes = tuple(replace(d, worst=()) for d in found if d.metric in ANSWER_METRICS or d.task.startswith(UPSTREAM))
    name = "looked" if second == "direct" else protocol.split("/")[0]
    return Compared(second, name, changes, tuple(read_records(folder / second)))


def print_results(results: Sequence[TaskResult], json_: bool, compared: Compared | None = None) -> None:
    """The summary on stdout: what looking changed, then a line per group. With ``json_`` the records."""
    if json_:
        from visrl.core.records import dump_json

        sys.stdout.write(dump_json([result.model_dump(mode="json") for result in results]))
        return
    from visrl.tables.paper_tables import print_table
    from visrl.tables.result_tables import headline, summary_table

    if compared is not None and (said := headline(results, compared)):
        print(f"{said}\n")
    print_table(summary_table(results, compared), "rich")


def _print_all(results: Sequence[TaskResult], compared: Compared | None) -> None:
    from visrl.tables.paper_tables import print_table
    from visrl.tables.result_tables import results_table

    print_table(results_table(results), "rich")
    if compared is not None and compared.changes:
        print()
        print_comparison(f"{compared.before} → {compared.after}", compared.changes, [], "rich")


def print_comparison(title: str, differences: Sequence[Difference], notes: Sequence[str], format_: str) -> None:
    from visrl.regression.reports import comparison_table
    from visrl.tables.formats import render, show

    table = comparison_table(title, differences, notes)
    if format_ == "md":
        sys.stdout.write(render(table, "md"))
        return
    from rich.console import Console

    show(table, Console(highlight=False))


def print_places(folder: Path, compared: Compared | None) -> None:
    """Where to look next, on stderr."""
    place = shlex.quote(str(folder))
    inner = "" if compared is None else f"{shlex.quote(str(folder / compared.before))} "
    print(f"details: visrl-eval show {place} --all", file=sys.stderr)
    print(f"{'flips' if inner else 'samples'}: visrl-eval view {inner}{place}", file=sys.stderr)


def view(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="a run folder, one of a training run, or a folder of runs")
    ],
    other: Annotated[Path | None, typer.Argument(metavar="[RUN2]", help="a second run to compare with")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="file of the page; default RUN/report.html", show_default=False),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="serve the page with all pictures in full size")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of the server; 0: any free one")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
) -> None:
    """Write an HTML page of a run, or of two compared.

    Of one run: every sample with its pictures, both turns and score. Of two: what changed, and samples side by side. Of a
    training run: phases, curves and pairs. Of a folder of runs: an index with their differences.
    """
    from visrl.report import open_page, serve_page, write_report

    folders = [folder] if other is None else [folder, other]
    check_there(*folders, several=other is None and not serve)
    if serve:
        serve_page(folders, port, in_browser=open_)
        return
    page = write_report(folders, output)
    print(page)
    address = page.resolve().as_uri()
    print(address, file=sys.stderr)
    if open_:
        open_page(address)


def looks_of(text: str, upstream: Sequence[str]) -> tuple[int, ...]:
    """The limits of ``--max-looks``; () where the protocol's own counts. Raises UsageError for what is none, and for a curve of
    lmms-eval's own tasks.
    """
    from visrl.evaluation.looks_curve import looks_asked

    looks = looks_asked(text) if text else ()
    if len(looks) > 1 and upstream:
        raise UsageError(
            f"--max-looks {text}: not supported for lmms-eval's own tasks",
            "use a single limit, or one of visrl's tasks",
        )
    return looks


def show_curve(
    policy: Policy, tasks: Sequence[str], options: Options, engine: Engine, looks: Sequence[int], *, json_: bool
) -> Outcome:
    """Run a limit after the other, print the table (or the rows as JSON), draw the figure; returns the runs' failures."""
    from visrl.core.records import dump_json
    from visrl.evaluation.looks_curve import rows_of, run_curve
    from visrl.tables.looks_tables import draw, looks_table
    from visrl.tables.paper_tables import print_table

    curve = run_curve(policy, tasks, options, engine, looks)
    if not any(curve.points.values()):  # of several processes only the first has results
        return curve.outcome
    draw(curve.points, curve.folder / FIGURE)
    if json_:
        sys.stdout.write(dump_json(rows_of(curve.points)))
    else:
        print_table(looks_table(curve.points), "rich")
        last = shlex.quote(str(curve.folder / f"looks-{looks[-1]}"))
        first = shlex.quote(str(curve.folder / f"looks-{looks[0]}"))
        print(f"\nfigure: {curve.folder / FIGURE}", file=sys.stderr)
        print(f"what the looks changed: visrl-eval compare {first} {last}", file=sys.stderr)
    return curve.outcome
