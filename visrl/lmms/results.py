"""What lmms-eval says of a task as TaskResults, and the values it gives each document as lines of scores.jsonl.

A metric that the task's file calls a ``mean`` gets a standard error clustered by picture, and can be compared document by
document. Of any other (its own code adds up: a total, a ratio) the documents' values are a metric of their own beside it,
``METRIC/sample``, their mean; its own standard error is lmms-eval's, where it has one.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from visrl.core.records import TaskResult
from visrl.evals.benchmarks import UPSTREAM
from visrl.evals.stats import Estimate, mean

Values = Mapping[str, Mapping[str, float]]
"""metric -> document -> the number that the task gave it"""


@dataclass(frozen=True, slots=True)
class Metric:
    """One of a task's numbers. values: per document, in its unit; none where it is no mean over documents."""

    name: str
    value: float
    higher_is_better: bool
    estimate: Estimate | None
    values: Mapping[str, float]
    given_se: float | None


def document_values(rows: Sequence[Mapping[str, Any]]) -> Values:
    """Of lmms-eval's logged samples: numbers, and the ``score`` of metrics that are objects. Of several filters the first."""
    found: dict[str, dict[str, float]] = {}
    seen: set[str] = set()
    for row in rows:
        name = str(row["doc_id"])
        if name not in seen:
            seen.add(name)
            for metric, value in row.items():
                number = _number(value.get("score") if isinstance(value, Mapping) else value)
                if number is not None and metric != "doc_id":
                    found.setdefault(metric, {})[name] = number
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def metrics(
    task: str, found: Mapping[str, Any], values: Values, means: Collection[str], pictures: Mapping[str, str]
) -> list[Metric]:
    """The numbers that lmms-eval has of a task or group, in its order, then means of the values that its code adds up otherwise.

    means: the metrics that are means. pictures: document -> picture, the clusters.
    """
    numbers = found["results"][task]
    better = found.get("higher_is_better", {}).get(task) or {}
    made: list[Metric] = []
    first: dict[str, Metric] = {}  # of several filters
    for key, value in numbers.items():
        name, _, how = key.partition(",")
        if "_stderr" in name or not how or isinstance(value, bool) or _number(value) is None:
            continue
        own = values.get(name, {}) if name in means and name not in first else {}
        label, given = name if how == "none" else f"{name},{how}", _number(numbers.get(f"{name}_stderr,{how}"))
        made.append(Metric(label, float(value), better.get(name) is not False, _estimate(own, pictures), own, given))
        first.setdefault(name, made[-1])
    return [*made, *(_of_samples(m, values[name], pictures) for name, m in first.items() if _is_other(m, name, values))]


def _is_other(metric: Metric, name: str, values: Values) -> bool:
    return not metric.values and bool(values.get(name))


def _of_samples(metric: Metric, values: Mapping[str, float], pictures: Mapping[str, str]) -> Metric:
    estimate = _estimate(values, pictures)
    assert estimate is not None and estimate.value is not None, "there are values"
    return Metric(f"{metric.name}/sample", estimate.value, metric.higher_is_better, estimate, values, None)


def _estimate(values: Mapping[str, float], pictures: Mapping[str, str]) -> Estimate | None:
    return mean(list(values.values()), [pictures.get(name, name) for name in values]) if values else None


def means_of(task: Any) -> set[str]:
    """The metrics of a task of lmms-eval's that are means over documents, by its file."""
    from lmms_eval.api.registry import get_aggregation

    return {name for name, rule in task.aggregation().items() if rule is get_aggregation("mean")}


def task_results(
    task: str, found: Mapping[str, Any], made: Sequence[Metric], context: Mapping[str, Any]
) -> list[TaskResult]:
    """Records of a task, or of a group. context: the fields of a TaskResult that are the run's."""
    members = _members(task, found)
    counts = [found["n-samples"][member] for member in members]
    n, expected = (sum(int(count[key]) for count in counts) for key in ("effective", "original"))
    failed = sum(len(found["failures"].get(member, ())) for member in members)
    rest = {key: value for key, value in context.items() if key not in ("notes", "versions")}
    versions = {**context["versions"], "lmms_eval": importlib.metadata.version("lmms_eval")}
    notes = list(context["notes"])
    if failed:
        notes.append(f"{failed} samples failed and count as wrong")
    return [
        TaskResult(
            **rest,
            task=f"{UPSTREAM}{task}",
            task_version=str(found["versions"].get(task, "")),
            metric=metric.name,
            value=metric.value,
            se=metric.given_se if metric.estimate is None else metric.estimate.se,
            ci=None if metric.estimate is None else metric.estimate.ci,
            unit="raw",
            higher_is_better=metric.higher_is_better,
            n=n,
            n_expected=expected,
            n_clusters=n if metric.estimate is None else metric.estimate.n_clusters,
            n_missing=expected - n,
            versions=versions,
            notes=[*notes, *_about_error(metric)],
        )
        for metric in made
    ]


def _about_error(metric: Metric) -> Iterator[str]:
    if metric.estimate is None and metric.given_se is not None:
        yield "lmms-eval's standard error: documents taken as independent"


def _members(task: str, found: Mapping[str, Any]) -> list[str]:
    """The tasks that a group's numbers are over; a task's own name."""
    if task in found["n-samples"]:
        return [task]
    inner = found.get("group_subtasks", {}).get(task, ())
    return [leaf for member in inner for leaf in _members(member, found)]


def score_rows(
    task: str, rows: Sequence[Mapping[str, Any]], made: Sequence[Metric], pictures: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Lines of scores.jsonl: every document of lmms-eval's logged samples, with the values that it has."""
    columns = {metric.name: metric.values for metric in made if metric.values}
    for name in dict.fromkeys(str(row["doc_id"]) for row in rows):
        scores = {metric: column[name] for metric, column in columns.items() if name in column}
        row = {"task": f"{UPSTREAM}{task}", "sample_id": name, "cluster": pictures.get(name, name), "group": ""}
        yield {**row, "scores": scores}


def verdict(made: Sequence[Metric]) -> str:
    """The metric by which a document is right or wrong: the task's first that is a mean of values within 0..1; "" if none is."""
    good = (m for m in made if m.values and m.higher_is_better and all(0 <= v <= 1 for v in m.values.values()))
    return next((metric.name for metric in good), "")
