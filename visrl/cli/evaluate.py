"""``visrl-eval``: one flat command that works, and subcommands for the rest. Imports lazily: help answers in 0.3 s.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a gate failed, 2 wrong use, 3 incomplete.
"""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrl.cli import check as check_commands
from visrl.cli.ending import command_line, reader_gone, stopped
from visrl.cli.ls import ls, world
from visrl.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_USAGE, Interrupted, UsageError, printable, refused
from visrl.runs.distributed import rank, say, shutdown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visrl.core.records import TaskResult
    from visrl.evals.compare import Difference
    from visrl.evaluation.evaluate import Engine, Options, Outcome
    from visrl.policies.protocol import Policy

# click's ClickException, or its copy inside newer typers, which do not export it
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_INTERRUPTED = 130  # what newer typers return for a Ctrl-C

ANSWER_METRICS = ("answer", "accuracy", "f1", "perception", "cognition", "circular")
"""What two protocols are compared by: what both of them say."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Evaluate models that look, then answer.  `visrl-eval --model M --tasks T` is short for `visrl-eval run …`.",
)

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="tiny | hf:ID_OR_PATH | endpoint:URL#NAME | vllm:ID | replay:FILE_OR_DIR | constant:TEXT"
    ),
]
TasksOption = Annotated[
    str, typer.Option("--tasks", "-t", help="comma-separated tasks or groups; `visrl-eval ls` lists them")
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="folder with the benchmark files (docs/data.md); else the hub")
]
JudgeOption = Annotated[
    str, typer.Option("--judge", help="exact | anls | contains | openai:URL#MODEL (who scores free answers)")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print TaskResults as JSON on stdout")]
ProtocolOption = Annotated[
    str | None, typer.Option(help="viscot_train | viscot_eval | visrl_train | direct; default: the model's own")
]
BesideOption = Annotated[
    str | None,
    typer.Option(
        help="a second protocol, run on the same questions and compared, or none; the group world runs direct beside"
    ),
]
FocusOption = Annotated[str, typer.Option(help="which box is cropped: predicted | gold | random | centre | full")]
CropOption = Annotated[
    str | None, typer.Option(help="viscot_square112 | tight | compat_visrl; default: the model's own")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="run folder; default runs/<model>-<tasks>-<hash>")
]
FailOption = Annotated[
    float,
    typer.Option(min=0, help="exit with 3 if more samples fail: a number, or a fraction below 1"),
]
RayOption = Annotated[
    int | None, typer.Option(min=1, help="number of Ray workers, on a cluster or this machine (docs/scaling.md)")
]


@app.command()
def run(
    model: ModelOption,
    tasks: TasksOption,
    data: DataOption = None,
    model_args: Annotated[str, typer.Option(help="key=value,…, e.g. dtype=bfloat16,parser=strict")] = "",
    protocol: ProtocolOption = None,
    beside: BesideOption = None,
    focus: FocusOption = "predicted",
    crop: CropOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N samples of each task")] = None,
    batch_size: Annotated[str, typer.Option(help="samples per batch, or auto")] = "auto",
    judge: JudgeOption = "exact",
    seed: Annotated[int, typer.Option(help="seed of sampling and of random boxes")] = 0,
    output: OutputOption = None,
    fail_on_error: FailOption = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="maximum new tokens per turn")] = 128,
    ray: RayOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print no progress")] = False,
) -> None:
    """Evaluate a model; the same command resumes a run."""
    from visrl.evaluation.evaluate import Options, check_before, evaluate
    from visrl.evaluation.on_ray import policy_and_engine
    from visrl.policies.registry import parse_model_args
    from visrl.runs.distributed import init

    processes = init()
    upstream = [name.strip() for name in tasks.split(",") if name.strip().startswith("lmms:")]
    if ray and upstream:
        raise UsageError("--ray cannot run lmms-eval's own tasks (lmms:…)", "use torchrun (docs/scaling.md)")
    if own := [name.strip() for name in tasks.split(",") if name.strip() not in upstream]:
        check_before(own, judge=judge, data=data, protocol=protocol, focus=focus, crop=crop)
    policy, engine = policy_and_engine(model, parse_model_args(model_args), ray)
    options = Options(
        data=data,
        protocol=protocol,
        focus=focus,
        crop=crop,
        limit=limit,
        batch_size=_batch_size(batch_size, policy),
        judge=judge,
        seed=seed,
        output=output,
        max_tokens=max_tokens,
        quiet=quiet,
    )
    if upstream:
        from visrl.lmms.model import print_upstream

        failed = print_upstream([name.removeprefix("lmms:") for name in upstream], policy, options)
    if own or not upstream:
        outcome = evaluate(policy, own, options, engine)
        second = beside or _protocol_beside(own, protocol)
        beside_it = replace(options, protocol=second, output=outcome.folder / second)
        changes = [] if second == "none" else _run_beside(policy, own, beside_it, engine, outcome, json_)
        if processes.is_main:
            _finish(outcome, fail_on_error, json_, changes, f"{second} → looked")
    if upstream and failed > fail_on_error and processes.is_main:
        print(f"error: incomplete: {failed} samples of lmms-eval's tasks failed", file=sys.stderr)
        raise typer.Exit(EXIT_INCOMPLETE)


def _protocol_beside(tasks: list[str], protocol: str | None) -> str:
    """What a task group asks to have run beside it, where the user chose no protocol; said, because it takes its time."""
    from visrl.evals.benchmarks import RUN_BESIDE

    second = RUN_BESIDE.get(tasks[0], "none") if len(tasks) == 1 and protocol is None else "none"
    if second != "none" and rank() == 0:
        print(f"{tasks[0]} also runs under protocol {second}, to compare (--beside none: not)", file=sys.stderr)
    return second


def _batch_size(text: str, policy: Policy) -> int:
    if text == "auto":
        return policy.batch_size
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text!r} is neither a number nor auto", "for example --batch-size 8")
    policy.rows = int(text)
    return policy.rows


def _run_beside(
    policy: Policy, tasks: list[str], options: Options, engine: Engine, first: Outcome, json_: bool
) -> list[Difference]:
    """The questions of ``tasks`` again under ``options``, in a folder within the first run's; what looking changed."""
    from visrl.evals.benchmarks import resolve
    from visrl.evals.compare import compare
    from visrl.evals.sample_scores import of_run
    from visrl.evaluation.evaluate import evaluate

    asked = [
        spec.name for spec in resolve(tasks) if not spec.box_is_the_answer
    ]  # an expression has no answer but its box
    if not asked:
        raise UsageError(
            f"--beside {options.protocol}: no task of {', '.join(tasks)} asks for an answer",
            "leave out --beside, or add a task with questions",
        )
    second = evaluate(policy, asked, options, engine)
    first.n_samples, first.n_failed = first.n_samples + second.n_samples, first.n_failed + second.n_failed
    first.skipped, first.problems = first.skipped + second.skipped, first.problems + second.problems
    if json_ or not second.results:  # of several processes only the first has results
        first.results += second.results
        return []
    found = compare(of_run(second.folder), of_run(first.folder))
    return [replace(d, worst=()) for d in found if d.metric in ANSWER_METRICS]


