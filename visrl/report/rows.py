"""A run folder read sample by sample: the document, what the model did, what it scored.

Memory holds an offset per sample and one sample at a time, never the outputs: a page over 57,457 samples is built in the memory
of one over 100. Documents that cannot be loaded (the data folder moved) leave a page of outputs and boxes, and a notice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from visrl.core.boxes import Box, iou
from visrl.core.json_files import decode_object
from visrl.core.types import CoTSample, Episode, Unparsed
from visrl.errors import UsageError
from visrl.evals.benchmarks import GROUPS, TASKS, UPSTREAM, has_mean
from visrl.evals.sample_scores import row_from_json
from visrl.runs.lines import episode_from_json, read_placed
from visrl.runs.meta import read_evaluation
from visrl.world import IMAGE_SIZE

log = logging.getLogger(__name__)
Key = tuple[str, str]
"""(task, sample id)"""
ANSWER_METRICS = ("answer", "accuracy", "correct")
"""The score of a sample's answer, 0..1, by whatever name its benchmark has for it (evals/viscot, pope and mmbench, mme)."""
BOX_METRICS = ("acc@0.5", "box_acc", "click_acc")
"""Whether its box (or point) is right, 0 or 1."""
RIGHT_FROM = 0.5
NOT_SCORED = "not scored yet: visrl-eval score RUN"


