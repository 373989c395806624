"""What visrl writes down for others: one TaskResult per task and metric, and nothing in it that time or place would change.

Two runs of the same request on the same data give byte-identical records: when, where and how long stand in run.json.
JSON never holds NaN: an unscored metric is ``null`` with a reason. The JSON Schema is docs/task_result.schema.json.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from visrl.core.json_files import read_as
from visrl.errors import UsageError, refused

SCHEMA_VERSION = 1
_SCORE_AGAIN = "`visrl-eval score RUN` writes the records of a run again"
Unit = Literal["percent", "points", "fraction", "raw", "looks"]
"""raw: as the code of one of lmms-eval's own tasks gives it. looks: how often was looked, on average."""


class TaskResult(BaseModel):
    """One number, with all that is needed to trust it or to refuse to compare it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: int = SCHEMA_VERSION
    task: str = Field(description="task or group name, e.g. refcoco_val")
    task_version: str = Field(description="changes when prompt, data or scoring of the task change")
    metric: str = Field(description="e.g. acc@0.5")
    value: float | None = Field(description="in `unit`; null when nothing could be scored")
    se: float | None = Field(description="standard error, cluster-robust by picture, in `unit`")
    ci: tuple[float, float] | None = Field(description="95 % interval, in `unit`")
    unit: Unit
    higher_is_better: bool = True
    n: int = Field(description="samples with a value (unparsed ones included: they score as wrong)")
    n_expected: int = Field(description="samples the published split has")
    n_clusters: int = Field(description="distinct pictures among the n")
    n_unscored: int = Field(
        default=0, description="samples without a value: failed, or a judge failed; never counted as zero"
    )
    n_unparsed: int = Field(default=0, description="samples whose output held no box or option; counted as wrong")
    n_missing: int = Field(default=0, description="documents of the split that were not run: limit, or no prediction")
    unscored_reasons: dict[str, int] = Field(default_factory=dict)
    protocol: str = Field(description="name/version, e.g. visrl_train/v1")
    focus: str
    crop: str
    model: str
    model_info: dict[str, Any] = Field(default_factory=dict, description="revision, weights hash, dtype, …")
    box_format: dict[str, str] = Field(default_factory=dict, description="syntax, frame and mode of the parser")
    judge: str | None = Field(default=None, description="who judged free answers; null where no judge is involved")
    sampling: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    data: dict[str, Any] = Field(default_factory=dict, description="origin and hash of the documents")
    versions: dict[str, str] = Field(default_factory=dict, description="visrl and the libraries that touch the number")
    small_world: bool = Field(default=False, description="drawn here: never set beside a published number")
    notes: list[str] = Field(default_factory=list)


ENDS: dict[str, tuple[float, float]] = {"percent": (0.0, 100.0), "fraction": (0.0, 1.0)}
"""Of a unit's scale; points have none."""


def interval(result: TaskResult) -> tuple[float, float] | None:
    """The 95 % interval as people are shown it: cut at the ends of the scale. A record keeps what was computed."""
    if result.ci is None:
        return None
    low, high = ENDS.get(result.unit, (float("-inf"), float("inf")))
    return max(low, result.ci[0]), min(high, result.ci[1])


def dump_json(value: Any) -> str:
    """JSON as all our files have it: sorted keys, two spaces, UTF-8, no NaN, a final newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a text, or pieces of one as they come, beside, fsync and rename: a reader, or a full disk, never leaves half a file.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as its escape. Raises UsageError where the system
    refuses; what was there before stays.
    """
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"  # not mkstemp's: its files are for their owner alone
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        _take_away(beside)
        raise refused(error, path) from error
    except BaseException:
        _take_away(beside)
        raise


def clear_pieces(folder: Path, names: Iterable[str] = ("*",)) -> None:
    """Take away what killed writers of files of these names (patterns) left beside them. Only for who alone may write those
    files: another's piece may be one that is being written.
    """
    for name in names:
        for piece in folder.glob(f".{name}.*.tmp"):
            _take_away(piece)


def _take_away(path: Path) -> None:
    with suppress(OSError):  # it may never have come to be; the first error is the one to be said
        path.unlink()


def write_results(path: Path, results: Iterable[TaskResult]) -> None:
    write_atomically(path, dump_json([result.model_dump(mode="json") for result in results]))


def read_results(path: Path) -> list[TaskResult]:
    """The results in a record file. Raises UsageError naming a damaged one and its field."""
    return read_as(path, TypeAdapter(list[TaskResult]), _SCORE_AGAIN, "not a record")


class Unfinished(UsageError):
    """A run that has no results yet."""


def read_records(place: Path) -> list[TaskResult]:
    """All results in a record file (``.json`` or ``.json.gz``), a run folder, or any folder of record files, by file name. Raises
    UsageError, and Unfinished for a run that has none yet.
    """
    if not place.exists():
        raise UsageError(f"{place}: no such file or folder", "name a run folder, or a folder of record files")
    if (place / "records").is_dir():
        place = place / "records"
    elif (place / "run.json").is_file():
        raise Unfinished(f"{place}: not finished, it has no records yet", "the command that began it goes on")
    files = sorted((*place.rglob("*.json"), *place.rglob("*.json.gz"))) if place.is_dir() else [place]
    return [result for file in files for result in read_results(file)]
