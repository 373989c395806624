"""run.json: what a run folder is of. Read through its schema, so that a field of another type is an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter

from visrl.core.json_files import check, read_object
from visrl.errors import UsageError

HINT = "start a new run with another --output"


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path holds no NUL")
    return text


class RunMeta(BaseModel):
    """What every run folder has, of an evaluation or of pairs. Further fields stay as they are."""

    model_config = ConfigDict(extra="allow")

    request: dict[str, Any]
    request_hash: str
    judge: str = "exact"
    started: str = ""
    resumed: list[str] = []
    command: str | None = None
    verdicts: dict[str, str] = {}


class EvaluationRequest(BaseModel):
    """What was asked of an evaluation (evaluation/evaluate.py:describe_request). data: per task what its documents were."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    model_info: dict[str, Any]
    box_format: dict[str, str]
    tasks: dict[str, str] = Field(min_length=1)
    data: dict[str, dict[str, Any]]
    data_folder: Annotated[str, AfterValidator(_no_nul)] | None
    protocol: str
    focus: str
    crop: str
    sampling: dict[str, Any]
    seed: int
    limit: int | None = Field(ge=1)


class Evaluation(BaseModel):
    """A run.json of an evaluation."""

    request: EvaluationRequest


_META = TypeAdapter(RunMeta)
_EVALUATION = TypeAdapter(Evaluation)


def read_meta(folder: Path) -> dict[str, Any]:
    """run.json of a run folder. Raises UsageError where there is none, or it is damaged."""
    path = folder / "run.json"
    if not path.exists():
        inside = folder / "score"  # of a loop's phase
        hint = f"{inside} is one" if (inside / "run.json").is_file() else "runs are written below runs/"
        raise UsageError(f"{folder} is not a run folder: it has no run.json", hint)
    return check(read_object(path, HINT), _META, f"{path}: damaged", HINT).model_dump(exclude_unset=True)


def unlike_documents(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The tasks of two evaluations' requests whose documents were not the same ones: their samples cannot be paired."""
    a, b = first["data"], other["data"]
    return [task for task in a if task in b and a[task] != b[task]]


def read_evaluation(folder: Path) -> dict[str, Any]:
    """run.json of an evaluation: its ``request`` has every field of :class:`EvaluationRequest`. Raises UsageError otherwise."""
    meta, path = read_meta(folder), folder / "run.json"
    asked = check(meta, _EVALUATION, f"{path}: damaged", HINT).request
    if lost := [task for task in asked.tasks if task not in asked.data]:
        raise UsageError(f"{path}: damaged: request.data has no {lost[0]}", HINT)
    return meta
