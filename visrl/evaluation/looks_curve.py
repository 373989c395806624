"""The score by looks allowed: one run per limit, in one folder, and what they say together.

``visrl-eval --protocol zoom --max-looks 0..3``. Each point is a run of its own (``looks-0``, ``looks-1``, …): the model is told
how many looks it has, and without any it is not told of the tool. The first and the last are compared sample by sample.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visrl.core.records import TaskResult, dump_json, write_atomically
from visrl.errors import UsageError
from visrl.evals.benchmarks import resolve
from visrl.evaluation.evaluate import Engine, Options, Outcome, config_of, default_folder, describe_request, evaluate
from visrl.policies.protocol import Policy

FILE = "looks.json"
MOST = 32
_RANGE = re.compile(r"(\d{1,3})(?:\.\.(\d{1,3}))?")


def looks_asked(text: str) -> tuple[int, ...]:
    """``3`` or ``0..3`` as the limits to run. Raises UsageError for anything else, and for more than ``MOST`` runs."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--max-looks {text!r} is neither a number nor a range", "for example 2, or 0..3")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first or last - first >= MOST:
        raise UsageError(f"--max-looks {text}: give MIN..MAX, at most {MOST} runs", "for example 0..3")
    return tuple(range(first, last + 1))


@dataclass(frozen=True, slots=True)
class Curve:
    """folder: of all points. points: limit -> the results of its run. outcome: the runs' failures together."""

    folder: Path
    points: dict[int, list[TaskResult]]
    outcome: Outcome


def curve_folder(policy: Policy, tasks: Sequence[str], options: Options, looks: Sequence[int]) -> Path:
    """Where the runs of a curve lie: where the user says, else beside where the one with the most looks would."""
    if options.output is not None:
        return options.output
    from visrl.tasks import fingerprint

    most = replace(options, max_looks=looks[-1])
    specs = resolve(tasks)
    versions = {spec.name: spec.version for spec in specs}
    data = {spec.name: fingerprint(spec.name, options.data) for spec in specs}
    request = describe_request(policy, config_of(policy, most), most, tasks=versions, data=data)
    found = default_folder(request, tasks)
    return found.with_name(f"{found.name}-looks-{looks[0]}-{looks[-1]}")


def run_curve(policy: Policy, tasks: Sequence[str], options: Options, engine: Engine, looks: Sequence[int]) -> Curve:
    """A run for each limit; the same call finishes what is missing. Raises UsageError as ``evaluate`` does."""
    folder = curve_folder(policy, tasks, options, looks)
    whole = Outcome(folder, [])
    points: dict[int, list[TaskResult]] = {}
    for limit in looks:
        place = folder / f"looks-{limit}"
        outcome = evaluate(policy, tasks, replace(options, max_looks=limit, output=place), engine)
        points[limit] = outcome.results
        whole.results += outcome.results
        whole.n_failed, whole.n_samples = whole.n_failed + outcome.n_failed, whole.n_samples + outcome.n_samples
        whole.skipped, whole.problems = whole.skipped + outcome.skipped, whole.problems + outcome.problems
    if any(points.values()):  # of several processes only the first has results
        write_atomically(folder / FILE, dump_json(rows_of(points)))
    return Curve(folder, points, whole)


def rows_of(points: dict[int, list[TaskResult]]) -> list[dict[str, Any]]:
    """A row per limit, task and metric, as ``looks.json`` has them."""
    return [
        {"max_looks": limit, "task": r.task, "metric": r.metric, "value": r.value, "se": r.se, "unit": r.unit, "n": r.n}
        for limit, results in points.items()
        for r in results
    ]
