"""Samples and what became of them -> scores per sample and numbers with standard errors; tasks -> group numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any

from visrl.core.records import TaskResult
from visrl.core.types import CoTSample, Episode
from visrl.evals.benchmarks import GROUPS, TASKS, Benchmark, TaskSpec, has_mean
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.scorers.measure import Estimand, Measured, measured
from visrl.evals.scorers.zoom import looks
from visrl.evals.scorers.zoom.looks import Tally

Scorer = Callable[
    [TaskSpec, Iterable[CoTSample], Mapping[str, Episode], Judge | None], tuple[SampleScores, list[Estimand]]
]
SCORERS: dict[Benchmark, str] = {
    "rec": "visrl.evals.scorers.rec",
    "viscot": "visrl.evals.scorers.viscot",
    "pope": "visrl.evals.scorers.pope",
    "mme": "visrl.evals.scorers.mme",
    "mmbench": "visrl.evals.scorers.mmbench",
    "choice": "visrl.evals.scorers.zoom.choice",
    "hrbench": "visrl.evals.scorers.zoom.choice",
    "refl4": "visrl.evals.scorers.zoom.ref_l4",
    "point": "visrl.evals.scorers.zoom.point",
    "way": "visrl.evals.scorers.zoom.way",
}
"""The module whose ``score`` is a benchmark's. Imported where it is used: one benchmark does not pay for the words of another."""


def scorer_of(benchmark: Benchmark) -> Scorer:
    """The scorer of a benchmark."""
    score: Scorer = import_module(SCORERS[benchmark]).score
    return score


@dataclass(frozen=True, slots=True, eq=False)
class TaskScores:
    """All that scoring found out about a task.

    samples: sample id -> metric -> Score, for every sample that was run (scales: docs/reading-the-numbers.md).
    metrics: the task's numbers. estimands: what they are averages of, for groups.
    """

    spec: TaskSpec
    samples: SampleScores
    metrics: list[Measured]
    estimands: list[Estimand]


def score_task(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None = None
) -> TaskScores:
    """Score one task. ``episodes``: by sample id; samples without one are missing, those with an error unscored.

    ``samples`` are read once, and each is asked of ``episodes`` in that order: neither need be in memory, none is kept.

    Works for no samples at all, and for samples that all failed: values are then None, and the counts say why.
    """
    tally = Tally(episodes)
    scores, estimands = scorer_of(spec.benchmark)(spec, samples, tally, judge)
    estimands += looks.estimands(tally, spec, scores, estimands)
    metrics = [measured(what, spec.unit_of(what.metric), spec.n) for what in estimands]
    return TaskScores(spec, scores, metrics, estimands)


def score_group(name: str, tasks: Mapping[str, TaskScores]) -> list[Measured]:
    """The unweighted mean over a group's tasks of each metric that all of them have; pictures shared by tasks count once.

    Empty when a member is missing, and for groups that have no average (REC). Counts are sums over the members.
    Raises KeyError for a name that is no group.
    """
    members = [tasks[member] for member in GROUPS[name] if member in tasks]
    if len(members) < len(GROUPS[name]) or not has_mean(name):
        return []
    n_expected = sum(member.spec.n for member in members)
    return [
        measured(_mean_of(whats), members[0].spec.unit, n_expected)
        for metric in dict.fromkeys(what.metric for what in members[0].estimands)
        if len(whats := [w for m in members for w in m.estimands if w.metric == metric]) == len(members)
    ]


def _mean_of(whats: Sequence[Estimand]) -> Estimand:
    unscored: Counter[str] = Counter()
    for what in whats:
        unscored.update(what.unscored)
    return replace(
        whats[0],
        parts=tuple(part for what in whats for part in what.parts),
        weight=whats[0].weight / len(whats),
        unscored=unscored,
        unparsed=sum(what.unparsed for what in whats),
        notes=tuple(dict.fromkeys(note for what in whats for note in what.notes)),
    )


def to_result(what: Measured, task: str, context: Mapping[str, Any]) -> TaskResult:
    """A record: the number, the task's or group's name, and the run it came from.

    context: TaskResult's remaining fields (protocol, focus, crop, model, …), which this module knows nothing of. A metric
    that no judge touched gets judge None, whatever the run was given.
    """
    fields = asdict(what)
    notes = [*context.get("notes", ()), *fields.pop("notes")]
    versions = {TASKS[member].version for member in GROUPS.get(task, (task,))}
    rest = {key: value for key, value in context.items() if key not in ("notes", "judge")}
    small_world = any(TASKS[member].small_world for member in GROUPS.get(task, (task,)))
    version = "+".join(sorted(versions))
    return TaskResult(**fields, **rest, task=task, task_version=version, small_world=small_world, notes=notes)
