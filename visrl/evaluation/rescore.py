"""The episodes of a run folder -> scores.jsonl and records/: generates nothing, and may be done again with another judge."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl import __version__
from visrl.core.box_rules import UNCOMPARABLE
from visrl.core.plugins import used
from visrl.core.records import dump_json, write_atomically, write_results
from visrl.core.types import CoTSample, Score
from visrl.errors import UsageError
from visrl.evals.benchmarks import GROUPS, TASKS, UPSTREAM, TaskSpec, resolve
from visrl.runs.lines import recorded
from visrl.runs.meta import read_evaluation
from visrl.runs.store import held, slug, write_scores

if TYPE_CHECKING:
    from visrl.core.records import TaskResult
    from visrl.evals.judge import Judge
    from visrl.evals.scorers.columns import SampleScores
    from visrl.evals.scorers.measure import Measured


def score(folder: Path, judge_spec: str | None = None) -> list[TaskResult]:
    """Score the episodes of a run folder, write scores.jsonl and records/, return the results. Generates nothing.

    judge_spec: another judge than the run's own, and its own from now on. Nothing is written before everything is scored, and
    scores of an earlier judge stay where this one could not be reached at all. Raises UsageError then, where run, data or
    episodes cannot be read, and where another process writes the run.
    """
    with held(folder):
        return _score(folder, judge_spec)


def _score(folder: Path, judge_spec: str | None) -> list[TaskResult]:
    from visrl.evals.judge import ready_judge
    from visrl.evals.scorers.scoring import TaskScores, score_group, score_task

    meta = read_evaluation(folder)
    request = meta["request"]
    spec_of_judge = judge_spec or meta.get("judge", "exact")
    judge = ready_judge(spec_of_judge)
    _refuse_upstream(folder, meta)
    specs = resolve(list(request["tasks"]))
    scored: dict[str, TaskScores] = {}
    found: dict[str, list[TaskResult]] = {}
    with recorded(folder / "episodes.jsonl") as by_task:
        _refuse_lost(folder, specs, by_task)
        for spec in specs:
            if episodes := by_task.get(spec.name):
                samples = (sample for sample in _documents(spec, request) if sample.id in episodes)
                scored[spec.name] = score_task(spec, samples, episodes, judge)
                found[spec.name] = _results(spec.name, (spec.name,), scored[spec.name].metrics, request)
    for spec in specs if scored else ():
        if spec.name not in scored:  # asked for, and nothing is there: n = 0, not a row that is missing
            nothing = score_task(spec, (), {}, judge)
            found[spec.name] = _results(spec.name, (spec.name,), nothing.metrics, request)
    for group, members in GROUPS.items():
        if len(members) > 1 and all(member in scored for member in members):
            found[group] = _results(group, members, score_group(group, scored), request)
    results = [result for of_one in found.values() for result in of_one]
    _refuse_silence(folder, results, judge)
    _check_there(folder)
    for name, of_one in found.items():
        if of_one:
            write_results(folder / "records" / f"{slug(name)}.json", of_one)
    write_scores(folder, (row for task, scores in scored.items() for row in _rows(task, scores.samples)))
    if judge_spec is not None and meta.get("judge") != judge_spec:
        write_atomically(folder / "run.json", dump_json({**meta, "judge": judge_spec}))
    _check_there(folder)
    return results


def _refuse_upstream(folder: Path, meta: Mapping[str, Any]) -> None:
    if any(name.startswith(UPSTREAM) for name in meta["request"]["tasks"]):
        command = meta.get("command") or "visrl-eval --model … --tasks lmms:…"
        raise UsageError(
            f"{folder} is a run of lmms-eval's own tasks, which lmms-eval scores",
            f"the same command rescores and generates only what is missing: {command}",
        )


def _refuse_lost(folder: Path, specs: Sequence[TaskSpec], by_task: Mapping[str, object]) -> None:
    """Scores must not be emptied because the outputs they are of are gone."""
    lost = [s.name for s in specs if s.name not in by_task and (folder / "records" / f"{slug(s.name)}.json").exists()]
    if lost or not (folder / "episodes.jsonl").exists():
        raise UsageError(
            f"{folder / 'episodes.jsonl'} has no outputs{' of ' + ', '.join(lost) if lost else ''}: nothing to score",
            "put it back, or run the model again; scores and records are unchanged",
        )


def _check_there(folder: Path) -> None:
    """Before and after writing: a folder that was moved away meanwhile would be made anew, with records alone."""
    if not all((folder / name).is_file() for name in ("run.json", "episodes.jsonl")):
        raise UsageError(
            f"{folder} was moved or deleted while it was being scored",
            "its outputs are where it is now: move it back and score it again",
        )


def unjudged(results: Sequence[TaskResult]) -> int:
    """How many answers have no score because the judge could not be reached."""
    from visrl.evals.judge import NO_REPLY

    return sum(
        count
        for result in results
        if result.task in TASKS
        for reason, count in result.unscored_reasons.items()
        if reason.startswith(NO_REPLY)
    )


def _refuse_silence(folder: Path, results: Sequence[TaskResult], judge: Judge) -> None:
    """A judge that said nothing must not take away what another one has said."""
    judged = [result for result in results if result.judge is not None]
    if unjudged(judged) and not any(result.n for result in judged) and any((folder / "records").glob("*.json")):
        raise UsageError(
            f"the judge {judge.name} could not be reached: nothing was scored",
            f"{folder} is unchanged; run the same command to try again",
        )


def _rows(task: str, scores: SampleScores) -> Iterator[dict[str, Any]]:
    """A task's lines of scores.jsonl. Picture and group: what pairing two runs needs, so that it needs no data."""
    for row in scores.rows():
        found = scores.of_row(row)
        yield {
            "task": task,
            "sample_id": scores.ids[row],
            "cluster": scores.clusters[row],
            "group": scores.groups[row],
            "scores": {metric: score.value for metric, score in found.items()},
            **_reasons(found),
        }


