"""``visrl-eval``: one flat command that works, and subcommands for the rest. Imports lazily: help answers in 0.3 s.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a gate failed, 2 wrong use, 3 incomplete.
"""

from __future__ import annotations

import difflib
import logging
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrl import __version__
from visrl.cli import check as check_commands
from visrl.cli import results as results_commands
from visrl.cli.audit import audit
from visrl.cli.ending import command_line, reader_gone, stopped
from visrl.cli.export import export
from visrl.cli.leaderboard import leaderboard
from visrl.cli.ls import ls, world
from visrl.cli.results import JsonOption, compare_protocols, print_places, print_results
from visrl.cli.start import wait_without_spinning
from visrl.cli.tables import tables
from visrl.core.records import dump_json
from visrl.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_USAGE, Interrupted, UsageError, printable, refused
from visrl.runs.distributed import rank, say, shutdown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from visrl.evaluation.evaluate import Engine, Options, Outcome
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
    typer.Option(min=0, help="exit with 3 if more samples fail: a number, or a fraction below 1"),
]
RayOption = Annotated[
    int | None, typer.Option(min=1, help="number of Ray workers, on a cluster or this machine (docs/scaling.md)")
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
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N samples of each task")] = None,
    batch_size: Annotated[str, typer.Option(help="samples per batch, or auto")] = "auto",
    judge: JudgeOption = "exact",
    seed: Annotated[int, typer.Option(help="seed of sampling and of random boxes")] = 0,
    output: OutputOption = None,
    name: Annotated[str, typer.Option(help="what records, tables and pages call the model; default: its spec")] = "",
    fail_on_error: FailOption = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="maximum new tokens per turn")] = 128,
    ray: RayOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print no progress")] = False,
) -> None:
    """Evaluate a model; the same command resumes a run."""
    from visrl.evaluation.evaluate import Options, evaluate, own_and_upstream
    from visrl.evaluation.on_ray import policy_and_engine
    from visrl.policies.registry import parse_model_args
    from visrl.runs.distributed import init

    processes = init()
    own, upstream = own_and_upstream(tasks, ray)
    arguments = parse_model_args(model_args)
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
    failed, rows = 0, list[dict[str, Any]]()
    if upstream:
        failed, rows = _run_upstream([name.removeprefix("lmms:") for name in upstream], policy, options, json_)
    if own or not upstream:
        outcome = evaluate(policy, own, options, engine)
        second = beside or _protocol_beside(own, protocol)
        compared = _run_beside(policy, own, second, options, engine, outcome, json_)
        if processes.is_main:
            _finish(outcome, fail_on_error, json_, compared, rows)
    elif json_ and processes.is_main:
        print(dump_json(rows), end="")
    if upstream and failed > fail_on_error and processes.is_main:
        print(f"error: incomplete: {failed} samples of lmms-eval's tasks failed", file=sys.stderr)
        raise typer.Exit(EXIT_INCOMPLETE)


def _run_upstream(tasks: list[str], policy: Policy, options: Options, json_: bool) -> tuple[int, list[dict[str, Any]]]:
    """How many samples of lmms-eval's tasks failed, and their results as rows for ``--json``; else their table is printed."""
    from visrl.lmms import upstream

    found = upstream.evaluate_upstream(tasks, policy, options)
    if not json_:
        upstream.print_upstream(found)
    return upstream.failed(found), upstream.rows(found) if json_ else []


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
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size {text!r} is neither a number nor auto", "for example --batch-size 8")
    policy.rows = int(text)
    return policy.rows


def _run_beside(
    policy: Policy, tasks: list[str], second: str, options: Options, engine: Engine, first: Outcome, json_: bool
) -> Compared | None:
    """The questions of ``tasks`` again under protocol ``second``, in a folder within the first run's; what looking changed.

    None under protocol ``none``, and where there is nothing to print.
    """
    from visrl.evals.benchmarks import resolve
    from visrl.evaluation.evaluate import evaluate

    if second == "none":
        return None
    asked = [
        spec.name for spec in resolve(tasks) if not spec.box_is_the_answer
    ]  # an expression has no answer but its box
    if not asked:
        raise UsageError(
            f"--beside {second}: no task of {', '.join(tasks)} asks for an answer",
            "leave out --beside, or add a task with questions",
        )
    beside = evaluate(policy, asked, replace(options, protocol=second, output=first.folder / second), engine)
    first.n_samples, first.n_failed = first.n_samples + beside.n_samples, first.n_failed + beside.n_failed
    first.skipped, first.problems = first.skipped + beside.skipped, first.problems + beside.problems
    if json_ or not beside.results:  # of several processes only the first has results
        first.results += beside.results
        return None
    return compare_protocols(first.folder, second, first.results[0].protocol)


def _finish(
    outcome: Outcome,
    fail_on_error: float,
    json_: bool,
    compared: Compared | None = None,
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Print what came out, and say how complete it is. more: rows of lmms-eval's tasks, which ``--json`` prints with ours."""
    if more:
        print(dump_json([*(result.model_dump(mode="json") for result in outcome.results), *more]), end="")
    else:
        print_results(outcome.results, json_, compared)
    _print_end(outcome.folder, compared, json_)
    allowed = fail_on_error if fail_on_error >= 1 else fail_on_error * outcome.n_samples
    if outcome.problems or outcome.n_failed:
        print(f"{outcome.n_failed} of {outcome.n_samples} samples failed or are unaccounted for", file=sys.stderr)
        for problem in outcome.problems:
            print(f"  {problem}", file=sys.stderr)
    if outcome.n_failed > allowed or outcome.skipped:
        print(
            f"error: incomplete: {outcome.n_failed + outcome.skipped} problems, {allowed:g} allowed\n\n"
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
for listing in (ls, world, tables, leaderboard, audit, export):
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
