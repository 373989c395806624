"""Training data on disk: one JSON object a line, SFT chains (``ChainRow``) and preference pairs (``PairRow``).

Boxes are x1, y1, x2, y2 in **pixels of the original picture**, whatever frame a model writes them in; ``box_text`` is
what a model really wrote, and is trained on verbatim where it is given (on-policy text), else the family writes the
box in its own format. Pictures are named relative to the folder the recipe gives (``data.pictures``) and cannot point
outside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from visrl.core.boxes import LONGEST_SIDE, Box, Size, hull
from visrl.core.json_files import reason
from visrl.core.records import write_atomically
from visrl.core.types import CoTSample, Picture, Score
from visrl.errors import PictureError, UsageError
from visrl.tasks.pictures import Missing
from visrl.train.config.protocols import ProtocolChoice, several
from visrl.train.data.candidates import Candidate, CandidateLook, Demonstration, Preference
from visrl.train.data.dataset_tables import DATASET, picture_named, stored_bytes
from visrl.train.data.shards import is_sharded, picture_bytes, shard_rows, split_name

if TYPE_CHECKING:
    from PIL.Image import Image


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Corners = tuple[float, float, float, float]


def _checked(box: Corners | None, which: str = "") -> Corners | None:
    """The box. Raises ValueError for one without area."""
    if box is not None and Box(*box).is_empty:
        raise ValueError(f"{which}x2 <= x1 or y2 <= y1")
    return box


class Chain(_Row):
    """A candidate as files have it (candidates.py)."""

    box: Corners | None = Field(default=None, description="pixels; null only under `direct`, or where `looks` has it")
    box_text: str | None = Field(default=None, description="the box as a model wrote it; trained on verbatim")
    looks: tuple[Corners | None, ...] | None = Field(
        default=None, description="of a protocol of several looks: every box, in order; null in `lose`: none to compare"
    )
    look_texts: tuple[str | None, ...] | None = Field(default=None, description="its looks as a model wrote them")
    answer: str = Field(default="", description="empty for referring expressions, where the box is the answer")
    answer_text: str | None = Field(
        default=None, description="of a protocol of several looks: the last turn as a model wrote it"
    )
    scores: dict[str, float] = Field(
        default_factory=dict, description="critics' scores, e.g. box, answer (docs/method.md d)"
    )

    @field_validator("box")
    @classmethod
    def _ordered(cls, box: Corners | None) -> Corners | None:
        return _checked(box)

    @field_validator("looks")
    @classmethod
    def _each_ordered(cls, looks: tuple[Corners | None, ...] | None) -> tuple[Corners | None, ...] | None:
        for number, box in enumerate(looks or (), 1):
            _checked(box, f"look {number}: ")
        return looks

    @model_validator(mode="after")
    def _a_text_per_look(self) -> Chain:
        if self.look_texts is not None and len(self.look_texts) != len(self.looks or ()):
            raise ValueError(f"look_texts: {len(self.look_texts)} texts of {len(self.looks or ())} looks")
        return self


Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]


class Sized(_Row):
    """The size of a picture, where a row gives it."""

    size: tuple[Side, Side] | None = Field(
        default=None, description="width, height; checked against the picture when given"
    )


class _Question(Sized):
    id: str
    picture: str
    question: str
    instruction: str = ""
    kind: Literal["qa", "rec"] = "qa"
    protocol: ProtocolChoice = "visrl_train"
    answers: tuple[str, ...] = ()


class ChainRow(_Question):
    """An SFT example."""

    chain: Chain


class QuestionRow(_Question):
    """A question to make pairs from."""

    box: Corners | None = Field(
        default=None, description="the true box, where known: for reports and the oracle, never shown to a model"
    )
    boxes: tuple[Corners, ...] = Field(default=(), description="the true boxes of several looks, in order, likewise")

    @field_validator("box")
    @classmethod
    def _ordered(cls, box: Corners | None) -> Corners | None:
        return _checked(box)

    @field_validator("boxes")
    @classmethod
    def _each_ordered(cls, boxes: tuple[Corners, ...]) -> tuple[Corners, ...]:
        for number, box in enumerate(boxes, 1):
            _checked(box, f"box {number}: ")
        return boxes


class PairRow(_Question):
    """A preference of ``chosen`` over ``rejected``, for boxes and for answers; files call them ``win`` and ``lose``."""

    model_config = ConfigDict(populate_by_name=True)

    chosen: Chain = Field(validation_alias="win", serialization_alias="win")
    rejected: Chain = Field(validation_alias="lose", serialization_alias="lose")


Row = TypeVar("Row", ChainRow, QuestionRow, PairRow)
WORLD = "world:"
"""Pictures of this name are drawn by the small world, not read from a folder: ``world:rl:12``."""


def read_rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    """The rows of a jsonl file, or of shards (shards.py), one at a time. Raises UsageError naming file and line for the first
    bad one.
    """
    return (row for _, row in placed_rows(path, kind))


def placed_rows(path: Path, kind: type[Row]) -> Iterator[tuple[str, Row]]:
    """The same, each after where it stands."""
    if is_sharded(path):
        for place, row in shard_rows(path):
            yield place, _valid(place, partial(kind.model_validate, row))
        return
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    place = f"{path}:{number}"
                    yield place, _valid(place, partial(kind.model_validate_json, line))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name the file in data.path") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text at byte {error.start} of a block", "rows are JSON, one per line"
        ) from error


def _valid(place: str, read: Callable[[], Row]) -> Row:
    try:
        return read()
    except ValidationError as error:
        raise UsageError(f"{place}: {reason(error)}", "docs/training.md lists the fields") from error


def write_rows(path: Path, rows: Iterable[ChainRow | PairRow]) -> None:
    """One row a line, written beside and renamed; defaults are left out, but never a chain's protocol, which may be inherited."""
    dumped = (_with_protocol(row, row.model_dump(mode="json", exclude_defaults=True, by_alias=True)) for row in rows)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in dumped))


