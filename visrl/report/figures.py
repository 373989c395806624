"""The figures of a run: how good the boxes are, what good boxes are worth, and where boxes lie.

Histogram of IoU: 20 bins of 0.05, the right ones (IoU > 0.5, strictly) apart from the wrong. Calibration: the mean score of the
answers (0..1) in 10 bins of IoU with its standard error s / sqrt(n), not clustered by picture: it says whether a better box
comes with a better answer, and is no number to report. Heat map: a grid over the picture, whatever its shape; a cell counts the
boxes that cover its centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

BINS = 20
STEPS = 10
CELLS = 24
"""Of a heat map, across and down."""
WIDTH, HEIGHT = 300.0, 110.0
"""The drawing's inner area in user units; the template adds axes around it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram, in user units from the top left, for IoU from ``low`` to ``high``. right: they count as right."""

    x: float
    y: float
    width: float
    height: float
    right: bool
    label: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of the calibration: its place, the ends of its whisker, and its radius by how many samples it stands for."""

    x: float
    y: float
    low: float
    high: float
    radius: float
    label: str


@dataclass(slots=True)
class TaskFigures:
    """Filled sample by sample; holds counts and sums only."""

    task: str
    right: list[int] = field(default_factory=lambda: [0] * BINS)
    wrong: list[int] = field(default_factory=lambda: [0] * BINS)
    unparsed: int = 0
    count: list[int] = field(default_factory=lambda: [0] * STEPS)
    total: list[float] = field(default_factory=lambda: [0.0] * STEPS)
    squares: list[float] = field(default_factory=lambda: [0.0] * STEPS)

    def add(self, overlap: float | None, quality: float | None, *, unparsed: bool) -> None:
        """One sample: IoU (None: no box or no true box) and the answer's score 0..1 (None: unscored)."""
        if overlap is None:
            return
        self.unparsed += unparsed
        side = self.right if overlap > 0.5 else self.wrong
        side[min(int(overlap * BINS), BINS - 1)] += 1
        if quality is not None:
            step = min(int(overlap * STEPS), STEPS - 1)
            self.count[step] += 1
            self.total[step] += quality
            self.squares[step] += quality * quality

    @property
    def n_boxes(self) -> int:
        return sum(self.right) + sum(self.wrong)

    @property
    def n_answers(self) -> int:
        return sum(self.count)

    @property
    def most(self) -> int:
        """Boxes in the tallest bar: the upper end of the histogram's axis."""
        return max(map(sum, zip(self.right, self.wrong, strict=True)), default=0)

    def bars(self) -> list[Bar]:
        """The histogram; a bin split by 0.5 exactly has its wrong part below."""
        most, wide = self.most or 1, WIDTH / BINS
        bars = []
        for i in range(BINS):
            base = HEIGHT
            for n, right in ((self.wrong[i], False), (self.right[i], True)):
                if n:
                    high = HEIGHT * n / most
                    base -= high
                    label = f"IoU {i / BINS:.2f}–{(i + 1) / BINS:.2f}: {n:,} {'right' if right else 'wrong'}"
                    place = (wide * i + 0.75, base, wide - 1.5, high)
                    bars.append(Bar(*place, right, label, i / BINS, (i + 1) / BINS))
        return bars

    def dots(self) -> list[Dot]:
        """The calibration, bins without answers left out."""
        most = max(self.count) or 1
        return [self._dot(i, most) for i in range(STEPS) if self.count[i]]

    def _dot(self, i: int, most: int) -> Dot:
        n = self.count[i]
        mean = self.total[i] / n
        spread = max(self.squares[i] / n - mean * mean, 0.0)
        se = math.sqrt(spread / (n - 1)) if n > 1 else 0.0
        label = f"IoU {i / STEPS:.1f}–{(i + 1) / STEPS:.1f}: mean answer score {mean:.2f} ± {se:.2f}, n {n:,}"

        def y(value: float) -> float:
            return HEIGHT * (1.0 - min(max(value, 0.0), 1.0))

        return Dot(
            WIDTH * (i + 0.5) / STEPS, y(mean), y(mean - se), y(mean + se), 2.5 + 4.5 * math.sqrt(n / most), label
        )


@dataclass(slots=True)
class HeatMap:
    """How often each part of a picture is inside a box. what: whose boxes; counts: row by row, from the top left."""

    what: str
    counts: list[int] = field(default_factory=lambda: [0] * CELLS * CELLS)
    n: int = 0

    def add(self, box: tuple[float, float, float, float], size: tuple[int, int]) -> None:
        """A box x1 y1 x2 y2 in pixels of a picture of ``size`` (width, height)."""
        self.n += 1
        columns, rows = (_inside(box[i], box[i + 2], size[i]) for i in (0, 1))
        for y in rows:
            for x in columns:
                self.counts[y * CELLS + x] += 1

    def cells(self) -> list[tuple[int, int, float]]:
        """(column, row, share of the boxes that cover it) of each cell that one covers."""
        return [(i % CELLS, i // CELLS, round(count / self.n, 3)) for i, count in enumerate(self.counts) if count]

    @property
    def most(self) -> float:
        """The largest share of the boxes that cover one cell."""
        return max(self.counts) / self.n if self.n else 0.0


def _inside(low: float, high: float, length: int) -> range:
    """The cells whose centre, at (i + 1/2) / CELLS of ``length``, lies from ``low`` to ``high``."""
    first = math.ceil(min(max(low / length, 0.0), 1.0) * CELLS - 0.5)
    last = math.floor(min(max(high / length, 0.0), 1.0) * CELLS - 0.5)
    return range(max(first, 0), min(last, CELLS - 1) + 1)


@dataclass(slots=True)
class RunFigures:
    """All figures of one run. whole: over all tasks."""

    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    whole: TaskFigures = field(default_factory=lambda: TaskFigures(""))
    true: HeatMap = field(default_factory=lambda: HeatMap("true boxes"))
    predicted: HeatMap = field(default_factory=lambda: HeatMap("predicted boxes"))

    def add(self, task: str, overlap: float | None, quality: float | None, *, unparsed: bool) -> None:
        """One sample, as :meth:`TaskFigures.add` takes it."""
        for figures in (self.tasks.setdefault(task, TaskFigures(task)), self.whole):
            figures.add(overlap, quality, unparsed=unparsed)

    def shown(self) -> list[TaskFigures]:
        """Those with boxes: of several tasks the sum first."""
        found = [figures for figures in self.tasks.values() if figures.n_boxes]
        return [self.whole, *found] if len(found) > 1 else found


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """Points as the attribute of an SVG polyline."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
