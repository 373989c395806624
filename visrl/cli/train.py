"""``visrl-train RECIPE.yaml [--set a.b=c]``: the same command starts a run, resumes it and, under ``accelerate launch
--no_python``, is one of its processes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from visrl import __version__
from visrl.cli.ending import closed, command_line, reader_gone, stopped
from visrl.cli.start import wait_without_spinning
from visrl.core.arguments import Parser
from visrl.core.plugins import include
from visrl.errors import EXIT_DONE, Interrupted, UsageError, printable, refused
from visrl.runs.distributed import check_launch, rank, say, shutdown
from visrl.runs.quiet import hush


def _parser() -> Parser:
    parser = Parser(
        prog="visrl-train",
        description="Train a vision-language model that looks, then answers: SFT, step-level DPO, GRPO.",
        epilog="`visrl-train estimate RECIPE.yaml --gpus N` estimates memory, hours and disk. "
        "`visrl-train merge ADAPTER --output DIR` writes merged weights. "
        "The same command resumes a run that was interrupted. Many GPUs: accelerate launch --no_python visrl-train RECIPE",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE",
        help="a recipe file, or the name of a bundled one; `visrl-train KIND RECIPE` also checks its kind",
    )
    parser.add_argument(
        "--version", action="version", version=f"visrl {__version__}", help="print the version, and stop"
    )
    parser.add_argument("--list", action="store_true", help="list the bundled recipes, and stop")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override a value of the recipe; may be repeated"
    )
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.py",
        help="a Python file that registers your own critic, protocol, … (docs/adding-a-task.md); may be repeated",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check and print the resolved recipe (of a loop also which phases would run and why), then stop",
    )
    parser.add_argument(
        "--quiet", "-q", action="store_true", help="print neither the recipe's values nor library messages"
    )
    return parser


def _recipe_path(words: Sequence[str]) -> tuple[Path, str | None]:
    from visrl.train.config.shipped import recipe_path

    if len(words) != 1 and len(words) != 2:
        said = f"expected one recipe, not {' '.join(words)}" if words else "no recipe is named"
        raise UsageError(said, "visrl-train RECIPE.yaml --set a.b=c; visrl-train --list names the bundled ones")
    return recipe_path(words[-1]), words[0] if len(words) == 2 else None


def run(arguments: Sequence[str]) -> int:
    """Run the command line ``arguments``. Returns the exit code. Raises UsageError."""
    if arguments[:1] in (["estimate"], ["plan"]):  # "plan" is its older name
        from visrl.estimate.cli import estimate_recipe

        estimate_recipe(arguments[1:])
        return EXIT_DONE
    if arguments[:1] == ["merge"]:
        from visrl.cli.merge import merge_command

        merge_command(arguments[1:])
        return EXIT_DONE
    args = _parser().parse_args(arguments)
    if args.list:
        from visrl.train.config.shipped import listing

        print("\n".join(listing()))
        return EXIT_DONE
    if args.quiet:
        hush()
    include(args.include)
    path, kind = _recipe_path(args.words)
    check_launch()
    from visrl.train.config.recipe import OLD_KINDS, load_recipe

    resolved = load_recipe(path, args.set)
    if kind is not None and OLD_KINDS.get(kind, kind) != resolved.recipe.kind:
        raise UsageError(f"{path} is a recipe of kind {resolved.recipe.kind}, not {kind}", f"visrl-train {path}")
    if rank() == 0 and not args.quiet:
        print("\n".join(resolved.lines()), file=sys.stderr)
    resolved.kind.check(resolved.recipe)
    if not args.dry_run:
        return resolved.kind.run(resolved.recipe)
    if resolved.kind.status is not None:
        print("\n".join(resolved.kind.status(resolved.recipe)))
    return EXIT_DONE


def main(argv: Sequence[str] | None = None) -> None:
    """The console script: exit codes 0 done, 2 wrong use, 3 incomplete (a signal, or questions that failed)."""
    wait_without_spinning()
    arguments = list(sys.argv[1:] if argv is None else argv)
    with command_line():
        try:
            code = _end_of(arguments)
        except KeyboardInterrupt:  # wherever it was: also while an error was said
            code = _stopped("what is finished is kept", arguments)
    raise SystemExit(code)


def _end_of(arguments: Sequence[str]) -> int:
    try:
        return shutdown(run(arguments))
    except UsageError as error:
        return say(error)
    except Interrupted as stop:
        return _stopped(str(stop), arguments)
    except BrokenPipeError:
        return reader_gone()
    except SystemExit as end:
        if closed(end):
            return reader_gone()
        raise
    except OSError as error:  # the last net: a file that the system refuses is no fault of the program
        return say(refused(error))


def _stopped(saved: str, arguments: Sequence[str]) -> int:
    return stopped(printable(saved), printable(shlex.join(["visrl-train", *arguments]), 2000))
