"""The two figures of a task: how good the boxes are, and what good boxes are worth.

Histogram of IoU: 20 bins of 0.05, the right ones (IoU > 0.5, strictly) apart from the wrong. Calibration: the mean score of the
answers (0..1) in 10 bins of IoU with its standard error s / sqrt(n), not clustered by picture: it says whether a better box
comes with a better answer, and is no number to report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

BINS = 20
STEPS = 10
WIDTH, HEIGHT = 300.0, 110.0
"""The drawing's inner area in user units; the template adds axes around it."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram, in user units from the top left. ``right``: the boxes in it count as right."""

    x: float
    y: float
    width: float
    height: float
    right: bool
    label: str


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

    def bars(self) -> list[Bar]:
        """The histogram; a bin split by 0.5 exactly has its wrong part below."""
        most = max(map(sum, zip(self.right, self.wrong, strict=True)), default=0) or 1
        wide = WIDTH / BINS
        bars = []
        for i in range(BINS):
            base = HEIGHT
            for n, right in ((self.wrong[i], False), (self.right[i], True)):
                if n:
                    high = HEIGHT * n / most
                    base -= high
                    label = f"IoU {i / BINS:.2f}–{(i + 1) / BINS:.2f}: {n:,} {'right' if right else 'wrong'}"
                    bars.append(Bar(wide * i + 0.75, base, wide - 1.5, high, right, label))
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


def polyline(points: Iterable[tuple[float, float]]) -> str:
    """Points as the attribute of an SVG polyline."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
