"""VisCoT: where to look (box_acc) and what the answer is (answer), each as a fraction 0..1 (visrl-method.md b3, b4).

box_acc  share of predicted boxes with IoU > 0.5, strictly. Official code computes it in pixels of the padded square; the
         pad shifts both boxes alike and nothing is clipped, so the IoU in pixels of the picture is the same number.
answer   a judge's 0..1; its name is part of the number. The group's value is the unweighted mean of the 11 sets.

Departures: 1. a judge that failed is unscored, not 0. 2. a set that is not there is not averaged in as 0, nor is a set of
accuracy 0 left out of the mean: there is no mean then. 3. eight degenerate true boxes of docvqa stay in the denominator, as
officially (the best possible box_acc there is .9910). 4. a run in which no box was asked for has no box_acc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge, JudgeItem
from visrl.evals.measure import ONE, ZERO, Done, Estimand, SampleScores, average, done, of_metric, part
from visrl.evals.rec import match, with_boxes
from visrl.types import CoTSample, Episode, Score, Unparsed


def score(
    spec: TaskSpec, samples: Sequence[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Per sample ``box_acc`` (0, 1; absent where no box was asked for) and ``answer`` (0..1). Without a judge, unscored."""
    items = done(samples, episodes)
    scores: SampleScores = {sample.id: {} for sample, _ in items}
    boxes = _boxes(items, scores)
    for sample, value in _answers(items, judge):
        scores[sample.id]["answer"] = value
    name = judge.name if judge is not None else None
    answer = average("answer", of_metric(scores, items, "answer"), 1.0, judge=name)
    return scores, [answer, *boxes]


def _boxes(items: Done, scores: SampleScores) -> list[Estimand]:
    """box_acc over the items that were asked for a box; nothing when none was (``direct``, gold, random, …)."""
    if all(episode.box is None for _, episode in items):
        return []
    boxed, unscored = with_boxes(items, scores, ("box_acc",))
    hits = match(boxed)["acc@0.5"]
    for (sample, _), hit in zip(boxed, hits, strict=True):
        scores[sample.id]["box_acc"] = ONE if hit else ZERO
    unparsed = sum(isinstance(episode.box, Unparsed) for _, episode in boxed)
    return [Estimand("box_acc", (part(hits, [s for s, _ in boxed]),), unscored=unscored, unparsed=unparsed)]


def _answers(items: Done, judge: Judge | None) -> list[tuple[CoTSample, Score]]:
    """The judge's scores, asked for all answers at once; failed samples keep their own reason."""
    failed = {sample.id: reason for sample, episode in items if (reason := _why_unscored(episode, judge))}
    asked = [(sample, episode) for sample, episode in items if sample.id not in failed]
    verdicts: dict[str, Score] = {sample_id: Score(None, reason) for sample_id, reason in failed.items()}
    if judge is not None:
        todo = [JudgeItem(s.id, s.question, s.answers, episode.answer or "") for s, episode in asked]
        verdicts.update(zip((item.id for item in todo), judge.judge_many(todo), strict=True))
    return [(sample, verdicts[sample.id]) for sample, _ in items]


def _why_unscored(episode: Episode, judge: Judge | None) -> str:
    if episode.error is not None:
        return episode.error or "failed without a reason"
    if episode.answer is None:
        return "no answer was given"
    return "no judge was named" if judge is None else ""
