"""A request -> episodes on disk -> scores -> TaskResults: what ``visrl-eval run`` and ``visrl-eval score`` do.

Our own tasks run here, without lmms_eval: its evaluator takes 9 s and 0.6 GB to import and keeps nothing before the end of
all tasks. The same samples, rollout and scorers serve the lmms-eval plugin (lmms/model.py); a test holds both to one number.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.core.crops import CROPS, FOCUSES
from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Episode
from visrl.errors import Interrupted, UsageError, nearest, printable
from visrl.evals.benchmarks import TaskSpec, resolve
from visrl.evaluation.rescore import score, unjudged
from visrl.policies.protocol import Policy, Sampling
from visrl.rollout.rollout import Look, batches, look_then_answer
from visrl.runs.distributed import join
from visrl.runs.progress import Ticker, cheap_scorer, progress
from visrl.runs.store import Finished, Run, request_hash, slug

if TYPE_CHECKING:
    from visrl.core.records import TaskResult

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


def check_before(tasks: Sequence[str], *, judge: str, data: Path | None = None, **named: str | None) -> None:
    """What can be known to be wrong before a model is loaded, which may take minutes. named: protocol, focus, crop, where given.

    Raises UsageError.
    """
    from visrl.evals.judge import ready_judge

    resolve(tasks)
    ready_judge(judge)
    _check_names(**named)
    if data is not None and not data.is_dir():
        raise UsageError(f"--data {data}: no such folder", "docs/data.md describes its layout")


def _check_names(**named: str | None) -> None:
    known: dict[str, Collection[str]] = {"protocol": PROTOCOLS, "focus": FOCUSES, "crop": CROPS}
    for name, value in named.items():
        if value is not None and value not in known[name]:
            raise UsageError(f"--{name}: unknown {value!r}", nearest(value, known[name]))


def make_look(policy: Policy, options: Options) -> Look:
    """Protocol, focus, crop and sampling, checked. Raises UsageError naming the nearest known value."""
    name = options.protocol or policy.default_protocol
    _check_names(protocol=name, focus=options.focus, crop=options.crop)
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


@dataclass(slots=True)
class Asked:
    """What is asked of a task, in order. Every pass reads the documents anew, so that a run holds one batch of them.

    n: how many there are, once a pass has come to the end.
    """

    task: str
    read: Callable[[], Iterator[CoTSample]]
    n: int = 0

    def __iter__(self) -> Iterator[CoTSample]:
        n = 0
        for sample in self.read():
            n += 1
            yield sample
        self.n = n


Engine = Callable[[Policy, Iterable[Asked], Look, Run, Finished, Options], int]
"""Episodes for the samples of every task that have none, written to the run; returns how many failed."""


def here(policy: Policy, tasks: Iterable[Asked], look: Look, run: Run, finished: Finished, options: Options) -> int:
    """The engine of this process: the policy answers, task after task."""
    return sum(run_samples(policy, samples, look, run, finished, options) for samples in tasks)


def evaluate(policy: Policy, tasks: Sequence[str], options: Options, engine: Engine = here) -> Outcome:
    """Run the remaining samples, then score everything. Finished samples survive any interruption of this function.

    Of several processes (runs/distributed.py) each runs its share; the first scores, the outcome of the others has no results.
    engine: who makes the episodes; on_ray.py has another one.
    """
    check_before(tasks, judge=options.judge)
    specs = resolve(tasks)
    look = make_look(policy, options)
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
        if lost := unjudged(outcome.results):
            outcome.n_failed += lost
            outcome.problems.append(f"{lost} answers are unscored: the judge could not be reached")
    return outcome


def _command() -> str | None:
    """The command line that is running, for the page of the run; None where visrl is used as a library."""
    program = Path(sys.argv[0]).name
    return shlex.join([program, *sys.argv[1:]]) if program == "visrl-eval" else None


def _samples_of_tasks(policy: Policy, specs: Sequence[TaskSpec], options: Options, outcome: Outcome) -> Iterator[Asked]:
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
        yield samples
        outcome.n_samples += samples.n  # the engine has been through them


def samples_of(policy: Policy, task: str, options: Options) -> Asked:
    """What is asked of a task; of recorded outputs, only the documents that have one, and these are held."""
    from visrl.tasks import load

    def read() -> Iterator[CoTSample]:
        return load(task, options.data, with_pictures=policy.needs_pictures, limit=options.limit)

    bind = getattr(policy, "bind", None)
    if bind is None:
        return Asked(task, read)
    bound: Sequence[CoTSample] = bind(read(), task)
    return Asked(task, lambda: iter(bound))


def run_samples(policy: Policy, samples: Asked, look: Look, run: Run, finished: Finished, options: Options) -> int:
    """Episodes for this process's share of one task's samples that have none; returns how many failed."""
    task, processes = samples.task, run.processes

    def missing() -> Iterator[tuple[int, list[CoTSample], set[str]]]:
        return processes.share(missing_batches(samples, options.batch_size, finished))

    wanted = sum(len(ids) for _, _, ids in missing())  # a pass for the count: some µs a sample, and nothing is held
    label, total = (task, samples.n) if processes.world == 1 else (f"{task}, {processes}", wanted)
    quiet = options.quiet or not processes.first
    made = (
        (batch, [e for e in look_then_answer(policy, batch, look, batch_size=len(batch)) if e.sample_id in ids])
        for _, batch, ids in missing()
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
    samples: Asked, batch_size: int, finished: Finished
) -> Iterator[tuple[int, list[CoTSample], set[str]]]:
    """(number, batch, ids of what is left to do) where something is. Batches are whole and keep their boundaries."""
    done = finished.get(samples.task, ())
    for number, batch in enumerate(batches(samples, batch_size)):
        ids = {sample.id for sample in batch if sample.id not in done}
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
