"""visrl from Python: what a notebook needs, by the names that ``import visrl`` offers.

Every function raises ``visrl.errors.UsageError`` with a hint, as the command line prints it. docs/python.md has examples.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import TypedDict, Unpack

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box, Size
from visrl.core.records import TaskResult, read_records
from visrl.core.types import Episode, Unparsed
from visrl.errors import UsageError, nearest
from visrl.runs.lines import read_episodes
from visrl.runs.meta import read_meta

if TYPE_CHECKING:
    from pandas import DataFrame

    from visrl.evals.compare import Difference
    from visrl.evals.sample_scores import Rows
    from visrl.evaluation.audit import Audit
    from visrl.policies.protocol import Policy

Prediction = Mapping[str, Any]
"""``{"id": …, "text": …}``, or with the text of a box too: ``{"id": …, "box_text": …, "text": …}``."""


class Choices(TypedDict, total=False):
    """What :func:`evaluate` takes beyond model and tasks; left out, the model's or the benchmark's default.

    data: folder of the benchmark files (docs/data.md), else the hub. model_args: as ``--model-args``. limit: the first N
    samples of each task. output: the run folder. The rest as the options of ``visrl-eval run``.
    """

    data: Path | str | None
    model_args: Mapping[str, str]
    protocol: str | None
    focus: str
    crop: str | None
    limit: int | None
    batch_size: int | None
    judge: str
    seed: int
    output: Path | str | None
    max_tokens: int
    quiet: bool


@dataclass(frozen=True)
class EvaluatedRun:
    """A run folder, read when asked. Raises UsageError where it is none, or damaged."""

    folder: Path

    @cached_property
    def request(self) -> dict[str, Any]:
        """What was asked: model, tasks, protocol, and all else that decides the numbers."""
        request: dict[str, Any] = read_meta(self.folder)["request"]
        return request

    @cached_property
    def records(self) -> list[TaskResult]:
        """A TaskResult per task or group and metric, in the record's own unit (percent, points or fraction)."""
        return read_records(self.folder)

    @cached_property
    def episodes(self) -> list[Episode]:
        """What the model said about every sample, the last try of each; boxes in pixels of the picture, x1 y1 x2 y2."""
        last = {(e.task, e.sample_id): e for e in read_episodes(self.folder / "episodes.jsonl")}
        return list(last.values())

    @cached_property
    def scores(self) -> Rows:
        """task -> sample id -> its scores by metric, 0..1; None where a sample could not be scored."""
        from visrl.evals.sample_scores import of_run

        return of_run(self.folder)

    def value(self, task: str, metric: str | None = None) -> float | None:
        """One number, in the record's unit. metric: default the task's first. Raises UsageError for one that is not there."""
        found = {(r.task, r.metric): r.value for r in self.records if r.task == task}
        key = (task, metric) if metric is not None else next(iter(found), (task, ""))
        if key not in found:
            known = {m for _, m in found} if found else {r.task for r in self.records}
            raise UsageError(
                f"{self.folder} has no result {' '.join(str(part) for part in key).strip()}",
                _known(key[1] or task, known),
            )
        return found[key]

    def to_pandas(self) -> DataFrame:
        """A row per sample: task, sample_id, picture, a column per metric (0..1), box, unparsed, said (the answer), error.

        Boxes are x1 y1 x2 y2 in pixels of the picture. Raises UsageError where pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise UsageError("to_pandas needs pandas, which is not installed", "pip install pandas") from error
        said = {(e.task, e.sample_id): e for e in self.episodes}
        rows = []
        for task, of_task in self.scores.items():
            for sample_id, row in of_task.items():
                outcome = _outcome(said.get((task, sample_id)))
                rows.append({"task": task, "sample_id": sample_id, "picture": row.cluster, **row.values, **outcome})
        return DataFrame(rows)


def _known(name: str, names: Iterable[str]) -> str:
    close = nearest(name, names)
    return close if not close.startswith("`") else f"it has {', '.join(names)}"


def _outcome(episode: Episode | None) -> dict[str, Any]:
    if episode is None:
        return {}
    return {
        "box": episode.box.xyxy if isinstance(episode.box, Box) else None,
        "unparsed": episode.box.reason if isinstance(episode.box, Unparsed) else None,
        "said": None if episode.answer_step is None else episode.answer_step.output,
        "error": episode.error,
    }


def evaluate(model: str | Policy, tasks: str | Sequence[str], **choices: Unpack[Choices]) -> EvaluatedRun:
    """Run a model on tasks or groups and score it; the same call resumes. What ``visrl-eval run`` does.

    model: a name as ``--model`` takes it, or a Policy. Raises UsageError, also where samples are left without a result.
    """
    from visrl.evaluation.evaluate import Options, check_first, check_numbers
    from visrl.evaluation.evaluate import evaluate as run_tasks
    from visrl.policies.registry import load_policy

    unknown = [name for name in choices if name not in Choices.__annotations__]
    if unknown:
        raise UsageError(f"evaluate has no option {unknown[0]!r}", nearest(unknown[0], Choices.__annotations__))
    given = check_numbers(choices)
    arguments, size = given.pop("model_args", None) or {}, given.pop("batch_size", None)
    for name in ("data", "output"):
        given[name] = None if given.get(name) is None else Path(str(given[name]))
    options: dict[str, Any] = {"quiet": True, **given}
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    named = {name: options.get(name) for name in ("protocol", "focus", "crop", "data")}
    check_first(model, arguments, names, options.get("limit"), judge=options.get("judge", "exact"), **named)
    policy = load_policy(model, arguments) if isinstance(model, str) else model
    outcome = run_tasks(policy, names, Options(batch_size=size or policy.batch_size, **options))
    if outcome.problems or outcome.n_failed:
        problems = "; ".join(outcome.problems) or "their reasons are in episodes.jsonl"
        raise UsageError(
            f"{outcome.folder}: {outcome.n_failed} samples failed or are unaccounted for: {problems}",
            f"the rest is scored: visrl.load({str(outcome.folder)!r}); the same call tries failed samples again",
        )
    return EvaluatedRun(outcome.folder)


def score(predictions: Path | str | Iterable[Prediction], task: str, **choices: Unpack[Choices]) -> EvaluatedRun:
    """Score outputs that were recorded elsewhere: a file in one of the layouts of docs/data.md, a run folder, or rows.

    Rows are matched by ``id``, never by position. Raises UsageError where one has no document, or no document has one.
    """
    if isinstance(predictions, (str, Path)):
        return evaluate(f"replay:{predictions}", task, **choices)
    with TemporaryDirectory() as place:
        file = Path(place) / "predictions.jsonl"
        file.write_text("".join(_lines(predictions)), encoding="utf-8")
        try:
            return evaluate(f"replay:{file}", task, **choices)
        except UsageError as error:  # the caller knows rows, and no file
            raise type(error)(error.message.replace(str(file), "the rows"), error.hint) from error


def _lines(predictions: Iterable[Prediction]) -> Iterator[str]:
    """Rows as lines of JSON, numpy's numbers as Python's. Raises UsageError for what are no rows, and for a row that is none."""
    hint = 'rows are like {"id": …, "text": …}; of a pandas table: table.to_dict("records")'
    if not isinstance(predictions, Iterable) or isinstance(predictions, Mapping):
        raise UsageError(f"predictions are a {type(predictions).__name__}, not rows", hint)
    for number, row in enumerate(predictions, 1):
        if not isinstance(row, Mapping):
            raise UsageError(f"row {number} is a {type(row).__name__}, not a mapping", hint)
        fields = []
        for key, value in row.items():
            try:
                fields.append(f"{json.dumps(str(key))}: {json.dumps(value, default=_plain)}")
            except (TypeError, ValueError, RecursionError) as error:
                raise UsageError(f"row {number}: {key!r} cannot be written as JSON: {error}", hint) from error
        yield f"{{{', '.join(fields)}}}\n"


def _plain(value: object) -> int | float:
    """A number of another library. Raises TypeError for anything else."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"it is a {type(value).__name__}")


