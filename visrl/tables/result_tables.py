"""What a run came to: a summary that fits a screen, and the table of every metric.

People read percent with one decimal, whatever a record's unit is; MME's points stay points. Records keep every digit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from visrl.core.records import TaskResult, interval
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.evals.compare import Difference
from visrl.tables.formats import UNIT_SHOWN, Cell, Row, Table, cleaned, plain

_FACTOR = {"fraction": 100.0}
BOX_METRIC = "box_acc"
"""Of a benchmark that asks for an answer: whether the box is right, too (evals/scorers)."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Paired changes from a run under ``before`` to the one whose results are shown, called ``after``.

    results: of the run before, for what is to be said of its numbers.
    """

    before: str
    after: str
    changes: tuple[Difference, ...]
    results: tuple[TaskResult, ...] = ()


def shown(value: float, unit: str, sign: str = "") -> str:
    """A value as people read it: a fraction as percent, one decimal; raw: four digits. sign: ``+`` for a difference."""
    if unit == "raw":
        return f"{value:{sign}.4g}"
    return f"{value * _FACTOR.get(unit, 1.0):{sign}.1f}"


def change_shown(before: float | None, after: float | None, delta: float | None, se: float | None, unit: str) -> str:
    """``71.2 → 72.9 (+1.7 ± 0.6)``, in percent or points; ± is one standard error of the difference."""
    if before is None or after is None or delta is None:
        return "—"
    return f"{shown(before, unit)} → {shown(after, unit)} ({_by(delta, se, unit)})"


def _by(delta: float, se: float | None, unit: str) -> str:
    return shown(delta, unit, "+") + ("" if se is None else f" ± {shown(se, unit)}")


# --- the summary


def main_results(results: Sequence[TaskResult]) -> list[TaskResult]:
    """The primary metric of every averaged group, then of every task that is in none of them; of a single one every metric."""
    by_name: dict[str, list[TaskResult]] = {}
    for result in results:
        by_name.setdefault(result.task, []).append(result)
    groups = [name for name in GROUPS if name in by_name]
    members = {member for group in groups for member in GROUPS[group]}
    known = [name for name in TASKS if name in by_name and name not in members]
    names = [*groups, *known, *(name for name in by_name if name not in GROUPS and name not in dict(TASKS))]
    if len(names) == 1:
        return by_name[names[0]]
    return [_primary(name, by_name[name]) for name in names]


def _primary(name: str, results: Sequence[TaskResult]) -> TaskResult:
    spec = TASKS.get(GROUPS[name][0] if name in GROUPS else name)
    return next((r for r in results if spec is not None and r.metric == spec.primary), results[0])


def headline(results: Sequence[TaskResult], compared: Compared) -> str:
    """``looking: 16.0 → 98.3 % (+82.3 ± 1.0), 1,250 questions · boxes right 98.7 %``; "" where no change is defined.

    The change is that of the free answers where there are some (of a group before that of a task), else of the first row.
    """
    rows = {(r.task, r.metric): place for place, r in enumerate(main_results(results))}
    defined = [d for d in compared.changes if d.delta is not None and (d.task, d.metric) in rows]
    if not defined:
        return ""
    best = min(defined, key=lambda d: (d.metric != "answer", rows[d.task, d.metric]))
    assert best.before is not None and best.after is not None and best.delta is not None
    what = "looking" if compared.before == "direct" else f"{compared.before} → {compared.after}"
    alone = sum(metric == "answer" for _, metric in rows) == 1
    metric = "" if best.metric == "answer" and alone else f"{best.task} {best.metric} "
    said = (
        f"{what}: {metric}{shown(best.before, best.unit)} → {shown(best.after, best.unit)} {UNIT_SHOWN[best.unit]} "
        f"({_by(best.delta, best.se, best.unit)}), {best.n:,} questions"
    )
    boxes = next((r for r in results if r.task == best.task and r.metric == BOX_METRIC and r.value is not None), None)
    right = "" if boxes is None or boxes.value is None else f" · boxes right {shown(boxes.value, boxes.unit)} %"
    return plain(said + right, 200)


def summary_table(results: Sequence[TaskResult], compared: Compared | None = None) -> Table:
    """A row per group, or task outside of groups; beside it the other run's value and the paired change, where there is one."""
    chosen = main_results(results)
    if compared is None or not compared.changes:
        return results_table(chosen)
    changes = {(d.task, d.metric): d for d in compared.changes}
    others = {(r.task, r.metric): r for r in compared.results}
    rows = []
    for result in chosen:
        key = result.task, result.metric
        rows.append(_change_row(result, changes.get(key), others.get(key), compared.before))
    titles = (compared.before, compared.after, "change ± SE", "unit", "n")
    columns = tuple((title, title) for title in titles)
    return Table("", "task and metric", columns, cleaned(rows), _made_by(results))


