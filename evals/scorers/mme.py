"""MME: yes/no questions in pairs about one picture, by the authors' calculation.py.

Of a subtask: 100 * (acc + acc+), at most 200, where acc is the share of right answers and acc+ the share of pictures with
both answers right. ``mme/<subtask>`` is that; ``perception`` adds ten subtasks (2000), ``cognition`` four (800). The paper's
table holds perception. An answer is what its first four characters hold: "yes", else "no", else neither, which is wrong.

A sample's score is its picture's points, 100 * (share right + all right), so a subtask is a plain mean over samples.

The rule takes "Not sure" and "Norway" for no. ``accuracy_careful`` is the share of right answers by a careful reading
(yes_no.py) in percent of all questions; what is not sure is wrong there, and the note ``odd`` counts the answers that
both readings read, and differently.

Departures: 1. pairs are grouped by picture, not by consecutive lines. 2. white space before the answer is not counted.
3. a picture with one of its questions unscored or not run has no score, and its other question is counted as unscored.
4. a total over less than all of its subtasks is no total: no value. (Small world: the total of the subtasks it has.)
5. the rule reads the final answer, without the thought before it; a thought that never ends is unparsed, and wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from visrl.core.final_answer import final_answer
from visrl.core.types import CoTSample, Episode, Score, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import ONE, ZERO, SampleScores
from visrl.evals.scorers.measure import Estimand, attempt, average, done
from visrl.evals.scorers.pope import why_unscored
from visrl.evals.scorers.yes_no import yes_or_no

PERCEPTION = {  # subtask -> questions, counted in the published files
    "existence": 60,
    "count": 60,
    "position": 60,
    "color": 60,
    "posters": 294,
    "celebrity": 340,
    "scene": 400,
    "landmark": 400,
    "artwork": 400,
    "OCR": 40,
}
COGNITION = {
    "commonsense_reasoning": 140,
    "numerical_calculation": 40,
    "text_translation": 40,
    "code_reasoning": 40,
}
TOTALS = {"perception": PERCEPTION, "cognition": COGNITION}
_PICTURE = 200.0  # the most points of a picture, and so of a subtask
HALF_A_PAIR = "the other question about its picture has no score"


def says(text: str) -> str:
    """ "yes", "no" or "other": what the first four characters hold, lower-cased. "Not sure" is a no; MME's own rule."""
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Per sample ``correct`` (0, 1), ``mme/<subtask>`` (its picture's points) and ``accuracy_careful`` (0, 100: percent)."""
    scores, asked, found = SampleScores(), Counter[str](), Counter[str]()
    others: set[int] = set()  # rows whose answer is neither yes nor no
    pictures: dict[tuple[str, str], list[int]] = {}  # two subtasks may ask about one picture
    for row, sample, episode in done(_counted(samples, asked), episodes, scores):
        correct = attempt(_correct, sample, episode)
        scores.put(row, "correct", correct)
        scores.put(row, "accuracy_careful", _careful(sample, episode, found) if correct.value is not None else correct)
        pictures.setdefault((scores.groups[row], scores.clusters[row]), []).append(row)
        if correct.value is not None and _read(episode) == "other":
            others.add(row)
    for (group, _), rows in pictures.items():
        _score_picture(f"mme/{group}", rows, scores)
    sizes = asked if spec.small_world else {**PERCEPTION, **COGNITION}
    subtasks = {f"mme/{g}": _subtask(g, sizes.get(g, 0), scores, others) for g in dict.fromkeys(scores.groups)}
    totals = [_total(name, members, sizes, subtasks, spec.small_world) for name, members in TOTALS.items()]
    notes = (f"odd: {found['odd']} answers are a yes or no that the rule reads otherwise",) if found["odd"] else ()
    careful = average("accuracy_careful", scores, 1.0, unparsed=found["unsure"], notes=notes, top=100.0)
    return scores, [*(total for total in totals if total is not None), *subtasks.values(), careful]


def _read(episode: Episode) -> str:
    """The rule's reading of the final answer; a thought that never ends is "other"."""
    answer = final_answer(episode.answer or "")
    return "other" if isinstance(answer, Unparsed) else says(answer)


def _careful(sample: CoTSample, episode: Episode, found: Counter[str]) -> Score:
    careful = yes_or_no(episode.answer or "", sample.question)
    found["unsure"] += isinstance(careful, Unparsed)
    found["odd"] += isinstance(careful, str) and careful != _read(episode)
    return Score(100.0) if careful == sample.answers[0] else ZERO


def _counted(samples: Iterable[CoTSample], groups: Counter[str]) -> Iterator[CoTSample]:
    for sample in samples:
        groups[sample.group] += 1
        yield sample


def _correct(sample: CoTSample, episode: Episode) -> Score:
    reason = why_unscored(sample, episode)
    if reason:
        return Score(None, reason)
    return ONE if _read(episode) == sample.answers[0] else ZERO


def _score_picture(metric: str, rows: Sequence[int], scores: SampleScores) -> None:
    correct = [scores.of_row(row)["correct"] for row in rows]
    points = _points(correct)
    for row, own in zip(rows, correct, strict=True):
        scores.put(row, metric, points or Score(None, own.reason or HALF_A_PAIR))


def _points(correct: Sequence[Score]) -> Score | None:
    """100 * (share right + all right) of one picture; None without at least two scored questions."""
    values = [score.value for score in correct if score.value is not None]
    if len(values) < max(2, len(correct)):
        return None
    return Score(100.0 * (sum(values) / len(values) + all(values)))


def _subtask(group: str, expected: int, scores: SampleScores, others: Collection[int]) -> Estimand:
    metric = f"mme/{group}"
    values = scores.column(metric)
    unparsed = sum(not np.isnan(values[row]) for row in others)
    return replace(average(metric, scores, 1.0, unparsed=unparsed, top=_PICTURE), expected=expected)


def _total(
    name: str,
    members: Iterable[str],
    sizes: Mapping[str, int],
    subtasks: Mapping[str, Estimand],
    small_world: bool,
) -> Estimand | None:
    """The sum over a total's subtasks; None for a total the small world has no subtask of."""
    wanted = [member for member in members if member in sizes]
    present = [subtasks[f"mme/{member}"] for member in wanted if f"mme/{member}" in subtasks]
    if not wanted:
        return None
    scored = [what for what in present if len(what.parts[0].values)]
    unscored: Counter[str] = Counter()
    for what in present:
        unscored.update(what.unscored)
    short = len(scored) < len(wanted)
    return Estimand(
        name,
        tuple(what.parts[0] for what in scored),
        unscored=unscored,
        unparsed=sum(what.unparsed for what in present),
        top=_PICTURE * len(wanted),
        undefined=f"a total needs all {len(wanted)} subtasks, not {len(scored)}" if short else "",
        notes=(f"sum of {len(scored)} subtasks",) if small_world else (),
        expected=None if len(wanted) == len(sizes) else sum(sizes[member] for member in wanted),  # None: the whole task
    )
