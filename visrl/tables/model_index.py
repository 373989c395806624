"""Results as the evaluation section of a model card: ``model-index``, which the hub shows beside a model, and a table.

Both are huggingface_hub's own classes' work (ModelCard, EvalResult), so that what they write is what the hub reads. A number
stands with what made it: protocol, box source, crop, judge, samples and standard error. What has no value is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl import __version__
from visrl.core.records import TaskResult, write_atomically
from visrl.errors import UsageError, refused
from visrl.tables.formats import to_markdown
from visrl.tables.result_tables import main_results, results_table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

PIPELINE = "image-text-to-text"
OURS = "scored_by"
"""Of a metric's arguments: whose a result is, so that it can be replaced. (The hub's own field for it demands an address.)"""
BEGIN, END = "<!-- visrl: evaluation -->", "<!-- visrl: end of evaluation -->"
_SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n?", re.DOTALL)
_NEW = "---\n---\n\n# {name}\n\n"


def chosen(runs: Mapping[Path, Sequence[TaskResult]], *, every: bool) -> list[TaskResult]:
    """What a card shows of the records of some runs: each run's main results, or with ``every`` all of them.

    Raises UsageError for runs of different weights, for a number that two of them have, and where none has a value.
    """
    _require_one_model(runs)
    found: dict[tuple[str, ...], Path] = {}
    kept = []
    for folder, results in runs.items():
        for result in results if every else main_results(results):
            if result.value is None:
                continue
            key = (result.task, result.metric, result.protocol, result.focus, result.crop)
            if key in found:
                raise UsageError(f"{found[key]} and {folder} both have {' '.join(key[:3])}", "name one of them")
            found[key] = folder
            kept.append(result)
    if not kept:
        raise UsageError(f"{', '.join(map(str, runs))}: no result has a value", "visrl-eval show RUN --all says why")
    return kept


def _require_one_model(runs: Mapping[Path, Sequence[TaskResult]]) -> None:
    first: tuple[Path, Any] | None = None
    for folder, results in runs.items():
        for result in results:
            info = result.model_info
            model = info.get("weights_sha256") or info.get("revision") or result.model, info.get("adapter")
            if first is None:
                first = folder, model
            elif model != first[1]:
                raise UsageError(
                    f"{first[0]} and {folder} are runs of different models", "a model card describes one model"
                )


def eval_results(results: Sequence[TaskResult]) -> list[EvalResult]:
    """Records as huggingface_hub has them. Values stay in the record's unit, which the metric's name says."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=PIPELINE,
            dataset_type=_dataset(result),
            dataset_name=result.task + (f" (first {result.limit})" if result.limit else ""),
            dataset_args={"version": result.task_version, "n": result.n, "n_expected": result.n_expected},
            metric_type=result.metric,
            metric_name=f"{result.metric} ({result.unit})",
            metric_value=round(result.value or 0.0, 4),
            metric_args=_made_with(result),
        )
        for result in results
    ]


def _dataset(result: TaskResult) -> str:
    """The hub's dataset, where the documents came from there; else the task's name."""
    facts: Any = next(iter(result.data.values()), {})
    named = facts.get("dataset") or facts.get("repository") if isinstance(facts, dict) else None
    return str(named or result.task)


def _made_with(result: TaskResult) -> dict[str, Any]:
    facts = {
        OURS: f"visrl {__version__}",
        "protocol": result.protocol,
        "focus": result.focus,
        "crop": result.crop,
        "judge": result.judge,
        "se": None if result.se is None else round(result.se, 4),
        "n_unparsed": result.n_unparsed or None,
        "n_unscored": result.n_unscored or None,
        "small_world": result.small_world or None,
    }
    return {name: value for name, value in facts.items() if value is not None}


def card_of(text: str | None, name: str, results: Sequence[TaskResult]) -> ModelCard:
    """The card with these results in the place of earlier ones of ours. text: the card so far; None: a new one.

    Raises UsageError for one whose head is not YAML.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text if text is not None else _NEW.format(name=name))
    except ValueError as error:
        raise UsageError(f"the model card cannot be read: {error}", "fix the YAML at the top of the file") from error
    data: Any = card.data
    others = [r for r in data.eval_results or [] if OURS not in (r.metric_args or {})]
    data.model_name = data.model_name or name
    data.pipeline_tag = data.pipeline_tag or PIPELINE
    data.eval_results = [*others, *eval_results(results)]
    section = f"{BEGIN}\n## Evaluation\n\n{to_markdown(results_table(results))}\n{END}\n"
    card.text = (
        _SECTION.sub(lambda _: section, card.text) if BEGIN in card.text else f"{card.text.rstrip()}\n\n{section}"
    )
    return card


def yaml_of(name: str, results: Sequence[TaskResult]) -> str:
    """The head alone, for one's own card."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(model_name=name, pipeline_tag=PIPELINE, eval_results=eval_results(results))
    return f"---\n{data.to_yaml()}\n---\n"


def write_card(file: Path, name: str, results: Sequence[TaskResult]) -> None:
    """Put the results into a card's file, or a new one. Raises UsageError where it cannot be read or written."""
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise refused(error, file) if isinstance(error, OSError) else UsageError(f"{file}: not UTF-8 text") from error
    write_atomically(file, str(card_of(text, name, results)))
