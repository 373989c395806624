"""lmms-eval's tasks by name: loaded once, known by what their documents hold, and their documents as samples for a page."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.core.types import CoTSample, Picture
from visrl.errors import UsageError, nearest
from visrl.evals.benchmarks import UPSTREAM
from visrl.lmms.samples import read_messages, upstream_sample
from visrl.runs.distributed import ALONE, Processes
from visrl.runs.hub import settle
from visrl.tasks import fingerprint, load
from visrl.tasks.lmms import PREFIX, is_ours

if TYPE_CHECKING:
    from PIL.Image import Image

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tasks of lmms-eval with their data. Stands in for its TaskManager, which would load them anew.

    tree: group or task -> its members, as lmms-eval has it. tasks: the tasks themselves, by name.
    """

    tree: Mapping[Any, Any]
    tasks: Mapping[str, Any]

    def load_task_or_group(self, _: Any = None, __: str = "chat") -> dict[Any, Any]:
        """What TaskManager's method of this name returns."""
        return dict(self.tree)


def load_tasks(names: Sequence[str], processes: Processes = ALONE) -> Loaded:
    """Load tasks or groups by name; the first of several processes before the others, which then read its cache.

    Raises UsageError for an unknown one, and where its data cannot be had; anything else that a task's own code raises.
    """
    from tenacity import RetryError

    manager = _task_manager(names)
    if not all(map(is_ours, names)):
        settle()
    try:
        if not processes.is_main:
            processes.wait()
        tree = manager.load_task_or_group(list(names), "chat")
        if processes.is_main:
            processes.wait()
    except RetryError as error:  # what a data set that cannot be loaded looks like after five times
        cause = error.last_attempt.exception() or error
        if not isinstance(cause, OSError | ValueError):
            raise cause from error
        raise _unloaded(names, cause) from error
    except OSError as error:
        raise _unloaded(names, error) from error
    except ImportError as error:
        raise error.__cause__ if isinstance(error.__cause__, UsageError) else error from error
    return Loaded(tree, dict(_leaves(tree)))


def _unloaded(names: Sequence[str], error: BaseException) -> UsageError:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import LocalTokenNotFoundError

    reason = str(error).strip().split("\n")[0]
    if is_offline_mode() and isinstance(
        error, LocalTokenNotFoundError
    ):  # it wants one for all it asks, and nobody is asked
        reason = "the hub is not asked, and its cache does not hold them"
    return UsageError(
        f"cannot load the data of {', '.join(UPSTREAM + name for name in names)}: {reason}",
        "lmms-eval loads them from the hub or its cache (HF_HOME)",
    )


def _leaves(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in tree.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner)
        else:
            yield str(name), inner


# --- what the documents are


def data_facts(name: str, task: Any, data: Path | None, limit: int | None) -> dict[str, Any]:
    """Of a task's documents, for records: where they come from, how many there are, and a sha256 of the first ``limit``.

    The hash is of what the rows hold, pictures by their bytes, so that it is the same on every machine.
    """
    if is_ours(name):
        return fingerprint(name.removeprefix(PREFIX), data)
    documents = task.eval_docs
    facts = {"origin": "lmms-eval", "path": str(task.DATASET_PATH), "n": len(documents)}
    return {**facts, "sha256": hashlib.sha256("".join(_row_hashes(documents, limit)).encode()).hexdigest()}


def clusters(name: str, task: Any, limit: int | None) -> dict[str, str]:
    """Document -> its picture, by the bytes in its row; documents without such bytes stand for themselves."""
    if is_ours(name):
        return {}
    return {str(i): picture or str(i) for i, picture in enumerate(_picture_hashes(task.eval_docs, limit))}


def _rows(documents: Any, limit: int | None) -> Iterator[Mapping[str, Any]]:
    """The first rows as they are stored: pictures as their bytes, not decoded."""
    import datasets

    n = len(documents) if limit is None else min(limit, len(documents))
    if not isinstance(documents, datasets.Dataset):
        yield from (documents[i] for i in range(n))
        return
    for batch in documents.select(range(n)).with_format("arrow").iter(_BATCH):
        yield from batch.to_pylist()


