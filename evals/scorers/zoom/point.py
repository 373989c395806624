"""Screens: is the point, or the centre of the box, inside the element that was asked for?

click_acc             share of answers inside the true box, its edges included
click_acc/text, icon  the same of elements of one kind
An answer without a point or box is wrong and counted; so is, in a note, one with numbers beyond its picture, where its size is
known.

The rule is that of SeeClick's test script for ScreenSpot and of ScreenSpot-Pro's. Departure: the former prints text and icons of
each platform apart, six numbers with none over all; here platforms are pooled, and a mean of the six is another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Score
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import ONE, ZERO, SampleScores
from visrl.evals.scorers.measure import Estimand, average, chunks, done
from visrl.evals.scorers.rec import BoxesRead, boxes_read
from visrl.evals.scorers.zoom.choice import by_category

METRIC = "click_acc"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Scores per sample and the metrics above, in percent. ``judge`` is not needed."""
    scores, read, seen = SampleScores(), BoxesRead(), dict[str, CoTSample]()

    def watched() -> Iterator[CoTSample]:
        for sample in samples:
            if sample.id in episodes:
                seen[sample.id] = sample
            yield sample

    for items in chunks(done(watched(), episodes, scores)):
        for row, sample, episode in items:
            scores.put(row, METRIC, _score(sample, episode))
        read += boxes_read(items)
    whole = average(METRIC, scores, 100.0, unparsed=read.unparsed, notes=read.notes)
    return scores, [whole, *by_category(scores, seen, whole)]


def _score(sample: CoTSample, episode: Episode) -> Score:
    if episode.error is not None:
        return Score(None, episode.error or "failed without a reason")
    if sample.box is None:
        return Score(None, "the sample has no true box")
    if episode.box is None:
        return Score(None, "no box was asked for")
    return ONE if isinstance(episode.box, Box) and sample.box.contains(*episode.box.centre) else ZERO
