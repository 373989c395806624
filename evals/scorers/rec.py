"""Referring expression comprehension: the box is the answer.

acc@0.5      share of predicted boxes with IoU > 0.5, strictly, in pixels of the original picture (docs/method.md c)
miou         mean IoU, in percent like the rest of the table
acc@0.75     share with IoU > 0.75
centre_acc   share whose centre lies inside the true box: pointing without the extent

Of several boxes in an output one counts, by the parser's rule: the first under ``lenient``, the last under ``strict`` and
``vlm_r1`` (evals/box_sets.py scores them all). Unparsed output is wrong, IoU 0, and counted; so is, in a note, a box with numbers
that no frame of its picture has (pixels read as fractions). Departures from the REC tasks of
lmms-eval 0.7.3: 1. ``>``, not ``>=``.
2. an output without a box never scores, not even where the true box touches the corner (0, 0). 3. reversed boxes have area 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visrl.core.boxes import PIXEL, Box, iou_arrays
from visrl.core.types import CoTSample, Episode, Score, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import Judge
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.scorers.measure import Done, Estimand, attempt, average, chunks, done
from visrl.evals.stats import Floats

METRICS = ("acc@0.5", "miou", "acc@0.75", "centre_acc")
MARGIN = 0.05
"""Of the longer side, by which boxes of a right frame overshoot: those of the published outputs of 7B models stay below it."""
NO_BOX_ASKED = "no box was asked for"
_NOTHING = (np.nan,) * 4


def score(
    spec: TaskSpec, samples: Iterable[CoTSample], episodes: Mapping[str, Episode], judge: Judge | None
) -> tuple[SampleScores, list[Estimand]]:
    """Scores per sample and the four metrics in percent. ``judge`` is not needed. Vectorised: 57,457 rows in about a second."""
    scores, read = SampleScores(), BoxesRead()
    for items in chunks(done(samples, episodes, scores)):
        read += score_boxes(items, scores, dict(zip(METRICS, METRICS, strict=True)))
    scores.first = scores.unscored_rows(METRICS[0])
    return scores, [average(name, scores, 100.0, unparsed=read.unparsed, notes=read.notes) for name in METRICS]


@dataclass(frozen=True, slots=True)
class BoxesRead:
    """How boxes could be read. unparsed: not at all. beyond: numbers that no frame of the picture has."""

    unparsed: int = 0
    beyond: int = 0

    def __add__(self, other: BoxesRead) -> BoxesRead:
        return BoxesRead(self.unparsed + other.unparsed, self.beyond + other.beyond)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a record says of them."""
        if not self.beyond:
            return ()
        return (f"{self.beyond:,} boxes have numbers beyond the frame of their picture: is box_format right?",)


def score_boxes(items: Sequence[Done], scores: SampleScores, metrics: Mapping[str, str]) -> BoxesRead:
    """Enters the metrics of every item, unscored where its box cannot be; returns how the boxes could be read.

    metrics: the name to enter -> which of METRICS it is.
    """
    boxed: list[Done] = []
    for item in items:
        if reason := _why_unscored(*item[1:]):
            for metric in metrics:
                scores.put(item[0], metric, Score(None, reason))
        else:
            boxed.append(item)
    boxed, columns = _measurable(boxed, metrics, scores)
    for metric, name in metrics.items():
        scores.fill(metric, [row for row, *_ in boxed], columns[name])
    return boxes_read(boxed)


def boxes_read(items: Sequence[Done]) -> BoxesRead:
    """How the boxes of episodes without an error could be read."""
    alive = [item for item in items if item[2].error is None]
    return BoxesRead(sum(isinstance(episode.box, Unparsed) for _, _, episode in alive), _beyond(alive))


def _beyond(boxed: Sequence[Done]) -> int:
    """Boxes that leave the square around their picture, the widest frame there is, by more than MARGIN."""
    placed = [
        (episode.box.xyxy, size)
        for _, sample, episode in boxed
        if isinstance(episode.box, Box) and (size := sample.size or episode.size)
    ]
    boxes = np.array([box for box, _ in placed], dtype=np.float64).reshape(-1, 2, 2)
    sizes = np.array([size for _, size in placed], dtype=np.float64).reshape(-1, 1, 2)
    most = (0.5 + MARGIN) * sizes.max(axis=2, keepdims=True)
    return int((np.abs(boxes - sizes / 2) > most).any(axis=(1, 2)).sum())


def _measurable(
    boxed: list[Done], metrics: Iterable[str], scores: SampleScores
) -> tuple[list[Done], dict[str, Floats]]:
    """The items whose boxes can be compared, and their metrics; the others are entered as unscored, with the reason."""
    columns = attempt(match, boxed)
    if not isinstance(columns, Score):
        return boxed, columns
    good = []
    for item in boxed:
        found = attempt(match, [item])
        if isinstance(found, Score):
            for metric in metrics:
                scores.put(item[0], metric, found)
        else:
            good.append(item)
    return good, match(good)


def match(boxed: Sequence[Done]) -> dict[str, Floats]:
    """Each metric as an array [n] over items that have a true box and a predicted Box or Unparsed, in 0..1.

    Raises ValueError for a box that is not in pixels.
    """
    gold = np.array([_pixels(sample.box) for _, sample, _ in boxed], dtype=np.float64).reshape(-1, 4)
    found = np.array([_pixels(episode.box) for _, _, episode in boxed], dtype=np.float64).reshape(-1, 4)
    overlap = iou_arrays(found, gold)
    cx, cy = (found[:, 0] + found[:, 2]) / 2, (found[:, 1] + found[:, 3]) / 2
    inside = (gold[:, 0] <= cx) & (cx <= gold[:, 2]) & (gold[:, 1] <= cy) & (cy <= gold[:, 3])  # NaN: False
    return {
        "acc@0.5": (overlap > 0.5).astype(np.float64),
        "miou": overlap,
        "acc@0.75": (overlap > 0.75).astype(np.float64),
        "centre_acc": inside.astype(np.float64),
    }


def _why_unscored(sample: CoTSample, episode: Episode) -> str:
    if episode.error is not None:
        return episode.error or "failed without a reason"
    if sample.box is None:
        return "the sample has no true box"
    return NO_BOX_ASKED if episode.box is None else ""


def _pixels(box: Box | Unparsed | None) -> tuple[float, ...]:
    if not isinstance(box, Box):
        return _NOTHING
    if box.frame != PIXEL:
        raise ValueError(f"boxes are scored in pixels, not in {box.frame.name}")
    return box.xyxy
