"""Scores per sample on disk, for pairing: a run's ``scores.jsonl``, or a baseline's compact ``.jsonl.gz``.

The compact file has a line per task, columns side by side: ``{"task", "ids", "clusters", "groups", "values": {metric: []}}``.
Numbers are exact (an unchanged run must differ by 0.0) and equal scores give equal bytes: no time stamp in the gzip header.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from visrl.core.json_files import check, decode_object, reason
from visrl.errors import UsageError

_AGAIN = "score the run again: visrl-eval score RUN"
_MOST = float("inf")


@dataclass(frozen=True, slots=True)
class Row:
    """One sample's scores: metric -> value, None where unscored. ``cluster``: its picture; ``group``: as CoTSample's."""

    cluster: str
    group: str
    values: Mapping[str, float | None]


Rows = dict[str, dict[str, Row]]
"""task -> sample id -> Row, in the order of the run."""


def of_run(folder: Path) -> Rows:
    """The scores of a run folder. Raises UsageError naming what is missing, or the damaged line."""
    path = folder / "scores.jsonl"
    if not path.is_file():
        inside = folder / "score"  # a loop's phase is scored in a folder of its own
        hint = f"name {inside}" if inside.is_dir() else f"visrl-eval score {folder}"
        raise UsageError(f"{folder} has no scores.jsonl", hint)
    rows: Rows = {}
    for where, item in _objects(path):
        if "cluster" not in item:
            raise UsageError(f"{where}: scored by an older visrl, without pictures", f"visrl-eval score {folder}")
        try:
            task, sample_id, row = row_from_json(item)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{where}: damaged: {reason(error)}", _AGAIN) from error
        rows.setdefault(task, {})[sample_id] = row
    return rows


def row_from_json(item: Any) -> tuple[str, str, Row]:
    """Task, sample id and scores of a line of scores.jsonl. Raises KeyError or TypeError on another shape, naming the field."""
    if not isinstance(item, dict):
        raise TypeError("not a JSON object")
    texts = item["task"], item["sample_id"], item.get("cluster", ""), item.get("group", "")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("one of task, sample_id, cluster and group is not a text")
    scores, reasons = item["scores"], item.get("reasons", {})
    if not isinstance(scores, dict) or not all(map(_is_value, scores.values())):
        raise TypeError("scores are not numbers or null by metric")
    if not isinstance(reasons, dict) or not all(isinstance(text, str) for text in reasons.values()):
        raise TypeError("reasons are not texts by metric")
    return texts[0], texts[1], Row(texts[2], texts[3], scores)


def _is_value(found: Any) -> bool:
    return found is None or (type(found) in (int, float) and abs(found) < _MOST)


def of_baseline(path: Path) -> Rows:
    """The scores of a compact file. Raises UsageError naming the damaged line."""
    rows: Rows = {}
    for where, item in _objects(path):
        packed = check(item, _PACKED, f"{where}: damaged", "write it again: visrl-eval accept RUN")
        columns: list[Sequence[Any]] = [packed.clusters, packed.groups, *packed.values.values()]
        if any(len(column) != len(packed.ids) for column in columns):
            raise UsageError(f"{where}: columns of unequal length", "write it again: visrl-eval accept RUN")
        rows[packed.task] = {
            sample_id: Row(cluster, group, dict(_present(packed.values, found)))
            for sample_id, cluster, group, *found in zip(packed.ids, *columns, strict=True)
        }
    return rows


class _Packed(BaseModel):
    """A line of a compact file."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    task: str
    ids: list[str]
    clusters: list[str]
    groups: list[str]
    values: dict[str, list[float | Literal[""] | None]]


_PACKED = TypeAdapter(_Packed)


def _present(names: Iterable[str], found: Iterable[Any]) -> Iterator[tuple[str, float | None]]:
    """Metric and value of one sample; ``""`` stands where the sample has no such metric (MME's other subtasks)."""
    return ((name, value) for name, value in zip(names, found, strict=True) if value != "")


def compact(rows: Rows) -> bytes:
    """The compact file of ``rows``: the same scores give the same bytes on every machine and day."""
    lines = []
    for task, of_task in rows.items():
        metrics = list(dict.fromkeys(metric for row in of_task.values() for metric in row.values))
        item = {
            "task": task,
            "ids": list(of_task),
            "clusters": [row.cluster for row in of_task.values()],
            "groups": [row.group for row in of_task.values()],
            "values": {m: [row.values.get(m, "") for row in of_task.values()] for m in metrics},
        }
        lines.append(json.dumps(item, allow_nan=False, separators=(",", ":")))
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of every line of a JSON-lines file, packed or not. NaN is refused: it is no JSON."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read: {reason(error)}", "is the file complete?") from error
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also breaks at U+2028, which a text may hold
        if not line and text.endswith("\n") and number > text.count("\n"):
            return
        where = f"{path}:{number}"
        try:
            item = decode_object(line)
        except ValueError as error:
            raise UsageError(f"{where}: damaged: {reason(error)}", _AGAIN) from error
        yield where, item
