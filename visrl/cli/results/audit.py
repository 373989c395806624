"""``visrl-eval audit``: recorded boxes under every frame and every parser."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from visrl.evaluation.audit import Audit


def audit(
    source: Annotated[Path, typer.Argument(metavar="RUN|PREDICTIONS", help="a run folder, or a file of predictions")],
    data: Annotated[Path | None, typer.Option("--data", help="folder with the benchmark files (docs/data.md)")] = None,
    tasks: Annotated[
        str, typer.Option("--tasks", "-t", help="default: the tasks of the run, or the matching REC task")
    ] = "",
    model_args: Annotated[str, typer.Option(help="as for replay:, e.g. box_format=json_1000,parser=strict")] = "",
    json_: Annotated[bool, typer.Option("--json", help="machine-readable, on stdout")] = False,
) -> None:
    """Score recorded boxes under every frame and parser.

    Is it the model that is wrong, or the way its boxes are read?
    """
    from visrl.core.records import dump_json
    from visrl.evals.benchmarks import resolve
    from visrl.evaluation.audit import audit_file
    from visrl.policies.registry import parse_model_args

    names = [spec.name for spec in resolve([tasks])] if tasks else []
    found = audit_file(source, data, names, parse_model_args(model_args))
    if json_:
        sys.stdout.write(dump_json([asdict(one) for one in found]))
        return
    for one in found:
        _print(one)


_SHORT = {"lmms_eval": "reads the truth; not comparable", "vlmevalkit": "guesses; not comparable"}


def _print(found: Audit) -> None:
    """Ours declared, then every frame, a line each; then what others' rules print."""
    own = found.readings[0]
    ours = [reading for reading in found.readings if reading.parser in ("lenient", "strict")]
    print(
        f"{found.task}, {found.n:,} outputs with a true box: acc@0.5 in percent, and the difference from the declared format\n"
    )
    print(_line("declared", own.box_format, own.frame, own.parser, own.accuracy, own.accuracy))
    for reading in ours:
        if reading != own:
            print(_line("", reading.box_format, reading.frame, reading.parser, reading.accuracy, own.accuracy))
    print("\nby the rules of others")
    for reading in found.readings:
        if reading.parser not in ("lenient", "strict") and reading != own:
            short = _SHORT.get(reading.parser, f"as {reading.frame}")
            print(_line("", reading.parser, short, "", reading.accuracy, own.accuracy))
    if found.hint:
        print(f"\n{found.task}: {found.hint}")


def _line(first: str, name: str, what: str, parser: str, accuracy: float, own: float) -> str:
    return f"{first:9}{name:32}{what:33}{parser:11}{accuracy:6.2f}  {accuracy - own:+7.2f}".rstrip()
