"""Episodes of lmms-eval's requests in a run folder: what is there is not asked again, what comes is kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from visrl.core.types import CoTSample, Episode
from visrl.evals.benchmarks import UPSTREAM
from visrl.evaluation.evaluate import evaluation_job
from visrl.policies.protocol import Policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.runs.job import Batch, missing_batches
from visrl.runs.lines import Recorded, recorded
from visrl.runs.progress import progress
from visrl.runs.store import Run


@dataclass(slots=True)
class Kept:
    """The episodes of an open run, under the names of lmms-eval's tasks (``lmms:TASK``). Close it before the run."""

    run: Run
    quiet: bool = False
    _files: ExitStack = field(default_factory=ExitStack)
    _before: dict[str, Recorded] = field(default_factory=dict)
    _finished: dict[str, set[str]] = field(default_factory=dict)

    def __enter__(self) -> Kept:
        self._before = dict(self._files.enter_context(recorded(self.run.episodes_path)))
        self._finished = {task: set(ids) for task, ids in self.run.finished().items()}
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def episodes(
        self,
        task: str,
        ids: Sequence[str],
        sample: Callable[[int], CoTSample],
        ask: tuple[Policy, RolloutConfig, int],
    ) -> Iterator[Episode]:
        """The episodes of requests with these ids, in order; those that are missing are made and written first, batch by batch.

        sample: what is asked by the request of that number. ask: the policy, how to look, and how many at a time.
        """
        policy, config, batch_size = ask
        name = f"{UPSTREAM}{task}"
        done = self._finished.get(name, set())
        numbers = {item: number for number, item in enumerate(ids)}  # a share may hold a document twice, to fill it up
        batches = list(missing_batches(list(numbers), batch_size, lambda item: item, lambda item: item not in done))
        wanted = sum(len(batch.missing) for batch in batches)
        fresh: dict[str, Episode] = {}

        def made(batch: Batch[str]) -> tuple[list[CoTSample], list[Episode]]:
            asked = [replace(sample(numbers[item]), id=item) for item in batch.items]
            found = list(look_then_answer(policy, asked, config, batch_size=len(asked)))
            mine = {e.sample_id: e for e in found if e.sample_id in batch.missing}
            fresh.update(mine)
            return asked, [replace(episode, task=name) for episode in mine.values()]

        with progress(name, len(numbers), quiet=self.quiet or not self.run.processes.is_main) as ticker:
            ticker.skip(len(numbers) - wanted)
            evaluation_job(self.run).finish(map(made, batches), wanted, ticker)
        for item in ids:
            yield fresh[item] if item in fresh else self._before[name][item]
