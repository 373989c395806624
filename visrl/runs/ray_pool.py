"""A Ray cluster as a place where batches are made: Ray Data pipes them through pools of actors that hold the models.

Ray starts actors, hands out batches, and gives those of an actor or a machine that died to another one; whoever made a batch,
it comes out the same (rollout/rollout.py, train/pairs/sampling.py). The process that asked writes what comes back, in whatever
order: there is one writer, and a run resumes as on one process. Batches and results travel as text: workers read documents and
pictures themselves, from folders that all machines share. Only this module imports Ray.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from visrl.core.plugins import included
from visrl.errors import Incomplete, UsageError

Made = TypeVar("Made")
Stage = Callable[[], Callable[[str], str]]
"""Called once in every actor of a pool: what it returns turns a batch's text into the next stage's."""
REMOTE = ("endpoint", "replay", "constant")
"""Kinds of models that need no GPU here."""


@dataclass(frozen=True, slots=True)
class Pool:
    """``workers`` actors for every stage of a pipeline, and each one's part of the cluster."""

    workers: int
    stages: int
    cpus: float
    gpus: float

    def pipe(self, stages: Sequence[Stage], items: Sequence[str]) -> Iterator[str]:
        """Each item through all stages, yielded as it comes out, in any order. Raises UsageError as a stage does.

        Ray Data restarts dead actors and retries their batches without a limit; an exception of ours ends the pipeline.
        """
        import ray.data
        from ray.exceptions import RayError

        data = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        for stage in stages:
            data = data.map_batches(
                _Actor,
                fn_constructor_args=(stage, str(Path.cwd())),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=self.workers),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
        try:
            for row in data.iter_rows():
                yield row["item"]
        except RayError as error:
            raise _cause(error) from error

    def ask(self, question: Callable[[], Made]) -> Made:
        """What ``question`` returns in a worker, which ends with it. Raises UsageError as it does."""
        import ray
        from ray.exceptions import RayError

        def there(folder: str) -> Made:
            _settle(folder)
            return question()

        remote: Any = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_calls=1)(there)
        try:
            answer: Made = ray.get(remote.remote(str(Path.cwd())))
        except RayError as error:
            raise _cause(error) from error
        return answer


class _Actor:
    """One of a pool."""

    def __init__(self, stage: Stage, folder: str) -> None:
        _settle(folder)
        self.work = stage()

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[str]]:
        return {"item": [self.work(str(item)) for item in rows["item"]]}


def _settle(folder: str) -> None:
    """Where the command was given, so that relative paths are found; a machine without that folder needs absolute ones."""
    with suppress(OSError):
        os.chdir(folder)


def _cause(error: Exception) -> Exception:
    """The UsageError that a worker raised, else Ray's own error."""
    seen: BaseException | None = error
    while seen is not None:
        found = getattr(seen, "cause", None)
        for candidate in (seen, found):
            if isinstance(candidate, UsageError):  # of a class that Ray makes of its own and ours
                kind = Incomplete if isinstance(candidate, Incomplete) else UsageError
                return kind(candidate.message, candidate.hint)
        seen = seen.__cause__ or (found if isinstance(found, BaseException) else None)
    return error


def connect(workers: int, stages: int = 1, *, uses_gpu: bool, whole_gpus: bool = False) -> Pool:
    """The cluster at RAY_ADDRESS, one that ``ray start`` began here, or one of this machine alone; what every worker gets of it.

    whole_gpus: the model is spread over all GPUs its worker has. Raises UsageError where Ray is not installed or not reached, and
    with --include: the workers would not have run the file.
    """
    if included():
        raise UsageError(
            "--include and Ray: the workers do not have the file", "make it a package and install it there"
        )
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError(f"Ray is not installed: {error}", 'pip install "visrl[ray]"') from error
    if not ray.is_initialized():
        try:
            with elsewhere():
                ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise UsageError(
                f"cannot reach the Ray cluster: {error}", "unset RAY_ADDRESS to use this machine alone"
            ) from error
    ray.data.DataContext.get_current().enable_progress_bars = False  # one progress line, ours
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    have, everyone = ray.cluster_resources(), workers * stages
    gpus = _gpus(have.get("GPU", 0.0) / everyone, whole_gpus) if uses_gpu else 0.0
    return Pool(workers, stages, min(1.0, have.get("CPU", 1.0) / everyone), gpus)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Ray puts the folder that it is started from on its workers' path, where a checkout of visrl shadows the installed one."""
    here = Path.cwd()
    os.chdir(tempfile.gettempdir())
    try:
        yield
    finally:
        os.chdir(here)


def _gpus(share: float, whole: bool) -> float:
    """An actor's GPUs: a whole number where it can use several, else at most one, or the part that is there for it."""
    if not whole:
        return min(1.0, share)
    if 0 < share < 1:
        raise UsageError(
            "device_map needs at least one whole GPU for each worker", "start fewer workers, or leave out device_map"
        )
    return float(int(share))
