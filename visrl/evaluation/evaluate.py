"""A request -> episodes on disk -> scores -> TaskResults: what ``visrl-eval run`` and ``visrl-eval score`` do.

Our own tasks run here, without lmms_eval: its evaluator takes 9 s and 0.6 GB to import and keeps nothing before the end of
all tasks. The same samples, rollout and scorers serve the lmms-eval plugin (lmms/model.py); a test holds both to one number.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.core.arguments import LARGEST, LARGEST_SEED
from visrl.core.plugins import used
from visrl.core.prompts import Protocol
from visrl.core.types import CoTSample, Episode
from visrl.errors import Incomplete, Interrupted, UsageError, printable
from visrl.evals.benchmarks import UPSTREAM, TaskSpec, resolve
from visrl.evaluation.audit import run_hints
from visrl.evaluation.live_score import live_scorer
from visrl.evaluation.rescore import score, unjudged
from visrl.policies.protocol import Policy, Sampling
from visrl.policies.recorded.replay import AmbiguousPredictions, own_documents
from visrl.policies.registry import looks_at_pictures
from visrl.rollout.config import RolloutConfig, check_names, protocol_named, rollout_config, with_looks
from visrl.rollout.rollout import look_then_answer
from visrl.runs.distributed import init, rank
from visrl.runs.job import Batch, Job, missing_batches
from visrl.runs.lines import episode_to_json
from visrl.runs.meta import read_meta
from visrl.runs.progress import progress
from visrl.runs.store import Finished, Run, request_hash, slug

if TYPE_CHECKING:
    from visrl.core.records import TaskResult


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What a user asked for, beyond model and tasks. None: the policy's or the benchmark's default."""

    data: Path | None = None
    protocol: str | None = None
    focus: str = "predicted"
    crop: str | None = None
    limit: int | None = None
    batch_size: int = 8
    judge: str = "exact"
    seed: int = 0
    output: Path | None = None
    max_tokens: int = 128
    quiet: bool = False
    name: str = ""
    max_looks: int | None = None


@dataclass(slots=True)
class Outcome:
    """What a run came to. ``problems``: what keeps it from being complete, one sentence each."""

    folder: Path
    results: list[TaskResult]
    n_failed: int = 0
    n_samples: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)


def own_and_upstream(tasks: str, ray: int | None) -> tuple[list[str], list[str]]:
    """The names of our tasks, and of lmms-eval's. Raises UsageError where these were to run on Ray."""
    names = [name.strip() for name in tasks.split(",")]
    upstream = [name for name in names if name.startswith(UPSTREAM)]
    if ray and upstream:
        raise UsageError("--ray cannot run lmms-eval's own tasks (lmms:…)", "use torchrun (docs/scaling.md)")
    return [name for name in names if name not in upstream], upstream


def check_first(
    model: str | Policy, arguments: Mapping[str, str], tasks: Sequence[str], limit: int | None, **asked: Any
) -> None:
    """Raises UsageError for what can be seen to be missing or wrong before a model is loaded, from the command line and from
    Python. tasks: of ours; asked: as :func:`check_before`.
    """
    if tasks:
        check_before(tasks, **asked)
        if looks_at_pictures(model) if isinstance(model, str) else model.needs_pictures:
            check_pictures(tasks, asked["data"], limit)
    if isinstance(model, str) and model.startswith(("endpoint:", "openai:")):
        from visrl.policies.before import check_policy

        check_policy(model, arguments)


def check_before(tasks: Sequence[str], *, judge: str, data: Path | None = None, **named: str | None) -> None:
    """What can be known to be wrong before a model is loaded, which may take minutes. named: protocol, focus, crop, where given.

    Raises UsageError.
    """
    from visrl.evals.judge import ready_judge

    resolve(tasks)
    ready_judge(judge)
    check_names(**named)
    check_data(data)


def check_data(data: Path | None) -> None:
    """Raises UsageError for what is no folder; None is the hub."""
    if data is not None and not data.is_dir():
        raise UsageError(f"no data folder {data}", "docs/data.md describes the layout of --data DIR")


def check_pictures(tasks: Sequence[str], data: Path | None, limit: int | None = None) -> None:
    """Say in a line per task which pictures have no file: their samples will fail. Raises UsageError where none has one."""
    from visrl.tasks import missing_pictures

    for spec in resolve(tasks):
        missing = missing_pictures(spec.name, data, limit)
        if len(missing.names) == missing.n > 0:
            raise UsageError(f"{spec.name}: {missing}", "docs/data.md describes where to put pictures")
        if missing and rank() == 0:
            log.warning("%s: %s; their samples will fail", spec.name, missing)


