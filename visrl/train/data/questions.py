"""What pairs are made from: questions with standard answers. True boxes, where known, are for the report and the oracle only.

``visrl``   :class:`QuestionRow` as jsonl, or in parquet shards or webdataset tars with their pictures (shards.py)
``viscot``, ``cot``   VisCoT's own files (importers.py), their boxes set aside
``llava``   conversations about one picture, every exchange a question with its answer
``datasets``   a data set of that library (dataset_rows.py), its boxes set aside
``world``   the small world's unlabelled split, drawn here (``tasks``: its domains, taken in turn; ``deep``: signs of two looks)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from visrl.core.boxes import Box, hull
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.tasks.pictures import Missing
from visrl.train.config.section import DatasetSection, Section
from visrl.train.data.dataset_rows import dataset_rows
from visrl.train.data.importers import import_chains, import_conversations
from visrl.train.data.placement import IN_COLUMNS, PIXELS, Placement, boxes_of_chain, boxes_of_question, reasons
from visrl.train.data.rows import ChainRow, Corners, QuestionRow, is_there, picture_in, read_rows
from visrl.train.data.shards import is_sharded, root_of
from visrl.world.textured.scenery import PLAIN, Scenery

Row = TypeVar("Row", QuestionRow, ChainRow)
WORLD_TASKS = ("general", "relation", "fine", "doc", "chart")


class QuestionSection(Section):
    """Where the questions come from."""

    format: Literal["visrl", "viscot", "cot", "llava", "datasets", "world"] = "visrl"
    dataset: DatasetSection = DatasetSection()
    path: Path | None = Field(default=None, description="the file; none for `world`")
    pictures: Path = Field(default=Path(), description="the folder that picture names are relative to")
    limit: int | None = Field(
        default=None, ge=1, description="only the first questions, in file order, as the official sampling"
    )
    tasks: tuple[str, ...] = Field(default=WORLD_TASKS, description="of `world`: its domains, taken in turn, or `deep`")
    split: str = Field(default="rl", description="of `world`")
    scenery: Scenery | None = Field(
        default=None, description="of `world`: what its pictures are drawn over, plain (also if left out) or textured"
    )
    skip: int = Field(default=0, ge=0, description="leave out so many first: fresh questions for a later iteration")


def load_questions(section: QuestionSection) -> list[CoTSample]:
    """The questions, in order. Those whose picture is not there, or whose true box lies elsewhere, are left out before anything
    is skipped or counted, as SFT leaves them out, and said on stderr.

    Raises UsageError for what cannot be read, for boxes in another frame, for ids that occur twice, and for none at all.
    """
    looked = LookedFor()
    usable = _all(section, looked)
    n_skipped = sum(1 for _ in islice(usable, section.skip))
    samples = list(islice(usable, section.limit))
    looked.check()
    said = looked.said(section.pictures)
    if not samples:
        skipped = f": it has {n_skipped:,}, and data.skip leaves out {section.skip:,}" if n_skipped else ""
        hint = "check data.path, data.pictures, data.skip and data.limit"
        what = f"no questions in {section.path or section.format}{skipped}" + (f": left out: {said}" if said else "")
        raise UsageError(what, hint)
    if said:
        print(f"{section.path}: left out: {said}", file=sys.stderr)
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UsageError(
                f"{section.path}: id {sample.id!r} occurs twice", "ids must be unique: they seed the sampling"
            )
        seen.add(sample.id)
    return samples


def check_questions(section: QuestionSection) -> list[CoTSample]:
    """The questions, or of the small world one of each domain: it has no file that may be missing or damaged, and takes long to
    draw. Raises UsageError as :func:`load_questions` does.
    """
    few = min(section.limit or len(section.tasks), len(section.tasks))
    return load_questions(section.model_copy(update={"limit": few}) if section.format == "world" else section)


@dataclass(slots=True)
class LookedFor:
    """What was looked at: names of pictures, in order, that were found and not, and the rows left out for it; where boxes lie;
    and how many rows were left out for other reasons.
    """

    found: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    rows: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    placement: Placement[Any] | None = None
    rest: Iterable[Any] = ()

    def check(self) -> None:
        """Raises UsageError where most true boxes are in another frame."""
        if self.placement is not None:
            missing, rows = dict(self.missing), self.rows
            self.placement.check(self.rest)
            self.missing, self.rows = missing, rows  # of the questions that are used

    def said(self, folder: Path) -> str:
        """What was left out and why; empty where nothing was. folder: of pictures."""
        missing = Missing(list(self.missing), len(self.missing | self.found), str(folder))
        return reasons(self.left_out, self.rows, missing)


def _all(section: QuestionSection, looked: LookedFor) -> Iterator[CoTSample]:
    """Every question with a picture, its true box in it where it has one."""
    if section.format == "world":
        return _world(section)
    if section.path is None:
        raise UsageError(f"data.path is missing for format {section.format}", "name the file of questions")
    if section.format == "visrl":
        pictures = root_of(section.path) if is_sharded(section.path) else section.pictures
        rows = read_rows(section.path, QuestionRow)
        asked: Placement[QuestionRow] = Placement(section.path, boxes_of_question, pictures, looked.left_out)
        looked.placement = asked
        looked.rest = _pictured(rows, pictures, looked)
        placed = asked.kept(looked.rest)
        return (_sample(row, pictures, row.answers, row.box, row.boxes) for row in placed)
    if section.format == "llava":
        chains, tally = import_conversations(section.path)
    elif section.format == "datasets":
        chains, tally = dataset_rows(section.path, section.dataset, taught=False)
    else:
        chains, tally = import_chains(section.path, section.format)
    looked.left_out.update(tally.left_out)
    hint = IN_COLUMNS if section.format == "datasets" else PIXELS
    said: Placement[ChainRow] = Placement(section.path, boxes_of_chain, section.pictures, looked.left_out, hint=hint)
    looked.placement = said
    looked.rest = _pictured(chains, section.pictures, looked)
    return (_of_chain(row, section.pictures) for row in said.kept(looked.rest))


def _pictured(rows: Iterable[Row], folder: Path, looked: LookedFor) -> Iterator[Row]:
    for row in rows:
        if row.picture in looked.found or is_there(row.picture, folder):
            looked.found[row.picture] = None
            yield row
        else:
            looked.missing[row.picture] = None
            looked.rows += 1


def _of_chain(row: ChainRow, pictures: Path) -> CoTSample:
    looks = tuple(box for box in row.chain.looks or () if box is not None)
    return _sample(row, pictures, row.answers or (row.chain.answer,), row.chain.box, looks)


def _sample(
    row: QuestionRow | ChainRow,
    pictures: Path,
    answers: tuple[str, ...],
    box: Corners | None,
    boxes: tuple[Corners, ...] = (),
) -> CoTSample:
    several = tuple(Box(*corners) for corners in boxes)
    return CoTSample(
        id=row.id,
        task="pairs",
        kind=row.kind,
        question=row.question,
        picture=picture_in(pictures, row.picture),
        size=row.size,
        box=Box(*box) if box is not None else hull(several) if several else None,
        boxes=several,
        answers=answers,
        instruction=row.instruction,
        cluster=row.picture,
    )


def _world(section: QuestionSection) -> Iterator[CoTSample]:
    """Domain after domain, one question each, until all have run out; so any first n are of all domains."""
    from visrl.world.deep.documents import hidden_boxes
    from visrl.world.questions import DOMAINS, box_of, documents, hidden_box
    from visrl.world.samples import sample_of
    from visrl.world.splits import SPLITS

    _one_of(section.split, SPLITS)
    for task in section.tasks:
        _one_of(task, (*DOMAINS, "deep"))
    if section.skip >= len(section.tasks) * SPLITS[section.split].pictures:
        return  # a picture has one question of each domain at most
    per_task = None if section.limit is None else section.skip + section.limit
    for rows in zip_longest(
        *(documents(task, section.split, per_task, section.scenery or PLAIN) for task in section.tasks)
    ):
        for row in rows:
            if row is None:
                continue
            if row["group"] == "deep":
                boxes = tuple(map(box_of, row.get("boxes") or hidden_boxes(row)))
                yield replace(sample_of(row, "pairs"), box=boxes[0], boxes=boxes)
            else:
                yield replace(sample_of(row, "pairs"), box=box_of(row.get("box") or hidden_box(row)))


def _one_of(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UsageError(f"the small world has no split or task {name!r}", f"one of {', '.join(known)}")
