"""``visrl-eval compare``, ``check``, ``accept`` and what ``tables`` generates: did something get worse?"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrl.cli.estimate import estimate
from visrl.cli.results.show import check_there, print_comparison
from visrl.errors import EXIT_GATE_FAILED, UsageError

if TYPE_CHECKING:
    from visrl.evals.gates import Finding

BASELINES = Path("results/baselines.yaml")
JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable, on stdout")]
FormatOption = Annotated[str, typer.Option("--format", help="rich | md (for a pull-request comment)")]
BaselineOption = Annotated[Path, typer.Option("--baseline", help="the file of accepted runs")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``visrl-eval``."""
    for command in (compare, check, accept, reproduction_page, estimate):
        app.command()(command)
    app.command("science", hidden=True)(reproduction_page)  # its older name
    app.command("plan", hidden=True)(estimate)  # its older name


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="a run folder")],
    others: Annotated[list[Path], typer.Argument(metavar="B…", help="run folders on the same samples")],
    json_: JsonOption = False,
    format_: FormatOption = "rich",
) -> None:
    """Compare runs sample by sample (paired)."""
    from visrl.core.records import dump_json
    from visrl.regression.comparisons import compare_runs
    from visrl.regression.reports import check_format

    check_format(format_)
    check_there(first, *others)
    found: list[dict[str, Any]] = []
    for one in compare_runs(first, others):
        notes = [f"warning: {note}" for note in one.notes]
        if json_:
            differences = [asdict(d) for d in one.differences]
            found.append({"a": str(first), "b": str(one.other), "notes": notes, "differences": differences})
        else:
            title = f"{_called(first, one.other)} → {_called(one.other, first)}"
            print_comparison(title, one.differences, notes, format_)
    if json_:
        sys.stdout.write(dump_json(found))


def _called(folder: Path, beside: Path) -> str:
    """A run by its folder's name; where two have the same (``score`` of two phases of a loop), by the one above too."""
    return f"{folder.parent.name}/{folder.name}" if folder.name == beside.name else folder.name


def reproduction_page(
    check: Annotated[bool, typer.Option("--check", help="exit 1 if the page does not match the records")] = False,
    results: Annotated[Path, typer.Option(help="the folder of records/")] = Path("results"),
    docs: Annotated[Path, typer.Option(help="where science.md and its figure are written")] = Path("docs"),
) -> None:
    """Write docs/science.md from the records.

    It says which of the paper's claims were reproduced on the small world, and which were not.
    """
    from visrl.tables.reproduction_page import is_stale, write

    if not check:
        print(write(results, docs))
    elif is_stale(results, docs):
        print(
            f"{docs / 'science.md'} is not what {results / 'records'} gives: visrl-eval reproduction-page",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_GATE_FAILED)


def check(
    suite: Annotated[str, typer.Option("--suite", "-s", help="smoke | world | nightly, or a file (docs/ci.md)")],
    baseline: BaselineOption = BASELINES,
    run: Annotated[
        list[Path] | None,
        typer.Option("--run", help="a finished run for a paired gate, in the suite's order; default: run it now"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="folder with the benchmark files (docs/data.md), for the runs made; else the suite's `data`"
        ),
    ] = None,
    records: Annotated[Path, typer.Option(help="folder of our records, for the paper gate")] = Path("results/records"),
    save: Annotated[
        Path | None, typer.Option(help="folder for check.json, check.xml (JUnit), check.md and the runs made")
    ] = None,
    json_: JsonOption = False,
    format_: FormatOption = "rich",
) -> None:
    """Check prompts, scores and a model for regressions.

    Exit code 0, 1 (a gate failed) or 3 (inconclusive).
    """
    from visrl.evals.gates import Finding, exit_code
    from visrl.evals.suite import load_suite
    from visrl.evaluation.evaluate import check_data
    from visrl.regression.gates import Request, run_suite
    from visrl.regression.reports import check_format

    check_format(format_)
    check_there(*(run or ()))
    check_data(data)
    loaded = load_suite(suite)
    findings: list[Finding] = []
    try:
        with tempfile.TemporaryDirectory(prefix="visrl-check-") as scratch:
            runs = Path(scratch) if save is None else save / "runs"
            for finding in run_suite(Request(loaded, baseline, runs, tuple(run or ()), records, data)):
                findings.append(finding)
                if finding.status in ("fail", "inconclusive"):
                    print(f"{finding.status}: {finding.gate} gate: {finding.name}: {finding.reason}", file=sys.stderr)
    except BaseException:  # Ctrl-C, or the end of a job's time: what was found before it stays
        if findings:
            findings.append(Finding("suite", "the rest", "inconclusive", "the check was stopped before all was judged"))
            _publish(Path(suite).stem, findings, save, json_, format_)
        raise
    code = exit_code(findings)
    _publish(Path(suite).stem, findings, save, json_, format_)
    raise typer.Exit(code)