def _finish(
    outcome: Outcome, fail_on_error: float, json_: bool, changes: Sequence[Difference] = (), title: str = ""
) -> None:
    _print_results(outcome.results, json_)
    if changes:
        print()
        check_commands.print_comparison(title, list(changes), [], "rich")
    _print_end(outcome.folder, changes, title)
    allowed = fail_on_error if fail_on_error >= 1 else fail_on_error * outcome.n_samples
    if outcome.problems or outcome.n_failed:
        print(f"{outcome.n_failed} of {outcome.n_samples} samples failed or are unaccounted for", file=sys.stderr)
        for problem in outcome.problems:
            print(f"  {problem}", file=sys.stderr)
    if outcome.n_failed > allowed or outcome.skipped:
        print(
            f"error: incomplete: {outcome.n_failed} problems, {allowed:g} allowed\n\n"
            "hint: the same command tries failed samples again; --fail-on-error N allows some",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INCOMPLETE)


def _print_end(folder: Path, changes: Sequence[Difference], title: str) -> None:
    """What a long table comes to, and where to look next."""
    from visrl.evals.benchmarks import GROUPS
    from visrl.regression.reports import change

    print(file=sys.stderr)
    for d in (d for d in changes if d.task in GROUPS):
        print(f"{d.task} {d.metric}, {title}: {change(d.before, d.after, d.delta, d.se, d.unit)}", file=sys.stderr)
    print(f"run: {folder}", file=sys.stderr)
    print(f"picture by picture: visrl-eval view {shlex.quote(str(folder))}", file=sys.stderr)


def _print_results(results: list[TaskResult], json_: bool) -> None:
    if json_:
        from visrl.core.records import dump_json

        sys.stdout.write(dump_json([result.model_dump(mode="json") for result in results]))
    else:
        from visrl.tables.paper_tables import print_results

        print_results(results)