def _reasons(scores: Mapping[str, Score]) -> dict[str, Any]:
    reasons = {metric: score.reason for metric, score in scores.items() if score.reason}
    return {"reasons": reasons} if reasons else {}


def _results(
    task: str, members: Sequence[str], found: Sequence[Measured], request: Mapping[str, Any]
) -> list[TaskResult]:
    """What one record file holds: of a task or a group."""
    from visrl.evals.scorers.scoring import to_result

    context = result_context(request, members)
    return [to_result(measured, task, context) for measured in found]


def _documents(spec: TaskSpec, request: Mapping[str, Any]) -> Iterator[CoTSample]:
    """The documents a run saw, one at a time, in the order of the split; the data must be what it was then."""
    from visrl.tasks import fingerprint, load

    folder = Path(request["data_folder"]) if request["data_folder"] else None
    if fingerprint(spec.name, folder) != request["data"][spec.name]:
        raise UsageError(
            f"the documents of {spec.name} in {folder} have changed since the run",
            "score with the data that the run used",
        )
    return load(spec.name, folder, with_pictures=False, limit=request["limit"])


def result_context(request: Mapping[str, Any], members: Sequence[str]) -> dict[str, Any]:
    """The fields of a TaskResult that are the run's, not the metric's. members: the tasks the number is made of."""
    return {
        "protocol": request["protocol"],
        "focus": request["focus"],
        "crop": request["crop"],
        "model": request["model"],
        "model_info": request["model_info"],
        "box_format": request["box_format"],
        "sampling": request["sampling"],
        "seed": request["seed"],
        "limit": request["limit"],
        "data": {member: request["data"][member] for member in members},
        "versions": versions(),
        "notes": [UNCOMPARABLE[mode] for mode in (request["box_format"].get("mode"),) if mode in UNCOMPARABLE],
    }


def versions() -> dict[str, str]:
    """visrl, what decodes pictures, and whose tasks, protocols or judges were used; a model's libraries are in its model_info."""
    found = {"visrl": __version__, "python": platform.python_version()}
    return {**found, **{name: importlib.metadata.version(name) for name in ("numpy", "pillow")}, **used()}
