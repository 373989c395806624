"""A contact sheet: pictures, what is asked about them, and what the model sees. ``visrl-eval world --sheet out.png``."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from visrl.core.crops import tight
from visrl.errors import UsageError, nearest
from visrl.world.questions import Document, documents
from visrl.world.samples import drawn, sample_of
from visrl.world.splits import SPLITS
from visrl.world.textured.scenery import PLAIN, Scenery

TASKS = ("rec", "general", "relation", "fine", "doc", "chart", "pope_adversarial", "mme", "mmbench", "deep")
_CELL, _TEXT, _CAPTION, _SEEN = 300, 74, 18, 64
_HIGH = _CELL + _TEXT + _CAPTION + 2 * _SEEN
_BACK = (238, 238, 238)


def write_sheet(path: Path, split: str = "test", columns: int = 4, skip: int = 0, scenery: Scenery = PLAIN) -> None:
    """Write a PNG: a row per task, each picture with its true boxes, and below it the 64-pixel view and crops.

    scenery: what pictures are drawn over; walls are drawn plain only.
    Raises UsageError for an unknown split and for a folder that cannot be written to.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}", nearest(split, SPLITS))
    tasks = TASKS if scenery == PLAIN else tuple(task for task in TASKS if task != "deep")
    page = Image.new("RGB", (columns * (_CELL + 12) + 12, len(tasks) * (_HIGH + 12) + 12), "white")
    for row, task in enumerate(tasks):
        rows = list(documents(task, split, (skip + columns) * 7, scenery))[skip * 7 :: 7][:columns]
        for column, document in enumerate(rows):
            page.paste(cell_of(task, document), (12 + column * (_CELL + 12), 12 + row * (_HIGH + 12)))
    try:
        page.save(path, format="PNG")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "does its folder exist?") from error


def cell_of(task: str, document: Document) -> Image.Image:
    """A cell of the sheet: the picture with its true boxes, what is asked and the answer, and what the model sees."""
    sample = sample_of(document)
    picture = drawn(document["picture"])
    marked = picture.copy()
    boxes = sample.boxes or ((sample.box,) if sample.box is not None else ())
    for box in boxes:
        ImageDraw.Draw(marked).rectangle(box.xyxy, outline=(255, 0, 255), width=max(4, max(picture.size) // 100))
    marked.thumbnail((_CELL, _CELL))
    cell = Image.new("RGB", (_CELL, _HIGH), _BACK)
    cell.paste(marked, ((_CELL - marked.width) // 2, (_CELL - marked.height) // 2))
    words = textwrap.wrap(f"{task}: {sample.question}", 44)[:3]
    answer = f"-> {sample.answers[0] if sample.answers else 'the box'}"
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(13)
    pen.multiline_text((4, _CELL + 2), "\n".join([*words, answer]), fill="black", spacing=2, font=font)
    crops = [picture.crop(tight(box, picture.size)) for box in boxes]
    captions = ("what the model sees", "what it sees of the box") if len(crops) < 2 else ("it sees", "look 1", "look 2")
    pitch = 2 * _SEEN + 36 if len(crops) < 2 else (_CELL - 4) // 3
    side = min(2 * _SEEN, pitch - 4)
    for place, (caption, image) in enumerate(zip(captions, (picture, *crops), strict=False)):
        left = 4 + place * pitch
        pen.text((left, _CELL + _TEXT), caption, fill=(96, 96, 96), font=ImageFont.load_default(11))
        cell.paste(_seen(image).resize((side, side), Image.Resampling.NEAREST), (left, _CELL + _TEXT + _CAPTION))
    return cell


def _seen(picture: Image.Image) -> Image.Image:
    """The picture on a grey square, at the model's 64 pixels."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((_SEEN, _SEEN), Image.Resampling.BILINEAR)
