"""Evaluation on a Ray cluster: ``visrl-eval --ray N``. N workers hold the model and read the documents; this process writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from visrl.core.box_formats import BoxFormat
from visrl.core.types import CoTSample, Episode
from visrl.errors import UsageError
from visrl.evaluation.evaluate import Asked, Engine, Options, here, make_look, missing_batches, samples_of, write_down
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.rollout import Look, batches, look_then_answer
from visrl.runs.distributed import join
from visrl.runs.progress import cheap_scorer, progress
from visrl.runs.ray_pool import REMOTE, Pool, Stage, connect
from visrl.runs.store import Finished, Run, episode_from_json, episode_to_json

Key = tuple[str, int]
"""(task, number of a batch)"""


@dataclass(slots=True)
class Described:
    """A policy that only the workers hold: all that the process which asked must know of it."""

    name: str
    box_format: BoxFormat
    needs_pictures: bool
    default_protocol: str
    about: Mapping[str, Any]
    default_crop: str = "viscot_square112"
    batch_size: int = 8
    rows: int = 0

    @classmethod
    def of(cls, policy: Policy) -> Described:
        known = [field.name for field in fields(cls) if hasattr(policy, field.name) and field.name != "about"]
        return cls(about=dict(policy.describe()), **{name: getattr(policy, name) for name in known})

    def describe(self) -> Mapping[str, Any]:
        return self.about

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """Not done here."""
        raise NotImplementedError(f"{self.name} is held by workers")


@dataclass(frozen=True, slots=True)
class Far:
    """An engine (evaluate.py) and the model it is made of."""

    model: str
    args: Mapping[str, str]
    pool: Pool

    def policy(self) -> Policy:
        """The model as this process needs it: itself where it is small, else described by a worker."""
        model, args = self.model, self.args
        if not uses_gpu(model):
            return load_policy(model, args)
        return self.pool.ask(lambda: Described.of(load_policy(model, args)))

    def __call__(
        self, policy: Policy, tasks: Iterable[Asked], look: Look, run: Run, finished: Finished, options: Options
    ) -> int:
        """Episodes for all tasks by one pool; returns how many failed."""
        todo: dict[Key, list[CoTSample]] = {}
        total = wanted = 0
        names: list[str] = []
        for samples in tasks:
            names.append(samples.task)
            for number, batch, ids in missing_batches(samples, options.batch_size, finished):
                todo[samples.task, number] = [] if options.quiet else batch  # which the running score needs
                wanted += len(ids)
            total += samples.n
        scorer = cheap_scorer(names[0], options.judge) if len(names) == 1 else None
        label = f"{names[0] if len(names) == 1 else f'{len(names)} tasks'}, {self.pool.workers} workers"
        with progress(label, total, scorer=scorer, quiet=options.quiet) as ticker:
            ticker.skip(total - wanted)
            stage = _stage(self.model, self.args, getattr(policy, "rows", 0), options)
            return write_down(self._made(stage, todo, finished), wanted, run, ticker) if todo else 0

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
    if join().world > 1:
        raise UsageError(
            "--ray was given to one of several launched processes",
            "start one process, without torchrun or accelerate: --ray starts the workers",
        )
    far = Far(model, args, connect(workers, uses_gpu=uses_gpu(model), whole_gpus="device_map" in args))
    return far.policy(), far


def uses_gpu(model: str) -> bool:
    """Whether a worker holds weights for ``model``, as ``--model`` names it."""
    return model.removeprefix("blind:").partition(":")[0] not in REMOTE


def _stage(model: str, args: Mapping[str, str], rows: int, options: Options) -> Stage:
    def start() -> Any:
        policy = load_policy(model, args)
        if rows:
            policy.rows = rows  # type: ignore[attr-defined]  # what --batch-size set
        look = make_look(policy, options)
        parts: dict[str, list[list[CoTSample]]] = {}  # of one task: recorded outputs are bound to one at a time

        def work(item: str) -> str:
            task, number = json.loads(item)
            if task not in parts:
                parts.clear()
                parts[task] = list(batches(samples_of(policy, task, options), options.batch_size))
            batch = parts[task][number]
            episodes = look_then_answer(policy, batch, look, batch_size=len(batch))
            return json.dumps([task, number, [episode_to_json(e) for e in episodes]])

        return work

    return start
