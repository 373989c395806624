"""Groups of chains that policy-gradient training kept, as cards of a training page: the picture with the boxes of all chains.

Reads ``rollouts/stepNNNNNN.json`` (visrl/train/grpo/trainer.py), a file per logging step, evenly over the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visrl.core.json_files import read_json
from visrl.errors import UsageError
from visrl.report.text import clip, line
from visrl.report.training_pairs import data_folder, picture_data, rectangle

FOLDER = "rollouts"
STEPS_SHOWN = 12
_HINT = "delete it: it is only for the page"

Coordinate = Annotated[float, Field(allow_inf_nan=False)]


class _Chain(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    box: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = Field(strict=False)
    box_text: str | None
    unparsed: str | None
    answer: str | None
    rewards: dict[str, Coordinate | None]
    advantages: dict[str, Coordinate | None]


class _Group(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str
    question: str
    picture: str
    answers: list[str]
    chains: list[_Chain]


class _Step(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    step: int = Field(ge=0)
    groups: list[_Group]


@dataclass(frozen=True, slots=True)
class ChainLine:
    """One chain. box: x, y, width, height in pixels, or None; kind: how its box is drawn (page.css); said: the box as written."""

    box: tuple[float, float, float, float] | None
    kind: str
    said: str
    answer: str
    rewards: str
    advantages: str


@dataclass(frozen=True, slots=True)
class GroupCard:
    """A question with its chains at a step of training. picture: a data URI or ""; size: (width, height) in pixels."""

    step: int
    question: str
    answers: str
    size: tuple[int, int] | None
    picture: str
    chains: tuple[ChainLine, ...]


def group_cards(place: Path, settings: Any) -> tuple[GroupCard, ...]:
    """The groups of at most ``STEPS_SHOWN`` steps, in order of time, the first and the last among them.

    settings: of the phase, for the folder of its pictures. Raises UsageError for a damaged file.
    """
    files = sorted((place / FOLDER).glob("step*.json"))
    folder = data_folder(settings, place)
    return tuple(
        _card(found.step, group, folder) for found in map(_read, _spread(files, STEPS_SHOWN)) for group in found.groups
    )


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """At most ``most`` of the files at equal distances, the first and the last included."""
    if len(files) <= most:
        return list(files)
    return [files[round(i * (len(files) - 1) / (most - 1))] for i in range(most)]


def _read(path: Path) -> _Step:
    try:
        return _Step.model_validate(read_json(path, _HINT))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: damaged: {where}: {first['msg']}", _HINT) from error


def _card(step: int, group: _Group, folder: Path) -> GroupCard:
    picture, size = picture_data(group.picture, folder)
    answers = ", ".join(line(answer, 60) for answer in group.answers)
    return GroupCard(step, clip(group.question, 400), answers, size, picture, tuple(map(_chain, group.chains)))


def _chain(chain: _Chain) -> ChainLine:
    of_box = chain.advantages.get("box", next(iter(chain.advantages.values()), None))
    kind = "k-look" if not of_box else "k-true" if of_box > 0 else "k-a"
    said = clip(chain.box_text or "", 300) + (f" ({clip(chain.unparsed, 120)})" if chain.unparsed else "")
    box, answer = rectangle(chain.box), clip(chain.answer or "", 300)
    return ChainLine(box, kind, said, answer, _numbers(chain.rewards), _numbers(chain.advantages, "+"))


def _numbers(values: Mapping[str, float | None], sign: str = "") -> str:
    return " · ".join(f"{line(name, 30)} {'–' if v is None else format(v, f'{sign}.2f')}" for name, v in values.items())
