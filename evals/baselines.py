"""Accepted runs: results/baselines.yaml says what was accepted, ``<name>.jsonl.gz`` beside it holds the scores per sample.

Both are text or bytes that depend on the scores alone, so that accepting a run is a diff to review. A fresh run may be paired
with a baseline only where everything that decides a number besides the model is the same: :func:`mismatches`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from visrl.core.json_files import check
from visrl.core.records import TaskResult, write_atomically
from visrl.errors import UsageError, nearest, refused
from visrl.evals.benchmarks import GROUPS
from visrl.evals.plain_yaml import read_plain
from visrl.evals.sample_scores import Rows, compact, of_baseline

_WRITES = "visrl-eval accept RUN writes it"
_HEADER = "# Accepted runs; written by `visrl-eval accept RUN`, reviewed as a diff. Scores per sample lie beside it.\n"
COMPLETE = (
    "accept a run that is complete: the same command tries failed samples again; --allow-unscored accepts it as it is, and the "
    "baseline says so"
)
SAME = ("task_version", "protocol", "focus", "crop", "judge", "box_format", "sampling", "limit", "data", "unit")
"""Fields of a TaskResult that must be equal in both runs of a pair. Model, weights, seed and library versions may differ."""


class Number(BaseModel):
    """One accepted number with all that it may be compared under; see TaskResult. higher_is_better: None in baselines of an older
    visrl, which did not write it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str
    metric: str
    value: float | None
    se: float | None
    unit: str
    n: int
    n_unscored: int
    n_unparsed: int
    task_version: str
    protocol: str
    focus: str
    crop: str
    judge: str | None
    box_format: dict[str, str]
    sampling: dict[str, Any]
    limit: int | None
    data: dict[str, Any]
    higher_is_better: bool | None = None


class Entry(BaseModel):
    """An accepted run. allow_unscored: it was accepted although samples of it have no score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    model_info: dict[str, Any]
    seed: int
    scores: str = Field(description="file of the scores per sample, beside the yaml")
    sha256: str
    allow_unscored: bool = False
    numbers: list[Number]


@dataclass(frozen=True, slots=True)
class Baseline:
    """An entry with its scores per sample."""

    name: str
    entry: Entry
    rows: Rows

    def number(self, task: str, metric: str) -> Number | None:
        return next((n for n in self.entry.numbers if (n.task, n.metric) == (task, metric)), None)


def read_entries(path: Path) -> dict[str, Entry]:
    """All entries of a baselines file; none where there is no file. Raises UsageError for a damaged one."""
    if not path.exists():
        return {}
    said = "not a file of baselines"
    value = read_plain(path, _WRITES, said=said) or {}
    return check(value, TypeAdapter(dict[str, Entry]), f"{path}: {said}", _WRITES)


def read_baseline(path: Path, name: str) -> Baseline:
    """A baseline whole. Raises UsageError when it is not there or its scores are not those that were accepted."""
    entries = read_entries(path)
    if name not in entries:
        hint = nearest(name, entries) if entries else f"visrl-eval accept RUN --name {name} --baseline {path}"
        raise UsageError(f"{path} has no baseline {name!r}", hint)
    scores = path.parent / entries[name].scores
    if scores.resolve().parent.parent != path.resolve().parent:
        raise UsageError(
            f"{path}: {entries[name].scores!r} is outside the folder of baselines",
            "`visrl-eval accept RUN` writes a correct entry",
        )
    try:
        found = hashlib.sha256(scores.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{scores}: cannot be read: {error}", "commit it with baselines.yaml") from error
    if found != entries[name].sha256:
        raise UsageError(f"{scores} differs from the scores accepted as {name}", "visrl-eval accept RUN writes both")
    return Baseline(name, entries[name], of_baseline(scores))


def accept(
    path: Path, name: str, results: Sequence[TaskResult], rows: Rows, seed: int, *, allow_unscored: bool = False
) -> Entry:
    """Write a run as baseline ``name``; other entries stay as they are. allow_unscored: also one with unscored samples.

    Raises UsageError for a run without values, or with unscored samples: it can be no measure of another.
    """
    empty = {r.task for r in results} - {r.task for r in results if r.value is not None}
    if empty or not results:
        raise UsageError(f"no value for {', '.join(sorted(empty)) or 'anything'}", "accept a run that is complete")
    if not allow_unscored:
        _refuse_unscored(results)
    packed = compact(rows)
    scores = Path("baselines") / f"{name}.jsonl.gz"
    first = results[0]
    entry = Entry(
        model=first.model,
        model_info=first.model_info,
        seed=seed,
        scores=str(scores),
        sha256=hashlib.sha256(packed).hexdigest(),
        **({"allow_unscored": True} if allow_unscored else {}),
        numbers=[Number.model_validate(r.model_dump(include=set(Number.model_fields))) for r in results],
    )
    entries = {**read_entries(path), name: entry}
    _write_packed(path.parent / scores, packed)
    value = {key: entries[key].model_dump(mode="json", exclude_unset=True) for key in sorted(entries)}
    write_atomically(path, _HEADER + yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))
    return entry


def _refuse_unscored(results: Sequence[TaskResult]) -> None:
    """A sample without a score is not compared: a drop among these would pass. Raises UsageError naming the worst number."""
    worst = max(results, key=lambda result: result.n_unscored)
    if worst.n_unscored:
        reason = next(iter(worst.unscored_reasons), "")
        raise UsageError(
            f"{worst.n_unscored} of {worst.n + worst.n_unscored} samples of {worst.task} {worst.metric} are unscored"
            + (f": {reason}" if reason else ""),
            COMPLETE,
        )


def _write_packed(path: Path, packed: bytes) -> None:
    """Beside, then renamed: scores that were cut by a full disk must not stand where accepted ones stood."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(packed)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):  # it may never have come to be
            beside.unlink()
        raise refused(error, path) from error


def mismatches(number: Number, fresh: TaskResult) -> Iterator[str]:
    """Why the two must not be paired, a sentence each."""
    for name in SAME:
        old, new = getattr(number, name), getattr(fresh, name)
        if old != new:
            yield f"{name} is {_short(new)}, the baseline's {_short(old)}"
    if number.higher_is_better not in (None, fresh.higher_is_better):
        yield f"higher_is_better is {fresh.higher_is_better}, the baseline's {number.higher_is_better}"


def _short(value: Any) -> str:
    text = "+".join(map(str, value.values())) if isinstance(value, Mapping) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def missing_samples(baseline: Baseline, rows: Rows, task: str) -> list[str]:
    """Ids of the baseline's samples of a task or group that the fresh run does not have."""
    members = GROUPS.get(task, (task,))
    return [i for member in members for i in baseline.rows.get(member, {}) if i not in rows.get(member, {})]
