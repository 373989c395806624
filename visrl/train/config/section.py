"""A part of a recipe, and how one says which rows of a data set are meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from visrl.core.arguments import check_magnitude


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _sensible(cls, value: Any) -> Any:
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError("no file has a null byte in its name")
        check_magnitude(value)
        return value


class DatasetSection(Section):
    """Which rows of a data set, and which of its columns is what."""

    subset: str | None = Field(default=None, description="of a data set that has several")
    split: str = "train"
    revision: str | None = Field(default=None, description="of a hub id: a commit, tag or branch")
    columns: dict[str, str] = Field(default_factory=dict, description="our field: its column, e.g. {question: query}")
    boxes: Literal["xyxy", "xywh"] = Field(default="xyxy", description="what the four numbers are")
    frame: Literal["pixel", "unit"] = Field(default="pixel", description="pixels, or fractions of width and height")
