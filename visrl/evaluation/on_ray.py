"""Evaluation on a Ray cluster: ``visrl-eval --ray N``. N workers hold the model and read the documents; this process writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrl.core.types import CoTSample, Episode
from visrl.errors import UsageError
from visrl.evaluation.evaluate import (
    Engine,
    Options,
    TaskSamples,
    config_of,
    evaluation_job,
    here,
    samples_of,
    unfinished,
)
from visrl.evaluation.live_score import live_scorer
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.runs.distributed import init
from visrl.runs.job import batches
from visrl.runs.lines import episode_from_json, episode_to_json
from visrl.runs.progress import progress
from visrl.runs.ray_pool import REMOTE, Pool, Stage, connect
from visrl.runs.store import Finished, Run

Key = tuple[str, int]
"""(task, number of a batch)"""


class DescribedPolicy(Policy):
    """A policy that only the workers hold: all that the process which asked must know of it. Plain data, to be sent."""

    def __init__(self, about: Mapping[str, Any], batch_size: int) -> None:
        self._about, self._batch_size = about, batch_size

    @classmethod
    def of(cls, policy: Policy) -> DescribedPolicy:
        described = cls(dict(policy.describe()), policy.batch_size)
        described.name, described.box_format, described.rows = policy.name, policy.box_format, policy.rows
        described.default_protocol, described.default_crop = policy.default_protocol, policy.default_crop
        described.needs_pictures, described.recorded = policy.needs_pictures, policy.recorded
        described.native_tools, described.max_pictures = policy.native_tools, policy.max_pictures
        described.default_looks = policy.default_looks
        return described

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def describe(self) -> Mapping[str, Any]:
        return self._about

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """Not done here."""
        raise NotImplementedError(f"{self.name} is held by workers")


@dataclass(frozen=True, slots=True)
class RayEngine:
    """An engine (evaluate.py) and the model it is made of."""

    model: str
    args: Mapping[str, str]
    pool: Pool

    def policy(self) -> Policy:
        """The model as this process needs it: itself where it is small, else described by a worker."""
        model, args = self.model, self.args
        if not uses_gpu(model):
            return load_policy(model, args)
        return self.pool.ask(lambda: DescribedPolicy.of(load_policy(model, args)))

    def __call__(
        self,
        policy: Policy,
        tasks: Iterable[TaskSamples],
        config: RolloutConfig,
        run: Run,
        finished: Finished,
        options: Options,
    ) -> int:
        """Episodes for all tasks by one pool; returns how many failed."""
        todo: dict[Key, list[CoTSample]] = {}
        total = wanted = 0
        names: list[str] = []
        for samples in tasks:
            names.append(samples.task)
            for batch in unfinished(samples, options.batch_size, finished):
                # the running score needs the samples
                todo[samples.task, batch.number] = [] if options.quiet else batch.items
                wanted += len(batch.missing)
            total += samples.n
        scorer = live_scorer(names[0], options.judge) if len(names) == 1 else None
        label = f"{names[0] if len(names) == 1 else f'{len(names)} tasks'}, {self.pool.workers} workers"
        with progress(label, total, scorer=scorer, quiet=options.quiet) as ticker:
            ticker.skip(total - wanted)
            stage = _stage(self.model, self.args, policy.rows, options)
            return evaluation_job(run).finish(self._made(stage, todo, finished), wanted, ticker) if todo else 0

    def _made(
        self, stage: Stage, todo: dict[Key, list[CoTSample]], finished: Finished
    ) -> Iterator[tuple[list[CoTSample], list[Episode]]]:
        for text in self.pool.pipe([stage], [json.dumps(key) for key in todo]):
            task, number, lines = json.loads(text)
            done = finished.get(task, ())
            yield todo.pop((task, number)), [e for e in map(episode_from_json, lines) if e.sample_id not in done]


def policy_and_engine(model: str, args: Mapping[str, str], workers: int | None) -> tuple[Policy, Engine]:
    """The model, and what makes its episodes: this process, or ``workers`` on Ray. Raises UsageError as they do."""
    if workers is None:
        return load_policy(model, args), here
    if init().world_size > 1:
        raise UsageError(
            "--ray was given to one of several launched processes", "start one process: --ray starts the workers itself"
        )
    engine = RayEngine(model, args, connect(workers, uses_gpu=uses_gpu(model), whole_gpus="device_map" in args))
    return engine.policy(), engine


def uses_gpu(model: str) -> bool:
    """Whether a worker holds weights for ``model``, as ``--model`` names it."""
    return model.removeprefix("blind:").partition(":")[0] not in REMOTE


def _stage(model: str, args: Mapping[str, str], rows: int, options: Options) -> Stage:
    def start() -> Any:
        policy = load_policy(model, args)
        if rows:
            policy.rows = rows  # what --batch-size set
        config = config_of(policy, options)
        parts: dict[str, list[list[CoTSample]]] = {}  # of one task: recorded outputs are bound to one at a time

        def work(item: str) -> str:
            task, number = json.loads(item)
            if task not in parts:
                parts.clear()
                parts[task] = list(batches(samples_of(policy, task, options), options.batch_size))
            batch = parts[task][number]
            episodes = look_then_answer(policy, batch, config, batch_size=len(batch))
            return json.dumps([task, number, [episode_to_json(e) for e in episodes]])

        return work

    return start