def load(run: Path | str) -> EvaluatedRun:
    """A run folder that is there. Raises UsageError where it is none."""
    found = EvaluatedRun(Path(run))
    read_meta(found.folder)
    return found


def compare(a: EvaluatedRun | Path | str, b: EvaluatedRun | Path | str) -> list[Difference]:
    """The paired difference b - a of every task, group and metric that both have, in the metric's unit (evals/compare.py).

    Raises UsageError where the runs ran on different documents or have no scored sample in common, and warns of every setting
    besides the model that differs, as ``visrl-eval compare`` does.
    """
    from visrl.regression.comparisons import compare_runs

    first, second = (run if isinstance(run, EvaluatedRun) else load(run) for run in (a, b))
    (found,) = compare_runs(first.folder, [second.folder])
    for note in found.notes:
        warnings.warn(note, stacklevel=2)
    return found.differences


def audit(
    source: EvaluatedRun | Path | str,
    *,
    data: Path | str | None = None,
    tasks: str | Sequence[str] = (),
    model_args: Mapping[str, str] | None = None,
) -> list[Audit]:
    """Recorded boxes under every frame and parser, per task, as ``visrl-eval audit``: is it the model, or how boxes were read?

    source: a run, its folder, or a file of predictions; of those the task is found where ``tasks`` names none. model_args: how
    the boxes of a file are written, ``{"box_format": "json_1000"}``. Accuracies are acc@0.5 in percent. Raises UsageError.
    """
    from visrl.evals.benchmarks import resolve
    from visrl.evaluation.audit import audit_file

    place = source.folder if isinstance(source, EvaluatedRun) else Path(source)
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    wanted = [spec.name for spec in resolve(names)] if names else []
    return audit_file(place, None if data is None else Path(data), wanted, model_args or {})


def parse_box(text: str, format: str, size: Size, mode: Literal["lenient", "strict"] = "lenient") -> Box | Unparsed:
    """The box in a model's text, in pixels of the picture of ``size`` (width, height), or why there is none.

    format: how the model writes boxes, a name of ``visrl.core.box_formats.FORMATS``. Raises UsageError for an unknown one.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown box format {format!r}", nearest(format, FORMATS))
    return FORMATS[format].with_mode(mode).parse(text, size)
