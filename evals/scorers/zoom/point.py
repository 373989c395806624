"""Screens: is the point, or the centre of the box, inside the element that was asked for?

click_acc             share of answers inside the true box, its edges included
click_acc/text, icon  the same of elements of one kind
An answer without a point or box is wrong and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Score, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import ONE, ZERO, SampleScores
from visrl.evals.scorers.measure import Estimand, average, done
from visrl.evals.scorers.zoom.choice import by_category

METRIC = "click_acc"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Scores per sample and the metrics above, in percent. ``judge`` is not needed."""
    scores, unparsed, seen = SampleScores(), 0, dict[str, CoTSample]()

    def watched() -> Iterator[CoTSample]:
        for sample in samples:
            if sample.id in episodes:
                seen[sample.id] = sample
            yield sample

    for row, sample, episode in done(watched(), episodes, scores):
        scores.put(row, METRIC, _score(sample, episode))
        unparsed += episode.error is None and isinstance(episode.box, Unparsed)
    whole = average(METRIC, scores, 100.0, unparsed=unparsed)
    return scores, [whole, *by_category(scores, seen, whole)]


def _score(sample: CoTSample, episode: Episode) -> Score:
    if episode.error is not None:
        return Score(None, episode.error or "failed without a reason")
    if sample.box is None:
        return Score(None, "the sample has no true box")
    if episode.box is None:
        return Score(None, "no box was asked for")
    return ONE if isinstance(episode.box, Box) and sample.box.contains(*episode.box.centre) else ZERO