def _with_protocol(row: ChainRow | PairRow, dumped: dict[str, Any]) -> dict[str, Any]:
    return {**dumped, "protocol": row.protocol} if isinstance(row, ChainRow) else dumped


def picture_in(folder: Path, name: str) -> Picture:
    """A picture below ``folder``, or one of the small world. Raises UsageError for a name that leads out of the folder."""
    if name.startswith(WORLD):
        from visrl.world.samples import picture_of

        return picture_of(name.removeprefix(WORLD))
    if name.startswith(DATASET):
        return picture_named(name)
    root, path = _resolved(folder, name)
    packed = split_name(name)
    if packed is not None and not path.is_file():
        from visrl.tasks.pictures import decoded

        shard, member = packed
        return Picture(name, lambda: decoded(picture_bytes(root / shard, member), name))

    def load() -> Image:
        from visrl.tasks.pictures import decoded

        try:
            data = path.read_bytes()
        except OSError as error:
            raise PictureError(f"{name} cannot be read: {error.strerror or error}") from error
        return decoded(data, name)

    return Picture(name, load)


def size_in(folder: Path, name: str) -> Size:
    """(width, height) of the picture that :func:`picture_in` gives, from its header where it has one. Raises PictureError where
    that cannot be read, and UsageError likewise.
    """
    from visrl.tasks.pictures import measured

    packed = split_name(name)
    if name.startswith(WORLD):
        return picture_in(folder, name).open().size
    if name.startswith(DATASET):
        return measured(stored_bytes(name), name)
    root, path = _resolved(folder, name)
    if packed is not None and not path.is_file():
        return measured(picture_bytes(root / packed[0], packed[1]), name)
    return measured(path, name)


def _resolved(folder: Path, name: str) -> tuple[Path, Path]:
    """The folder and the picture's place in it. Raises UsageError for a name that leads out of the folder."""
    hint = "pictures are named relative to data.pictures"
    try:
        root = folder.resolve()
        path = (root / name).resolve()
    except (ValueError, OSError) as error:  # a null byte, a loop of links
        raise UsageError(f"picture {name!r} in {str(folder)!r}: {error}", hint) from error
    if not path.is_relative_to(root):
        raise UsageError(f"picture {name!r} lies outside {folder}", hint)
    return root, path


