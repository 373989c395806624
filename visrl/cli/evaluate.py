"""``visrl-eval``: one flat command that works, and subcommands for the rest. Imports lazily: help answers in 0.3 s.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 a gate failed, 2 wrong use, 3 incomplete.
"""

from __future__ import annotations

import difflib
import gc
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrl import __version__
from visrl.cli import check as check_commands
from visrl.cli.ending import closed, command_line, reader_gone, stopped
from visrl.cli.including import IncludeOption, include_files
from visrl.cli.ls import ls, world
from visrl.cli.numbers import sensible
from visrl.cli.results import show as results_commands
from visrl.cli.results.audit import audit
from visrl.cli.results.card import card
from visrl.cli.results.export import export
from visrl.cli.results.leaderboard import leaderboard
from visrl.cli.results.show import JsonOption, looks_of
from visrl.cli.results.tables import tables
from visrl.cli.running import Asked, batch_size_of, finish, load_quietly, run_all
from visrl.cli.start import held_to_the_end, wait_without_spinning
from visrl.core.arguments import LARGEST_SEED, MOST_PROCESSES
from visrl.errors import EXIT_DONE, EXIT_USAGE, Interrupted, UsageError, printable, refused
from visrl.runs.distributed import say, shutdown
from visrl.runs.quiet import hush

if TYPE_CHECKING:
    from collections.abc import Sequence


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
    str | None,
    typer.Option(help="viscot_train | viscot_eval | visrl_train | direct | zoom | FILE.yaml; default: the model's own"),
]
BesideOption = Annotated[
    str | None,
    typer.Option(
        help="a second protocol, run on the same questions and compared, or none; the group world runs direct beside"
    ),
]
FocusOption = Annotated[
    str,
    typer.Option(
        help="which box is cropped: predicted | gold | random | centre | full; several looks: one each, by commas"
    ),
]
LooksOption = Annotated[
    str,
    typer.Option(help="maximum looks per sample (protocols with several looks); 0..3: one run per limit, and a curve"),
]
CropOption = Annotated[
    str | None, typer.Option(help="viscot_square112 | tight | compat_visrl; default: the model's own")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="run folder; default runs/<model>-<tasks>-<hash>")
]
FailOption = Annotated[
    float,
    typer.Option(
        min=0, callback=sensible, help="exit code 3 if more samples fail than this: a number, or a fraction below 1"
    ),
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
    max_looks: LooksOption = "",
    ray: RayOption = None,
    include: IncludeOption = None,
    json_: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print no progress and no library messages")] = False,
) -> None:
    """Evaluate a model; the same command resumes a run."""
    from visrl.evaluation.evaluate import Options, check_first, own_and_upstream
    from visrl.evaluation.on_ray import policy_and_engine
    from visrl.policies.registry import parse_model_args
    from visrl.runs.distributed import init

    if quiet:
        hush()
    processes = init()
    include_files(include)
    own, upstream = own_and_upstream(tasks, ray)
    looks = looks_of(max_looks, upstream)
    arguments = parse_model_args(model_args)
    load_quietly(model)
    check_first(model, arguments, own, limit, judge=judge, data=data, protocol=protocol, focus=focus, crop=crop)
    with held_to_the_end():
        policy, engine = policy_and_engine(model, arguments, ray)
    options = Options(
        data=data, protocol=protocol, focus=focus, crop=crop, limit=limit, batch_size=batch_size_of(batch_size, policy),
        judge=judge, seed=seed, output=output, max_tokens=max_tokens, quiet=quiet, name=name,
        max_looks=looks[0] if len(looks) == 1 else None,
    )  # fmt: skip
    ended = run_all(policy, engine, Asked(own, upstream, looks, beside), options, json_=json_)
    if processes.is_main:
        finish(ended, fail_on_error, json_)


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
        try:
            return _end_of(args)
        except (KeyboardInterrupt, typer.Abort):  # also before the command began, or while it said its error
            return _stopped("finished samples are kept", args)
        finally:
            gc.unfreeze()


def _end_of(args: list[str]) -> int:
    from typer.main import get_command

    if completing := "_VISRL_EVAL_COMPLETE" in os.environ:  # a shell asks (docs/faq.md)
        from typer.completion import completion_init  # type: ignore[attr-defined]  # not in its __all__

        completion_init()
    if not args and not completing:
        return say(UsageError("no command", "visrl-eval --model tiny --tasks world, or visrl-eval --help"))
    command: Any = get_command(app)
    try:
        code = command.main(args=args, prog_name="visrl-eval", standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        return shutdown(code if isinstance(code, int) else EXIT_DONE)
    except UsageError as error:
        return say(error)
    except _ClickException as error:
        print(f"error: {error.format_message()}\n\nhint: {_hint(args, list(command.commands))}", file=sys.stderr)
        return EXIT_USAGE
    except Interrupted as stop:
        return _stopped(str(stop), args)
    except BrokenPipeError:
        return reader_gone()
    except SystemExit as end:
        if closed(end):
            return reader_gone()
        raise
    except OSError as error:  # the last net: a file that the system refuses is no fault of the program
        return say(refused(error))


def _stopped(saved: str, args: list[str]) -> int:
    return stopped(printable(saved), printable(shlex.join(["visrl-eval", *args]), 2000))
