"""VisCoT: where to look (box_acc) and what the answer is (answer), each as a fraction 0..1 (docs/method.md b3, b4).

box_acc  share of predicted boxes with IoU > 0.5, strictly. Official code computes it in pixels of the padded square; the
         pad shifts both boxes alike and nothing is clipped, so the IoU in pixels of the picture is the same number.
answer   a judge's 0..1; its name is part of the number. The group's value is the unweighted mean of the 11 sets.

Departures: 1. a judge that failed is unscored, not 0. 2. a set that is not there is not averaged in as 0, nor is a set of
accuracy 0 left out of the mean: there is no mean then. 3. eight degenerate true boxes of docvqa stay in the denominator, as
officially (the best possible box_acc there is .9910). 4. a run in which no box was asked for has no box_acc. 5. judges get the
final answer, without the thought before it (core/final_answer.py); a thought that never ends is 0 and unparsed, and no judge is
asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from visrl.core.final_answer import final_answer
from visrl.core.types import CoTSample, Episode, Score, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge, JudgeItem, verdicts
from visrl.evals.scorers.columns import ZERO, SampleScores
from visrl.evals.scorers.measure import Done, Estimand, average, chunks, done
from visrl.evals.scorers.rec import BoxesRead, score_boxes


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Per sample ``box_acc`` (0, 1; absent where no box was asked for) and ``answer`` (0..1). Without a judge, unscored."""
    scores, read, asked_for_box, unread = SampleScores(), BoxesRead(), False, 0
    for items in chunks(done(samples, episodes, scores)):
        read += score_boxes(items, scores, {"box_acc": "acc@0.5"})
        asked_for_box |= any(episode.box is not None for _, _, episode in items)
        unread += score_answers(items, scores, judge)
    estimands = [average("answer", scores, 1.0, unparsed=unread, judge=None if judge is None else judge.name)]
    if asked_for_box:
        estimands.append(average("box_acc", scores, 1.0, unparsed=read.unparsed, notes=read.notes))
    else:  # direct, gold, random, ...: a metric nobody was asked for is absent, not unscored
        scores.drop("box_acc")
    return scores, estimands


def score_answers(items: Sequence[Done], scores: SampleScores, judge: Judge | None) -> int:
    """Enters the judge's scores, asked for many answers at once; failed samples keep their own reason. Returns the unparsed."""
    asked: list[tuple[int, JudgeItem]] = []
    unparsed = 0
    for row, sample, episode in items:
        answer = final_answer(episode.answer or "")
        if reason := _why_unscored(episode, judge):
            scores.put(row, "answer", Score(None, reason))
        elif isinstance(answer, Unparsed):
            scores.put(row, "answer", ZERO)
            unparsed += 1
        else:
            asked.append((row, JudgeItem(sample.id, sample.question, sample.answers, answer)))
    if judge is not None:
        found = verdicts(judge, [item for _, item in asked])
        for (row, _), verdict in zip(asked, found, strict=True):
            scores.put(row, "answer", verdict)
    return unparsed


def _why_unscored(episode: Episode, judge: Judge | None) -> str:
    if episode.error is not None:
        return episode.error or "failed without a reason"
    if episode.answer is None:
        return "no answer was given"
    return "no judge was named" if judge is None else ""
