"""Protocols from a user's YAML file (``--protocol FILE``): somebody's published prompt, run as it was.

docs/protocols-and-frames.md lists the fields. What is left out is as in ``zoom``, but for the texts: a protocol says its own.
The file's hash is in every record; an unknown or wrong field is an error that names it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from visrl.core.crops import CropName
from visrl.core.json_files import check
from visrl.core.looking.rules import NAMES, Ask, Call, Limits, Rules, Shown, Texts, Unit
from visrl.core.prompts import PROTOCOLS, SEVERAL, Protocol
from visrl.errors import UsageError
from visrl.evals.plain_yaml import read_plain

HINT = "docs/protocols-and-frames.md lists the fields of a protocol file"
_BRACED = re.compile(r"\{([a-z]{2,12})\}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CallPart(_Part):
    """How a call is written."""

    opening: str = Field(default="<tool_call>", min_length=1)
    closing: str = Field(default="</tool_call>", min_length=1)
    tool: str = "image_zoom_in_tool"
    box: str = Field(default="bbox_2d", min_length=1)
    label: str = "label"
    source: str = "source"


class ReturnPart(_Part):
    """What comes back for a region."""

    crop: CropName = "tight"
    scale: float = Field(default=1.0, gt=0, le=32)
    min_side: int = Field(default=0, ge=0, le=4096)
    max_ratio: float = Field(default=100.0, ge=1)


class LimitPart(_Part):
    """What an episode may use up; 0 of tokens and pictures: no limit."""

    looks: int = Field(default=6, ge=0, le=100)
    new_tokens: int = Field(default=16384, ge=0)
    pictures: int = Field(default=0, ge=0)


class ResizePart(_Part):
    """How the picture is resized whose pixels are counted, under ``unit: resized``."""

    factor: int = Field(default=28, ge=1)
    min_pixels: int = Field(default=56 * 56, ge=1)
    max_pixels: int = Field(default=14 * 14 * 4 * 16384, ge=1)


class TextPart(_Part):
    """What is said (core/looking/rules.py:Texts)."""

    system: str = ""
    how_to_call: str = ""
    without: str = ""
    question: str
    crop: str
    faulty: str = "The call was not carried out: {fault}."
    more: str = ""
    last: str = " No look is left. Answer now."
    tool: str = "Cuts a region out of the picture and shows it. {box}: x1, y1, x2, y2 in {unit}."

    @model_validator(mode="after")
    def _names(self) -> TextPart:
        for field, text in self:
            for name in _BRACED.findall(text):
                if name not in NAMES:
                    raise ValueError(f"{field}: no {{{name}}}; there are {', '.join(NAMES)}")
        if self.crop.count("{picture}") != 1:
            raise ValueError("crop: it must hold {picture} once, where the crop stands")
        if "{question}" not in self.question:
            raise ValueError("question: it must hold {question}")
        return self


class ProtocolFile(_Part):
    """A protocol of several looks as a file has it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}$")]
    version: int = Field(default=1, ge=1)
    ask: Ask = "tool_call"
    coordinates: Literal["original", "last", "named"] = "original"
    unit: Unit = "family"
    resize: ResizePart = ResizePart()
    call: CallPart = CallPart()
    shown: ReturnPart = ReturnPart()
    limits: LimitPart = LimitPart()
    answer_in_tags: bool = True
    texts: TextPart

    @model_validator(mode="after")
    def _name_is_free(self) -> ProtocolFile:
        if self.name in PROTOCOLS or self.name in SEVERAL:
            raise ValueError(f"name: {self.name} is a protocol of visrl's; choose another")
        if self.ask == "box_turn" and (self.coordinates == "named" or self.unit != "family"):
            raise ValueError(
                "ask: box_turn reads boxes as the model's family writes them, which name no picture: coordinates original or"
                " last, unit family"
            )
        return self

    def rules(self) -> Rules:
        """As the rollout uses it."""
        return Rules(
            Texts(**dict(self.texts)),
            self.ask,
            Call(**dict(self.call)),
            self.coordinates,
            self.unit,
            (self.resize.factor, self.resize.min_pixels, self.resize.max_pixels),
            Shown(**dict(self.shown)),
            Limits(**dict(self.limits)),
            self.answer_in_tags,
        )


_FILE = TypeAdapter(ProtocolFile)


def read_protocol(path: Path) -> Protocol:
    """The protocol in a file. Raises UsageError naming the file and the line or the field."""
    value: Any = read_plain(path, HINT)
    found = check(value, _FILE, f"{path}: not a protocol", HINT)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error}", HINT) from error
    return Protocol(found.name, found.version, several=found.rules(), sha256=digest)
