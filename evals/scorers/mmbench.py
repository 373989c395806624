"""MMBench: which letter? All rotations of a question must be right (circular evaluation).

accuracy  share of rows whose letter is right
circular  share of questions all of whose rotations are right; the paper's number. Rotations of one question share
          index mod 1,000,000 (the sample's ``group``); a question with k options has k of them.

The letter is read by letters.py: for sure, or not at all.

Departures: 1. lmms-eval asks an API up to 15 times and then picks at random; here what cannot be read is
wrong and counted, or a model judge decides. 2. options are matched as whole words ("nan" is not in "finance"), and "A" that
is an article is no letter. 3. a question with a rotation missing or unscored has no circular score, and its rows are counted
as unscored. n counts rows, n_clusters pictures or, where the data name none, questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from visrl.core.final_answer import final_answer
from visrl.core.types import CoTSample, Episode, Score, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge, JudgeItem, verdicts
from visrl.evals.scorers.columns import ONE, ZERO, SampleScores
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.measure import Done, Estimand, attempt, average, chunks, done
from visrl.evals.scorers.pope import why_unscored
from visrl.evals.stats import Floats, Part

INCOMPLETE = "not all rotations of the question have a score"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Per sample ``accuracy`` and ``circular`` (0, 1); both metrics in percent.

    A judge that is a model decides answers without a readable letter (right from a score of 0.5 on); a rule does not.
    """
    scores, rotations = SampleScores(), dict[str, int]()
    unread: list[int] = []
    pictures: list[str] = []
    decides = judge if judge is not None and judge.kind == "model" else None
    for items in chunks(done(samples, episodes, scores)):
        mine = [item for item in items if not _score_row(item, scores)]
        open_ones = [item for item in mine if isinstance(final_answer(item[2].answer or ""), str)] if decides else []
        if decides is not None:
            _decide(decides, open_ones, scores)
        decided = {row for row, *_ in open_ones}
        unread += [row for row, *_ in mine if row not in decided]
        for row, sample, _ in items:
            rotations.setdefault(
                scores.groups[row], sample.meta.get("rotations") or len(sample.meta.get("options", ()))
            )
            pictures.append(scores.clusters[row] if sample.cluster else f"question {sample.group}")
    _score_circles(scores, rotations)
    name = None if decides is None else decides.name
    accuracy = average("accuracy", scores, 100.0, unparsed=len(unread), judge=name)
    return scores, [accuracy, _circular(scores, pictures, unread, name)]


def _score_row(item: Done, scores: SampleScores) -> bool:
    """Enters ``accuracy`` of one item; returns whether its answer could be read, or there is nothing to read."""
    row, sample, episode = item
    if reason := why_unscored(sample, episode):
        scores.put(row, "accuracy", Score(None, reason))
        return True
    chosen = attempt(_chosen, sample, episode)
    if isinstance(chosen, Score):
        scores.put(row, "accuracy", chosen)
        return True
    scores.put(row, "accuracy", ONE if chosen == sample.answers[0] else ZERO)
    return not isinstance(chosen, Unparsed)


def _chosen(sample: CoTSample, episode: Episode) -> str | Unparsed:
    return letter(episode.answer or "", sample.meta["options"])


def _decide(judge: Judge, unread: Sequence[Done], scores: SampleScores) -> None:
    items = [_item(sample, episode) for _, sample, episode in unread]
    for (row, *_), verdict in zip(unread, verdicts(judge, items), strict=True):
        scores.put(row, "accuracy", _verdict(verdict))


def _item(sample: CoTSample, episode: Episode) -> JudgeItem:
    options = sample.meta["options"]
    listed = "\n".join(f"{name}. {text}" for name, text in options.items())
    right = sample.answers[0]
    return JudgeItem(sample.id, f"{sample.question}\n{listed}", (f"{right}. {options[right]}",), episode.answer or "")


def _verdict(score: Score) -> Score:
    return score if score.value is None else ONE if score.value >= 0.5 else ZERO


def _score_circles(scores: SampleScores, rotations: Mapping[str, int]) -> None:
    """Adds ``circular`` to every row: whether all rotations of its question are right; unscored when one has no score."""
    circles: dict[str, list[int]] = {}
    for row, group in enumerate(scores.groups):
        circles.setdefault(group, []).append(row)
    for group, rows in circles.items():
        own = [scores.of_row(row)["accuracy"] for row in rows]
        complete = len(rows) >= rotations[group] and all(score.value is not None for score in own)
        circular = ONE if all(score.value for score in own) else ZERO
        for row, score in zip(rows, own, strict=True):
            scores.put(row, "circular", circular if complete else Score(None, score.reason or INCOMPLETE))


def _circular(scores: SampleScores, pictures: Sequence[str], unread: Sequence[int], judge: str | None) -> Estimand:
    """The mean over questions: every row weighs one over the number of its question's rows. pictures: a cluster per row."""
    values = scores.column("circular")
    scored = np.flatnonzero(~np.isnan(values)).tolist()
    sizes = Counter(scores.groups[row] for row in scored)
    weights = np.array([1 / sizes[scores.groups[row]] for row in scored], dtype=np.float64)
    return Estimand(
        "circular",
        (Part(np.stack([values[scored] * weights, weights], axis=1), [pictures[row] for row in scored]),),
        _share,
        scale=100.0,
        unscored=scores.unscored("circular"),
        unparsed=sum(not np.isnan(values[row]) for row in unread),
        judge=judge,
        notes=(f"{len(sizes)} questions with all rotations",),
    )


def _share(sums: Floats) -> Floats:
    """Right over all, of sums [..., 2]."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full_like(sums[..., 0], np.nan), where=sums[..., 1] > 0)