def _row_hashes(documents: Any, limit: int | None) -> Iterator[str]:
    for row in _rows(documents, limit):
        yield hashlib.sha256(json.dumps(row, sort_keys=True, default=_hash).encode()).hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else type(value).__name__


def _picture_hashes(documents: Any, limit: int | None) -> Iterator[str]:
    for row in _rows(documents, limit):
        found = list(_blobs(row))
        yield hashlib.sha256(b"".join(found)).hexdigest()[:16] if found else ""


def _blobs(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _blobs(inner)


# --- documents as samples


def documents(name: str, data: Path | None, limit: int | None, asked: Mapping[str, Any]) -> Iterator[CoTSample]:
    """The samples of ``lmms:TASK``, pictures opened when asked for. asked: what the run's documents were. Raises UsageError."""
    short = name.removeprefix(UPSTREAM)
    task = None if is_ours(short) else load_tasks([short]).tasks[short]
    if data_facts(short, task, data, limit) != asked:
        raise UsageError(f"the documents of {name} have changed since the run", "view it with the data that it used")
    if task is None:
        found = load(short.removeprefix(PREFIX), data, with_pictures=True, limit=limit)
        return (replace(sample, task=name) for sample in found)
    n = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
    return (_sample(name, task, i) for i in range(n))


def _sample(name: str, task: Any, number: int) -> CoTSample:
    read = partial(task.eval_docs.__getitem__, number)
    sample = upstream_sample(str(number), name, task.doc_to_messages, read)

    def again() -> Image:  # the sample would hold its picture, and a page has many samples
        return read_messages(task.doc_to_messages(read()), sample.id)[1].open()

    target = task.doc_to_target(read())
    answers = tuple(map(str, target)) if isinstance(target, list | tuple) else (str(target),)
    return replace(sample, picture=Picture(f"{name}/{number}", again), answers=answers, cluster=sample.id)


# --- finding task files


def _task_manager(tasks: Sequence[str]) -> Any:
    """A TaskManager that knows ``tasks``: of the folders that define them if that is enough, else of all 1,985 tasks."""
    from lmms_eval.tasks import TaskManager

    from visrl.lmms.plugin import add_our_folder, task_folder

    folders = {str(task_folder()), *(str(file.parent) for file in _files_naming(tasks))}
    manager = TaskManager(include_path=sorted(folders), include_defaults=False, model_name="visrl")
    if all(_resolves(manager, name) for name in tasks):
        return manager
    add_our_folder(TaskManager)
    manager = TaskManager(model_name="visrl")
    for name in tasks:
        if name not in manager.all_tasks:
            raise UsageError(f"lmms-eval has no task {name!r}", nearest(name, manager.all_tasks))
    return manager


def _files_naming(tasks: Sequence[str]) -> Iterator[Path]:
    """lmms-eval's task files that define one of ``tasks`` as task, group or tag."""
    import lmms_eval.tasks

    names = "|".join(map(re.escape, tasks))
    defines = re.compile(rf"""^\s*(?:(?:task|group|tag):|-)\s*["']?(?:{names})["']?\s*$""", re.MULTILINE)
    for file in sorted(Path(lmms_eval.tasks.__file__).parent.rglob("*.yaml")):
        if defines.search(file.read_text(encoding="utf-8", errors="replace")):
            yield file


def _resolves(manager: Any, name: str) -> bool:
    """Whether a task, and every member of a group, is known to the manager."""
    if name not in manager.task_index:
        return False
    members = manager.task_index[name].get("task")
    if members == -1:  # a group's own file lists its members
        members = manager._get_config(name).get("task")
    if manager.task_index[name]["type"] not in ("group", "tag"):
        return True
    return isinstance(members, list) and all(isinstance(m, str) and _resolves(manager, m) for m in members)