def _publish(suite: str, findings: list[Finding], save: Path | None, json_: bool, format_: str) -> None:
    """The files first, then stdout: also where the files are refused."""
    try:
        if save is not None:
            _save(suite, findings, save)
    finally:
        _print_findings(suite, findings, json_, format_)


def _save(suite: str, findings: list[Finding], folder: Path) -> None:
    from visrl.core.records import dump_json, write_atomically
    from visrl.regression.reports import to_json, to_junit, to_markdown

    write_atomically(folder / "check.json", dump_json(to_json(suite, findings)))
    write_atomically(folder / "check.xml", to_junit(suite, findings))
    write_atomically(folder / "check.md", to_markdown(_title(suite), findings))


def _title(suite: str) -> str:
    return f"visrl-eval check {suite}"


def _print_findings(suite: str, findings: list[Finding], json_: bool, format_: str) -> None:
    from visrl.core.records import dump_json
    from visrl.regression.reports import to_json, to_markdown, to_rich

    if json_:
        sys.stdout.write(dump_json(to_json(suite, findings)))
    elif format_ == "md":
        sys.stdout.write(to_markdown(_title(suite), findings))
    else:
        from rich.console import Console

        to_rich(findings, Console(highlight=False))


def accept(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="the finished run to accept as a baseline")] = None,
    name: Annotated[str | None, typer.Option(help="the baseline's name in the suite")] = None,
    baseline: BaselineOption = BASELINES,
    prompts: Annotated[bool, typer.Option("--prompts", help="accept the current prompt texts")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="accept the current scores of the replays")] = False,
    anyway: Annotated[
        bool,
        typer.Option(
            "--anyway",
            help="with --prompts: also accept texts that changed without a new version; say why in the commit",
        ),
    ] = False,
    allow_unscored: Annotated[
        bool,
        typer.Option("--allow-unscored", help="with RUN: also accept one with failed samples; the baseline says so"),
    ] = False,
) -> None:
    """Make a run, prompts or scores the new baseline.

    Later checks compare with it. It is written to files, as a diff to review.
    """
    if (run is not None) + prompts + exact != 1:
        raise UsageError("accept takes a RUN, or --prompts, or --exact", "visrl-eval accept RUN --name NAME")
    if prompts:
        _accept_prompts(anyway)
    elif exact:
        from visrl.regression.gates import record_replays

        with tempfile.TemporaryDirectory(prefix="visrl-accept-") as scratch:
            changed = record_replays(Path(scratch))
        print("\n".join(f"changed: {key}" for key in changed) or "nothing changed")
    elif run is not None:
        from visrl.regression.paired import accept_run
        from visrl.runs.store import slug

        check_there(run)
        name = slug(name or run.resolve().name)
        print("\n".join(accept_run(run, name, baseline, allow_unscored=allow_unscored)))
        print(f"wrote {baseline}: review and commit it with the scores beside it", file=sys.stderr)


def _accept_prompts(anyway: bool) -> None:
    from visrl.evals.gates import unbumped
    from visrl.regression.prompt_snapshots import prompts_file, read_prompts, render_all, write_prompts

    path, rendered = prompts_file(), render_all()
    unaccepted = unbumped(read_prompts(path), rendered) if path.exists() else []
    for finding in unaccepted:
        print(f"{finding.name}: {finding.reason}\n{finding.detail}", file=sys.stderr)
    if unaccepted and not anyway:
        print(
            "error: prompts changed under an old version\n\nhint: bump the task's or the protocol's version, or --anyway",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_GATE_FAILED)
    write_prompts(path, rendered)
    print(f"wrote {path}: {len(rendered)} texts", file=sys.stderr)


def tables_on_file(results: Path, write: bool) -> None:
    """``visrl-eval tables --check`` and ``--write``: results/tables against results/records. Exit code 1 when stale."""
    from visrl.tables.generated import stale, write_tables

    if write:
        changed = write_tables(results)
        print("\n".join(f"wrote {path}" for path in changed) or "all tables are up to date", file=sys.stderr)
    elif names := stale(results):
        print(
            f"error: stale: {', '.join(names)} in {results / 'tables'}\n\nhint: visrl-eval tables --write, and commit",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_GATE_FAILED)
