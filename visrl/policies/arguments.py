"""``--model-args``: what a kind of model takes, as data. Texts become numbers and booleans, and every number has a range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from visrl.core.arguments import check_magnitude
from visrl.errors import UsageError, nearest


class ModelArguments(BaseModel):
    """The arguments of a kind of model; subclasses declare them as fields, with their defaults.

    kind: as ``--model`` names it. other_names: what other tools call an argument -> its name here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]
    other_names: ClassVar[Mapping[str, str]] = {}

    @field_validator("*")
    @classmethod
    def _sensible(cls, value: Any) -> Any:
        check_magnitude(value)
        return value

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """The arguments given, checked; an empty text is as good as none. Raises UsageError naming the argument."""
        found: dict[str, Any] = {}
        for word, value in given.items():
            name = cls.other_names.get(word, word)
            if name not in cls.model_fields:
                known = list(cls.model_fields)
                raise UsageError(f"--model-args: {cls.kind} has no argument {word!r}", _hint(word, known))
            if name in found:
                raise UsageError(f"--model-args: {name} is given twice", f"{word} is an alias of it")
            if value not in ("", None):
                found[name] = value
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            named = f"{name}={first['input']}: " if name else ""
            raise UsageError(
                f"--model-args: {named}{first['msg'].removeprefix('Value error, ')}",
                f"docs/families.md lists what {cls.kind} takes",
            ) from error


class PixelArguments(ModelArguments):
    """How many pixels or tiles a picture may have, for the families that have such limits (Family.pixel_limits)."""

    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    min_tiles: int | None = Field(default=None, ge=1)
    max_tiles: int | None = Field(default=None, ge=1)
    max_edge: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for least, most in (("min_pixels", "max_pixels"), ("min_tiles", "max_tiles")):
            given = self.pixel_limits
            if least in given and most in given and given[least] > given[most]:
                raise ValueError(f"{least}={given[least]} is more than {most}={given[most]}")
        return self

    @property
    def pixel_limits(self) -> dict[str, int]:
        """Those that were given."""
        given = self.model_dump(include=set(PixelArguments.model_fields))
        return {name: value for name, value in given.items() if value is not None}


def _hint(word: str, known: list[str]) -> str:
    close = nearest(word, known)
    listed = f"it has {', '.join(known) or 'none'}"
    return f"{close}; {listed}" if close.startswith("did you mean") else listed
