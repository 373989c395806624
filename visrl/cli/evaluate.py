"""``visrl-eval``: one flat command that works, and subcommands for the rest. Imports lazily: help answers in 0.3 s.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a gate failed, 2 wrong use, 3 incomplete.
"""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrl import __version__
from visrl.cli import check as check_commands
from visrl.cli import results as results_commands
from visrl.cli.audit import audit
from visrl.cli.card import card
from visrl.cli.ending import command_line, reader_gone, stopped
from visrl.cli.export import export
from visrl.cli.including import IncludeOption, include_files
from visrl.cli.leaderboard import leaderboard
from visrl.cli.ls import ls, world
from visrl.cli.numbers import sensible
from visrl.cli.results import JsonOption, compare_protocols, print_places, print_results
from visrl.cli.tables import tables
from visrl.core.ranges import LARGEST_SEED, MOST_PROCESSES
from visrl.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_USAGE, Interrupted, UsageError, printable, refused
from visrl.runs.distributed import rank, say, shutdown, wait_without_spinning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visrl.evaluation.evaluate import Options, Outcome
    from visrl.policies.protocol import Policy
    from visrl.tables.result_tables import Compared

# click's ClickException, or its copy inside newer typers, which do not export it
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_INTERRUPTED = 130  # what newer typers return for a Ctrl-C

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
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
    typer.Option(min=0, callback=sensible, help="exit with 3 if more samples fail: a number, or a fraction below 1"),
]
RayOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=MOST_PROCESSES, help="number of Ray workers, on a cluster or this machine (docs/scaling.md)"
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"visrl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of ``visrl-eval`` itself."""


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
    limit: Annotated[
        int | None, typer.Option(min=1, callback=sensible, help="only the first N samples of each task")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="samples per batch, or auto")] = "auto",
    judge: JudgeOption = "exact",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="seed of sampling and of random boxes")] = 0,
    output: OutputOption = None,
    name: Annotated[str, typer.Option(help="what records, tables and pages call the model; default: its spec")] = "",
    fail_on_error: FailOption = 0,
    max_tokens: Annotated[int, typer.Option(min=1, callback=sensible, help="maximum new tokens per turn")] = 128,
    ray: RayOption = None,
    include: IncludeOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print no progress")] = False,
) -> None:
    """Evaluate a model; the same command resumes a run."""
    from visrl.evaluation.evaluate import Options, evaluate, own_and_upstream
    from visrl.evaluation.on_ray import policy_and_engine
    from visrl.policies.registry import parse_model_args
    from visrl.runs.distributed import init

    processes = init()
    include_files(include, ray)
    own, upstream = own_and_upstream(tasks, ray)
    arguments = parse_model_args(model_args)
    if quiet:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries; read when tqdm is imported
    _check_first(model, arguments, own, limit, judge=judge, data=data, protocol=protocol, focus=focus, crop=crop)
    policy, engine = policy_and_engine(model, arguments, ray)
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
        name=name,
    )
    ends = list[_Ended]()
    if upstream:
        place = replace(options, output=output / "lmms") if own and output is not None else options
        ends.append(_run_upstream(policy, upstream, place, beside or "none", json_))
    if own or not upstream:

        def ours(tasks: list[str], how: Options) -> Outcome:
            return evaluate(policy, tasks, how, engine)

        outcome = ours(own, options)
        second = beside or _protocol_beside(own, protocol)
        asked = [] if second == "none" else _with_answers(own, second)
        ends.append(_Ended(outcome, _run_beside(ours, asked, second, options, outcome, json_)))
    if processes.is_main:
        _finish(ends, fail_on_error, json_)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A run that is over. compared: what looking changed, where a second protocol was run beside it."""

    outcome: Outcome
    compared: Compared | None


Run = Callable[[list[str], "Options"], "Outcome"]
"""Runs tasks in a folder."""


def _run_upstream(policy: Policy, tasks: list[str], options: Options, second: str, json_: bool) -> _Ended:
    """lmms-eval's own tasks, and again under protocol ``second``."""
    from visrl.lmms.upstream import evaluate_upstream

    def theirs(tasks: list[str], how: Options) -> Outcome:
        return evaluate_upstream(policy, tasks, how)

    outcome = theirs(tasks, options)
    return _Ended(outcome, _run_beside(theirs, tasks, second, options, outcome, json_))


def _check_first(model: str, arguments: Mapping[str, str], own: Sequence[str], limit: int | None, **asked: Any) -> None:
    """Raises UsageError for what can be seen to be missing or wrong before a model is loaded; then readies its loading."""
    from visrl.evaluation.evaluate import check_before, check_pictures
    from visrl.policies.before import check_policy
    from visrl.policies.registry import looks_at_pictures

    if own:
        check_before(own, **asked)
        if looks_at_pictures(model):
            check_pictures(own, asked["data"], limit)
    _load_quietly(model)
    if model.startswith(("endpoint:", "openai:")):
        check_policy(model, arguments)