def _change_row(result: TaskResult, found: Difference | None, other: TaskResult | None, before_name: str) -> Row:
    before = "" if found is None or found.before is None else shown(found.before, found.unit)
    after = "—" if result.value is None else shown(result.value, result.unit)
    by = "" if found is None or found.delta is None else _by(found.delta, found.se, found.unit)
    # the change is over the samples that both runs scored, the value over all that this one did; its own unscored are said
    left_out = 0 if found is None else found.unpaired - result.n_unscored
    unpaired = f"{left_out:,} are not compared: no score in {plain(before_name)}" if left_out > 0 else ""
    note = "; ".join(part for part in (_why(result), _unparsed(result), unpaired) if part)
    own = "" if other is None or not before else "; ".join(part for part in (_why(other), _unparsed(other)) if part)
    cells = (
        Cell((before,), own),
        Cell((after,), note),
        Cell((by,)),
        Cell((UNIT_SHOWN[result.unit],)),
        Cell((of_expected(result),)),
    )
    return Row(_label(result), cells)


def _unparsed(result: TaskResult) -> str:
    return f"{result.n_unparsed:,} unparsed, counted as wrong" if result.n_unparsed else ""


# --- every metric


def results_table(results: Sequence[TaskResult]) -> Table:
    """A row per task and metric: value, 95 % interval, n of the expected, and what was unparsed or unscored, if anything was."""
    flags = [name for name in ("unparsed", "unscored") if any(getattr(r, f"n_{name}") for r in results)]
    rows = []
    for result in results:
        counts = (str(getattr(result, f"n_{name}") or "") for name in flags)
        texts = (_value(result), _interval(result), UNIT_SHOWN[result.unit], of_expected(result), *counts)
        first, *others = (Cell((text,)) for text in texts)
        rows.append(Row(_label(result), (Cell(first.lines, _why(result)), *others)))
    columns = [
        ("value ± SE", "value"),
        ("95 % interval", "95 % CI"),
        ("unit", "unit"),
        ("n", "n"),
        *((name, name) for name in flags),
    ]
    return Table("", "task and metric", tuple(columns), cleaned(rows), _made_by(results))


def _label(result: TaskResult) -> str:
    return f"{result.task} {result.metric.removeprefix('mme/')}"


def _why(result: TaskResult) -> str:
    """Reasons of what is unscored, and the result's notes."""
    why = [f"{count:,} unscored: {plain(reason)}" for reason, count in result.unscored_reasons.items()]
    return "; ".join([*why, *map(plain, result.notes)])


def _made_by(results: Iterable[TaskResult]) -> tuple[str, ...]:
    """A line per model, protocol and, where something was cropped, focus, with the judges of its free answers."""
    judges: dict[str, dict[str, None]] = {}
    for result in results:
        looked = [] if is_direct(result.protocol) else [f"focus {result.focus}"]
        of_one = judges.setdefault(" · ".join([result.model, result.protocol, *looked]), {})
        if result.judge:
            of_one[result.judge] = None
    return tuple(
        plain(f"{how} · judge: {', '.join(map(_judge, names))}" if names else how, 200) for how, names in judges.items()
    )


def is_direct(protocol: str) -> bool:
    """Whether a protocol asks for no box, so that focus and crop mean nothing."""
    return protocol.split("/")[0] == "direct"


def _judge(name: str) -> str:
    return "exact match" if name == "exact" else name


def _value(result: TaskResult) -> str:
    if result.value is None:
        return "—"
    error = "" if result.se is None else f" ± {shown(result.se, result.unit)}"
    return shown(result.value, result.unit) + error


def _interval(result: TaskResult) -> str:
    ends = interval(result)
    return "" if ends is None else "–".join(shown(end, result.unit) for end in ends)


def of_expected(result: TaskResult) -> str:
    """``50/1,250``: how many samples were scored, of how many; one number where these are equal."""
    return f"{result.n:,}" if result.n == result.n_expected else f"{result.n:,}/{result.n_expected:,}"
