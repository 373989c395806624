"""Other people's training files -> our rows, with boxes converted to pixels of the original picture.

``viscot``    LLaVA-format JSON, ``viscot_363k.json`` and the benchmark files: two-turn chains, box as padded-square
              text and, after ``###`` in the second picture's name, as raw pixels (docs/method.md a1), which are used
``cot``       VisCoT's metadata, ``*_cot_train.jsonl``: one object per line with width, height and a list of pixel boxes
``llava``     conversations about one picture as LLaVA (``conversations``) and ShareGPT's users (``messages``) have them:
              every exchange is a row that asks for no box (``direct``)
``official``  VisRL's preference file: ``chosen_step``/``rejected_step`` (box text) and ``chosen``/``rejected``
              (answers), strings or ``{"from", "value"}``. Its box numbers are those of SFT, padded square (a1), so
              the pictures must be there to be measured

Departure 1: several boxes become their hull, as in VisCoT; degenerate ones (some are) leave the row out, counted.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box, Size, hull
from visrl.core.json_files import MALFORMED, UNREADABLE, decode_foreign, reason
from visrl.core.prompts import P_BOX, P_RL
from visrl.core.types import Unparsed
from visrl.errors import PictureError, UsageError
from visrl.train.data.rows import Chain, ChainRow, PairRow, picture_in

_PIXELS = re.compile(r"###\[(-?\d+), ?(-?\d+), ?(-?\d+), ?(-?\d+)\]$")
Made = TypeVar("Made")


@dataclass(slots=True)
class Imported:
    """What came in: the rows, and how many were left out for which reason."""

    left_out: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1


def _items(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list or of a jsonl file, gzipped or not, numbered from 1."""
    hint = "it must be a JSON list or one object per line, gzipped or not"
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (*UNREADABLE, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {reason(error)}", hint) from error
    for number, item in enumerate(_list(path, text, hint) if text.lstrip().startswith("[") else _lines(path, text), 1):
        if not isinstance(item, dict):
            raise UsageError(f"{path}: item {number} is not an object", hint)
        yield number, item


def _list(path: Path, text: str, hint: str) -> list[Any]:
    try:
        return list(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {reason(error)}", hint) from error


def _lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):  # U+2028 ends no line
        if line.strip():
            try:
                yield decode_foreign(line)
            except ValueError as error:
                raise UsageError(f"{path}:{number}: not JSON: {reason(error)}", "one object per line") from error


def _question(text: str) -> str:
    """The bare question of a human turn: picture mark and the protocols' requests for a box removed."""
    text = text.replace("<image>", "").strip()
    for request in (P_BOX.strip(), P_RL):
        text = text.removesuffix(request).strip()
    return text


def _box(numbers: Sequence[Any]) -> Box:
    x1, y1, x2, y2 = (float(number) for number in numbers)
    return Box(x1, y1, x2, y2)


def viscot_row(number: int, item: dict[str, Any], tally: Imported) -> ChainRow | None:
    """A two-turn chain of VisCoT's LLaVA format; None, counted, where it has no usable box.

    Its turns are ``viscot_train``'s, but question, box and answer are all there is to them: any protocol can ask.
    """
    pictures, turns = item["image"], item["conversations"]
    found = _PIXELS.search(pictures[-1]) if isinstance(pictures, list) and len(pictures) == 2 else None
    if found is None or len(turns) != 4:
        tally.skip("no second picture with ###[x1, y1, x2, y2]")
        return None
    box = _box(found.groups())
    if box.is_empty:
        tally.skip("empty box")
        return None
    if not turns[3]["value"].strip():
        tally.skip("empty answer")
        return None
    return ChainRow(
        id=f"{item.get('dataset', 'viscot')}-{item.get('question_id', number)}-{number}",
        picture=pictures[0],
        question=_question(turns[0]["value"]),
        chain=Chain(box=box.xyxy, answer=turns[3]["value"]),
        answers=(turns[3]["value"],),
    )


def cot_row(number: int, item: dict[str, Any], tally: Imported) -> ChainRow | None:
    """A line of ``*_cot_train.jsonl``: pixel boxes, their hull; None, counted, where that is empty."""
    boxes = [_box(box) for box in item["bboxs"]]
    if not boxes or hull(boxes).is_empty:
        tally.skip("empty box")
        return None
    if not item["answer"].strip():
        tally.skip("empty answer")
        return None
    return ChainRow(
        id=f"{item['dataset']}-{number}",
        picture=item["image"],
        size=(item["width"], item["height"]),
        question=item["question"],
        chain=Chain(box=hull(boxes).xyxy, answer=item["answer"]),
        answers=(item["answer"],),
    )


def asked_and_said(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(question, answer) of every exchange of a conversation: LLaVA's ``conversations`` of ``from`` and ``value``, or
    ``messages`` of ``role`` and ``content``. A system turn is left out.
    """
    ours = "messages" in item
    who, what = ("role", "content") if ours else ("from", "value")
    turns = [(turn[who], turn[what]) for turn in item["messages" if ours else "conversations"]]
    turns = [turn for turn in turns if turn[0] != "system"]
    for (asks, question), (says, answer) in zip(turns[::2], turns[1::2], strict=True):
        if asks not in ("human", "user") or says not in ("gpt", "assistant"):
            raise ValueError(f"turns of {asks} and {says}, not of a person and a model in turn")
        _said(what, question), _said(what, answer)
        yield _question(question), answer


def llava_rows(number: int, item: dict[str, Any], tally: Imported) -> Iterator[ChainRow]:
    """Every exchange of a LLaVA or ShareGPT conversation about one picture, as a row of its own, which asks for no box."""
    pictures = item.get("image") or item.get("images")
    pictures = [pictures] if isinstance(pictures, str) else pictures or []
    if len(pictures) != 1:
        tally.skip("no picture" if not pictures else "several pictures")
        return
    for turn, (question, answer) in enumerate(asked_and_said(item)):
        if not answer.strip():
            tally.skip("empty answer")
            continue
        yield ChainRow(
            id=f"{item.get('id', number)}-{number}-{turn}",
            picture=pictures[0],
            question=question,
            protocol="direct",
            chain=Chain(answer=answer),
            answers=(answer,),
        )


def import_conversations(path: Path) -> tuple[list[ChainRow], Imported]:
    """Rows of format ``llava``. Raises UsageError as :func:`import_chains`."""
    tally = Imported()
    many = _collect(path, "llava", lambda number, item: list(llava_rows(number, item, tally)))
    return [row for rows in many for row in rows], tally


def _value(item: dict[str, Any], key: str) -> str:
    """What a step or an answer says. Raises ValueError naming the key of anything but text: its notation is no answer."""
    said = item[key]["value"] if isinstance(item[key], dict) else item[key]
    return _said(key, said)


def _said(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key}: {type(value).__name__} {value!r:.40}, not text")
    return value


def official_row(number: int, item: dict[str, Any], tally: Imported, size: Callable[[str], Size]) -> PairRow | None:
    """One preference of VisRL's layout. ``size`` measures a picture; raises PictureError where it cannot."""
    picture = item["images"][0] if "images" in item else item["image"]
    try:
        measured = size(picture)
    except PictureError:
        tally.skip("picture not readable")
        return None
    square = FORMATS["padded_square_3dp"]
    chosen, rejected = (square.parse(_value(item, key), measured) for key in ("chosen_step", "rejected_step"))
    if isinstance(chosen, Unparsed) or isinstance(rejected, Unparsed):
        tally.skip("no box in chosen_step or rejected_step")
        return None
    asked = [turn["value"] for turn in item["conversations"] if turn["from"] in ("human", "user")]
    if not asked:
        raise ValueError("no turn of a person in conversations")
    return PairRow(
        id=str(item.get("id", number)),
        picture=picture,
        size=measured,
        question=_question(asked[0]),
        chosen=Chain(box=chosen.xyxy, answer=_value(item, "chosen")),
        rejected=Chain(box=rejected.xyxy, answer=_value(item, "rejected")),
    )


def import_chains(path: Path, layout: str) -> tuple[list[ChainRow], Imported]:
    """SFT chains from ``viscot`` or ``cot``. Raises UsageError naming file and item for one that is not of that
    layout.
    """
    reader = {"viscot": viscot_row, "cot": cot_row}[layout]
    tally = Imported()
    return _collect(path, layout, lambda number, item: reader(number, item, tally)), tally


def import_pairs(path: Path, pictures: Path) -> tuple[list[PairRow], Imported]:
    """Preference pairs from the official layout; ``pictures`` is the folder their names are relative to."""
    tally = Imported()

    def size(name: str) -> Size:
        return picture_in(pictures, name).open().size

    return _collect(path, "official", lambda number, item: official_row(number, item, tally, size)), tally


def _collect(path: Path, layout: str, read: Callable[[int, dict[str, Any]], Made | None]) -> list[Made]:
    rows: list[Made] = []
    for number, item in _items(path):
        try:
            row = read(number, item)
        except MALFORMED as error:  # pydantic's too
            said = f"{path}: item {number} is not of layout {layout}: {reason(error)}"
            raise UsageError(said, "is data.format right?") from error
        if row is not None:
            rows.append(row)
    return rows
