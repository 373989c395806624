"""A request -> episodes on disk -> scores -> TaskResults: what ``visrl-eval run`` and ``visrl-eval score`` do.

Our own tasks run here, without lmms_eval: its evaluator takes 9 s and 0.6 GB to import and keeps nothing before the end of
all tasks. The same samples, rollout and scorers serve the lmms-eval plugin (harness.py); a test holds both to one number.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl import __version__
from visrl.errors import Interrupted, UsageError, nearest, printable
from visrl.evals.benchmarks import GROUPS, TaskSpec, resolve
from visrl.focus import CROPS, FOCUSES
from visrl.policies import Policy, Sampling
from visrl.processes import join
from visrl.progress import Ticker, cheap_scorer, progress
from visrl.prompts import PROTOCOLS
from visrl.rollout import Look, batches, look_then_answer
from visrl.runs import Key, Run, read_episodes, read_meta, request_hash, slug, without_prompts, write_scores
from visrl.types import CoTSample, Episode, Score

if TYPE_CHECKING:
    from visrl.evals.judge import Judge
    from visrl.evals.measure import Measured
    from visrl.records import TaskResult

log = logging.getLogger(__name__)
HOPELESS = 50
"""So many failures with nothing else before them: a server that is down should not cost a night."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user asked for, beyond model and tasks. None: the policy's or the benchmark's default."""

    data: Path | None = None
    protocol: str | None = None
    focus: str = "predicted"
    crop: str = "viscot_square112"
    limit: int | None = None
    batch_size: int = 8
    judge: str = "exact"
    seed: int = 0
    output: Path | None = None
    max_tokens: int = 128
    quiet: bool = False


@dataclass(slots=True)
class Outcome:
    """What a run came to. ``problems``: what keeps it from being complete, one sentence each."""

    folder: Path
    results: list[TaskResult]
    n_failed: int = 0
    n_samples: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)


def make_look(policy: Policy, options: Options) -> Look:
    """Protocol, focus, crop and sampling, checked. Raises UsageError naming the nearest known value."""
    name = options.protocol or policy.default_protocol
    for value, known, flag in (
        (name, PROTOCOLS, "--protocol"),
        (options.focus, FOCUSES, "--focus"),
        (options.crop, CROPS, "--crop"),
    ):
        if value not in known:
            raise UsageError(f"{flag}: unknown {value!r}", nearest(value, known))
    sampling = Sampling(max_tokens=options.max_tokens, seed=options.seed)
    return Look(PROTOCOLS[name], options.focus, options.crop, sampling, options.seed)  # type: ignore[arg-type]  # checked