def _load_quietly(model: str) -> None:
    """No bar for weights that are here; one that tells of a download stays. transformers reads this when it is imported."""
    name = model.rpartition("blind:")[2].removeprefix("hf:")
    if Path(name).exists() or name.count("/") != 1:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


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
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UsageError(
            f"--batch-size {printable(repr(text), 60)} is neither a number nor auto", "for example --batch-size 8"
        )
    policy.rows = int(text)
    return policy.rows


def _with_answers(tasks: list[str], second: str) -> list[str]:
    """Of our tasks those that ask for an answer: an expression has none but its box. Raises UsageError where none does."""
    from visrl.evals.benchmarks import resolve

    asked = [spec.name for spec in resolve(tasks) if not spec.box_is_the_answer]
    if not asked:
        raise UsageError(
            f"--beside {second}: no task of {', '.join(tasks)} asks for an answer",
            "leave out --beside, or add a task with questions",
        )
    return asked


def _run_beside(
    run: Run, tasks: list[str], second: str, options: Options, first: Outcome, json_: bool
) -> Compared | None:
    """The questions of ``tasks`` again under protocol ``second``, in a folder within the first run's; what looking changed.

    None under protocol ``none``, and where there is nothing to print.
    """
    if second == "none":
        return None
    beside = run(tasks, replace(options, protocol=second, output=first.folder / second))
    first.n_samples, first.n_failed = first.n_samples + beside.n_samples, first.n_failed + beside.n_failed
    first.skipped, first.problems = first.skipped + beside.skipped, first.problems + beside.problems
    if json_ or not beside.results:  # of several processes only the first has results
        first.results += beside.results
        return None
    return compare_protocols(first.folder, second, first.results[0].protocol)


def _finish(ends: Sequence[_Ended], fail_on_error: float, json_: bool) -> None:
    """Print what came out of every run, and say how complete they are."""
    if json_:
        print_results([result for end in ends for result in end.outcome.results], json_)
    for end in ends:
        if not json_:
            print_results(end.outcome.results, json_, end.compared)
        _print_end(end.outcome.folder, end.compared, json_)
    outcomes = [end.outcome for end in ends]
    n_samples, n_failed = sum(o.n_samples for o in outcomes), sum(o.n_failed for o in outcomes)
    skipped = sum(o.skipped for o in outcomes)
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    allowed = fail_on_error if fail_on_error >= 1 else fail_on_error * n_samples
    if problems or n_failed:
        print(f"{n_failed} of {n_samples} samples failed or are unaccounted for", file=sys.stderr)
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
    if n_failed > allowed or skipped:
        print(
            f"error: incomplete: {n_failed + skipped} problems, {allowed:g} allowed\n\n"
            "hint: the same command tries failed samples again; --fail-on-error N allows some",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_INCOMPLETE)


def _print_end(folder: Path, compared: Compared | None, quiet: bool) -> None:
    """Where the run is, and where to look next; of a run whose records were asked for, only the first."""
    print(f"\nrun: {folder}", file=sys.stderr)
    if not quiet:
        print_places(folder, compared)


results_commands.register(app)
for listing in (ls, world, tables, leaderboard, audit, export, card):
    app.command()(listing)
check_commands.register(app)


def _hint(args: list[str], commands: Sequence[str]) -> str:
    """What helps after a command line that could not be understood."""
    name = args[0] if args and not args[0].startswith("-") else ""
    if name in commands:
        return f"visrl-eval {name} --help"
    close = difflib.get_close_matches(name, commands, n=1)
    return f"visrl-eval {close[0]} --help" if close else "visrl-eval --help"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code. A leading option means ``run``: ``visrl-eval --model … --tasks …``."""
    wait_without_spinning()
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
        args.insert(0, "run")
    with command_line():
        return _end_of(args)


def _end_of(args: list[str]) -> int:
    from typer.main import get_command

    saved = "finished samples are kept"
    if completing := "_VISRL_EVAL_COMPLETE" in os.environ:  # a shell asks (docs/faq.md)
        from typer.completion import completion_init  # type: ignore[attr-defined]  # not in its __all__

        completion_init()
    if not args and not completing:
        return say(UsageError("no command", "visrl-eval --model tiny --tasks world, or visrl-eval --help"))
    command: Any = get_command(app)
    try:
        code = command.main(args=args, prog_name="visrl-eval", standalone_mode=False)
        if code != _INTERRUPTED:
            return shutdown(code if isinstance(code, int) else EXIT_DONE)
    except UsageError as error:
        return say(error)
    except _ClickException as error:
        print(f"error: {error.format_message()}\n\nhint: {_hint(args, list(command.commands))}", file=sys.stderr)
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
