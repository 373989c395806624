"""The shape of a line of chains.jsonl (question_state.py writes and reads it): every field checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ScoreLine(_Line):
    value: float | None
    reason: str = ""


Corners = Annotated[list[float], Field(min_length=4, max_length=4)]


class LookLine(_Line):
    """One of several looks."""

    place: Annotated[list[int], Field(min_length=2, max_length=2)]
    source: str
    box: Corners
    text: str | None = None
    score: ScoreLine | None = None


class TrialLine(_Line):
    """One box, or several looks, and their answer."""

    attempt: int
    role: int
    source: str
    box: Corners | None = None
    looks: list[LookLine] | None = None
    answer: str | None
    answer_text: str | None = None
    box_text: str | None = None
    answer_score: ScoreLine | None = None
    box_score: ScoreLine | None = None

    @model_validator(mode="after")
    def _looked(self) -> TrialLine:
        if (self.box is None) == (self.looks is None):
            raise ValueError("box or looks: one of them")
        return self


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
