"""The shape of a line of chains.jsonl (sampling.py writes and reads them): every field checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ScoreLine(_Line):
    value: float | None
    reason: str = ""


class TrialLine(_Line):
    """One box and its answer."""

    attempt: int
    role: int
    source: str
    box: Annotated[list[float], Field(min_length=4, max_length=4)]
    answer: str | None
    box_text: str | None = None
    answer_score: ScoreLine | None = None
    box_score: ScoreLine | None = None


class ChainLine(_Line):
    """A question that was sampled."""

    id: str
    attempts: list[str | None]
    repeats: int
    trials: list[TrialLine]
    tokens: dict[str, Annotated[list[int], Field(min_length=3, max_length=3)] | None]


class FailedLine(_Line):
    """A question that failed, and why."""

    id: str
    error: str


_CHAIN, _FAILED = TypeAdapter(ChainLine), TypeAdapter(FailedLine)


def checked(value: Any) -> Mapping[str, Any]:
    """``value``, a line of chains.jsonl. Raises ValueError (pydantic's) or TypeError naming the field of another shape."""
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    if value.get("error") is None:
        _CHAIN.validate_python(value)
    else:
        _FAILED.validate_python(value)
    return value
