"""A loop's phases as tables and as the figure "VisRL over multiple iterations", from their records alone.

A record of a loop says in ``model_info.phase`` which run, phase, iteration and seed it is of (train/loop/scoring.py). Rows are
the phases in the order of the loop, as in the poster's table 2: base, SFT, SFT+RL1, SFT+RL1+RL2, then iteration by iteration. Of
several seeds a cell holds the mean over seeds and its standard error; of one, the record's own value and error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrl.core.records import TaskResult
from visrl.errors import UsageError
from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS
from visrl.tables.formats import Cell, Row, Table, cleaned

METRICS = {"answer": "answers", "box_acc": "box", "acc@0.5": "box"}
"""What a phase is measured by, and its name in titles."""
_STAGE = re.compile(r"iter(\d+)/rl(\d*)$")
_FIRST = {"base": 0, "sft": 1, "more": 2}


@dataclass(frozen=True, slots=True)
class Point:
    """A metric of a phase in percent: mean and standard error, over ``seeds`` seeds where there are several."""

    value: float
    se: float | None
    seeds: int


def of_loops(results: Sequence[TaskResult]) -> list[TaskResult]:
    """The results that are a phase's end."""
    return [r for r in results if is_phase(r) and r.metric in METRICS]


def is_phase(result: TaskResult) -> bool:
    """Whether a record is of a loop's phase, and says of which."""
    return isinstance(result.model_info.get("phase"), dict)


def phase_of(result: TaskResult) -> dict[str, Any]:
    """Which run, phase, iteration and seed a loop's record is of."""
    about: dict[str, Any] = result.model_info["phase"]
    return about


def order(name: str) -> tuple[int, int, int]:
    """Phases by their names, as a loop runs them."""
    found = _STAGE.match(name)
    return (9, int(found[1]), int(found[2] or 0)) if found else (_FIRST.get(name, 8), 0, 0)


def in_order(results: Sequence[TaskResult]) -> list[TaskResult]:
    """The results, those of loops last and by run and phase."""
    loops = of_loops(results)
    names = runs(loops)
    loops.sort(key=lambda r: (names.index(phase_of(r)["run"]), order(phase_of(r)["phase"])))
    ours = {id(r) for r in loops}
    return [*(r for r in results if id(r) not in ours), *loops]


def longest(results: Sequence[TaskResult]) -> str:
    """The run of the most iterations. Raises UsageError where no record is a loop's."""
    names = runs(results)
    if not names:
        raise UsageError(
            "none of these records is from a recipe of kind loop",
            "for example visrl-train recipes/world-iterations.yaml writes some",
        )
    return max(names, key=lambda name: len(phase_ends(results, name)))


def runs(results: Sequence[TaskResult]) -> list[str]:
    """Names of the runs, in the order of their records."""
    return list(dict.fromkeys(phase_of(r)["run"] for r in of_loops(results)))


def points(results: Sequence[TaskResult], run: str) -> dict[str, dict[tuple[str, str], Point]]:
    """phase label -> (task or group, metric) -> Point, phases in order. Of equal seeds the last record counts."""
    values: dict[tuple[str, tuple[str, str]], dict[str, TaskResult]] = {}
    labels: dict[str, str] = {}
    for result in of_loops(results):
        about = phase_of(result)
        if about["run"] == run and result.value is not None:
            labels[about["phase"]] = about["label"]
            values.setdefault((about["phase"], (result.task, result.metric)), {})[str(about["seed"])] = result
    found: dict[str, dict[tuple[str, str], Point]] = {labels[name]: {} for name in sorted(labels, key=order)}
    for (phase, what), by_seed in values.items():
        found[labels[phase]][what] = _point(by_seed)
    return found


def _point(by_seed: dict[str, TaskResult]) -> Point:
    scaled = {seed: percent(r, r.value) for seed, r in by_seed.items() if r.value is not None}
    if len(by_seed) == 1:
        (only,) = by_seed.values()
        return Point(next(iter(scaled.values())), None if only.se is None else percent(only, only.se), 1)
    over = stats.mean(list(scaled.values()), list(scaled))
    assert over.value is not None, "there are seeds"
    return Point(over.value, over.se, len(by_seed))


def percent(result: TaskResult, number: float) -> float:
    """``number``, a value or an error of the result, in percent."""
    return 100.0 * number if result.unit == "fraction" else number


