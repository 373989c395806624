"""POPE: is there a … in the picture? By LLaVA's rule (llava/eval/eval_pope.py), scored over the *answers*.

The answer is the text before the first '.', without commas; if the words No, not or no stand in it, it is "no", else "yes".
With yes as the positive class: accuracy, precision TP/(TP+FP), recall TP/(TP+FN), f1 2TP/(2TP+FP+FN), yes_ratio.

Departures from the pope task of lmms-eval 0.7.3: 1. "No." and "Yes, there is" count. 2. every answer enters recall.
3. yes_ratio is the answers', not the truth's. 4. groups average the splits' F1, they do not pool the questions.
From LLaVA's: 5. precision of a model that never says yes is undefined, not a crash. 6. answers in which neither yes nor
no stands are counted in a note: the rule makes them "yes", even an empty one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from visrl.core.types import CoTSample, Episode, Score
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import ONE, ZERO, SampleScores
from visrl.evals.scorers.measure import Estimand, average, done
from visrl.evals.stats import Floats

_NO = frozenset({"No", "not", "no"})
_EITHER = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)


def says(text: str) -> str:
    """ "yes" or "no" by LLaVA's rule. Case matters: "NO" is a yes, as in the official script."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if _NO.intersection(words) else "yes"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Per sample ``accuracy`` and ``yes_ratio`` (0 or 1); the five metrics in percent. ``judge`` is not needed."""
    scores, neither = SampleScores(), 0
    for row, sample, episode in done(samples, episodes, scores):
        for metric, value in _sample(sample, episode).items():
            scores.put(row, metric, value)
        neither += not why_unscored(sample, episode) and not _EITHER.search((episode.answer or "").split(".", 1)[0])
    notes = (f"{neither} answers say neither yes nor no: the rule counts them as yes",) if neither else ()
    accuracy = average("accuracy", scores, 100.0, notes=notes)
    yes_ratio = average("yes_ratio", scores, 100.0)
    return scores, [accuracy, *_ratios(scores, accuracy.unscored), yes_ratio]


def _sample(sample: CoTSample, episode: Episode) -> dict[str, Score]:
    reason = why_unscored(sample, episode)
    if reason:
        return dict.fromkeys(("accuracy", "yes_ratio"), Score(None, reason))
    answer = says(episode.answer or "")
    return {
        "accuracy": ONE if answer == sample.answers[0] else ZERO,
        "yes_ratio": ONE if answer == "yes" else ZERO,
    }


def why_unscored(sample: CoTSample, episode: Episode) -> str:
    """Why a yes/no or multiple-choice sample has no score; "" when it has one. Shared by POPE, MME and MMBench."""
    if episode.error is not None:
        return episode.error or "failed without a reason"
    if not sample.answers:
        return "the sample has no true answer"
    return "no answer was given" if episode.answer is None else ""


def _ratios(scores: SampleScores, unscored: Mapping[str, int]) -> list[Estimand]:
    right, yes = scores.column("accuracy"), scores.column("yes_ratio")
    sums = np.stack([right * yes, (1 - right) * yes, (1 - right) * (1 - yes)], axis=1)  # TP, FP, FN
    rows = np.flatnonzero(~np.isnan(right))
    counts = scores.part(sums[rows], rows)
    return [Estimand(name, (counts,), statistic, scale=100.0, unscored=unscored) for name, statistic in RATIOS.items()]


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 0)


def _precision(sums: Floats) -> Floats:
    """TP / (TP + FP) of sums [..., 3] = TP, FP, FN."""
    return _divide(sums[..., 0], sums[..., 0] + sums[..., 1])


def _recall(sums: Floats) -> Floats:
    return _divide(sums[..., 0], sums[..., 0] + sums[..., 2])


def _f1(sums: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN): the harmonic mean of precision and recall, and 0 where every positive is missed."""
    return _divide(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


RATIOS: dict[str, Callable[[Floats], Floats]] = {"precision": _precision, "recall": _recall, "f1": _f1}
"""metric -> its value 0..1 from the sums of TP, FP, FN; NaN where undefined."""
