"""The way to an answer: what is answered, and for each look whether it was at the right place, as fractions 0..1.

answer            a judge's 0..1
answer/takes=K    the same over the samples with K true boxes: those whose answer takes K looks
box_acc/look=K    of the samples with a K-th true box, the share whose K-th look has an IoU > 0.5 with it, strictly
miou/look=K       the mean of that IoU

Samples list their true boxes in the order of looking. A look that was not carried out is wrong, IoU 0: the model answered
before, its call was faulty, or a limit came first. A control's looks (gold, random, …) are nobody's, and unscored. A metric is
absent where the model made no such look in the whole run, so that a run of one look has none of the second. Under a protocol of
one look, its box is the first look's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from visrl.core.boxes import Box, iou
from visrl.core.types import CoTSample, Episode, Score
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.scorers.measure import Estimand, among, average, chunks, done
from visrl.evals.scorers.viscot import score_answers

CONTROL = "a control looked there"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Scores per sample and the metrics above. Without a judge answers are unscored."""
    scores, unread, own = SampleScores(), 0, 0
    takes: dict[int, list[int]] = {}
    for items in chunks(done(samples, episodes, scores)):
        unread += score_answers(items, scores, judge)
        for row, sample, episode in items:
            takes.setdefault(len(sample.boxes), []).append(row)
            own = max(own, _enter(scores, row, sample, episode))
    whole = average("answer", scores, 1.0, unparsed=unread, judge=None if judge is None else judge.name)
    found = [whole, *(among(whole, f"answer/takes={k}", scores, takes[k], 1.0) for k in sorted(takes))]
    for k in range(1, max(takes, default=0) + 1):
        rows = [row for n, mine in sorted(takes.items()) if n >= k for row in mine]
        for metric in (f"box_acc/look={k}", f"miou/look={k}"):
            if k <= own:
                found.append(among(average(metric, scores, 1.0), metric, scores, rows, 1.0))
            else:
                scores.drop(metric)
    return scores, found


def _enter(scores: SampleScores, row: int, sample: CoTSample, episode: Episode) -> int:
    """The scores of every look of one sample; returns how many looks the model made itself."""
    looked = looks_of(episode)
    for k, true in enumerate(sample.boxes, 1):
        box = looked[k - 1] if k <= len(looked) else None
        if episode.error is not None or (k <= len(looked) and box is None):
            found = right = Score(None, episode.error or CONTROL)
        else:
            overlap = 0.0 if box is None else iou(box, true)
            found, right = Score(overlap), Score(float(overlap > 0.5))
        scores.put(row, f"box_acc/look={k}", right)
        scores.put(row, f"miou/look={k}", found)
    return max((k for k, box in enumerate(looked, 1) if box is not None), default=0)


def looks_of(episode: Episode) -> list[Box | None]:
    """The boxes of the looks that were carried out, in order; None for a control's."""
    done_ = [look for look in episode.looks if not look.fault]
    if done_:
        return [look.box if look.step is not None else None for look in done_]
    return [episode.box] if episode.box_step is not None and isinstance(episode.box, Box) else []