def sample_of(row: _Question, folder: Path) -> CoTSample:
    """The row's question as the core knows it, without the box: that is what is trained."""
    answers = row.answers
    return CoTSample(
        id=row.id,
        task="train",
        kind=row.kind,
        question=row.question,
        picture=picture_in(folder, row.picture),
        size=row.size,
        answers=answers,
        instruction=row.instruction,
        cluster=row.picture,
    )


def candidate_of(chain: Chain) -> Candidate:
    """A file's chain as sampling and training have it."""
    box, scores = chain.box, {name: Score(value) for name, value in chain.scores.items()}
    return Candidate(
        None if box is None else Box(*box),
        chain.box_text,
        chain.answer,
        scores.get("answer"),
        scores.get("box"),
        looks=None if chain.looks is None else tuple(_looks(chain.looks, chain.look_texts, scores)),
        answer_text=chain.answer_text,
    )


def _looks(
    boxes: Sequence[Corners | None], texts: Sequence[str | None] | None, scores: Mapping[str, Score]
) -> Iterator[CandidateLook]:
    for number, (box, text) in enumerate(zip(boxes, texts or [None] * len(boxes), strict=True), 1):
        yield CandidateLook(None if box is None else Box(*box), text, scores.get(f"look{number}"))


def chain_of(candidate: Candidate) -> Chain:
    """A candidate as files have it, with the scores that are known."""
    looks = candidate.looks
    scores = {"answer": candidate.answer_score, "box": candidate.box_score}
    scores |= {f"look{number}": look.score for number, look in enumerate(looks or (), 1)}
    texts = None if looks is None else tuple(look.text for look in looks)
    return Chain(
        box=None if candidate.box is None else candidate.box.xyxy,
        box_text=candidate.box_text,
        looks=None if looks is None else tuple(None if look.box is None else look.box.xyxy for look in looks),
        look_texts=texts if texts and any(text is not None for text in texts) else None,
        answer=candidate.answer,
        answer_text=candidate.answer_text,
        scores={name: score.value for name, score in scores.items() if score is not None and score.value is not None},
    )


def chain_row(sample: CoTSample, protocol: str) -> ChainRow:
    """The SFT row of a benchmark's sample: its true boxes as looks, its first standard answer. ``box`` where it has one box
    alone, or the protocol looks once (then the smallest box around all). Raises UsageError for one without a box or an answer.
    """
    boxes = sample.boxes or ((sample.box,) if sample.box is not None else ())
    if not boxes or (sample.kind == "qa" and not sample.answers):
        raise UsageError(f"sample {sample.id} has no {'answer' if boxes else 'box'}", "a chain teaches both")
    qa = sample.kind == "qa"
    looks = tuple(box.xyxy for box in boxes) if qa and several(protocol) and len(boxes) > 1 else None
    answer = sample.answers[0] if qa else ""
    return ChainRow(
        id=sample.id,
        picture="" if sample.picture is None else sample.picture.ref,
        size=sample.size,
        question=sample.question,
        instruction=sample.instruction,
        kind=sample.kind,
        protocol=protocol,
        answers=sample.answers,
        chain=Chain(box=hull(boxes).xyxy if looks is None else None, looks=looks, answer=answer),
    )


def demonstrations(rows: Iterable[ChainRow], folder: Path) -> list[Demonstration]:
    """SFT rows with their pictures, which are looked for below ``folder`` and opened when needed."""
    return [Demonstration(sample_of(row, folder), row.protocol, candidate_of(row.chain)) for row in rows]


def preferences(rows: Iterable[PairRow], folder: Path) -> list[Preference]:
    """Preference rows with their pictures, likewise."""
    return [
        Preference(sample_of(row, folder), row.protocol, candidate_of(row.chosen), candidate_of(row.rejected))
        for row in rows
    ]


def missing_pictures(rows: Sequence[_Question], folder: Path) -> Missing:
    """The pictures that have no file: their rows are left out, counted and named before training starts."""
    names = list(dict.fromkeys(row.picture for row in rows))
    return Missing([name for name in names if not is_there(name, folder)], len(names), str(folder))


def is_there(name: str, folder: Path) -> bool:
    """Whether there is a file for a picture's name below ``folder``; the small world draws its own."""
    packed = split_name(name)
    return (
        name.startswith((WORLD, DATASET))
        or (folder / name).is_file()
        or (packed is not None and (folder / packed[0]).is_file())
    )
