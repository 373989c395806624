"""Is it the model, or how its boxes were read? Recorded outputs scored under every frame and every parser.

Ours declared comes first, then every frame that has a name, then what the rules of other tools would print. Nothing here
chooses: a frame that fits far better than the declared one is named, and the user declares it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from visrl.core.box_formats import FORMATS, RESIZED, UNCOMPARABLE, BoxFormat, Mode, format_named
from visrl.core.boxes import Box, Size, iou
from visrl.core.types import CoTSample, Episode
from visrl.errors import UsageError

if TYPE_CHECKING:
    from visrl.policies.recorded.prediction_files import Prediction

FAR_BETTER = 20.0
"""Percentage points of acc@0.5 by which another frame must be ahead to be named at the end of a run."""
LOOKED_AT = 200
"""So many outputs of a run are read for that."""
_USUAL_LIMIT = "1003520"  # 1,280 tokens of 28 x 28: what Qwen's model cards advise
_READ_BY_US: tuple[Mode, ...] = ("lenient", "strict")
_WORDS = {
    "pixel": "pixels of the picture",
    "unit": "0..1",
    "square": "0..1 of the padded square",
    "grid1000": "0..1000",
    "grid1024": "0..1024",
    "resized": "pixels of the resized picture",
}


@dataclass(frozen=True, slots=True)
class Looked:
    """One recorded output: its text, the picture's size and the true box in pixels."""

    text: str
    size: Size
    truth: Box


@dataclass(frozen=True, slots=True)
class Reading:
    """acc@0.5 in percent of the outputs under one box format and parser. note: what is doubtful about it."""

    box_format: str
    frame: str
    parser: Mode
    accuracy: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """All readings of a task's ``n`` outputs, the declared one first; ``hint`` names a frame that fits far better, or is ""."""

    task: str
    n: int
    readings: tuple[Reading, ...]
    hint: str


def audit(looked: Sequence[Looked], declared: BoxFormat, task: str) -> Audit:
    """The outputs under every frame and parser. Raises UsageError for none."""
    if not looked:
        raise UsageError(f"no output of {task} belongs to a sample with a true box", "REC and VisCoT tasks have boxes")
    others = [form for form in _formats(declared) if form.name != declared.name]
    modes = tuple(dict.fromkeys((declared.mode, *_READ_BY_US, "vlm_r1", *UNCOMPARABLE)))
    readings = [_reading(looked, declared.with_mode(mode)) for mode in modes]  # type: ignore[arg-type]  # all are modes
    readings += [_reading(looked, form.with_mode(mode)) for form in others for mode in _READ_BY_US]
    return Audit(task, len(looked), tuple(readings), _hint(looked, declared) or "")


def frame_hint(samples: Iterable[CoTSample], episodes: Mapping[str, Episode], box_format: BoxFormat) -> str | None:
    """One line if the boxes of a run fit another frame far better than the declared one, else None. Reads the first outputs only.

    episodes: by sample id. samples: asked in order; those without a true box or a box turn are passed over.
    """
    looked = (_of_episode(sample, episodes[sample.id]) for sample in _named(samples, episodes))
    return _hint(list(islice((item for item in looked if item is not None), LOOKED_AT)), box_format)


def _named(samples: Iterable[CoTSample], ids: Collection[str]) -> Iterator[CoTSample]:
    """The samples of these ids; reads no further than the last of them, for drawing or opening the rest takes its time."""
    found = (sample for sample in samples if sample.id in ids)
    return islice(found, len(ids))


def run_hints(
    folder: Path, box_format: BoxFormat, tasks: Sequence[str], data: Path | None
) -> Iterator[tuple[str, str]]:
    """(task, :func:`frame_hint`) of every task of a run whose boxes fit another frame, from its first outputs with a box."""
    from visrl.evals.benchmarks import TASKS
    from visrl.runs.lines import read_episodes
    from visrl.tasks import load

    first: dict[str, dict[str, Episode]] = {task: {} for task in tasks if TASKS[task].benchmark in ("rec", "viscot")}
    for episode in islice(read_episodes(folder / "episodes.jsonl"), LOOKED_AT * max(1, len(first))) if first else ():
        if episode.task in first and episode.box_step is not None:
            first[episode.task][episode.sample_id] = episode
    for task, episodes in first.items():
        if episodes and (hint := frame_hint(load(task, data, with_pictures=False), episodes, box_format)):
            yield task, hint


def _of_episode(sample: CoTSample, episode: Episode) -> Looked | None:
    if sample.box is None or sample.size is None or episode.box_step is None or episode.error is not None:
        return None
    return Looked(episode.box_step.output, sample.size, sample.box)