RANGES: dict[str, tuple[int, int]] = {
    "limit": (1, LARGEST),
    "batch_size": (1, LARGEST),
    "max_tokens": (1, LARGEST),
    "seed": (0, LARGEST_SEED),
    "max_looks": (0, LARGEST),
}
"""The options that are whole numbers: from, to."""


def check_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with numpy's whole numbers as Python's. Raises UsageError for one of ``RANGES`` that is no whole number in
    its range; None stands for a default.
    """
    checked = dict(options)
    for name, (low, high) in RANGES.items():
        if (value := options.get(name)) is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
            raise UsageError(
                f"{name} {printable(repr(value), 60)} is not a whole number from {low} to {high}",
                f"for example {name}=8",
            )
        checked[name] = int(value)
    return checked


def config_of(policy: Policy, options: Options) -> RolloutConfig:
    """How to look, as asked for, else as the policy was made. Raises UsageError naming the nearest known value."""
    protocol = protocol_named(options.protocol or policy.default_protocol)
    looks = policy.default_looks if options.max_looks is None else options.max_looks
    return rollout_config(
        policy,
        protocol=protocol if looks is None else with_looks(protocol, looks),
        box_source=options.focus,
        crop=options.crop,
        sampling=Sampling(max_tokens=options.max_tokens, seed=options.seed),
        seed=options.seed,
    )


def describe_request(
    policy: Policy,
    config: RolloutConfig,
    options: Options,
    *,
    tasks: Mapping[str, str],
    data: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON: its hash names the run. Batch size and output folder do not decide.

    tasks: name -> version. data: name -> what its documents are.
    """
    return {
        "model": options.name or policy.name,
        "model_info": dict(policy.describe()),
        "box_format": policy.box_format.describe(),
        "tasks": dict(tasks),
        "data": dict(data),
        "data_folder": None if options.data is None else str(options.data.resolve()),
        "protocol": config.protocol.id,
        "focus": config.focus,
        "crop": config.crop,
        "sampling": {
            "temperature": config.sampling.temperature,
            "max_tokens": config.sampling.max_tokens,
            **_several(config.protocol),
        },
        "seed": options.seed,
        "limit": options.limit,
        **({"others_code": code} if (code := used()) else {}),
    }


def _several(protocol: Protocol) -> dict[str, Any]:
    """What a record says of several looks besides the protocol's name; of the paper's protocols nothing."""
    if protocol.several is None:
        return {}
    limits = protocol.several.limits
    facts = {"max_looks": limits.looks, "max_new_tokens": limits.new_tokens, "max_pictures": limits.pictures}
    return facts | ({"protocol_sha256": protocol.sha256} if protocol.sha256 else {})


def default_folder(request: Mapping[str, Any], asked: Sequence[str]) -> Path:
    """runs/<model>-<tasks as they were asked for>-<hash>: the same command finds its own folder again.

    So does a command that asks for the same under other names, and one whose run an older visrl named by every task.
    """
    digest = request_hash(request)
    tasks = "+".join(part.strip() for name in asked for part in name.split(",") if part.strip())
    folder = Path("runs") / f"{slug(request['model'])}-{slug(tasks)[:40]}-{digest[:8]}"
    if folder.exists():
        return folder
    same = (file.parent for file in sorted(Path("runs").glob(f"*-{digest[:8]}/run.json")))
    return next((place for place in same if read_meta(place).get("request_hash") == digest), folder)