class Lines:
    """A .jsonl file by (task, sample id): the offset of each sample's last line. A torn last line is dropped with a warning.

    check: raises ValueError, KeyError or TypeError for a line of another shape. Raises UsageError naming such a line.
    """

    def __init__(self, path: Path, check: Callable[[Any], object] | None = None) -> None:
        def key_of(row: Any) -> Key:
            if check is not None:
                check(row)
            return row["task"], row["sample_id"]

        self.path = path
        self._offsets: dict[Key, int] = {key: place for place, key in read_placed(path, key_of)}

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._offsets)

    def __contains__(self, key: Key) -> bool:
        return key in self._offsets

    def read(self, key: Key) -> dict[str, Any] | None:
        """The row of ``key``, from disk; None without one."""
        if key not in self._offsets:
            return None
        with self.path.open("rb") as file:
            file.seek(self._offsets[key])
            return decode_object(file.readline())


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one sample in one run.

    overlap: IoU of predicted and true box, 0..1; 0 for an unparsed box, None where either was never there.
    box_right, answer_right: None where not scored. quality: the answer's score 0..1. reason: why there is no score.
    """

    episode: Episode
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str] = field(default_factory=dict)
    overlap: float | None = None
    box_right: bool | None = None
    quality: float | None = None
    reason: str = ""

    @property
    def answer_right(self) -> bool | None:
        return None if self.quality is None else self.quality >= RIGHT_FROM

    @property
    def right(self) -> bool | None:
        """Of the answer, or where the box is the answer, of the box."""
        return self.box_right if self.quality is None else self.answer_right

    @property
    def unparsed(self) -> str:
        return self.episode.box.reason if isinstance(self.episode.box, Unparsed) else ""


def judged(sample: CoTSample, episode: Episode, row: Mapping[str, Any] | None, verdict: str = "") -> Outcome:
    """The outcome of an episode and its line of scores.jsonl (None: it has none yet). verdict: a metric that says right or wrong
    of a task that is not ours.
    """
    scores: Mapping[str, float | None] = {} if row is None else row["scores"]
    reasons: Mapping[str, str] = {} if row is None else row.get("reasons", {})
    hit = next((scores[m] for m in BOX_METRICS if scores.get(m) is not None), None)
    quality = next((scores[m] for m in (*ANSWER_METRICS, verdict) if scores.get(m) is not None), None)
    decided = hit if sample.kind == "rec" else quality
    reason = episode.error or ("" if decided is not None else next(iter(reasons.values()), _no_verdict(row)))
    return Outcome(
        episode,
        scores,
        reasons,
        overlap=_overlap(sample, episode),
        box_right=None if hit is None else hit == 1.0,
        quality=quality,
        reason=reason,
    )


def _no_verdict(row: Mapping[str, Any] | None) -> str:
    return NOT_SCORED if row is None else "none of its scores says right or wrong"


def _overlap(sample: CoTSample, episode: Episode) -> float | None:
    if sample.box is None or episode.box is None:
        return None
    return iou(episode.box, sample.box) if isinstance(episode.box, Box) else 0.0


def flip(a: Outcome | None, b: Outcome | None) -> str:
    """ "fixed", "broken" or "same" from run a to run b, or "" where one of them has no verdict."""
    if a is None or b is None or a.right is None or b.right is None:
        return ""
    return "same" if a.right == b.right else "fixed" if b.right else "broken"


class RunView:
    """A run folder, open for reading. ``notices``: what a reader must know before the numbers. Raises UsageError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = read_evaluation(folder)
        self.request: dict[str, Any] = self.meta["request"]
        self.episodes = Lines(folder / "episodes.jsonl", episode_from_json)
        self.scores = Lines(folder / "scores.jsonl", row_from_json)
        self.notices: list[str] = []
        self._verdicts: dict[str, str] = self.meta.get("verdicts", {})
        waiting = sum(key not in self.scores for key in self.episodes)
        if waiting:
            self.notices.append(f"{waiting:,} samples have no scores yet: visrl-eval score {folder}")

    @property
    def seen_side(self) -> int | None:
        """Side of the square at which the run's model sees every picture, padded; None where that is not known beforehand."""
        return IMAGE_SIZE if self.request["model_info"].get("family") == "world" else None

    def outcome(self, sample: CoTSample) -> Outcome | None:
        """What became of ``sample`` in this run; None where it was not run."""
        key = sample.task, sample.id
        row = self.episodes.read(key)
        return (
            None
            if row is None
            else judged(sample, episode_from_json(row), self.scores.read(key), self._verdicts.get(sample.task, ""))
        )

    def samples(self) -> Iterator[CoTSample]:
        """The samples that were run, tasks as in the summary, in the order of their splits, with pictures where there are any."""
        for task in sorted(self.request["tasks"], key=_place):
            wanted = {sample_id for name, sample_id in self.episodes if name == task}
            if not wanted:
                continue
            try:
                for sample in self._documents(task):
                    if sample.id in wanted:
                        wanted.discard(sample.id)
                        yield sample
            except UsageError as error:
                notice = f"{task}: documents could not be loaded, so questions and true boxes are missing: "
                self.notices.append(notice + error.message)
            kind: Literal["rec", "qa"] = "rec" if _is_rec(task) else "qa"
            for sample_id in sorted(wanted):  # episodes whose document is gone
                yield CoTSample(sample_id, task, kind, "", cluster=sample_id)

    def _documents(self, task: str) -> Iterator[CoTSample]:
        """Raises UsageError where the documents are missing or not those of the run, before the first sample."""
        from visrl.tasks import fingerprint, load

        if task.startswith(UPSTREAM):
            return self._upstream(task)
        data = Path(self.request["data_folder"]) if self.request["data_folder"] else None
        if fingerprint(task, data) != self.request["data"][task]:
            raise UsageError(
                f"the documents in {data} have changed since the run", "view it with the data that the run used"
            )
        try:
            found: Iterator[CoTSample] = load(task, data, with_pictures=True, limit=self.request["limit"])
        except UsageError as error:
            self.notices.append(f"{task}: no pictures, boxes stand on an empty canvas: {error.message}")
            found = load(task, data, with_pictures=False, limit=self.request["limit"])
        return found

    def _upstream(self, task: str) -> Iterator[CoTSample]:
        """Those of one of lmms-eval's own tasks."""
        from visrl.lmms.loading import documents

        data = Path(self.request["data_folder"]) if self.request["data_folder"] else None
        return documents(task, data, self.request["limit"], self.request["data"][task])


_ORDER = (*(member for group, members in GROUPS.items() if has_mean(group) for member in members), *TASKS)


def _place(task: str) -> tuple[int, str]:
    """Members of averaged groups come first; a task that is not known, last."""
    return (_ORDER.index(task) if task in _ORDER else len(_ORDER)), task


def _is_rec(task: str) -> bool:
    return task in TASKS and TASKS[task].box_is_the_answer
