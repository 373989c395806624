"""The paired gate: a fresh run against an accepted one, cell by cell; and how a run is accepted.

The run is always a fresh one, in a folder of its own: a finished run that is found again would prove nothing about today's
code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visrl.core.records import TaskResult, read_records
from visrl.errors import Interrupted, UsageError, printable
from visrl.evals import gates
from visrl.evals.baselines import COMPLETE, Baseline, accept, mismatches, missing_samples, read_baseline, read_entries
from visrl.evals.benchmarks import GROUPS, UPSTREAM, Better, better_of
from visrl.evals.compare import Difference, difference, pair_group, pair_task, pool
from visrl.evals.compare import Paired as Pairs
from visrl.evals.gates import Finding
from visrl.evals.sample_scores import Rows, of_run
from visrl.evals.suite import Cell, Paired
from visrl.runs.lines import read_episodes
from visrl.runs.meta import read_evaluation
from visrl.runs.store import fresh_folder


@dataclass(frozen=True, slots=True)
class Place:
    """Where things lie. baselines: the file of accepted runs. scratch: the folder of runs that are made. data: the folder of the
    benchmark files for these; None: the one that the gate names, else the hub.
    """

    baselines: Path
    scratch: Path
    data: Path | None = None


def check_paired(gate: Paired, place: Place, finished: Path | None = None) -> Iterator[Finding]:
    """The findings of one paired gate, one per cell. finished: a run to judge; without it one is made, unless the baseline alone
    decides every cell. A run that cannot be made or read leaves the other cells inconclusive.
    """
    names = [cell.name for cell in gate.cells]
    try:
        baseline = read_baseline(place.baselines, gate.baseline)
    except UsageError as error:
        yield from (Finding("paired", name, "fail", f"{error.message} ({error.hint})") for name in names)
        return
    refused = [_refused(cell, baseline) for cell in gate.cells]
    if all(refused):
        yield from (found for found in refused if found)
        return
    try:
        folder = finished or _run(gate, place)
        results, rows = read_records(folder), of_run(folder)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - of a model or its server, and whatever it is: the other gates are judged
        for name, found in zip(names, refused, strict=True):
            yield found or gates.not_judged("paired", name, error)
        return
    yield from judge_run(gate, baseline, results, rows)


def _refused(cell: Cell, baseline: Baseline) -> Finding | None:
    """Why no run can be held against the baseline in this cell, as far as the baseline tells; None where one can."""
    lost = [f"the baseline has no {' '.join(what)}" for what in cell.whats if baseline.number(*what) is None]
    if lost:
        return gates.invalid(cell.name, lost)
    try:
        pair_cell(cell, baseline.rows, baseline.rows)
    except UsageError as error:
        return gates.not_judged("paired", cell.name, error)
    return None


def _run(gate: Paired, place: Place) -> Path:
    """Make the gate's run; what can be seen to be missing is said before a model is loaded. Raises UsageError."""
    from visrl.evaluation.evaluate import Options, check_first, evaluate
    from visrl.policies.registry import load_policy

    tasks, data = gate.tasks.split(","), place.data or gate.data
    check_first(gate.model, gate.model_args, tasks, gate.limit, judge=gate.judge, data=data)
    policy = load_policy(gate.model, gate.model_args)
    given = gate.model_dump(include={"protocol", "focus", "crop", "limit", "judge", "seed", "batch_size"})
    folder = fresh_folder(place.scratch, gate.baseline)
    return evaluate(policy, tasks, Options(**given, data=data, output=folder, quiet=True)).folder


def judge_run(gate: Paired, baseline: Baseline, results: Sequence[TaskResult], rows: Rows) -> Iterator[Finding]:
    """The verdict on every cell of a run that was made, against its baseline."""
    z = gates.z_for(sum(1 + cell.two_sided for cell in gate.cells))
    by_cell = {(r.task, r.metric): r for r in results}
    for cell in gate.cells:
        reasons = [r for what in cell.whats for r in _why_not(gate, baseline, what, by_cell.get(what), rows)]
        wrong = gates.invalid(cell.name, dict.fromkeys(reasons))
        yield (
            _refused(cell, baseline)
            or wrong
            or _verdict(gate, cell, (baseline.rows, rows), z, _better(by_cell[cell.whats[0]]))
        )


def _better(fresh: TaskResult) -> Better:
    """By the run's own record: baselines of an older visrl do not say it. Where they do, both say the same (``mismatches``)."""
    return better_of(fresh.metric, fresh.higher_is_better)


