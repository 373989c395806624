"""POPE: is there a … in the picture? By LLaVA's rule (llava/eval/eval_pope.py), scored over the *answers*.

The answer is the text before the first '.', without commas; if the words No, not or no stand in it, it is "no", else "yes".
With yes as the positive class: accuracy, precision TP/(TP+FP), recall TP/(TP+FN), f1 2TP/(2TP+FP+FN), yes_ratio.

Departures from the pope task of lmms-eval 0.7.3: 1. "No." and "Yes, there is" count. 2. every answer enters recall.
3. yes_ratio is the answers', not the truth's. 4. groups average the splits' F1, they do not pool the questions.
From LLaVA's: 5. precision of a model that never says yes is undefined, not a crash. 6. answers in which neither yes nor
no stands are counted in a note: the rule makes them "yes", even an empty one. 7. the rule reads the final answer, without the
thought before it (core/final_answer.py); a thought that never ends is unparsed and counts as the wrong one of yes and no.

The rule cannot see "No!", "**No**" or a no before a line's end: it counts them as yes. Such answers are counted in the note
``odd``, and ``accuracy_careful`` is the accuracy by a careful reading (yes_no.py), in which what is not sure is wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from visrl.core.final_answer import final_answer
from visrl.core.types import CoTSample, Episode, Score, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import ONE, ZERO, SampleScores
from visrl.evals.scorers.measure import Estimand, attempt, average, done
from visrl.evals.scorers.yes_no import yes_or_no
from visrl.evals.stats import Floats

METRICS = ("accuracy", "yes_ratio", "accuracy_careful")
_NO = frozenset({"No", "not", "no"})
_EITHER = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)
_OTHER = {"yes": "no", "no": "yes"}


def says(text: str) -> str:
    """ "yes" or "no" by LLaVA's rule. Case matters: "NO" is a yes, as in the official script."""
    first = text.split(".", 1)[0].replace(",", "")
    words = f" {first} "  # each stands between single blanks, as the script's split(" ") has them
    return "no" if any(f" {word} " in words for word in _NO) else "yes"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Per sample ``accuracy``, ``yes_ratio`` and ``accuracy_careful`` (0 or 1); the six metrics in percent. No judge needed."""
    scores, found = SampleScores(), Counter[str]()
    for row, sample, episode in done(samples, episodes, scores):
        of_sample = attempt(_sample, sample, episode, found)
        for metric in METRICS:
            scores.put(row, metric, of_sample if isinstance(of_sample, Score) else of_sample[metric])
    notes = (
        [f"{found['neither']} answers say neither yes nor no: the rule counts them as yes"] if found["neither"] else []
    )
    notes += [f"odd: {found[odd]} answers {odd}" for odd in ODD.values() if found[odd]]
    accuracy = average("accuracy", scores, 100.0, unparsed=found["unparsed"], notes=tuple(notes))
    careful = average("accuracy_careful", scores, 100.0, unparsed=found["unsure"])
    yes_ratio = average("yes_ratio", scores, 100.0, unparsed=found["unparsed"])
    return scores, [accuracy, *_ratios(scores, accuracy), yes_ratio, careful]


ODD = {"no": "say no and count as yes", "yes": "say yes and count as no"}
"""What a careful reading finds where the rule reads the opposite -> how the note words it."""


def _sample(sample: CoTSample, episode: Episode, found: Counter[str]) -> dict[str, Score]:
    """The metrics of one sample. ``found`` counts what notes and records say besides."""
    reason = why_unscored(sample, episode)
    if reason:
        return dict.fromkeys(METRICS, Score(None, reason))
    truth, answer = sample.answers[0], final_answer(episode.answer or "")
    careful = yes_or_no(episode.answer or "", sample.question)
    rule = _OTHER.get(truth, "yes") if isinstance(answer, Unparsed) else says(answer)
    found["unparsed"] += isinstance(answer, Unparsed)
    if isinstance(careful, Unparsed):
        found["unsure"] += 1
        found["neither"] += isinstance(answer, str) and not _EITHER.search(answer.split(".", 1)[0])
    elif careful != rule:
        found[ODD[careful]] += 1
    return {
        "accuracy": ONE if rule == truth else ZERO,
        "yes_ratio": ONE if rule == "yes" else ZERO,
        "accuracy_careful": ONE if careful == truth else ZERO,
    }


def why_unscored(sample: CoTSample, episode: Episode) -> str:
    """Why a yes/no or multiple-choice sample has no score; "" when it has one. Shared by POPE, MME and MMBench."""
    if episode.error is not None:
        return episode.error or "failed without a reason"
    if not sample.answers:
        return "the sample has no true answer"
    return "no answer was given" if episode.answer is None else ""


def _ratios(scores: SampleScores, accuracy: Estimand) -> list[Estimand]:
    right, yes = scores.column("accuracy"), scores.column("yes_ratio")
    sums = np.stack([right * yes, (1 - right) * yes, (1 - right) * (1 - yes)], axis=1)  # TP, FP, FN
    rows = np.flatnonzero(~np.isnan(right))
    counts = scores.part(sums[rows], rows)
    return [
        Estimand(name, (counts,), rule, scale=100.0, unscored=accuracy.unscored, unparsed=accuracy.unparsed)
        for name, rule in RATIOS.items()
    ]


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
