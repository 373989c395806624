"""Ref-L4 by the rules of its own evaluator: accuracy at three thresholds, their mean over ten, and by the object's size.

acc@0.5, acc@0.75, acc@0.9   share of boxes with IoU greater than that, strictly
macc                         the mean of acc@0.5, 0.55, …, 0.95
small, medium, large         acc@0.5 of objects whose side, the root of the true box's area, is below 128 pixels, up to 256, above

The rules are those of Ref-L4's evaluator. Departures: 1. an output without a box is wrong and counted; theirs has no
such rows. 2. its ``macc`` of each size, and its averages over categories, are not computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from visrl.core.types import CoTSample, Episode
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers import rec
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.scorers.measure import Estimand, among, average

THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))
SMALL, LARGE = 128, 256


def size_of(sample: CoTSample) -> str:
    """``small``, ``medium`` or ``large``; "" without a true box."""
    if sample.box is None:
        return ""
    side = math.sqrt(sample.box.area)
    return "small" if side < SMALL else "medium" if side <= LARGE else "large"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Scores per sample and the metrics above, in percent. ``judge`` is not needed."""
    sizes: list[str] = []

    def watched() -> Iterator[CoTSample]:
        for sample in samples:
            if sample.id in episodes:
                sizes.append(size_of(sample))
            yield sample

    scores, (first, miou, strict, _) = rec.score(spec, watched(), episodes, judge)
    overlap = scores.column("miou")
    rows = np.flatnonzero(~np.isnan(overlap)).tolist()
    scores.drop("centre_acc")
    hits = {threshold: (overlap[rows] > threshold).astype(np.float64) for threshold in (*THRESHOLDS, 0.75, 0.9)}
    scores.fill("acc@0.9", rows, hits[0.9])
    scores.fill("macc", rows, np.mean([hits[threshold] for threshold in THRESHOLDS], axis=0))
    own = [replace(average(name, scores, 100.0), unscored=first.unscored) for name in ("acc@0.9", "macc")]
    counted = [replace(what, unparsed=first.unparsed, notes=first.notes) for what in own]
    return scores, [first, strict, *counted, miou, *_by_size(scores, sizes, first)]


def _by_size(scores: SampleScores, sizes: list[str], whole: Estimand) -> Iterator[Estimand]:
    for name in ("small", "medium", "large"):
        found = among(whole, name, scores, [row for row, size in enumerate(sizes) if size == name], 100.0)
        if found.expected:
            yield found