def _formats(declared: BoxFormat) -> list[BoxFormat]:
    """The declared format and all others that have a name."""
    limited = format_named(RESIZED, max_pixels=_USUAL_LIMIT)
    known = [*FORMATS.values(), format_named(RESIZED), replace(limited, name=f"{RESIZED},max_pixels={_USUAL_LIMIT}")]
    return [declared, *(form for form in known if form.name != declared.name)]


def _hint(looked: Sequence[Looked], declared: BoxFormat) -> str | None:
    """What to declare instead, where that is ahead by FAR_BETTER points and two outputs.

    Small pictures are hardly resized: the resized frame is named only where it is a point ahead of all others.
    """
    mode: Mode = "lenient" if declared.mode in UNCOMPARABLE else declared.mode
    own = _hits(looked, declared.with_mode(mode))
    if not looked or 100.0 * own / len(looked) > 100.0 - FAR_BETTER:
        return None  # nothing can be that far ahead
    hits = {form: _hits(looked, form.with_mode(mode)) for form in _formats(declared)[1:]}
    best = max(
        hits, key=lambda form: hits[form] - (len(looked) / 100 if form.name.startswith(RESIZED) else 0), default=None
    )
    ahead = 0 if best is None else hits[best] - own
    if best is None or ahead < 2 or ahead * 100.0 < FAR_BETTER * len(looked):
        return None
    there, here = 100.0 * hits[best] / len(looked), 100.0 * own / len(looked)
    return (
        f"your boxes look like {words(best)}: {there:.1f} there, {here:.1f} as {words(declared)}; "
        f"declare `box_format={best.name}`"
    )


def words(form: BoxFormat) -> str:
    """A format's frame as a reader says it."""
    said = _WORDS.get(form.describe()["frame"], form.describe()["frame"])
    return f"{said}, y first" if form.name.endswith("_yx") else said


def _reading(looked: Sequence[Looked], form: BoxFormat) -> Reading:
    accuracy = 100.0 * _hits(looked, form) / len(looked)
    note = UNCOMPARABLE.get(form.mode, "")
    return Reading(form.name, words(form), form.mode, accuracy, note and f"{note}; not comparable")


def _hits(looked: Sequence[Looked], form: BoxFormat) -> int:
    """Outputs whose box overlaps the truth by more than half; for the two tools that count exactly half, by half."""
    hits = 0
    for item in looked:
        box = form.parse(item.text, item.size, item.truth)
        if isinstance(box, Box):
            overlap = iou(box, item.truth)
            hits += overlap >= 0.5 if form.mode in UNCOMPARABLE else overlap > 0.5
    return hits


def audit_file(source: Path, data: Path | None, tasks: Sequence[str], arguments: Mapping[str, str]) -> list[Audit]:
    """The audits of a run folder or a file of predictions, one per task with boxes.

    tasks: names; none: the run's own, else the REC task that most of the predictions belong to. arguments: as ``--model-args`` of
    ``replay:``. Raises UsageError for a file that cannot be read, and where no prediction belongs to a document with a true box.
    """
    from visrl.policies.recorded.replay import ReplayPolicy

    policy = ReplayPolicy.load(str(source), **arguments)
    rows = policy.file.rows
    wanted = list(tasks) or _tasks_of(rows)
    found = {task: outputs_of(rows, task, data) for task in wanted or _rec_tasks(data)}
    kept = {task: looked for task, looked in found.items() if looked}
    if not kept:
        raise UsageError(
            f"no prediction in {source} belongs to a document with a true box", "name the task: --tasks refcoco_val"
        )
    if not wanted:
        most = max(kept, key=lambda task: len(kept[task]))
        kept = {most: kept[most]}
    return [audit(looked, policy.box_format, task) for task, looked in kept.items()]


def _tasks_of(rows: Sequence[Prediction]) -> list[str]:
    """The tasks that recorded rows name, in order."""
    return list(dict.fromkeys(row.task for row in rows if row.task is not None))


def _rec_tasks(data: Path | None) -> Iterator[str]:
    """REC tasks whose file is in a data folder."""
    from visrl.evals.benchmarks import GROUPS
    from visrl.tasks import SOURCES

    if data is None:
        raise UsageError("which task are these predictions of?", "--tasks refcoco_val, or --data DIR to look for it")
    for task in GROUPS["rec"]:
        try:
            SOURCES[task].files_in(data)
        except UsageError:
            continue  # a split that is not there
        yield task


def outputs_of(rows: Sequence[Prediction], task: str, data: Path | None) -> list[Looked]:
    """The outputs of one task's documents that have a true box."""
    from visrl.policies.recorded.matching import match
    from visrl.tasks import load

    looked = []
    for number, sample in match(rows, load(task, data, with_pictures=False), task):
        row = rows[number]
        text = row.text if row.box_text is None else row.box_text
        if text is not None and row.error is None and sample.box is not None and sample.size is not None:
            looked.append(Looked(text, sample.size, sample.box))
    return looked
