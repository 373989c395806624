"""lmms-eval's own tasks from ``visrl-eval --tasks lmms:NAME``: a run folder as of our own tasks, and the same results.

lmms-eval asks and scores; episodes, resuming, records and what is printed are visrl's. Nothing is scored before every document
is answered, and scoring again is running the same command again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from visrl.core.records import TaskResult, write_results
from visrl.errors import Interrupted
from visrl.evals.benchmarks import UPSTREAM
from visrl.evaluation.evaluate import Options, Outcome, config_of, default_folder, describe_request, given_command
from visrl.evaluation.rescore import result_context
from visrl.lmms import results
from visrl.lmms.kept import Kept
from visrl.lmms.loading import Loaded, clusters, data_facts, load_tasks
from visrl.lmms.model import LookThenAnswer, run_loaded
from visrl.policies.protocol import Policy
from visrl.runs.distributed import init
from visrl.runs.store import Run, slug, write_scores
from visrl.tasks.lmms import DATA_VARIABLE


def evaluate_upstream(policy: Policy, tasks: Sequence[str], options: Options) -> Outcome:
    """Run ``lmms:`` tasks, go on where an earlier command stopped, and write records. What a task prints goes to stderr.

    Of several processes only the first has results. Raises UsageError, and what a task's own code raises.
    """
    names = [name.removeprefix(UPSTREAM) for name in tasks]
    if options.data is not None:
        os.environ[DATA_VARIABLE] = str(options.data)  # our own task files read it
    _hush()
    with redirect_stdout(sys.stderr):
        return _evaluate(policy, names, options)


def _evaluate(policy: Policy, names: Sequence[str], options: Options) -> Outcome:
    config, processes = config_of(policy, options), init()
    loaded = load_tasks(names, processes)
    versions = {f"{UPSTREAM}{name}": str(task.VERSION) for name, task in loaded.tasks.items()}
    data = {
        f"{UPSTREAM}{name}": data_facts(name, task, options.data, options.limit) for name, task in loaded.tasks.items()
    }
    request = describe_request(policy, config, options, tasks=versions, data=data)
    outcome = Outcome(options.output or default_folder(request, [f"{UPSTREAM}{name}" for name in names]), [])
    with Run(outcome.folder, request, processes=processes) as run:
        run.write_meta(model_spec=policy.name, judge="exact", command=given_command())
        with _interruptible(run), Kept(run, options.quiet) as kept:
            model = LookThenAnswer(policy, config, options.batch_size, kept)
            found = run_loaded(names, loaded, model, options.limit)
        run.gather()
        outcome.n_failed = processes.total(sum(map(len, found["failures"].values())))
        if processes.is_main:
            _score(run, loaded, found, outcome, options.limit)
    return outcome


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        run.sync()
        raise Interrupted(f"{run.count()} finished samples are in {run.folder}") from stop


def _hush() -> None:
    """Nothing of lmms-eval's below a warning."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")


def _score(run: Run, loaded: Loaded, found: Mapping[str, Any], outcome: Outcome, limit: int | None) -> None:
    """Records, scores and results of what lmms-eval found; which metric says right or wrong goes into run.json."""
    folder, request = run.folder, run.request
    lines: list[dict[str, Any]] = []
    verdicts: dict[str, str] = {}
    for name in found["results"]:
        pictures = clusters(name, loaded.tasks[name], limit) if name in loaded.tasks else {}
        rows = found["samples"].get(name, ())
        means = results.means_of(loaded.tasks[name]) if name in loaded.tasks else ()
        made = results.metrics(name, found, results.document_values(rows), means, pictures)
        lines += results.score_rows(name, rows, made, pictures)
        if metric := results.verdict(made):
            verdicts[f"{UPSTREAM}{name}"] = metric
        members = [f"{UPSTREAM}{name}"] if name in loaded.tasks else list(request["tasks"])
        of_one = results.task_results(name, found, made, result_context(request, members))
        outcome.results += of_one
        outcome.n_samples += max((r.n for r in of_one), default=0) if name in loaded.tasks else 0
        _write(folder, of_one)
    write_scores(folder, lines)
    run.write_meta(verdicts=verdicts)


def _write(folder: Path, of_one: Sequence[TaskResult]) -> None:
    if of_one:
        write_results(folder / "records" / f"{slug(of_one[0].task)}.json", of_one)