@dataclass(slots=True)
class TaskSamples:
    """The samples of a task, in order. Every pass reads the documents anew, so that a run holds one batch of them.

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


Engine = Callable[[Policy, Iterable[TaskSamples], RolloutConfig, Run, Finished, Options], int]
"""Episodes for the samples of every task that have none, written to the run; returns how many failed."""


def here(
    policy: Policy, tasks: Iterable[TaskSamples], config: RolloutConfig, run: Run, finished: Finished, options: Options
) -> int:
    """The engine of this process: the policy answers, task after task."""
    return sum(run_samples(policy, samples, config, run, finished, options) for samples in tasks)


def evaluate(policy: Policy, tasks: Sequence[str], options: Options, engine: Engine = here) -> Outcome:
    """Run the remaining samples, then score everything. Finished samples survive any interruption of this function.

    Of several processes (runs/distributed.py) each runs its share; the first scores, the outcome of the others has no results.
    engine: who makes the episodes; on_ray.py has another one.
    """
    from visrl.tasks import fingerprint

    check_before(tasks, judge=options.judge)
    specs = resolve(tasks)
    if options.data is None and policy.recorded:
        options = replace(options, data=own_documents(policy))
    config = config_of(policy, options)
    versions = {spec.name: spec.version for spec in specs}
    data = {spec.name: fingerprint(spec.name, options.data) for spec in specs}
    request = describe_request(policy, config, options, tasks=versions, data=data)
    outcome = Outcome(options.output or default_folder(request, tasks), [])
    with Run(outcome.folder, request, processes=init()) as run:
        run.write_meta(model_spec=policy.name, judge=options.judge, command=given_command())
        finished = run.finished()
        try:
            samples = _samples_of_tasks(policy, specs, options, outcome)
            outcome.n_failed = engine(policy, samples, config, run, finished, options)
        except KeyboardInterrupt as stop:
            run.sync()
            raise Interrupted(f"{run.count()} finished samples are in {outcome.folder}") from stop
        except Incomplete as stop:
            run.sync()
            raise Incomplete(
                stop.message, f"{run.count()} finished samples are in {outcome.folder}; {stop.hint}"
            ) from stop
        run.gather()
        outcome.n_failed = run.processes.total(outcome.n_failed)
    _check_unmatched(policy, outcome)
    if run.processes.is_main:
        outcome.results = score(outcome.folder, options.judge)
        for task, hint in run_hints(outcome.folder, policy.box_format, [spec.name for spec in specs], options.data):
            log.warning("%s: %s", task, hint)
        if lost := unjudged(outcome.results):
            outcome.n_failed += lost
            outcome.problems.append(f"{lost} answers are unscored: the judge could not be reached")
    return outcome


def given_command() -> str | None:
    """The command line that is running, for the page of the run; None where visrl is used as a library."""
    program = Path(sys.argv[0]).name
    return shlex.join([program, *sys.argv[1:]]) if program == "visrl-eval" else None


def _samples_of_tasks(
    policy: Policy, specs: Sequence[TaskSpec], options: Options, outcome: Outcome
) -> Iterator[TaskSamples]:
    """The samples of task after task. Of several tasks, one that the policy has no recorded output for is left out."""
    for spec in specs:
        try:
            samples = samples_of(policy, spec.name, options)
        except UsageError as error:
            if len(specs) == 1 or not policy.recorded or isinstance(error, AmbiguousPredictions):
                raise
            outcome.problems.append(f"{spec.name} has n = 0: {error.message}")
            outcome.skipped += 1
            continue
        yield samples
        outcome.n_samples += samples.n  # the engine has been through them


def samples_of(policy: Policy, task: str, options: Options) -> TaskSamples:
    """What is asked of a task; of recorded outputs, only the documents that have one, and these are held."""
    from visrl.tasks import load

    def read() -> Iterator[CoTSample]:
        return load(task, options.data, with_pictures=policy.needs_pictures, limit=options.limit)

    if not policy.recorded:
        return TaskSamples(task, read)
    matched = list(policy.match_samples(read(), task))
    return TaskSamples(task, lambda: iter(matched))


def run_samples(
    policy: Policy, samples: TaskSamples, config: RolloutConfig, run: Run, finished: Finished, options: Options
) -> int:
    """Episodes for this process's share of one task's samples that have none; returns how many failed."""
    task, processes = samples.task, run.processes

    def missing() -> Iterator[Batch[CoTSample]]:
        return processes.share(unfinished(samples, options.batch_size, finished))

    wanted = sum(
        len(batch.missing) for batch in missing()
    )  # a pass for the count: some µs a sample, and nothing is held
    label, total = (task, samples.n) if processes.world_size == 1 else (f"{task}, {processes}", wanted)
    quiet = options.quiet or not processes.is_main
    made = (
        (batch.items, [e for e in _episodes(policy, batch.items, config) if e.sample_id in batch.missing])
        for batch in missing()
    )
    with progress(label, total, scorer=live_scorer(task, options.judge), quiet=quiet) as ticker:
        ticker.skip(total - wanted)
        return evaluation_job(run).finish(made, wanted, ticker)


def _episodes(policy: Policy, batch: Sequence[CoTSample], config: RolloutConfig) -> Iterator[Episode]:
    return look_then_answer(policy, batch, config, batch_size=len(batch))


def evaluation_job(run: Run) -> Job[CoTSample, Episode]:
    """Episodes as the run folder's lines."""
    return Job(run, "samples", episode_to_json, lambda episode: episode.error)


def unfinished(samples: TaskSamples, batch_size: int, finished: Finished) -> Iterator[Batch[CoTSample]]:
    """The batches of a task with samples that have no episode yet."""
    done = finished.get(samples.task, ())
    return missing_batches(samples, batch_size, lambda sample: sample.id, lambda name: name not in done)


def _check_unmatched(policy: Policy, outcome: Outcome) -> None:
    """Predictions no document took are a fact about the file that must not pass unseen."""
    rest = policy.unmatched()
    for count, what in ((rest.unused, "without a document"), (rest.duplicates, "of a document another prediction has")):
        if count:
            outcome.n_failed += count
            outcome.problems.append(f"{count} predictions {what}, for example {', '.join(rest.examples)}")