def _verdict(gate: Paired, cell: Cell, sides: tuple[Rows, Rows], z: float, better: Better) -> Finding:
    try:
        found = cell_difference(cell, *sides, better)
    except UsageError as error:  # the run has the number, and no scores per sample
        return gates.not_judged("paired", cell.name, error)
    verdict = gates.check_difference(found, cell.floor, z, better=better, max_unpaired=gate.max_unscored)
    return replace(verdict, name=cell.name)


def cell_difference(cell: Cell, before: Rows, after: Rows, better: Better = "more") -> Difference:
    """The cell's paired difference. Raises UsageError as :func:`pair_cell`."""
    return difference(pair_cell(cell, before, after), better)


def pair_cell(cell: Cell, before: Rows, after: Rows) -> Pairs:
    """The cell's samples in both runs. Raises UsageError for a metric without scores per sample (what only records have), and for
    a pool of what cannot be pooled.
    """
    found = [_pair(task, metric, before, after) for task, metric in cell.whats]
    if not cell.pool:
        return found[0]
    try:
        return pool(found)
    except ValueError as error:
        raise UsageError(f"{cell.name}: {error}", "docs/ci.md describes pools") from error


def _pair(name: str, metric: str, before: Rows, after: Rows) -> Pairs:
    """A metric of a task or group. Raises UsageError where the runs have no scores of it sample by sample."""
    tasks = {
        task: pair_task(task, before[task], after[task])
        for task in GROUPS.get(name, (name,))
        if task in before and task in after
    }
    pairs = pair_group(name, tasks) if name in GROUPS else tasks.get(name, [])
    known = [found.metric for found in pairs]
    if metric not in known:
        raise UsageError(
            f"{name} {metric} has no scores per sample, which a paired gate compares",
            f"gate one of {', '.join(known)}" if known else "docs/ci.md describes what can be gated",
        )
    return pairs[known.index(metric)]


def _why_not(
    gate: Paired, baseline: Baseline, what: tuple[str, str], fresh: TaskResult | None, rows: Rows
) -> Iterator[str]:
    number = baseline.number(*what)
    if number is None or fresh is None:
        yield f"{'the baseline' if number is None else 'the run'} has no {' '.join(what)}"
        return
    if fresh.value is None:
        yield f"no value: {'; '.join([*fresh.notes, *fresh.unscored_reasons]) or 'nothing was scored'}"
    yield from mismatches(number, fresh)
    if missing := missing_samples(baseline, rows, what[0]):
        yield f"{len(missing)} samples of the baseline were not run, for example {missing[0]}"
    total = fresh.n + fresh.n_unscored
    for count, most, word in (
        (fresh.n_unscored, gate.max_unscored, "unscored"),
        (fresh.n_unparsed, gate.max_unparsed, "unparsed"),
    ):
        if count > most * total:
            reason = next(iter(fresh.unscored_reasons), "") if word == "unscored" else ""
            yield f"{count} of {total} samples {word}, {most:.1%} allowed{': ' + reason if reason else ''}"


def accept_run(folder: Path, name: str, baselines: Path, *, allow_unscored: bool = False) -> list[str]:
    """Make a finished run a baseline; returns a line per number, as ``old → new``. Raises UsageError as baselines.accept, also
    for failed samples of lmms-eval's own tasks, which count as wrong there.
    """
    request = read_evaluation(folder)["request"]
    old = read_entries(baselines).get(name)
    before = {(n.task, n.metric): n.value for n in old.numbers} if old else {}
    if not allow_unscored:
        _refuse_failed(folder, request["tasks"])
    results, rows = read_records(folder), of_run(folder)
    entry = accept(baselines, name, results, rows, request["seed"], allow_unscored=allow_unscored)
    return [
        f"{n.task} {n.metric}: {_change(before.get((n.task, n.metric)), n.value)}, n = {n.n}" for n in entry.numbers
    ]


def _refuse_failed(folder: Path, tasks: Iterable[str]) -> None:
    """Records of ours count failed samples as unscored; lmms-eval's code has no such count, but the outputs say it."""
    if not any(task.startswith(UPSTREAM) for task in tasks):
        return
    last = {(e.task, e.sample_id): e.error for e in read_episodes(folder / "episodes.jsonl")}
    if failed := {f"{task} {name}": error for (task, name), error in last.items() if error is not None}:
        first, reason = next(iter(failed.items()))
        raise UsageError(f"{len(failed)} samples failed, for example {first}: {printable(reason)}", COMPLETE)


def _change(old: float | None, new: float | None) -> str:
    """``new baseline: 1.000``, or ``0.984 → 1.000``."""
    shown = "no value" if new is None else f"{new:.4g}"
    return f"new baseline: {shown}" if old is None else f"{old:.4g} → {shown}"
