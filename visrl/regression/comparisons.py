"""Two finished runs sample by sample: what ``visrl-eval compare`` and ``visrl.compare`` allow, refuse and warn of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrl.errors import UsageError
from visrl.evals.compare import Difference, compare
from visrl.evals.sample_scores import of_run
from visrl.runs.meta import read_evaluation, unlike_documents

_EXPECTED = {"model", "model_info", "data_folder", "tasks", "data"}
"""What runs that are compared may differ in without a word."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``first`` and ``other``: run folders. differences: other - first. notes: a sentence per setting that differs."""

    first: Path
    other: Path
    differences: list[Difference]
    notes: list[str]


def compare_runs(first: Path, others: Sequence[Path]) -> Iterator[Comparison]:
    """Each of the others against the first. Raises UsageError for a folder that is no finished run, for runs on different
    documents, whose samples are alike by their ids alone, and for runs without a scored sample in common.
    """
    rows = of_run(first)
    for other in others:
        sides = [read_evaluation(folder) for folder in (first, other)]
        if unlike := unlike_documents(*(side["request"] for side in sides)):
            raise UsageError(
                f"{first} and {other} ran on different documents of {', '.join(unlike)}",
                "run both on the same data; see `data` in each run.json",
            )
        differences = compare(rows, of_run(other))
        if not differences:
            raise UsageError(f"{first} and {other} have no scored sample in common", "compare runs of the same tasks")
        yield Comparison(first, other, differences, _unlike(*sides))


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What two runs did differently besides the model: the difference may be that."""
    sides = [{**meta["request"], "judge": meta.get("judge")} for meta in (a, b)]
    names = [n for n in {**sides[0], **sides[1]} if n not in _EXPECTED and sides[0].get(n) != sides[1].get(n)]
    return [f"settings differ: {name} ({_setting(sides[0], name)} / {_setting(sides[1], name)})" for name in names]


def _setting(side: Mapping[str, Any], name: str) -> str:
    """A setting in words: a box format by its name and, where they are needed, the frame and the parser's mode."""
    value = side.get(name)
    if name == "box_format" and isinstance(value, dict):
        return " ".join(str(value[key]) for key in ("name", "frame", "mode") if value.get(key))
    return str(value)
