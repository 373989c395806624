"""The first thing on a page: one sentence, and a bar for every group and task by the metric that matters in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from visrl.core.records import TaskResult
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.report.head import DifferenceRow, Header, ScoreRow
from visrl.report.rows import RunView
from visrl.report.text import line
from visrl.tables.formats import UNIT_SHOWN
from visrl.tables.result_tables import BOX_METRIC, Compared, headline, is_direct, main_results, shown

NOTHING = "no scores yet"


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """A group or task by its primary metric. values: per run, None where that run has none; tasks: what it
    is over, of the page's; member: of a group that has a row, too."""

    task: str
    metric: str
    unit: str
    values: tuple[ScoreRow | None, ...]
    change: str
    group: bool
    tasks: tuple[str, ...]
    member: bool = False


def summary_rows(
    heads: Sequence[Header], changes: Sequence[DifferenceRow], tasks: Sequence[str]
) -> tuple[SummaryRow, ...]:
    """A row per group, with its members below, and per task outside of groups. tasks: those that the page has samples of."""
    found: dict[tuple[str, str], list[ScoreRow | None]] = {}
    for place, head in enumerate(heads):
        for row in head.rows:
            if row.primary:
                key = row.result.task, row.result.metric
                found.setdefault(key, [None] * len(heads))[place] = row
    by = {(c.difference.task, c.difference.metric): c.by for c in changes}
    rows = [_row(key, tuple(values), by.get(key, ""), tasks) for key, values in found.items()]
    inside = {member: row.task for row in rows if row.group for member in GROUPS[row.task]}
    names = [row.task for row in rows]
    places = {name: place for place, name in enumerate(dict.fromkeys([*GROUPS, *TASKS, *names]))}

    def when(row: SummaryRow) -> tuple[bool, int, bool, int, str]:
        """Groups before lone tasks, each before its members, as ``visrl-eval ls`` has them."""
        of = inside.get(row.task, row.task)
        return of not in inside.values(), places[of], row.task in inside, places[row.task], row.metric

    return tuple(replace(row, member=row.task in inside) for row in sorted(rows, key=when))


def _row(key: tuple[str, str], values: tuple[ScoreRow | None, ...], change: str, tasks: Sequence[str]) -> SummaryRow:
    task, metric = key
    unit = next(UNIT_SHOWN[value.result.unit] for value in values if value is not None)
    members = tuple(name for name in GROUPS.get(task, (task,)) if name in tasks)
    return SummaryRow(task, metric, unit, values, change, task in GROUPS, members)


def first_sentence(views: Sequence[RunView], heads: Sequence[Header], changes: Sequence[DifferenceRow]) -> str:
    """What came out, as the command line says it: of two runs the change, of one its first result with the boxes beside."""
    results = [row.result for row in heads[-1].rows]
    if len(heads) > 1 and changes:
        first, second = (view.request for view in views)
        same = first["model"] == second["model"] and is_direct(first["protocol"])
        compared = Compared("direct" if same else "A", "looked" if same else "B", tuple(c.difference for c in changes))
        if said := headline(results, compared):
            return said
    return line(_of_one(results), 200)


def _of_one(results: Sequence[TaskResult]) -> str:
    """``answers right 98.4 ± 0.8 %, 250 questions · boxes right 98.4 %``"""
    valued = [r for r in main_results(results) if r.value is not None]
    if not valued:
        return NOTHING
    best = min(valued, key=lambda r: r.metric != "answer")
    alone = sum(r.metric == "answer" for r in valued) == 1
    metric = "answers right" if best.metric == "answer" else best.metric.removeprefix("mme/")
    what = metric if best.metric == "answer" and alone else f"{best.task} {metric}"
    assert best.value is not None, "chosen for having one"
    error = "" if best.se is None else f" ± {shown(best.se, best.unit)}"
    said = f"{what} {shown(best.value, best.unit)}{error} {UNIT_SHOWN[best.unit]}, {best.n:,} questions"
    boxes = next((r.value for r in results if (r.task, r.metric) == (best.task, BOX_METRIC)), None)
    return said if boxes is None else f"{said} · boxes right {shown(boxes, 'fraction')} %"
