"""Scores per sample on disk, for pairing: a run's ``scores.jsonl``, or a baseline's compact ``.jsonl.gz``.

The compact file has a line per task, columns side by side: ``{"task", "ids", "clusters", "groups", "values": {metric: []}}``.
Numbers are exact (an unchanged run must differ by 0.0) and equal scores give equal bytes: no time stamp in the gzip header.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrl.errors import UsageError


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
        with_reasons = rows.setdefault(_get(item, "task", where), {})
        with_reasons[_get(item, "sample_id", where)] = Row(
            item["cluster"], item.get("group", ""), _get(item, "scores", where)
        )
    return rows


def of_baseline(path: Path) -> Rows:
    """The scores of a compact file. Raises UsageError naming the damaged line."""
    rows: Rows = {}
    for where, item in _objects(path):
        ids, values = _get(item, "ids", where), _get(item, "values", where)
        columns = [_get(item, "clusters", where), _get(item, "groups", where), *values.values()]
        if any(len(column) != len(ids) for column in columns):
            raise UsageError(f"{where}: columns of unequal length", "write it again: visrl-eval accept RUN")
        rows[_get(item, "task", where)] = {
            sample_id: Row(cluster, group, dict(_present(values, found)))
            for sample_id, cluster, group, *found in zip(ids, *columns, strict=True)
        }
    return rows


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
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", "is the file complete?") from error
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path}:{number}"
        try:
            item = json.loads(line, parse_constant=_refuse)
        except ValueError as error:
            raise UsageError(f"{where}: damaged: {error}", "score the run again: visrl-eval score RUN") from error
        if not isinstance(item, dict):
            raise UsageError(f"{where}: not a JSON object", "score the run again: visrl-eval score RUN")
        yield where, item


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a score")


def _get(item: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in item:
        raise UsageError(f"{where}: no {name!r}", "score the run again: visrl-eval score RUN")
    return item[name]