def phase_table(results: Sequence[TaskResult], run: str) -> Table:
    """One run's phases: a row each, a column per task and metric, groups' means last. Raises UsageError for an unknown run."""
    found = points(results, run)
    if not found:
        raise UsageError(
            f"these records hold no phase of a loop named {run!r}", f"runs: {', '.join(runs(results)) or 'none'}"
        )
    whats = list(dict.fromkeys(what for row in found.values() for what in row))
    whats.sort(key=lambda what: (list(METRICS).index(what[1]), what[0] in GROUPS))
    seeds = max(point.seeds for row in found.values() for point in row.values())
    rows = [Row(label, tuple(_cell(row.get(what), seeds) for what in whats)) for label, row in found.items()]
    how = f"mean ± standard error over {seeds} seeds" if seeds > 1 else "± one standard error, clustered by picture"
    small = any(r.small_world for r in of_loops(results) if phase_of(r)["run"] == run)
    notes = (
        f"Percent; {how}.",
        *(["Measured on the synthetic small world: not comparable with published numbers."] if small else []),
    )
    columns = tuple(2 * (f"{short(task)} {METRICS[metric]}",) for task, metric in whats)
    tidy = tuple(_tidy(run, label, what, point) for label, row in found.items() for what, point in row.items())
    return Table(f"{run}: phases, in the layout of the poster's table 2", "phase", columns, cleaned(rows), notes, tidy)


def _cell(point: Point | None, seeds: int) -> Cell:
    """A cell of fewer seeds than the table's says so: the error of one is by picture."""
    if point is None:
        return Cell(("—",))
    fewer = [] if point.seeds == seeds else [f"({point.seeds} of {seeds} seeds)"]
    return Cell((f"{point.value:.1f}", *([] if point.se is None else [f"±{point.se:.1f}"]), *fewer))


def short(task: str) -> str:
    """A task's name in a column's title."""
    return "mean" if task in GROUPS else task.removeprefix("world_").removeprefix("textured_").removeprefix("viscot_")


def _tidy(run: str, label: str, what: tuple[str, str], point: Point) -> dict[str, Any]:
    task, metric = what
    return {
        "row": f"{run} · {label}",
        "column": task,
        "metric": metric,
        "value": point.value,
        "se": point.se,
        "n": point.seeds,
    }


# --- the figure


def series(results: Sequence[TaskResult], run: str) -> dict[str, list[tuple[str, Point]]]:
    """metric's name -> (iteration, Point): SFT as 0, then the end of each iteration. A group's mean where there is one."""
    labels = phase_ends(results, run)
    found: dict[str, list[tuple[str, Point]]] = {}
    for label, row in points(results, run).items():
        if label not in labels:
            continue
        for metric, name in METRICS.items():
            of_metric = {task: point for (task, m), point in row.items() if m == metric}
            means = [point for task, point in of_metric.items() if task in GROUPS]
            if len(of_metric) == 1 or means:
                found.setdefault(name, []).append((labels[label], (means or list(of_metric.values()))[0]))
    return found


def phase_ends(results: Sequence[TaskResult], run: str) -> dict[str, str]:
    """Label of the last phase of each iteration -> the iteration's number; SFT is 0."""
    last: dict[int, tuple[tuple[int, int, int], str]] = {}
    for result in of_loops(results):
        about = phase_of(result)
        if about["run"] == run and about["phase"] != "base":
            place = order(about["phase"])
            last[about["iteration"]] = max(last.get(about["iteration"], ((-1, 0, 0), "")), (place, about["label"]))
    return {label: str(iteration) for iteration, (_, label) in sorted(last.items())}


def draw_iterations(results: Sequence[TaskResult], run: str, path: Path) -> None:
    """The figure, as a PNG or SVG by ``path``'s ending: answers and boxes over iterations, error bars of one standard error.

    Raises UsageError where the records have no iterations.
    """
    found = series(results, run)
    if not found or max(len(line) for line in found.values()) < 2:
        raise UsageError(
            f"{run}: these records hold no second iteration",
            "for example visrl-train recipes/world-iterations.yaml writes some",
        )
    where = ", small world" if any(r.small_world for r in of_loops(results) if phase_of(r)["run"] == run) else ""
    draw_lines(found, f"VisRL over multiple iterations\n({run}{where})", path)


def draw_lines(lines: Mapping[str, Sequence[tuple[str, Point]]], title: str, path: Path) -> None:
    """Lines over iterations, in percent, each by its name; error bars of one standard error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "visrl"  # else an SVG's ids are drawn at random
    figure, axis = pyplot.subplots(figsize=(5.2, 3.6))
    for (name, line), dash in zip(lines.items(), ("-", "--"), strict=False):
        x = [int(iteration) for iteration, _ in line]
        y, error = [point.value for _, point in line], [point.se or 0.0 for _, point in line]
        axis.errorbar(x, y, yerr=error, label=name, linestyle=dash, marker="o", capsize=3)
    seeds = max(point.seeds for line in lines.values() for _, point in line)
    over = f"over {seeds} seeds" if seeds > 1 else "by picture, one seed"
    axis.set(xlabel=f"iteration (0: SFT); bars: ± 1 standard error {over}", ylabel="percent")
    axis.set_title(title)
    axis.set_xticks(sorted({int(iteration) for line in lines.values() for iteration, _ in line}))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None} if path.suffix == ".png" else {"Date": None})
    pyplot.close(figure)
