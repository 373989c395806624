"""Records -> the paper's tables with ours beside the published rows.

A verdict per cell of ours, against one published row: ``match`` within 2 of our standard errors, ``above`` or ``below`` beyond,
or ``not comparable`` with every reason in a footnote. The published standard errors are unknown and taken as 0.

Comparable means: all samples of the published split and none unscored, the metric and unit of the column, the task's present
version, a protocol that the row may have been made with, the model's own boxes, and for judged answers the paper's judge.
Never compared: anything drawn in the small world. No average is ever shown that the paper does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from visrl.core.box_rules import UNCOMPARABLE
from visrl.core.records import TaskResult
from visrl.evals import paper
from visrl.evals.benchmarks import GROUPS, PRIMARY, TASKS
from visrl.evals.judge import is_papers
from visrl.tables.formats import Cell, Row, Table, cleaned, plain, render, show

Verdict = Literal["match", "above", "below", "not comparable", ""]
_STYLES = {"match": "green", "above": "bold green", "below": "red", "not comparable": "yellow"}
_WITHIN = 2.0
_USUAL_CROP = "viscot_square112"


def verdict(result: TaskResult, column: paper.Column, published: paper.Row) -> tuple[Verdict, str]:
    """How a result stands to a published cell, and why it cannot be compared (or what is doubtful). "" : nothing published."""
    reasons = why_not(result, column, published)
    cell = published.cells[column.name]
    if reasons:
        return "not comparable", f"not comparable: {'; '.join(reasons)}"
    if cell.value is None:
        return "", f"no published value: {cell.note or cell.provenance}"
    assert result.value is not None and result.se is not None  # why_not has seen to it
    doubt = f"the published value is suspect: {cell.note or published.note}" if cell.status == "suspect" else ""
    gap = result.value - cell.value
    if abs(gap) <= _WITHIN * result.se:
        return "match", doubt
    return ("above" if gap > 0 else "below"), doubt


def why_not(result: TaskResult, column: paper.Column, published: paper.Row) -> list[str]:
    """Every reason not to hold ``result`` against ``published``; empty when it may be."""
    if result.small_world:
        return ["small world"]
    return [
        *_size_reasons(result),
        *_method_reasons(result, column, published),
        *([] if result.value is None or result.se is not None else ["no standard error: fewer than two pictures"]),
    ]


def _size_reasons(result: TaskResult) -> list[str]:
    if result.n == 0 or result.value is None:
        why = [*result.notes[-1:], *list(result.unscored_reasons)[:1], "nothing was scored"][0]
        return [f"no value: {plain(why)}"]
    reasons = []
    if result.n != result.n_expected:
        unscored = f", {result.n_unscored} unscored" if result.n_unscored else ""
        reasons.append(f"n {result.n} of {result.n_expected}{unscored}")
    elif result.n_unscored:
        reasons.append(f"{result.n_unscored} unscored")
    return [*reasons, *([f"limit {result.limit}"] if result.limit is not None else [])]


def _method_reasons(result: TaskResult, column: paper.Column, published: paper.Row) -> list[str]:
    mode = result.box_format.get("mode", "")
    reasons = [UNCOMPARABLE[mode]] if mode in UNCOMPARABLE else []
    protocol = result.protocol.split("/")[0]
    if result.unit != column.unit:
        reasons.append(f"unit {result.unit}, not {column.unit}")
    if published.protocols and protocol not in published.protocols:
        reasons.append(f"protocol {plain(protocol)}, not {' or '.join(published.protocols)}")
    if result.focus != "predicted" and protocol != "direct":
        reasons.append(f"focus {plain(result.focus)}, not predicted")
    if column.metric == "answer" and not is_papers(result.judge):
        reasons.append(f"judge {plain(result.judge or 'none')}, not the paper's")
    present = "+".join(sorted({TASKS[m].version for m in GROUPS.get(column.task, (column.task,)) if m in TASKS}))
    if present and result.task_version != present:
        reasons.append(f"task version {plain(result.task_version)}, not {present}")
    return reasons


def build(name: str, results: Sequence[TaskResult] | None, against: str | None = None, *, mine: bool = False) -> Table:
    """The paper's table ``name`` with a row per model, protocol and focus of ``results`` that has a cell in it.

    against: the published row the verdicts are about; default the table's own. mine: our rows alone. results None: the
    paper alone. Raises UsageError for unknown names.
    """
    table = paper.load(name)
    target = table.row(against or table.against)
    places = {(column.task, column.metric) for column in table.columns}
    ours = split_rows([result for result in results or () if (result.task, result.metric) in places])
    published = () if mine else table.rows
    rows = [_published_row(row, table, row is target) for row in published]
    rows += [_our_row(label, found, table, target, first=i == 0 and not mine) for i, (label, found) in enumerate(ours)]
    notes = [] if results is None else _legend(target, bool(ours))
    if rows:
        notes += [*table.notes, *(f"{column.title}: {column.note}" for column in table.columns if column.note)]
    tidy = [record for row in published for record in _published_records(row, table)]
    tidy += [record for label, found in ours for record in _our_records(label, found, table, target)]
    titles = tuple((column.title, column.short) for column in table.columns)
    return Table(table.title, "method", titles, cleaned(rows), tuple(notes), tuple(tidy))


def _legend(target: paper.Row, any_ours: bool) -> list[str]:
    if not any_ours:
        return ["None of the given runs has a result for this table."]
    return [
        f"Verdicts are against {target.name}: match within {_WITHIN:g} of our standard errors (±), above or below beyond;"
        " n/c is not comparable. Published numbers come without standard errors. ? marks a suspect published value."
    ]


_Key = Callable[[TaskResult], str]
_SPLITTERS: tuple[tuple[str, _Key], ...] = (
    ("crop", lambda r: r.crop),
    ("judge", lambda r: r.judge or "none"),
    ("parser", lambda r: r.box_format.get("mode", "")),
    ("boxes", lambda r: r.box_format.get("name", "")),
    ("adapter", lambda r: _adapter(r).get("path", "none")),
    ("dtype", lambda r: str(r.model_info.get("dtype", ""))),
    ("bits", lambda r: str(r.model_info.get("bits", "all"))),
    ("weights", lambda r: _weights(r)),
    ("limit", lambda r: str(r.limit)),
    ("seed", lambda r: str(r.seed)),
    ("data", lambda r: str(sorted(r.data.items(), key=str))),
)


def _adapter(result: TaskResult) -> Mapping[str, Any]:
    found = result.model_info.get("adapter")
    return found if isinstance(found, Mapping) else {}


def _weights(result: TaskResult) -> str:
    """The first digits of the hash of a model's files, and of its adapter's."""
    hashes = [about.get("weights_sha256") for about in (result.model_info, _adapter(result))]
    return "+".join(str(found)[:8] for found in hashes if found)


def split_rows(results: Sequence[TaskResult]) -> list[tuple[str, dict[tuple[str, str], TaskResult]]]:
    """Results as rows, in order: one per model, protocol and focus, and where two results of a row claim one cell, one per
    crop, judge, parser, box format, adapter, dtype, weights, limit and seed as well. Of results equal in all these the last
    counts."""
    groups: dict[str, list[TaskResult]] = {}
    for result in results:
        groups.setdefault(_label(result), []).append(result)
    rows: list[tuple[str, dict[tuple[str, str], TaskResult]]] = []
    for label, members in groups.items():
        rows += _split(label, members, _SPLITTERS)
    return rows


def _label(result: TaskResult) -> str:
    """Model and protocol, and what is out of the ordinary about where the model looked."""
    focus = [] if result.focus == "predicted" else [f"{result.focus} focus"]
    looks = not result.protocol.startswith("direct/") and result.metric != PRIMARY["rec"]
    crop = [f"{result.crop} crop"] if looks and result.crop != _USUAL_CROP else []
    return " · ".join([result.model, result.protocol, *focus, *crop])


def _split(
    label: str, members: Sequence[TaskResult], splitters: Sequence[tuple[str, _Key]]
) -> list[tuple[str, dict[tuple[str, str], TaskResult]]]:
    found = {(member.task, member.metric): member for member in members}
    if len(found) == len(members) or not splitters:
        return [(label, found)]
    (name, key), rest = splitters[0], splitters[1:]
    parts: dict[str, list[TaskResult]] = {}
    for member in members:
        parts.setdefault(key(member), []).append(member)
    if len(parts) == 1:
        return _split(label, members, rest)
    return [row for value, part in parts.items() for row in _split(f"{label} · {name} {value}", part, rest)]


def _published_row(row: paper.Row, table: paper.PaperTable, is_target: bool) -> Row:
    cells = []
    for column in table.columns:
        cell = row.cells[column.name]
        text = (
            "—" if cell.value is None else _number(cell.value, table.digits) + ("?" if cell.status == "suspect" else "")
        )
        note = (cell.note or row.note or cell.provenance) if cell.status == "suspect" else ""
        cells.append(Cell((text,), f"suspect: {note}" if note else ""))
    tag = row.details.get("tag")
    label = f"{row.name} [{tag}]" if tag else row.name
    return Row(label, tuple(cells), "bold" if is_target else "")


def _our_row(
    label: str, found: dict[tuple[str, str], TaskResult], table: paper.PaperTable, target: paper.Row, *, first: bool
) -> Row:
    cells = []
    for column in table.columns:
        result = found.get((column.task, column.metric))
        if result is None:
            cells.append(Cell())
            continue
        word, note = verdict(result, column, target)
        value = "—" if result.value is None else _number(result.value, table.digits)
        error = () if result.se is None else (f"±{_number(result.se, table.digits)}",)
        short = ("n/c",) if word == "not comparable" else (word,) if word else ()
        cells.append(Cell((value, *error, *short), note, _STYLES.get(word, "")))
    return Row(label, tuple(cells), opens_section=first)


def _published_records(row: paper.Row, table: paper.PaperTable) -> list[dict[str, Any]]:
    return [
        _record(row.name, "published", column, row.cells[column.name].value, status=row.cells[column.name].status)
        for column in table.columns
    ]


def _our_records(
    label: str, found: dict[tuple[str, str], TaskResult], table: paper.PaperTable, target: paper.Row
) -> list[dict[str, Any]]:
    records = []
    for column in table.columns:
        result = found.get((column.task, column.metric))
        if result is not None:
            word, note = verdict(result, column, target)
            extra = {"se": result.se, "n": result.n, "n_expected": result.n_expected, "verdict": word, "reason": note}
            records.append(_record(plain(label, 120), "visrl", column, result.value, **extra))
    return records


def _record(name: str, source: str, column: paper.Column, value: float | None, **more: Any) -> dict[str, Any]:
    base = {"row": name, "source": source, "column": column.name, "metric": column.metric, "unit": column.unit}
    empty = dict.fromkeys(("se", "n", "n_expected", "verdict", "reason", "status"))
    return {**base, "value": value, **empty, **more}


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


# --- on stdout


def print_paper_table(
    name: str,
    results: Sequence[TaskResult] | None,
    format_: str = "rich",
    against: str | None = None,
    *,
    mine: bool = False,
) -> None:
    """What ``build`` gives, on stdout, in one of formats.FORMATS. Raises UsageError for unknown names."""
    print_table(build(name, results, against, mine=mine), format_)


def print_table(table: Table, format_: str) -> None:
    """A table on stdout, in one of formats.FORMATS."""
    if format_ != "rich":
        sys.stdout.write(render(table, format_))
        return
    from rich.console import Console

    show(table, Console(highlight=False))
