"""The top of the page: what was run, what came out, and what two runs differ by."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visrl.core.records import TaskResult, interval, read_records
from visrl.errors import UsageError
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.evals.compare import Difference, compare
from visrl.evals.sample_scores import of_run
from visrl.report.rows import RunView
from visrl.report.text import line
from visrl.runs.meta import unlike_documents
from visrl.tables.formats import UNIT_SHOWN
from visrl.tables.result_tables import change_shown, shown

_SPAN = {"percent": 100.0, "fraction": 1.0}
"""What a whole bar stands for; points have no common scale."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A result as people read it: a share in percent, MME in points. low, mid, high: in per cent of the scale, else None."""

    result: TaskResult
    primary: bool
    value: str
    unit: str
    error: str
    interval: str
    low: float | None = None
    mid: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """Facts of one run, cleaned for display. letter: "A" or "B" where there are two runs."""

    title: str
    letter: str
    facts: tuple[tuple[str, str], ...]
    more: tuple[tuple[str, str], ...]
    rows: tuple[ScoreRow, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """`71.2 → 72.9 (+1.7 ± 0.6)`; ``by`` is what stands in the brackets."""

    difference: Difference
    primary: bool
    text: str
    by: str
    unit: str
    p: str


def header(view: RunView, letter: str) -> Header:
    """The header of a run; ``letter``: what it is called beside another run."""
    request, rows = view.request, score_rows(view)
    facts = {
        "model": request["model"],
        "protocol": request["protocol"],
        "focus": request["focus"],
        "crop": request["crop"],
        "weights": _weights(request["model_info"]),
        "boxes": " · ".join(str(value) for value in request["box_format"].values()),
        "judge": view.meta.get("judge"),
        "limit": request["limit"],
        "seed": request["seed"],
        "finished samples": f"{len(view.episodes):,}",
    }
    more = {
        "command": command(view),
        "folder": str(view.folder),
        "request": view.meta.get("request_hash"),
        "started": view.meta.get("started"),
        "sampling": request["sampling"],
        **{f"model {name}": value for name, value in request["model_info"].items()},
        **{f"data of {task}": facts for task, facts in request["data"].items()},
    }
    return Header(
        line(f"{request['model']} · {request['protocol']}", 80),
        letter,
        _cleaned(facts),
        _cleaned(more),
        rows,
        tuple(line(notice, 400) for notice in view.notices),
    )


def _cleaned(facts: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (line(name, 60), line(_flat(value), 600)) for name, value in facts.items() if value not in (None, "", {})
    )


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items())
    return str(value)


def _weights(info: Mapping[str, Any]) -> str:
    """Whatever says which weights these are: a hash, a revision, or the hash of replayed outputs."""
    for name in ("weights_sha256", "weights", "weights_hash", "sha256", "revision"):
        if info.get(name):
            return f"{_flat(info[name])[:24]} ({name})"
    return ""


def command(view: RunView) -> str:
    """The command that makes this run, as it was given where run.json has it, else from what the run was asked."""
    if isinstance(view.meta.get("command"), str):
        return str(view.meta["command"])
    request = view.request
    words = ["visrl-eval", "--model", str(view.meta.get("model_spec", request["model"]))]
    words += ["--tasks", ",".join(request["tasks"]), "--protocol", request["protocol"].split("/")[0]]
    for name in ("focus", "crop", "seed", "limit"):
        if request[name] is not None:
            words += [f"--{name}", str(request[name])]
    if request["data_folder"]:
        words += ["--data", request["data_folder"]]
    return shlex.join([*words, "--output", str(view.folder)])


def score_rows(view: RunView) -> tuple[ScoreRow, ...]:
    """The run's records, the metric that matters first; none, with a notice, where there are none or they are damaged."""
    try:
        results = read_records(view.folder) if (view.folder / "records").is_dir() else []
    except UsageError as error:
        view.notices.append(error.message)
        results = []
    order = [*view.request["tasks"], *GROUPS]
    results.sort(key=lambda r: (order.index(r.task) if r.task in order else len(order), r.metric != _primary(r.task)))
    return tuple(score_row(result) for result in results)


def _primary(task: str) -> str:
    """The metric to watch of a task, or of a group by its first member."""
    member = GROUPS.get(task, (task,))[0]
    return TASKS[member].primary if member in TASKS else ""


def score_row(result: TaskResult) -> ScoreRow:
    primary, unit = result.metric == _primary(result.task), UNIT_SHOWN[result.unit]
    if result.value is None:
        return ScoreRow(result, primary, "–", unit, "", line(result.notes[-1]) if result.notes else "")
    ci, span = interval(result), _SPAN.get(result.unit)
    row = ScoreRow(
        result,
        primary,
        shown(result.value, result.unit),
        unit,
        "" if result.se is None else f"± {shown(result.se, result.unit)}",
        "" if ci is None else f"{shown(ci[0], result.unit)} – {shown(ci[1], result.unit)}",
    )
    if span is None:
        return row
    ends = (result.value, result.value) if ci is None else ci
    low, mid, high = (round(100.0 * min(max(x / span, 0.0), 1.0), 2) for x in (ends[0], result.value, ends[1]))
    return replace(row, low=low, mid=mid, high=high)


def differences(views: Sequence[RunView]) -> tuple[DifferenceRow, ...]:
    """The paired differences of two runs (evals/compare.py), the metric that matters first; a notice where there are none."""
    if len(views) < 2:
        return ()
    if unlike := unlike_documents(views[0].request, views[1].request):
        views[0].notices.append(f"no paired comparison: the runs saw different documents of {', '.join(unlike)}")
        return ()
    try:
        found = compare(of_run(views[0].folder), of_run(views[1].folder))
    except UsageError as error:
        views[0].notices.append(f"no paired comparison: {error.message}")
        return ()
    rows = [_difference_row(difference) for difference in found]
    return tuple(sorted(rows, key=lambda row: not row.primary))


def _difference_row(difference: Difference) -> DifferenceRow:
    primary, unit = difference.metric == _primary(difference.task), UNIT_SHOWN[difference.unit]
    if difference.before is None or difference.after is None or difference.delta is None:
        return DifferenceRow(difference, primary, "–", "", unit, "")
    p = "" if difference.p is None else "< .001" if difference.p < 0.001 else f"{difference.p:.3f}"
    by = shown(difference.delta, difference.unit, "+")
    by += "" if difference.se is None else f" ± {shown(difference.se, difference.unit)}"
    said = change_shown(difference.before, difference.after, difference.delta, difference.se, difference.unit)
    return DifferenceRow(difference, primary, said, by, unit, p)
