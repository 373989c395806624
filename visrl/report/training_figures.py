"""The figures of a training page: curves over steps, phases in order of time, ablations as a forest plot, critics' scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrl.core.records import TaskResult
from visrl.evals.benchmarks import GROUPS
from visrl.report.figures import HEIGHT, WIDTH, polyline
from visrl.report.text import line
from visrl.tables.phase_tables import METRICS, Point, points

STUB = 6.0
DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 2")
"""Lines of one curve are told apart by dashes as well as by colour."""
ROW = 22.0
"""Height of a row of a chart with a row per phase or variant."""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: str
    dash: str
    colour: int
    last: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Quantities of one scale over steps. low, high: the ends of the y axis; steps: the last step; drawn: not only points."""

    title: str
    low: str
    high: str
    steps: int
    lines: tuple[Line, ...]
    drawn: bool = True


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value with one standard error to each side, in user units across a chart of ``WIDTH``. series: which colour and mark."""

    x: float
    low: float
    high: float
    y: float
    series: int
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A row per name, whiskers in the rows. ticks: (x, label) of the axis; zero: where 0 lies, in a chart of differences."""

    title: str
    names: tuple[tuple[str, float], ...]
    series: tuple[str, ...]
    whiskers: tuple[Whisker, ...]
    ticks: tuple[tuple[float, str], ...]
    height: float
    zero: float | None = None


def chart(title: str, rows: Mapping[str, Mapping[str, tuple[float, float | None]]], differences: bool) -> Chart | None:
    """name -> series -> (value, standard error or None), in percent. differences: around zero, else from 0 to 100."""
    found = [value + side * (se or 0.0) for row in rows.values() for value, se in row.values() for side in (-1, 1)]
    if not found:
        return None
    low, high = (_down(min(*found, 0.0)), -_down(-max(*found, 0.0))) if differences else (0.0, 100.0)

    def x(value: float) -> float:
        return round(WIDTH * (min(max(value, low), high) - low) / ((high - low) or 1.0), 2)

    series = tuple(dict.fromkeys(name for row in rows.values() for name in row))
    marks = []
    for number, (name, row) in enumerate(rows.items()):
        for place, (what, (value, se)) in enumerate(row.items()):
            y = ROW * (number + (place + 1) / (len(row) + 1))
            error = "" if se is None else f" ± {se:.1f}"
            said = f"{name}: {what} {value:{'+' if differences else ''}.1f}{error}"
            marks.append(Whisker(x(value), x(value - (se or 0.0)), x(value + (se or 0.0)), y, series.index(what), said))
    ends = [
        (x(value), f"{value:+g}" if differences and value else f"{value:g}") for value in (low, (low + high) / 2, high)
    ]
    names = tuple((line(name, 40), ROW * (number + 0.5)) for number, name in enumerate(rows))
    return Chart(title, names, series, tuple(marks), tuple(ends), ROW * len(rows), x(0.0) if differences else None)


def _down(value: float) -> float:
    """The next multiple of 5 that is not above ``value``."""
    return 5.0 * math.floor(value / 5.0)


def phase_chart(results: Sequence[TaskResult], run: str) -> Chart | None:
    """Answers and boxes at the end of each phase, in order; a group's mean where there is one. None without such records."""
    rows = {}
    for label, found in points(results, run).items():
        row = {}
        for metric, name in METRICS.items():
            of_metric = {task: point for (task, m), point in found.items() if m == metric}
            means = [point for task, point in of_metric.items() if task in GROUPS]
            if means or len(of_metric) == 1:
                row[_WORDS[name]] = _pair((means or list(of_metric.values()))[0])
        if row:
            rows[label] = row
    return chart("Score after each phase, percent right", rows, differences=False)


_WORDS = {"answers": "answers right", "box": "boxes right"}


def _pair(point: Point) -> tuple[float, float | None]:
    return point.value, point.se