def describe_request(policy: Policy, specs: Sequence[TaskSpec], look: Look, options: Options) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON: its hash names the run. Batch size and output folder do not decide."""
    from visrl.tasks import fingerprint

    return {
        "model": policy.name,
        "model_info": dict(policy.describe()),
        "box_format": policy.box_format.describe(),
        "tasks": {spec.name: spec.version for spec in specs},
        "data": {spec.name: fingerprint(spec.name, options.data) for spec in specs},
        "data_folder": None if options.data is None else str(options.data.resolve()),
        "protocol": look.protocol.id,
        "focus": look.focus,
        "crop": look.crop,
        "sampling": {"temperature": look.sampling.temperature, "max_tokens": look.sampling.max_tokens},
        "seed": options.seed,
        "limit": options.limit,
    }


def default_folder(request: Mapping[str, Any]) -> Path:
    """runs/<model>-<tasks>-<hash>: the same command finds its own folder again."""
    tasks = "+".join(request["tasks"])
    return Path("runs") / f"{slug(request['model'])}-{slug(tasks)[:40]}-{request_hash(request)[:8]}"


Engine = Callable[[Policy, Iterable[Sequence[CoTSample]], Look, Run, "set[Key]", Options], int]
"""Episodes for the samples of every task that have none, written to the run; returns how many failed."""


def here(
    policy: Policy, tasks: Iterable[Sequence[CoTSample]], look: Look, run: Run, finished: set[Key], options: Options
) -> int:
    """The engine of this process: the policy answers, task after task."""
    return sum(run_samples(policy, samples, look, run, finished, options) for samples in tasks)


def evaluate(policy: Policy, tasks: Sequence[str], options: Options, engine: Engine = here) -> Outcome:
    """Run what is missing, then score everything. Finished samples survive any interruption of this function.

    Of several processes (processes.py) each runs its share; the first scores, the outcome of the others has no results.
    engine: who makes the episodes; far.py has another one.
    """
    from visrl.evals.judge import make_judge

    specs = resolve(tasks)
    look = make_look(policy, options)
    make_judge(options.judge)  # a typo must not cost a run
    request = describe_request(policy, specs, look, options)
    outcome = Outcome(options.output or default_folder(request), [])
    with Run(outcome.folder, request, processes=join()) as run:
        run.write_meta(model_spec=policy.name, judge=options.judge, command=_command())
        finished = run.finished()
        try:
            samples = _samples_of_tasks(policy, specs, options, outcome)
            outcome.n_failed = engine(policy, samples, look, run, finished, options)
        except KeyboardInterrupt as stop:
            run.sync()
            raise Interrupted(f"{run.count()} finished samples are in {outcome.folder}") from stop
        run.gather()
        outcome.n_failed = run.processes.total(outcome.n_failed)
    _check_leftovers(policy, outcome)
    if run.processes.first:
        outcome.results = score(outcome.folder, options.judge)
    return outcome


def _command() -> str | None:
    """The command line that is running, for the page of the run; None where visrl is used as a library."""
    program = Path(sys.argv[0]).name
    return shlex.join([program, *sys.argv[1:]]) if program == "visrl-eval" else None


def _samples_of_tasks(
    policy: Policy, specs: Sequence[TaskSpec], options: Options, outcome: Outcome
) -> Iterator[list[CoTSample]]:
    """The samples of task after task. Of several tasks, one that the policy has no recorded output for is left out."""
    for spec in specs:
        try:
            samples = samples_of(policy, spec.name, options)
        except UsageError as error:
            if len(specs) == 1 or not hasattr(policy, "bind"):
                raise
            outcome.problems.append(f"{spec.name} skipped: {error.message}")
            outcome.skipped += 1
            continue
        outcome.n_samples += len(samples)
        yield samples


def samples_of(policy: Policy, task: str, options: Options) -> list[CoTSample]:
    """What is asked of a task, in order; of recorded outputs, only the documents that have one."""
    from visrl.tasks import load

    samples = list(load(task, options.data, with_pictures=policy.needs_pictures, limit=options.limit))
    bind = getattr(policy, "bind", None)
    return samples if bind is None else list(bind(samples, task))


def run_samples(
    policy: Policy, samples: Sequence[CoTSample], look: Look, run: Run, finished: set[Key], options: Options
) -> int:
    """Episodes for this process's share of one task's samples that have none; returns how many failed."""
    task, processes = samples[0].task, run.processes
    missing = list(processes.share(missing_batches(samples, options.batch_size, finished)))
    wanted = sum(len(ids) for _, _, ids in missing)
    label, total = (task, len(samples)) if processes.world == 1 else (f"{task}, {processes}", wanted)
    quiet = options.quiet or not processes.first
    made = (
        (batch, [e for e in look_then_answer(policy, batch, look, batch_size=len(batch)) if e.sample_id in ids])
        for _, batch, ids in missing
    )
    with progress(label, total, scorer=cheap_scorer(task, options.judge), quiet=quiet) as ticker:
        ticker.skip(total - wanted)
        return write_down(made, wanted, run, ticker)


def write_down(
    made: Iterable[tuple[Sequence[CoTSample], Sequence[Episode]]], wanted: int, run: Run, ticker: Ticker
) -> int:
    """Append episodes as they come, batch by batch; returns how many failed. Raises UsageError where none succeeds."""
    failed = fresh = 0
    for batch, episodes in made:
        run.append(episodes)
        ticker.add(batch, episodes)
        failed += sum(e.error is not None for e in episodes)
        fresh += len(episodes)
        if failed == fresh >= HOPELESS and fresh < wanted:
            raise UsageError(
                f"the first {failed} samples all failed: {printable(episodes[-1].error or '')}",
                "finished samples are kept",
            )
    run.sync()
    return failed


def missing_batches(
    samples: Iterable[CoTSample], batch_size: int, finished: set[Key]
) -> Iterator[tuple[int, list[CoTSample], set[str]]]:
    """(number, batch, ids of what is left to do) where something is. Batches are whole and keep their boundaries."""
    for number, batch in enumerate(batches(samples, batch_size)):
        ids = {sample.id for sample in batch if (sample.task, sample.id) not in finished}
        if ids:
            yield number, batch, ids


def _check_leftovers(policy: Policy, outcome: Outcome) -> None:
    """Predictions no document took are a fact about the file that must not pass unseen."""
    leftovers = getattr(policy, "leftovers", None)
    if leftovers is None:
        return
    rest = leftovers()
    for count, what in ((rest.unused, "without a document"), (rest.duplicates, "of a document another prediction has")):
        if count:
            outcome.n_failed += count
            outcome.problems.append(f"{count} predictions {what}, for example {', '.join(rest.examples)}")


def score(folder: Path, judge_spec: str | None = None) -> list[TaskResult]:
    """Score the episodes of a run folder, write scores.jsonl and records/, return the results. Generates nothing.

    judge_spec: another judge than the run's own. Raises UsageError where run, data or episodes cannot be read.
    """
    from visrl.evals.judge import make_judge
    from visrl.evals.measure import cluster_of
    from visrl.evals.scoring import TaskScores, score_group, score_task

    meta = read_meta(folder)
    request = meta["request"]
    judge = make_judge(judge_spec or meta.get("judge", "exact"))
    specs = resolve(list(request["tasks"]))
    by_task: dict[str, dict[str, Episode]] = {spec.name: {} for spec in specs}
    for episode in read_episodes(folder / "episodes.jsonl"):
        by_task[episode.task][episode.sample_id] = without_prompts(episode)  # no scorer reads them
    scored: dict[str, TaskScores] = {}
    origins: dict[str, dict[str, dict[str, str]]] = {}
    results: list[TaskResult] = []
    for spec in specs:
        if episodes := by_task[spec.name]:
            samples = _samples_of(spec, request, episodes)
            scored[spec.name] = score_task(spec, samples, episodes, judge)
            origins[spec.name] = {s.id: {"cluster": cluster_of(s), "group": s.group} for s in samples}
            results += _record(folder, spec.name, (spec.name,), scored[spec.name].metrics, request, judge)
    for group, members in GROUPS.items():
        if len(members) > 1 and all(member in scored for member in members):
            results += _record(folder, group, members, score_group(group, scored), request, judge)
    write_scores(
        folder,
        (
            {
                "task": task,
                "sample_id": sample_id,
                **origins[task][sample_id],  # what pairing two runs needs, so that it needs no data (evals/compare.py)
                "scores": {m: s.value for m, s in scores.items()},
                **_reasons(scores),
            }
            for task, scores_of in scored.items()
            for sample_id, scores in scores_of.samples.items()
        ),
    )
    return results


def _reasons(scores: Mapping[str, Score]) -> dict[str, Any]:
    reasons = {metric: score.reason for metric, score in scores.items() if score.reason}
    return {"reasons": reasons} if reasons else {}


def _record(
    folder: Path, task: str, members: Sequence[str], found: Sequence[Measured], request: Mapping[str, Any], judge: Judge
) -> list[TaskResult]:
    """One record file per task or group, written as soon as it is scored."""
    from visrl.evals.scoring import to_result
    from visrl.records import write_results

    context = result_context(request, members, judge)
    results = [to_result(measured, task, context) for measured in found]
    if results:
        write_results(folder / "records" / f"{slug(task)}.json", results)
    return results


def _samples_of(spec: TaskSpec, request: Mapping[str, Any], episodes: Mapping[str, Episode]) -> list[CoTSample]:
    """The documents that were run, in the order of the split; the data must be what the run saw."""
    from visrl.tasks import fingerprint, load

    folder = Path(request["data_folder"]) if request["data_folder"] else None
    if fingerprint(spec.name, folder) != request["data"][spec.name]:
        raise UsageError(
            f"the documents of {spec.name} in {folder} have changed since the run", "score with the data it was made on"
        )
    return [s for s in load(spec.name, folder, with_pictures=False, limit=request["limit"]) if s.id in episodes]


def result_context(request: Mapping[str, Any], members: Sequence[str], judge: Judge) -> dict[str, Any]:
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
    }


def versions() -> dict[str, str]:
    """visrl and what decodes pictures; a model's own libraries are in its model_info."""
    found = {"visrl": __version__, "python": platform.python_version()}
    return {**found, **{name: importlib.metadata.version(name) for name in ("numpy", "pillow")}}
