"""What ``visrl-eval run`` does once it knows what is asked: tasks of ours, lmms-eval's own, a second protocol, a curve; and what
it prints at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from visrl.cli.results.show import compare_protocols, print_places, print_results, show_curve
from visrl.errors import EXIT_INCOMPLETE, UsageError, printable
from visrl.runs.distributed import rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visrl.evaluation.evaluate import Options, Outcome
    from visrl.policies.protocol import Policy
    from visrl.tables.result_tables import Compared


@dataclass(frozen=True, slots=True)
class Asked:
    """own: tasks of ours. upstream: lmms-eval's. looks: the limits of ``--max-looks``. beside: the second protocol, if named."""

    own: list[str]
    upstream: list[str]
    looks: tuple[int, ...]
    beside: str | None


def run_all(policy: Policy, engine: Any, asked: Asked, options: Options, *, json_: bool) -> list[Ended]:
    """Every run that is asked for, one after another."""
    from visrl.evaluation.evaluate import evaluate

    own, ends = asked.own, list[Ended]()
    if len(asked.looks) > 1:
        ends.append(Ended(show_curve(policy, own, options, engine, asked.looks, json_=json_), None, printed=True))
        own = []
    if asked.upstream:
        place = replace(options, output=options.output / "lmms") if own and options.output is not None else options
        ends.append(_run_upstream(policy, asked.upstream, place, asked.beside or "none", json_))
    if own or not ends:

        def ours(tasks: list[str], how: Options) -> Outcome:
            return evaluate(policy, tasks, how, engine)

        outcome = ours(own, options)
        second = asked.beside or _protocol_beside(own, options.protocol)
        answered = [] if second == "none" else _with_answers(own, second)
        ends.append(Ended(outcome, _run_beside(ours, answered, second, options, outcome, json_)))
    return ends


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that is over. compared: what looking changed, where a second protocol was run beside it. printed: it is, already."""

    outcome: Outcome
    compared: Compared | None
    printed: bool = False


Run = Callable[[list[str], "Options"], "Outcome"]
"""Runs tasks in a folder."""


def _run_upstream(policy: Policy, tasks: list[str], options: Options, second: str, json_: bool) -> Ended:
    """lmms-eval's own tasks, and again under protocol ``second``."""
    from visrl.lmms.upstream import evaluate_upstream

    def theirs(tasks: list[str], how: Options) -> Outcome:
        return evaluate_upstream(policy, tasks, how)

    outcome = theirs(tasks, options)
    return Ended(outcome, _run_beside(theirs, tasks, second, options, outcome, json_))


def load_quietly(model: str) -> None:
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


def batch_size_of(text: str, policy: Policy) -> int:
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


def finish(ends: Sequence[Ended], fail_on_error: float, json_: bool) -> None:
    """Print what came out of every run, and say how complete they are."""
    if json_ and not all(end.printed for end in ends):
        print_results([result for end in ends for result in end.outcome.results], json_)
    for end in ends:
        if not (json_ or end.printed):
            print_results(end.outcome.results, json_, end.compared)
        _print_end(end.outcome.folder, end.compared, json_ or end.printed)
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