@app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    judge: Annotated[str | None, typer.Option(help="a judge other than the run's own")] = None,
    json_: JsonOption = False,
) -> None:
    """Score a run again, without generating."""
    from visrl.evaluation.rescore import score as score_folder
    from visrl.evaluation.rescore import unjudged

    results = score_folder(folder, judge)
    _print_results(results, json_)
    if lost := unjudged(results):
        print(
            f"error: incomplete: {lost} answers are unscored: the judge could not be reached\n\n"
            "hint: the same command asks again",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INCOMPLETE)


@app.command()
def show(folder: Annotated[Path, typer.Argument(metavar="RUN")], json_: JsonOption = False) -> None:
    """Print a run's settings and results."""
    from visrl.core.records import read_records
    from visrl.runs.meta import read_evaluation

    meta = read_evaluation(folder)
    request = meta["request"]
    facts = ("model", "protocol", "focus", "crop", "limit", "seed")
    print(" · ".join(f"{fact} {request[fact]}" for fact in facts if request[fact] is not None), file=sys.stderr)
    _print_results(read_records(folder), json_)


@app.command()
def view(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or one of a training run")],
    other: Annotated[Path | None, typer.Argument(metavar="[RUN2]", help="a second run to compare with")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="file of the page; default RUN/report.html", show_default=False),
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="serve the page with all pictures in full size")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port of the server; 0: any free one")] = 0,
) -> None:
    """Write an HTML page of one run or of two."""
    from visrl.report import serve_page, write_report

    folders = [folder] if other is None else [folder, other]
    if serve:
        serve_page(folders, port)
    else:
        print(write_report(folders, output))


for listing in (ls, world):
    app.command()(listing)


@app.command()
def tables(
    paper: Annotated[str | None, typer.Option(help="general | viscot | rec | datagen")] = None,
    records: Annotated[
        list[Path] | None,
        typer.Argument(help="run folders or record files; default: results/records", show_default=False),
    ] = None,
    format_: Annotated[str, typer.Option("--format", help="rich | md | csv | latex")] = "rich",
    against: Annotated[str | None, typer.Option(help="the published row to compare with")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="exit 1 when results/tables is not what the records give")
    ] = False,
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
        check_commands.tables_on_file(results, write)
        return
    if paper is None and figure is None:
        raise UsageError("tables needs --paper, --figure, --check or --write", "for example --paper rec")
    from visrl.core.records import read_records
    from visrl.tables.phase_tables import in_order

    places = records or [Path("results/records")]
    found = in_order([result for place in places for result in read_records(place)])
    if figure is not None:
        _draw(figure, found, output)
    if paper is not None:
        _print_tables(paper, found, format_, against)


def _draw(figure: str, found: list[TaskResult], output: Path) -> None:
    from visrl.tables.phase_tables import draw_iterations, longest, runs

    if figure != "iterations":
        raise UsageError(f"unknown figure {figure!r}", "use --figure iterations")
    run_ = longest(found)
    draw_iterations(found, run_, output)
    if len(others := runs(found)) > 1:
        print(f"drawn: {run_}, the one with most iterations of {len(others)} runs", file=sys.stderr)
    print(output)


def _print_tables(paper: str, found: list[TaskResult], format_: str, against: str | None) -> None:
    """The paper's table; below viscot's, the phases of each loop of the small world, whose tasks have no column there."""
    from visrl.tables.paper_tables import print_paper_table, print_table
    from visrl.tables.phase_tables import of_loops, phase_table, runs

    print_paper_table(paper, found, format_, against)
    small = [result for result in of_loops(found) if result.small_world]
    for run_ in runs(small) if paper == "viscot" else ():
        print_table(phase_table(small, run_), format_)


check_commands.register(app)


def _command(args: list[str]) -> str:
    return args[0] if args and not args[0].startswith("-") else ""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code. A leading option means ``run``: ``visrl-eval --model … --tasks …``."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
        args.insert(0, "run")
    with command_line():
        return _end_of(args)


def _end_of(args: list[str]) -> int:
    from typer.main import get_command

    saved = "finished samples are kept"
    try:
        code = get_command(app).main(args=args, prog_name="visrl-eval", standalone_mode=False)
        if code != _INTERRUPTED:
            return shutdown(code if isinstance(code, int) else EXIT_DONE)
    except UsageError as error:
        return say(error)
    except _ClickException as error:
        print(f"error: {error.format_message()}\n\nhint: visrl-eval {_command(args)} --help", file=sys.stderr)
        return EXIT_USAGE
    except Interrupted as stop:
        saved = str(stop)
    except BrokenPipeError:
        return reader_gone()
    except OSError as error:  # the last net: a file that the system refuses is no fault of the program
        return say(refused(error))
    except (KeyboardInterrupt, typer.Abort):
        pass  # said below
    return stopped(printable(saved), printable(shlex.join(["visrl-eval", *args]), 2000))
