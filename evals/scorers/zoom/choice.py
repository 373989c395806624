"""Multiple choice about small things: V*Bench, TreeBench and HR-Bench, answers and boxes.

accuracy             rows with the right letter (evals/scorers/letters.py); unread is wrong. Of HR-Bench the mean over its four
                     cycles, which is the number that is published: all cycles are equally long
accuracy/CATEGORY    the same of a category: direct_attributes, single, Perception/OCR, …
circular             HR-Bench: questions right in all their cycles; stricter than what is published
miou                 TreeBench's rule: for every true box the best IoU of any box that was looked at, averaged over the true
                     boxes, then over samples; without a box 0. V*Bench, whose own scorer ignores its boxes, by the same rule

The rules are those of V*Bench's evaluation script, of TreeVGR's for TreeBench and of VLMEvalKit's HR-Bench (docs/data.md).
Departures from TreeBench's: 1. boxes are those that were looked at, not those between <box> tags of a thought. 2. they are in
pixels of the original picture; its code compares numbers of the resized picture with them. 3. a question without true boxes has
no ``miou``; there it has 0. 4. its letter must be the whole output. From V*Bench's: it asks for no letter, but takes the option
of the least loss; here the letter is read, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from visrl.core.boxes import Box, iou
from visrl.core.types import CoTSample, Episode, Score
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers import mmbench
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.scorers.measure import Estimand, among, average


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Scores per sample and the metrics above, in percent."""
    seen: dict[str, CoTSample] = {}

    def watched() -> Iterator[CoTSample]:
        for sample in samples:
            if sample.id in episodes:
                seen[sample.id] = sample
            yield sample

    scores, (accuracy, circular) = mmbench.score(spec, watched(), episodes, judge)
    found = [accuracy]
    if spec.benchmark == "hrbench":
        found.append(circular)
    else:
        scores.drop("circular")
    found += _boxes(scores, seen, episodes)
    return scores, [*found, *by_category(scores, seen, accuracy)]


def by_category(scores: SampleScores, seen: Mapping[str, CoTSample], whole: Estimand) -> list[Estimand]:
    """The mean of a metric over each category's samples, categories in order of the file."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(scores.ids):
        if category := str(seen[name].meta.get("category", "")):
            rows.setdefault(category, []).append(row)
    found = [among(whole, f"{whole.metric}/{category}", scores, mine, 100.0) for category, mine in rows.items()]
    return [what for what in found if what.expected]


def _boxes(scores: SampleScores, seen: Mapping[str, CoTSample], episodes: Mapping[str, Episode]) -> list[Estimand]:
    """``miou`` where the benchmark has boxes and any was asked for."""
    asked = 0
    for row, name in enumerate(scores.ids):
        sample, episode = seen[name], episodes[name]
        if not sample.boxes:
            continue
        if episode.error is not None:
            scores.put(row, "miou", Score(None, episode.error or "failed without a reason"))
        elif episode.box is None:
            scores.put(row, "miou", Score(None, "no box was asked for"))
        else:
            asked += 1
            scores.put(row, "miou", Score(mean_best_iou(looked_at(episode), sample.boxes)))
    if not asked:
        scores.drop("miou")
        return []
    return [average("miou", scores, 100.0)]


def looked_at(episode: Episode) -> list[Box]:
    """The boxes that a model chose itself, of every look that was carried out."""
    own = [look.box for look in episode.looks if look.step is not None and look.box is not None]
    return own or ([episode.box] if isinstance(episode.box, Box) else [])


def mean_best_iou(predicted: Iterable[Box], true: Iterable[Box]) -> float:
    """For every true box the best IoU of any predicted one, on average, 0..1."""
    boxes, targets = list(predicted), list(true)
    return sum(max((iou(box, target) for box in boxes), default=0.0) for target in targets) / len(targets)