def forest(summary: Iterable[Any]) -> Chart | None:
    """Differences to the full method by variant, from an ablation's summary.json; None where there are none."""
    rows: dict[str, dict[str, tuple[float, float | None]]] = {}
    for row in summary:
        if not isinstance(row, Mapping) or number(row.get("difference")) is None:
            continue
        name, metric = line(str(row.get("variant")), 40), str(row.get("metric"))
        words = line(_WORDS.get(metric, metric), 40)
        rows.setdefault(name, {})[words] = row["difference"], number(row.get("difference_se"))
    return chart("Difference to the full method, percentage points", rows, differences=True)


def score_histogram(name: str, values: Sequence[float]) -> Curve:
    """How a critic's scores, 0..1, are spread: shares of the scores in ten bins, as steps."""
    counts = [0] * 10
    for value in values:
        counts[min(max(int(value * 10), 0), 9)] += 1
    most = max(counts)
    corners = [
        (WIDTH * (i + side) / 10, HEIGHT * (1 - count / most)) for i, count in enumerate(counts) for side in (0, 1)
    ]
    line_ = Line("", polyline(corners), "", 0, f"{len(values):,} scores, {sum(values) / len(values):.2f} on average")
    return Curve(name, "0", f"{most:,}", 1, (line_,))


# --- curves


def curves(history: Any) -> tuple[Curve, ...]:
    """One curve per kind of quantity: the losses together, the margins together, and so on."""
    logged = history if isinstance(history, list) else []
    rows = [row for row in logged if isinstance(row, Mapping) and number(row.get("step")) is not None]
    kinds: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            kind, logged_value = curve_of(name), number(value)
            if kind and logged_value is not None:
                kinds.setdefault(kind, {}).setdefault(name, []).append((float(row["step"]), logged_value))
    return tuple(_curve(kind, kinds[kind]) for kind in sorted(kinds, key=_FIRST.index))


def number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def curve_of(name: str) -> str:
    """Which curve a logged quantity belongs to; "" for none."""
    if name == "train_loss":  # TRL's mean over all steps
        return ""
    if name.startswith("loss/") or name.endswith("loss"):
        return "loss"
    if name in _KINDS:
        return _KINDS[name]
    kind = next((kind for ending, kind in _ENDINGS.items() if name.endswith(ending)), "")
    if not kind and name.startswith("rewards/") and name not in ("rewards/chosen", "rewards/rejected"):
        return "reward"
    return kind or ("accuracy" if name in _WATCHED else "")


_ENDINGS = {
    "margins": "reward margin",
    "accuracies": "reward accuracy",
    "/reward": "reward",
    "/advantage": "mean absolute advantage",
    "/without_spread": "groups with equal rewards",
}
_KINDS = {
    "reward": "reward",
    "kl": "KL to the reference",
    "entropy": "token entropy",
    "clip_ratio/region_mean": "clipped tokens",
    "completions/mean_length": "completion length (tokens)",
    "completions/unparsed": "unparsed boxes",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
_FIRST = ("loss", "accuracy", "reward", "reward accuracy", "reward margin", *_ENDINGS.values(), *_KINDS.values())


_WATCHED = ("point", "point_any", "read", "look", "whole", "box", "box_any", "accuracy")
"""What a small model is watched by (train/small_model/probes.py): accuracies 0..1."""
SHARES = ("accuracy", "equal rewards", "unparsed boxes")
"""Kinds of quantities from 0 to 1: their axis shows all of that."""


def _stub(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A single point as a short line to it: a line of one point is not drawn."""
    (x, y) = points[0]
    return [(x - STUB, y), (x, y)] if len(points) == 1 else points


def _curve(kind: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Curve:
    values = [value for points in series.values() for _, value in points]
    low, high = (0.0, 1.0) if kind.endswith(SHARES) else (min(*values, 0.0), max(*values, 0.0))
    span = (high - low) or 1.0
    steps = max(step for points in series.values() for step, _ in points) or 1.0
    lines = tuple(
        Line(
            line(name, 40),
            polyline(_stub([(WIDTH * step / steps, HEIGHT * (1 - (value - low) / span)) for step, value in points])),
            DASHES[i % len(DASHES)],
            i % 6,
            f"{points[-1][1]:.4g}",
        )
        for i, (name, points) in enumerate(series.items())
    )
    drawn = any(len(points) > 1 for points in series.values())
    return Curve(kind, f"{low:.3g}", f"{high:.3g}", int(steps), lines, drawn)
