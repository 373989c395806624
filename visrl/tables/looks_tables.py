"""The score by looks allowed, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from visrl.core.records import TaskResult, interval
from visrl.errors import refused
from visrl.tables.formats import UNIT_SHOWN, Cell, Row, Table, cleaned
from visrl.tables.result_tables import main_results, shown

LOOKS, FAULTY = "looks", "faulty_calls"  # of evals/scorers/zoom/looks.py
Points = Mapping[int, Sequence[TaskResult]]


def _series(points: Points) -> dict[tuple[str, str], dict[int, TaskResult]]:
    """(task, metric) -> limit -> result: the main metrics of every point, then how often was really looked."""
    found: dict[tuple[str, str], dict[int, TaskResult]] = {}
    for limit, results in points.items():
        chosen = [r for r in main_results(results) if "/looks=" not in r.metric and r.metric not in (LOOKS, FAULTY)]
        looked = [r for r in results if r.metric == LOOKS and r not in chosen and any(r.task == c.task for c in chosen)]
        for result in (*chosen, *looked):
            found.setdefault((result.task, result.metric), {})[limit] = result
    return found


def looks_table(points: Points) -> Table:
    """A row per task and metric, a column per limit."""
    limits = list(points)
    rows = []
    for (task, metric), of_limit in _series(points).items():
        cells = [_cell(of_limit.get(limit)) for limit in limits]
        unit = UNIT_SHOWN[next(iter(of_limit.values())).unit]
        rows.append(Row(f"{task} {metric}", (*cells, Cell((unit,)))))
    columns = [*((f"{limit} looks" if limit != 1 else "1 look", str(limit)) for limit in limits), ("unit", "unit")]
    return Table("Score by looks allowed", "task and metric", tuple(columns), cleaned(rows))


def _cell(result: TaskResult | None) -> Cell:
    if result is None or result.value is None:
        return Cell(("—",))
    error = "" if result.se is None else f" ± {shown(result.se, result.unit)}"
    return Cell((shown(result.value, result.unit) + error,))


def draw(points: Points, path: Path) -> None:
    """An SVG: each task's main metric over the looks allowed, with its 95 % interval. Raises UsageError as the disk refuses."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    matplotlib.rcParams["svg.hashsalt"] = "visrl"  # else an SVG's ids are drawn at random
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for (task, metric), of_limit in _series(points).items():
        known = {limit: r for limit, r in of_limit.items() if r.value is not None and r.unit in ("percent", "fraction")}
        if metric == LOOKS or not known:
            continue
        scale = [100.0 if r.unit == "fraction" else 1.0 for r in known.values()]
        values = [s * (r.value or 0.0) for s, r in zip(scale, known.values(), strict=True)]
        ends = [interval(r) or (r.value, r.value) for r in known.values()]
        below = [v - s * (low or 0.0) for v, s, (low, _) in zip(values, scale, ends, strict=True)]
        above = [s * (high or 0.0) - v for v, s, (_, high) in zip(values, scale, ends, strict=True)]
        axes.errorbar(list(known), values, yerr=[below, above], marker="o", capsize=3, label=f"{task} {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("looks allowed")
    axes.set_ylabel("score, % (95 % interval)")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    except OSError as error:
        raise refused(error, path) from error
    finally:
        pyplot.close(figure)
